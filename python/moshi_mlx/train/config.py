"""A training configuration: one YAML file with the script, the voices, the codec, the model's shape, the schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import ConfigError

T = TypeVar("T")

DEFAULT_WEIGHTS = {
    "text": 2.0, "text_padding": 0.3, "semantic": 10.0, "acoustic": 1.0, "silence": 0.3, "heard": 0.5, "asked": 0.5,
    "onset": 1.0,
}  # fmt: skip
"""Of the language model's losses, by name."""


@dataclass(frozen=True)
class DataConfig:
    """What is rendered. Voices are `engine:name`; in the file `engine:name: 3` makes one three times as frequent.

    Attributes:
        voice: Moshi's.
        voices: users to train on.
        held_out_voices: users kept for evaluation.
        renderings: of each wording line of an intent.
        follow_up_renderings: of each wording line of a follow-up, and of each backchannel.
        out_of_domain_renderings: of each wording line of the out-of-domain questions.
        rates: how fast Moshi gives an answer, by its text, where not at 1: slower what would be misheard.
        recodings: how often what users say in training is encoded where a corpus is recoded: as it is, then with what
            the convolutions made of it perturbed, as other voices and microphones would. A tenth of rendering's cost.
        perturbed: how much, as a share of each channel's spread for noise and of 1 for its gain, at most.
        versions: of what an engine has said, by engine: how often it is disturbed, each time in another way; 1 where
            none is said. For engines that take their time.
        openers: share of the questions' renderings with one of the script's openers before, and the share with one of
            its closers behind.
        pauses: share of the renderings with a pause inside.
        noisy: share of the renderings with noise.
        rooms: share of the renderings in a room.
        microphones: share of the renderings through a microphone with a colour of its own.
        throats: share of the renderings from a throat of another length.
        backgrounds: stretches of silence and noise, 20 s each.
        judge: package with faster-whisper weights for word times; none estimates them from the letters.
        text_card: size of the text vocabulary.
        shard: utterances in one file of the corpus.
        features: keep what the codec's convolutions make of the sounds, for teaching the semantic codebook: half a
            gigabyte for 15 hours with nano's codec.
    """

    voice: str
    voices: tuple[str, ...]
    held_out_voices: tuple[str, ...]
    renderings: int = 10
    follow_up_renderings: int = 24
    out_of_domain_renderings: int = 24
    rates: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    recodings: int = 1
    perturbed: float = 0.2
    openers: float = 0.12
    pauses: float = 0.12
    noisy: float = 0.35
    rooms: float = 0.2
    microphones: float = 0.0
    throats: float = 0.0
    backgrounds: int = 40
    judge: str | None = None
    text_card: int = 1024
    shard: int = 256
    features: bool = False


