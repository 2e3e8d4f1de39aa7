"""Teaching the semantic codebook what is said: `python -m moshi_mlx.train codec CONFIG --parts semantic`.

The codec's convolutions stay; their output is kept beside the corpus. The encoder's transformer, the convolution to
12.5 Hz and the semantic codebook learn from teachers that see nothing but codewords: a small causal transformer tells
the phones spoken, whoever speaks them (connectionist temporal classification, Graves et al. 2006), and what was asked;
besides, each codeword by itself tells which phones it stands for. As with supervised semantic tokens (CosyVoice, Du et
al. 2024, section 3.1), a voice never heard then gets the codes of the known ones. What the acoustic codebooks get is
held near where it was; at the end they are fitted to what they now get, most of all of Moshi's voice, the only one that
is ever decoded. Where codebooks are to be kept, the encoder alone learns, and what the decoder makes of codes stays.
From a language model, what it understands best, the encoder learns in `moshi_mlx.train.joint`.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import FRAME_RATE, MimiConfig
from ..fast_math import cross_entropy
from ..mimi.conv import Conv
from ..mimi.quantizer import codebook
from ..mimi.transformer import Transformer
from .codec import TEACHER, CodecRun, Tensors
from .codewords import look_up
from .config import Config
from .corpus import Utterance, convolutions_of, read_features, read_shard, shards_with_features
from .loss import Arrays
from .script import OUT_OF_DOMAIN, normalize
from .voices import SynthesisError

_LEARNS = ("encoder_transformer.", "downsample.", "quantizer.rvq_first.")
_FIRST = "quantizer.rvq_first"
_REST = "quantizer.rvq_rest"
_BOOK = f"{_FIRST}.vq.layers.0._codebook"
SLOTS = 2
"""Phones that a frame can stand for: at 12.5 frames a second there is more than one in many."""
_AFTER_END = 3
"""Frames from a question's end on in which the teacher says what was asked."""
_LENGTHS = (0.5, 0.75, 1.0)
"""Of the longest lessons, those up to which lessons are taken together: a compiled step needs few shapes."""
_APART = 4
"""Frames between two lessons that a stream has room for."""
_UNUSED = 0.02
"""Running mean of the uses a step below which a codeword stands for nothing."""
_TEACHER_LAYERS = 2
_TEACHER_BRANCHES = 0.5
"""What the branches of the teachers' layers count at first."""
_GAPS = ((2, 8), (10, 40))
"""Frames between two lessons of a stream: as between two sentences, or while Moshi speaks."""
_ROUNDS = 12
"""Of moving codewords to the middle of what finds them."""
_OTHERS = 400
"""Lessons of other voices that acoustic codebooks are fitted to."""
_LATE = 2
"""Slots after a phone's start in which it is to be known."""


def ctc(logits: mx.array, labels: mx.array, lengths: mx.array) -> mx.array:
    """Connectionist temporal classification: -log of the probability of each row's labels, float32 [B].

    The forward variables are kept as shares of each step's sum: no underflow, and no logarithm a step.

    Args:
        logits: [B, T, 1 + labels], class 0 the blank.
        labels: int32 [B, L], padded with 0.
        lengths: int32 [B], of the labels; T must be at least as many, and one more for every repetition.
    """
    B, L = labels.shape
    classes = logits.shape[-1]
    states = mx.stack([mx.zeros_like(labels), labels], axis=2).reshape(B, 2 * L)
    states = mx.concatenate([states, mx.zeros((B, 1), mx.int32)], axis=1)
    one_hot = (states[:, :, None] == mx.arange(classes)).astype(mx.float32)
    emitted = mx.softmax(logits, axis=-1) @ one_hot.swapaxes(1, 2)
    before = mx.pad(states[:, :-2], [(0, 0), (2, 0)], constant_values=0)
    skips = ((states != 0) & (states != before)).astype(mx.float32)
    start = mx.array([[1.0, 1.0] + [0.0] * (2 * L - 1)])
    place = mx.arange(2 * L + 1)
    last = ((place == 2 * lengths[:, None]) | (place == 2 * lengths[:, None] - 1)).astype(mx.float32)
    tiny = 1e-30
    steps = [e.squeeze(1) for e in mx.split(emitted, emitted.shape[1], axis=1)]
    shares, sums = start * steps[0], []
    for i, step in enumerate(steps):
        if i:
            one = mx.pad(shares[:, :-1], [(0, 0), (1, 0)])
            two = mx.pad(shares[:, :-2], [(0, 0), (2, 0)])
            shares = (shares + one + skips * two) * step
        total = shares.sum(axis=1, keepdims=True) + tiny
        shares = shares / total
        sums.append(total)
    ends = (shares * last).sum(axis=1) + tiny
    return -(mx.log(mx.concatenate(sums, axis=1)).sum(axis=1) + mx.log(ends))


def phones_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Phones of each word as espeak-ng's American English has them, stress left out.

    Raises:
        SynthesisError: espeak-ng isn't installed or failed.
    """

    def speak(word: str) -> list[str]:
        command = ["espeak-ng", "-q", "-x", "--sep= ", "-v", "en-us", "--", word]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        except FileNotFoundError as error:
            raise SynthesisError("espeak-ng isn't installed; it says which phones a word has.") from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise SynthesisError(f"espeak-ng failed on {word!r}: {error}") from error
        return [p for p in (phone.strip("',_:;!") for phone in done.stdout.split()) if p]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(words, pool.map(speak, words), strict=True))


@dataclass(frozen=True)
class Lesson:
    """One utterance: what the convolutions made of it, and what is in it.

    Attributes:
        convolved: float16 [2 F, C], the convolutions' output at 25 Hz.
        latents: float16 [F, C], what the quantizer got from the codec as it was.
        phones: numbers from 1 on.
        times: when each phone starts, about, and when the last one ends, in frames.
        asked: number of what was asked, 0 for nothing that calls for an answer.
        end: the frame after the one in which speech ends.
        own: whether it is Moshi's voice.
    """

    convolved: np.ndarray
    latents: np.ndarray
    phones: tuple[int, ...]
    times: np.ndarray
    asked: int
    end: int
    own: bool


@dataclass(frozen=True)
class Encoding:
    """What teaching needs of a pass through encoder and semantic codebook.

    Attributes:
        semantic: what was looked up, [B, F, width].
        words: the codewords found, gradients passed straight through, [B, F, width].
        codes: their numbers, int32 [B, F].
        rest: what the acoustic codebooks get, [B, F, width].
    """

    semantic: mx.array
    words: mx.array
    codes: mx.array
    rest: mx.array


@dataclass(frozen=True)
class Heard:
    """What the teachers make of codewords, as logits.

    Attributes:
        spoken: of phones, by each codeword alone, [B, SLOTS F, 1 + phones].
        phones: the same, knowing what came before.
        asked: of questions, [B, F, 1 + questions].
    """

    spoken: mx.array
    phones: mx.array
    asked: mx.array


def encode(tensors: Tensors, config: MimiConfig, convolved: mx.array) -> Encoding:
    """From the convolutions' output [B, 2 F, C], from a stream's start on, to codewords."""
    B, steps, _ = convolved.shape
    transformer = Transformer(tensors, "encoder_transformer", config)
    state = transformer.state(B, steps)
    # From a stream's start on, there is nothing before the pass to make room for.
    state["rings"] = [ring[:, :, :steps] for ring in state["rings"]]
    x, _ = transformer(convolved, state)
    downsample = Conv(tensors["downsample.conv.conv.conv.weight"], None, rows=steps // 2, stride=2)
    x, _ = downsample(x, mx.broadcast_to(x[:, :1], downsample.state(B).shape))
    semantic = x @ tensors[f"{_FIRST}.input_proj.weight"][:, :, 0].T
    rest = x @ tensors[f"{_REST}.input_proj.weight"][:, :, 0].T
    codes, found = look_up(codebook(tensors, "rvq_first", 0), semantic)
    words = semantic + mx.stop_gradient(found - semantic)
    return Encoding(semantic, words, codes, rest)


def picked(coded: Encoding, places: mx.array) -> Encoding:
    """The frames at `places` [B, F] of what was encoded."""

    def pick(x: mx.array) -> mx.array:
        return x.reshape(-1, *x.shape[2:])[places]

    return Encoding(pick(coded.semantic), pick(coded.words), pick(coded.codes), pick(coded.rest))


def fit_codebooks(
    latents: np.ndarray, weights: np.ndarray, books: Sequence[np.ndarray], draws: np.random.Generator
) -> list[np.ndarray]:
    """Codebooks of which each holds what the ones before it left, by k-means.

    Args:
        latents: float32 [N, width].
        weights: how much each counts, [N].
        books: what the codebooks start as, float32 [bins, width] each: entries go on to mean about what they did.
        draws: which latents take the places of entries that none is nearest to.

    Returns:
        Of each the entries, float32 [bins, width].
    """
    rest, fitted = latents.astype(np.float32), []
    for before in books:
        book = before.astype(np.float32)
        for turn in range(_ROUNDS):
            codes = nearest(rest, book)
            counts = np.bincount(codes, weights, minlength=len(book))
            sums = np.zeros_like(book)
            np.add.at(sums, codes, rest * weights[:, None].astype(np.float32))
            used = counts > 0
            book[used] = sums[used] / counts[used, None].astype(np.float32)
            if turn < _ROUNDS // 2:
                book[~used] = rest[draws.choice(len(rest), int((~used).sum()), p=weights / weights.sum())]
        rest = remainder(rest, [book])
        fitted.append(book)
    return fitted


def fit_to_voices(
    own: np.ndarray,
    heard: np.ndarray,
    share: float,
    books: Sequence[np.ndarray],
    speaking: int,
    sounds: np.ndarray,
    draws: np.random.Generator,
) -> list[np.ndarray]:
    """Acoustic codebooks: those that Moshi speaks with mostly for its own voice, the others for what users say.

    Args:
        own: latents of Moshi's voice, float32 [N, width].
        heard: of users, [M, width].
        share: how much Moshi's voice counts where it speaks.
        books: what the codebooks start as, [bins, width] each.
        speaking: how many of them Moshi speaks with.
        sounds: the dimensions that the decoder gets, bool [width]: no others matter to those.
        draws: as for `fit_codebooks`.

    Returns:
        Of each the entries, float32 [bins, width].
    """
    weights = np.concatenate([np.full(len(x), part / len(x)) for x, part in ((own, share), (heard, 1 - share))])
    both = np.concatenate([own, heard]) * sounds
    fitted = fit_codebooks(both, weights, [book * sounds for book in books[:speaking]], draws)
    return fitted + fit_codebooks(remainder(heard, fitted), np.ones(len(heard)), books[speaking:], draws)


def remainder(latents: np.ndarray, books: Sequence[np.ndarray]) -> np.ndarray:
    """What codebooks [bins, width], one after the other, leave of `latents` [N, width]."""
    for book in books:
        latents = latents - book[nearest(latents, book)]
    return latents


def nearest(latents: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Numbers of the codewords [bins, width] that are nearest to each of `latents` [N, width], int [N]."""
    return np.asarray((latents @ book.T - 0.5 * (book**2).sum(axis=1)).argmax(axis=1))