@dataclass(frozen=True)
class MixConfig:
    """How utterances become conversations; times in frames of 80 ms, ranges inclusive.

    Attributes:
        frames: length of a conversation.
        window: length of the part of it that a training step sees; half of them start with the conversation, the
            others where a later question does.
        answer_gap: from the end of a question to Moshi's answer.
        late_answers: share of the answers that come later than that. Not the waiting is to be learned, but that a model
            that missed the moment, or was not sure that the question had ended, begins as soon as it is.
        late_gap: from the end of a question to such an answer.
        stop_gap: from the start of an interruption to Moshi's silence.
        turn_gap: from the end of an answer to the next question; half of them are in the range's first eighth.
        interruptions: share of answers of more than a second that the user interrupts.
        late_stops: share of the interruptions in which Moshi falls silent later than it should, which it learns to do
            nevertheless.
        overruns: share of the answers after which Moshi goes on with sounds of another one, without its words. Not that
            is to be learned, but that it falls silent then.
        slips: share of answers in whose place Moshi gives some other one. How it came to that is not to be learned, but
            that it then says what it has begun, and no more.
        backchannels: share of the other answers of a second or more during which the user says "mm-hm".
        follow_ups: share of turns that refer to the turn before, where one can.
        out_of_domain: share of turns out of domain.
        echoes: share of conversations in which the microphone hears Moshi.
        wrong_codes: share of the user's codes replaced by random ones.
        near_codes: share of the user's semantic codes replaced by one of their four neighbours in the codebook, as
            another voice would have had it.
        masked: share of the user's frames that the model doesn't hear in training, one or two at a time: it learns to
            make out words from what is around.
        fewer_codebooks: share of the conversations in which it hears only the first few of the user's codebooks in
            training: it learns not to rely on the finest ones.
        pauses: share of what users say that gets a pause between two words, beside what was rendered with one:
            where the second one is thought to begin, which may cut a word.
        stretch: range of rates at which the user's renderings are replayed, frames dropped or doubled.
        user_codebooks: codebooks of the user that the model hears; the rest is -1.
    """

    frames: int = 250
    window: int = 250
    answer_gap: tuple[int, int] = (2, 3)
    late_answers: float = 0.0
    late_gap: tuple[int, int] = (6, 16)
    stop_gap: tuple[int, int] = (3, 4)
    turn_gap: tuple[int, int] = (2, 40)
    interruptions: float = 0.15
    late_stops: float = 0.0
    overruns: float = 0.0
    slips: float = 0.0
    backchannels: float = 0.15
    follow_ups: float = 0.2
    out_of_domain: float = 0.08
    echoes: float = 0.15
    wrong_codes: float = 0.06
    near_codes: float = 0.0
    masked: float = 0.0
    fewer_codebooks: float = 0.0
    pauses: float = 0.0
    stretch: tuple[float, float] = (1.0, 1.0)
    user_codebooks: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """The optimization of the language model.

    Attributes:
        steps: in all.
        batch: conversations per step.
        rate: peak learning rate, after `warmup` steps, or a tenth of all where that is sooner, then a cosine down to
            `final_rate` of it.
        decay: weight decay.
        clip: largest gradient norm.
        ema: decay of the averaged weights that are evaluated and exported.
        depth_frames: frames per step on which the depth transformer is trained, at most.
        silent_share: share of those taken from Moshi's silence.
        weights: of the losses, by name, in place of `DEFAULT_WEIGHTS`.
        drills: share of the steps of a run's first three quarters that are drills, falling to none at its end: single
            questions up to the answer's first words, of its sound the onset alone. They teach listening at a fraction
            of a conversation's cost.
        drill_batch: questions in a drill.
        exchanges: share of the drills that are of two turns, the second most often about the first; two fifths as many
            of those make a drill.
        heads: steps at the beginning of a run that starts from other weights in which the auxiliary heads alone learn,
            a quarter of all at most. They know nothing yet; what they'd ask for would take from these weights what they
            know. None where the weights' folder has the heads of the run that made them.
        sharpness: what the exported model's output layers are multiplied by. The default temperatures were chosen for
            models of billions of parameters; a small one is surer of its answers when they act as lower ones. Weights
            that a run starts from are taken to be as sharp.
        evaluate: steps between evaluations.
        save: steps between checkpoints.
        seed: of everything random.
    """

    steps: int = 3000
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 100
    final_rate: float = 0.02
    decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.998
    depth_frames: int = 384
    silent_share: float = 0.15
    weights: Mapping[str, float] = field(default_factory=dict)
    drills: float = 0.0
    drill_batch: int = 24
    exchanges: float = 0.0
    heads: int = 300
    sharpness: float = 1.0
    evaluate: int = 250
    save: int = 100
    seed: int = 0


@dataclass(frozen=True)
class CodecConfig:
    """The training of the codec from sound.

    Attributes:
        parts: `decoder`, which leaves the codes as they are, or `all`; `semantic` and `hearing` have settings of their
            own.
        steps: in all.
        batch: crops per step.
        own: share of them in Moshi's voice.
        frames: length of a crop, in frames of 80 ms.
        rate: learning rate at the beginning of its cosine.
        save: steps between checkpoints.
    """

    parts: Literal["decoder", "all", "semantic", "hearing"] = "decoder"
    steps: int = 1000
    batch: int = 8
    own: float = 0.5
    frames: int = 12
    rate: float = 2e-4
    save: int = 50


@dataclass(frozen=True)
class SemanticConfig:
    """The teaching of the codec's semantic codebook from the corpus' features.

    Attributes:
        steps: in all.
        batch: utterances per step, an eighth of them in Moshi's voice.
        frames: the longest utterance that is used, in frames of 80 ms.
        stream: length of the streams that the utterances are put into one after the other, in frames.
        context: how far back the codec's transformers look from now on, in steps of 40 ms; 0 leaves that as it is.
        layers: of the codec's transformers from now on; 0 adds none.
        own: how much Moshi's voice counts, all others the rest, where the acoustic codebooks are fitted at the end; 0
            leaves them as they are. Afterwards the decoder must learn them (`--parts decoder`).
        keep: leave the codebooks as they are: what the decoder makes of codes, and what a language model says with
            them, stays valid. What users say gets other codes, Moshi's answers keep theirs where the corpus is recoded.
        listening: steps at the start in which the teachers alone learn.
        rate: learning rate at the beginning of its cosine.
        save: steps between checkpoints.
    """

    steps: int = 2200
    batch: int = 48
    frames: int = 48
    stream: int = 125
    context: int = 0
    layers: int = 0
    own: float = 0.9
    keep: bool = False
    listening: int = 0
    rate: float = 1.5e-3
    save: int = 200