@dataclass(frozen=True)
class Batch(Arrays):
    """Lessons of like lengths, padded, somewhere in streams.

    Attributes:
        streams: what the convolutions made of the streams, [S, 2 T, C].
        places: of each lesson's frames among all S T of the streams, int32 [B, F].
        spoken: the phone of each slot, int32 [B, SLOTS F].
        real: 1 for a lesson's frames, 0 for those behind it, [B, F].
        plain: 1 for lessons of which teachers get what was looked up instead of codewords, [B].
        guided: how much it counts that phones are found at their supposed times, [1].

    All others as in `Lesson`.
    """

    streams: mx.array
    places: mx.array
    latents: mx.array
    phones: mx.array
    lengths: mx.array
    spoken: mx.array
    asked: mx.array
    ends: mx.array
    own: mx.array
    real: mx.array
    plain: mx.array
    guided: mx.array


@dataclass(frozen=True)
class Kind:
    """Lessons of like lengths.

    Attributes:
        frames: the most that one has.
        phones: the most that one has.
        lessons: those to learn from.
    """

    frames: int
    phones: int
    lessons: Sequence[Lesson]


def _draw(*shape: int) -> mx.array:
    return mx.random.normal(shape, scale=shape[-1] ** -0.5)


def _layer(name: str, shape: MimiConfig, branches: float) -> Tensors:
    """Random weights of a transformer's layer whose branches count as much as said."""
    width, inner = shape.dimension, shape.dim_feedforward
    layer = {
        f"{name}.self_attn.in_proj_weight": _draw(3 * width, width),
        f"{name}.self_attn.out_proj.weight": branches * _draw(width, width),
        f"{name}.linear1.weight": _draw(inner, width),
        f"{name}.linear2.weight": branches * _draw(width, inner),
    }
    for k in (1, 2):
        layer[f"{name}.norm{k}.weight"] = mx.ones((width,))
        layer[f"{name}.norm{k}.bias"] = mx.zeros((width,))
        layer[f"{name}.layer_scale_{k}.scale"] = mx.ones((width,))
    return layer