@dataclass(frozen=True)
class HearingConfig:
    """Further codebooks for what users say (`--parts hearing`).

    Attributes:
        codebooks: how many.
        width: dimensions by which codewords grow.
        frames: of users' speech that they are fitted to.
    """

    codebooks: int = 6
    width: int = 32
    frames: int = 60000


@dataclass(frozen=True)
class Config:
    """Everything a training run needs; relative paths are the configuration file's neighbours.

    Attributes:
        script: what is talked about.
        codec: folder of the codec.
        work: where the corpus and the checkpoints go.
        model: keys of the language model's `config.json`.
    """

    script: Path
    codec: Path
    work: Path
    data: DataConfig
    mix: MixConfig
    train: TrainConfig
    codec_training: CodecConfig
    semantic_training: SemanticConfig
    hearing: HearingConfig
    model: Mapping[str, Any]

    @property
    def codebooks(self) -> int:
        """The codec's codebooks that are used: as many as Moshi speaks with, or the model has for the user."""
        spoken, all_streams = int(self.model["dep_q"]), int(self.model["n_q"])
        return max(spoken, all_streams - spoken, self.mix.user_codebooks)

    @classmethod
    def load(cls, path: str | Path, work: str | Path | None = None, codec: str | Path | None = None) -> Config:
        """Read a configuration file; `work` and `codec` stand in for the configured folders.

        Raises:
            ConfigError: unreadable, or a key is missing, unknown, or of a value that it can't have.
        """
        import yaml

        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} can't be read as YAML: {error}") from error
        try:
            _refuse_unknown(content, [one.name for one in fields(cls)])
            model = content["model"]
            if not isinstance(model, Mapping) or not all(isinstance(model.get(key), int) for key in ("n_q", "dep_q")):
                raise TypeError("'model' has no whole numbers as 'n_q' and 'dep_q'")
            config = cls(
                script=path.parent / content["script"],
                codec=Path(codec) if codec else path.parent / content["codec"],
                work=Path(work) if work else path.parent / content["work"],
                data=_section(DataConfig, content["data"]),
                mix=_section(MixConfig, content.get("mix") or {}),
                train=_section(TrainConfig, content.get("train") or {}),
                codec_training=_section(CodecConfig, content.get("codec_training") or {}),
                semantic_training=_section(SemanticConfig, content.get("semantic_training") or {}),
                hearing=_section(HearingConfig, content.get("hearing") or {}),
                model=model,
            )
            _refuse_unknown(config.train.weights, DEFAULT_WEIGHTS)
            return config
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}: {error}. See moshi_mlx/nano/train.yaml for a configuration.") from error


_COUNTS = ("steps", "batch", "drill_batch", "save", "evaluate", "shard", "text_card", "recodings")
"""Settings of which there is at least one."""


def _section(kind: type[T], values: Mapping[str, Any]) -> T:
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r} stands where names and their values should")
    types = get_type_hints(kind)
    _refuse_unknown(values, types)
    values = {key: _listed(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in values.items():
        _check(key, value, types[key])
    return kind(**values)


def _refuse_unknown(names: Collection[str], known: Collection[str]) -> None:
    if unknown := set(names) - set(known):
        raise KeyError(f"unknown {', '.join(sorted(unknown))} (known: {', '.join(sorted(known))})")


def _check(key: str, value: Any, kind: Any) -> None:
    """Raise TypeError where a value is not of the kind that a field holds."""
    parts, said = get_args(kind), f"'{key}: {value}' is"
    if kind in (int, float) and not isinstance(value, (int, float)):
        raise TypeError(f"{said} no number (YAML takes 1e-3 for a text, 1.0e-3 for a number)")
    if key in _COUNTS and value < 1:
        raise TypeError(f"{said} less than one")
    if kind is str and not isinstance(value, str):
        raise TypeError(f"{said} no text")
    if get_origin(kind) is Literal and value not in parts:
        raise TypeError(f"{said} none of {', '.join(parts)}")
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise TypeError(f"{said} no table of names and numbers")
        for name, one in value.items():
            _check(name, one, parts[1])
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not (len(value) == len(parts) or (... in parts and value)):
            raise TypeError(f"{said} no list of {'one or more' if ... in parts else len(parts)}")
        for one in value:
            _check(key, one, parts[0])


def _listed(values: list[Any]) -> tuple[Any, ...]:
    """A list's items; `name: 3` among them is three times `name`."""
    counts = [value if isinstance(value, dict) else {value: 1} for value in values]
    return tuple(one for count in counts for value, times in count.items() for one in [value] * times)