class SemanticTrainer(CodecRun[Batch, tuple[mx.array, mx.array]]):
    """One run of teaching the semantic codebook.

    Args:
        config: the run.

    Raises:
        CheckpointError: no codec there.
        ConfigError: no corpus, or one without the convolutions' output.
        SynthesisError: no espeak-ng.
    """

    compiles = True

    def __init__(self, config: Config):
        super().__init__(config, config.semantic_training, "semantic", Batch, later=config.semantic_training.listening)
        # Copies: a compiled step may refer to nothing beside its inputs that is one of them, or still to be computed.
        self.start = {name: mx.array(tensor) for name, tensor in {**self.fixed, **self.free}.items()}
        mx.eval(self.start)
        mx.random.seed(config.train.seed)
        self._deepen(config.semantic_training.layers or self.shape.num_layers)
        self.shape = replace(self.shape, context=config.semantic_training.context or self.shape.context)
        shards, convolutions = shards_with_features(config.work), convolutions_of(config.codec)
        utterances = [u for path, _ in shards for u in read_shard(path)]
        features = [f for _, path in shards for f in read_features(path, convolutions)]
        self._answers = [u for u in utterances if u.group == "answers"]
        words = sorted({w for u in utterances for w in normalize(u.text).split()})
        phones = phones_of(words)
        self.alphabet = {p: i for i, p in enumerate(sorted({p for ps in phones.values() for p in ps}), 1)}
        groups = ("intents", "follow_ups", "backchannels", OUT_OF_DOMAIN)
        kinds = sorted({(u.group, u.name) for u in utterances if u.group in groups})
        self.kinds = {kind: i for i, kind in enumerate(kinds, 1)}
        self.lessons: dict[str, list[Lesson]] = {"train": [], "known": [], "held_out": [], "own": []}
        self.backgrounds: list[np.ndarray] = []
        limit = self.settings.frames
        for u, (convolved, latents) in zip(utterances, features, strict=True):
            frames = u.codes.shape[1]
            if u.group == "echoes" or (u.group != "backgrounds" and frames > limit):
                continue
            if u.group == "backgrounds":
                self.backgrounds.append(convolved)
            said, times = self._timed(u, phones)
            asked = self.kinds.get((u.group, u.name), 0)
            own = u.group == "answers"
            convolved, latents = convolved[: 2 * limit], latents[:limit]
            lesson = Lesson(convolved, latents, said, times, asked, min(u.end_frame, limit), own)
            if len(said) < SLOTS * len(latents):
                self.lessons["own" if own else u.split].append(lesson)
        sample = np.concatenate([x.convolved for x in self.lessons["train"][::17]]).astype(np.float32)
        self.spread = sample.std(axis=0)
        self.kinds_of_length = list(self._by_length())
        self.free.update(self._teachers())
        self.optimizer.init(self.free)

    def _by_length(self) -> Iterator[Kind]:
        shorter = 0
        for share in _LENGTHS:
            frames = round(share * self.settings.frames)
            fitting = [x for x in self.lessons["train"] if shorter < len(x.latents) <= frames]
            shorter = frames
            own = [x for x in self.lessons["own"] if len(x.latents) <= frames]
            if fitting:
                yield Kind(frames, max(len(x.phones) for x in fitting + own), fitting)

    def _timed(self, utterance: Utterance, phones: Mapping[str, list[str]]) -> tuple[tuple[int, ...], np.ndarray]:
        """The phones of an utterance, and about when each starts: a word's spread over its time."""
        said: list[int] = []
        times: list[float] = []
        starts = [start for _, start in utterance.words]
        for (text, start), end in zip(utterance.words, [*starts[1:], utterance.end], strict=False):
            here = [self.alphabet[p] for w in normalize(text).split() for p in phones[w]]
            times += [start + (end - start) * i / len(here) for i in range(len(here))]
            said += here
        return tuple(said), np.array([*times, utterance.end]) * FRAME_RATE

    def learns(self, name: str) -> bool:
        """Whether a tensor of the codec is trained."""
        kept = self.config.semantic_training.keep and name.startswith(f"{_FIRST}.output_proj.")
        return name.startswith(_LEARNS) and not kept

    def _teachers(self) -> Tensors:
        """Random weights of what judges the codes; not part of the codec."""
        width = self.shape.dimension
        teachers = {
            f"{TEACHER}.spoken": _draw(SLOTS * (1 + len(self.alphabet)), self.shape.codebook_dim),
            f"{TEACHER}.phones": _draw(SLOTS * (1 + len(self.alphabet)), width),
            f"{TEACHER}.input": _draw(width, self.shape.codebook_dim),
            f"{TEACHER}.asked": _draw(1 + len(self.kinds), width),
            f"{TEACHER}.norm": mx.ones((width,)),
        }
        for i in range(_TEACHER_LAYERS):
            teachers |= _layer(f"{TEACHER}.transformer.layers.{i}", self.shape, _TEACHER_BRANCHES)
        return teachers

    def _deepen(self, layers: int) -> None:
        """Add the layers that the codec's transformers lack; they change nothing before they are trained.

        The scales of the encoder's layers, small ones, become part of their weights: there they move faster.
        """
        heard = self.shape.layers_of("encoder_transformer")
        for i in range(heard):
            layer = f"encoder_transformer.transformer.layers.{i}"
            for k, last in enumerate(("self_attn.out_proj", "linear2"), 1):
                scale = self.free[f"{layer}.layer_scale_{k}.scale"]
                weight = f"{layer}.{last}.weight"
                self.free[weight] = self.free[weight] * scale[:, None]
                self.free[f"{layer}.layer_scale_{k}.scale"] = mx.ones_like(scale)
        for i in range(heard, layers):
            self.free |= _layer(f"encoder_transformer.transformer.layers.{i}", self.shape, 0.0)
        for i in range(self.shape.num_layers, layers):
            self.fixed |= _layer(f"decoder_transformer.transformer.layers.{i}", self.shape, 0.0)
        self.shape = replace(self.shape, num_layers=max(layers, self.shape.num_layers))
        if self.shape.encoder_layers is not None:
            self.shape = replace(self.shape, encoder_layers=max(layers, heard))

    # Batches.

    def batch(self, step: int) -> Batch:
        """The lessons of a step, always the same: of like lengths, an eighth of them in Moshi's voice."""
        size = self.settings.batch
        rank = self.processes.rank
        rng = random.Random(f"{self.config.train.seed}/{step}")
        # All processes take lessons of one kind: none waits for another's longer ones.
        (kind,) = rng.choices(self.kinds_of_length, [len(kind.lessons) for kind in self.kinds_of_length])
        rng = random.Random(f"{self.config.train.seed}/{step}/{rank}")
        draws = np.random.default_rng([self.config.train.seed, step, rank])
        own = [self._crop(rng.choice(self.lessons["own"]), kind.frames, draws) for _ in range(max(1, size // 8))]
        varied = [self._vary(rng.choice(kind.lessons), kind.frames, draws) for _ in range(size - len(own))]
        # Phones at their supposed times show the way; later on, their order counts more.
        guided = max(0.3, 1 - 3 * step / self.settings.steps)
        return self._stack(own, varied, draws, kind.frames, kind.phones, guided)

    def _vary(self, lesson: Lesson, most: int, draws: np.random.Generator) -> Lesson:
        """Slower or faster, in another voice's average spectrum, with noise; the frames' number stays even at 25 Hz."""
        frames = len(lesson.latents)
        longer = min(max(round(frames * draws.uniform(0.9, 1.15)), 1), most)
        if len(lesson.phones) >= SLOTS * longer:
            longer = frames
        chosen = np.minimum((np.arange(2 * longer) * (frames / longer)).astype(int), 2 * frames - 1)
        x = lesson.convolved[chosen].astype(np.float32)
        x += self.spread * draws.normal(0, draws.uniform(0, 0.15), x.shape[1])
        x += self.spread * draws.normal(0, draws.uniform(0, 0.2), x.shape)
        latents = lesson.latents[np.minimum((np.arange(longer) * (frames / longer)).astype(int), frames - 1)]
        end = round(lesson.end * longer / frames)
        times = lesson.times * (longer / frames)
        return replace(lesson, convolved=x.astype(np.float16), latents=latents, times=times, end=end)

    def _crop(self, lesson: Lesson, most: int, draws: np.random.Generator) -> Lesson:
        """All of an answer, or of one of more frames than `most` a part, without its phones.

        Only a part that starts with the answer shows what the codec made of it, which knew what came before.
        """
        if len(lesson.latents) <= most:
            return lesson
        start = int(draws.integers(0, len(lesson.latents) - most + 1)) if draws.random() < 0.5 else 0
        end = start + most
        convolved, latents = lesson.convolved[2 * start : 2 * end], lesson.latents[start:end]
        return Lesson(convolved, latents, (), np.zeros(1), 0, most, own=start == 0)

    def _stack(
        self,
        opening: Sequence[Lesson],
        lessons: Sequence[Lesson],
        draws: np.random.Generator,
        frames: int = 0,
        phones: int = 0,
        guided: float = 1.0,
    ) -> Batch:
        """Put lessons into streams, those `opening` one each at its start; padded to as many `frames` and `phones`."""
        both = [*opening, *lessons]
        frames = max(frames, *(len(x.latents) for x in both))
        count = max(len(opening), -(-len(both) // max(1, self._stream // (frames + _APART))))
        streams = [self._background(draws) for _ in range(count)]
        starts = [0] * len(both)
        for k, stream in enumerate(streams):
            here = range(k, len(both), count)
            gaps = [int(draws.integers(*_GAPS[int(draws.random() < 0.25)])) for _ in here]
            # What a stream starts with has nothing before it, or a silence.
            gaps[0] = 0 if k < len(opening) or draws.random() < 0.4 else gaps[0]
            room = self._stream - sum(len(both[i].latents) for i in here)
            position = 0
            for gap, i in zip(gaps, here, strict=True):
                start = position + min(gap, room)
                room -= start - position
                position = start + len(both[i].latents)
                stream[2 * start : 2 * position] = both[i].convolved
                starts[i] = k * self._stream + start
        return self._collected(both, streams, starts, (frames, phones), draws, guided)

    def _background(self, draws: np.random.Generator) -> np.ndarray:
        """What the convolutions make of a stream in which nobody speaks, [2 T, C]."""
        if not self.backgrounds:
            return np.zeros((2 * self._stream, len(self.spread)), np.float32)
        background = self.backgrounds[int(draws.integers(len(self.backgrounds)))].astype(np.float32)
        return np.resize(background, (2 * self._stream, background.shape[1]))

    def _collected(
        self,
        lessons: Sequence[Lesson],
        streams: Sequence[np.ndarray],
        starts: Sequence[int],
        shape: tuple[int, int],
        draws: np.random.Generator,
        guided: float,
    ) -> Batch:
        B, frames = len(lessons), shape[0]
        width = max(1, shape[1], *(len(x.phones) for x in lessons))
        places = np.zeros((B, frames), np.int32)
        latents = np.zeros((B, frames, lessons[0].latents.shape[1]), np.float32)
        spoken = np.zeros((B, SLOTS * frames), np.int32)
        clock = (np.arange(SLOTS * frames) - _LATE) / SLOTS
        phones, real = np.zeros((B, width), np.int32), np.zeros((B, frames), np.float32)
        for i, (lesson, start) in enumerate(zip(lessons, starts, strict=True)):
            n = len(lesson.latents)
            # What follows a lesson is its last frame, on and on.
            places[i] = start + np.minimum(np.arange(frames), n - 1)
            latents[i, :n], real[i, :n] = lesson.latents, 1
            phones[i, : len(lesson.phones)] = lesson.phones
            if lesson.phones:
                number = np.searchsorted(lesson.times, clock, side="right")
                spoken[i] = np.array([0, *lesson.phones, 0])[number]
        return Batch(
            mx.array(np.stack(streams)),
            mx.array(places),
            mx.array(latents),
            mx.array(phones),
            mx.array(np.array([len(x.phones) for x in lessons], np.int32)),
            mx.array(spoken),
            mx.array(np.array([x.asked for x in lessons], np.int32)),
            mx.array(np.array([x.end for x in lessons], np.int32)),
            mx.array(np.array([x.own for x in lessons], np.float32)),
            mx.array(real),
            # As in Mimi's training, half of the examples go on unquantized.
            mx.array((draws.random(B) < 0.5).astype(np.float32)),
            mx.array([guided]),
        )

    @property
    def _stream(self) -> int:
        return self.config.semantic_training.stream

    # The passes.

    def learning(self) -> tuple[str, ...]:
        """Names of what learns in the step to come: at first the teachers alone."""
        alone = self.step < self.config.semantic_training.listening
        return tuple(name for name in self.free if name.startswith(f"{TEACHER}.") or not alone)

    def losses(self, free: Tensors, batch: Batch) -> tuple[mx.array, tuple[mx.array, mx.array], dict[str, mx.array]]:
        """How well the teachers tell what is said from the codewords, and how far all else has moved.

        Besides what was looked up, [B, F, width], and the codes, int32 [B, F].
        """
        known = {**self.fixed, **free}
        coded = picked(encode(known, self.shape, batch.streams), batch.places)
        heard = self._heard(free, mx.where(batch.plain[:, None, None] > 0, coded.semantic, coded.words))
        real = batch.real[:, :, None]
        count = batch.real.sum()
        voiced = (batch.lengths > 0).astype(mx.float32)
        log_loss = ctc(heard.phones, batch.phones, batch.lengths)
        log_loss = log_loss / mx.maximum(batch.lengths, 1).astype(mx.float32)
        at = mx.minimum(batch.ends[:, None] + mx.arange(_AFTER_END), batch.places.shape[1] - 1)
        answers = mx.take_along_axis(heard.asked, at[:, :, None], axis=1)
        wanted = mx.broadcast_to(batch.asked[:, None], at.shape)
        called = mx.broadcast_to((batch.asked > 0).astype(mx.float32)[:, None], at.shape)
        rest, sound = self._as_it_was(batch.latents)
        weight = (0.1 + 0.9 * batch.own[:, None, None]) * real
        moved = ((coded.rest - rest) ** 2 * weight).sum() / ((rest**2 * weight).sum() + 1e-6)
        words = coded.words @ known[f"{_FIRST}.output_proj.weight"][:, :, 0].T
        own = batch.own[:, None, None] * real
        unlike = ((words - sound) ** 2 * own).sum() / ((sound**2 * own).sum() + 1e-6)
        slots = mx.repeat(batch.real, SLOTS, axis=1) * voiced[:, None]
        spoken = (cross_entropy(heard.spoken, batch.spoken) * slots).sum() / slots.sum()
        parts = {
            "spoken": spoken,
            "phones": (log_loss * voiced).sum() / voiced.sum(),
            "asked": (cross_entropy(answers, wanted) * called).sum() / mx.maximum(called.sum(), 1),
            "commitment": (((coded.semantic - mx.stop_gradient(coded.words)) ** 2) * real).sum() / count,
            "moved": moved,
            "unlike": unlike,
        }
        loss = parts["phones"] + batch.guided[0] * spoken + parts["asked"] + 2 * moved + 0.5 * unlike
        # Codewords that stay don't come to meet what is to find them.
        loss = loss + (0.25 if self.config.semantic_training.keep else 0.1) * parts["commitment"]
        return loss, (coded.semantic, coded.codes), parts

    def _heard(self, free: Tensors, words: mx.array) -> Heard:
        B, frames, _ = words.shape
        spoken = (words @ free[f"{TEACHER}.spoken"].T).reshape(B, SLOTS * frames, -1)
        transformer = Transformer(free, TEACHER, replace(self.shape, num_layers=_TEACHER_LAYERS, context=frames))
        x, _ = transformer(words @ free[f"{TEACHER}.input"].T, transformer.state(B, frames))
        x = mx.fast.rms_norm(x, free[f"{TEACHER}.norm"], 1e-5)
        phones = (x @ free[f"{TEACHER}.phones"].T).reshape(B, SLOTS * frames, -1)
        return Heard(spoken, phones, x @ free[f"{TEACHER}.asked"].T)

    def _as_it_was(self, latents: mx.array) -> tuple[mx.array, mx.array]:
        """What acoustic codebooks and decoder got from these latents before: [B, F, width] and [B, F, dimension]."""
        start = self.start
        semantic = latents @ start[f"{_FIRST}.input_proj.weight"][:, :, 0].T
        _, words = look_up(codebook(start, "rvq_first", 0), semantic)
        rest = latents @ start[f"{_REST}.input_proj.weight"][:, :, 0].T
        return rest, words @ start[f"{_FIRST}.output_proj.weight"][:, :, 0].T

    def move_codebooks(self, passed: tuple[mx.array, mx.array], batch: Batch) -> None:
        """Move the semantic codebook; a word that stands for nothing any more moves to some latent."""
        if self.config.semantic_training.keep:
            return
        semantic, codes = passed
        latents = semantic.reshape(-1, semantic.shape[-1])
        found = codes.reshape(-1, 1) == mx.arange(self.shape.bins)
        self.move_means(_BOOK, latents, found.astype(mx.float32) * batch.real.reshape(-1, 1), decay=0.98)
        total, usage = f"{_BOOK}.embedding_sum", f"{_BOOK}.cluster_usage"
        draws = np.random.default_rng([self.config.train.seed, self.step, 1])
        places = np.flatnonzero(np.array(batch.real).reshape(-1))
        fresh = self.processes.first(mx.stop_gradient(latents)[mx.array(draws.choice(places, self.shape.bins))])
        unused = self.fixed[usage] < _UNUSED
        self.fixed[usage] = mx.where(unused, 4 * _UNUSED, self.fixed[usage])
        self.fixed[total] = mx.where(unused[:, None], 4 * _UNUSED * fresh, self.fixed[total])

    def export(self, folder: Path) -> None:
        """Write the codec as a folder in the published layout, its acoustic codebooks fitted to what they now get.

        Those beside the ones that Moshi speaks with are fitted to what users say.

        Raises:
            StorageError: disk full, no permission.
        """
        share = self.config.semantic_training.own
        if share and not self.config.semantic_training.keep:
            draws = np.random.default_rng([self.config.train.seed, 3])
            train = self.lessons["train"]
            others = [train[i] for i in draws.permutation(len(train))[:_OTHERS]]
            own, heard = self._rest(self.lessons["own"], draws), self._rest(others, draws)
            known = {**self.fixed, **self.free}
            before = [np.array(codebook(known, "rvq_rest", k)) for k in range(self.shape.n_q - 1)]
            sounds = np.any(np.array(known[f"{_REST}.output_proj.weight"]) != 0, axis=(0, 2))
            books = fit_to_voices(own, heard, share, before, int(self.config.model["dep_q"]) - 1, sounds, draws)
            for k, book in enumerate(books):
                name = f"{_REST}.vq.layers.{k}._codebook"
                self.fixed[f"{name}.embedding_sum"] = mx.array(book)
                self.fixed[f"{name}.cluster_usage"] = mx.ones((self.shape.bins,))
        super().export(folder)

    def lasting_answers(self) -> Sequence[Utterance]:
        """The corpus', where the codebooks are kept."""
        return self._answers if self.config.semantic_training.keep else []

    def _rest(self, lessons: Sequence[Lesson], draws: np.random.Generator) -> np.ndarray:
        """What the acoustic codebooks get of lessons, float32 [N, width]."""
        found = []
        ordered = sorted(lessons, key=lambda lesson: len(lesson.latents))
        for first in range(0, len(ordered), 32):
            some = ordered[first : first + 32]
            # Answers are encoded from their streams' start on, as in the corpus.
            batch = self._stack(some, [], draws) if some[0].own else self._stack([], some, draws)
            coded = picked(encode({**self.fixed, **self.free}, self.shape, batch.streams), batch.places)
            found.append(np.array(coded.rest)[np.array(batch.real) > 0])
        return np.concatenate(found)

    def evaluate(self) -> dict[str, float]:
        """How many of the held-out voices' questions the teacher knows from their codes, by split."""
        result = {}
        for split in ("known", "held_out"):
            right: list[bool] = []
            lessons = sorted((x for x in self.lessons[split] if x.asked), key=lambda lesson: len(lesson.latents))
            for first in range(0, len(lessons), 64):
                some = lessons[first : first + 64]
                batch = self._stack([], some, np.random.default_rng(first))
                coded = picked(encode({**self.fixed, **self.free}, self.shape, batch.streams), batch.places)
                asked = self._heard(self.free, coded.words).asked
                at = mx.minimum(batch.ends + _AFTER_END - 1, asked.shape[1] - 1)
                found = mx.take_along_axis(asked, at[:, None, None], axis=1)[:, 0].argmax(axis=-1)
                right += np.array(found == batch.asked).tolist()
            result[f"{split} asked"] = float(np.mean(right)) if right else 0.0
        return result
