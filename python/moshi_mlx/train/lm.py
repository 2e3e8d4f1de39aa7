"""Training the language model: `python -m moshi_mlx.train lm CONFIG`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..checkpoint import CheckpointFiles, load_lm_tensors, resolve
from ..config import LMConfig
from ..errors import CheckpointError, ConfigError
from ..lm import LMModel
from ..lm.weights import build
from ..precision import Precision
from ..text import TextTokenizer
from .compiling import worth_compiling
from .config import Config, MixConfig
from .conversation import Conversation, Mixer, nearest_codes
from .corpus import (
    CODES_FROM,
    Utterance,
    codebooks,
    codec_tensors,
    fingerprint,
    read_corpus,
    read_run,
    shards,
    write_run,
)
from .heads import Head, read_heads
from .loss import (
    Arrays,
    Batch,
    Drill,
    Score,
    Trainee,
    batch_of,
    loss_name,
    losses,
    make_batch,
    make_drill,
    score,
    total,
)
from .parallel import Processes
from .progress import Progress
from .schedule import learning_rate
from .script import Script

_EMA_EVERY = 8

_HEADS = ("heard", "asked")
"""The auxiliary heads' names."""

_HEADS_RATE = 2e-3
"""Learning rate of the auxiliary heads while they learn alone."""

Update = Callable[..., tuple[dict[str, mx.array], mx.array]]
"""A step of the optimizer on a batch's arrays: the losses and the gradient's norm."""


class Trainer:
    """One training run: model, optimizer, averaged weights and the corpus it draws from.

    Several processes can share it (`moshi_mlx.train.parallel`).

    Args:
        config: the run.
        init: weights to start from, a checkpoint in the published layout (fine-tuning). It may hear more of the user's
            codebooks than the configured model, which are left out.

    Raises:
        CheckpointError: no codec there, or a damaged corpus.
        ConfigError: no corpus yet, or a configuration or weights to start from that don't fit it or the codec.
    """

    name: ClassVar[str] = ""
    """Of the kind of run, which its files are called after."""

    def __init__(self, config: Config, init: Path | None = None):
        self.config = config
        self.lm_config = LMConfig.from_dict(config.model)
        self.script = Script.load(config.script)
        self.tokenizer = TextTokenizer(config.work / "tokenizer.model")
        if self.tokenizer.size > self.lm_config.text_card:
            raise ConfigError(
                f"The tokenizer has {self.tokenizer.size} pieces, the model's text_card is {self.lm_config.text_card}."
            )
        self._codec = codec_tensors(config.codec)
        self.began_with, books = fingerprint(self._codec, *CODES_FROM), codebooks(self._codec)
        if config.codebooks > len(books):
            raise ConfigError(
                f"{config.codec} has {len(books)} codebooks; {config.codebooks} are to be spoken or heard, as the "
                "configuration's 'dep_q', 'n_q' less 'dep_q', or 'user_codebooks' says."
            )
        self.near = nearest_codes(books[0])
        self.read()
        self.processes = Processes()
        mx.random.seed(config.train.seed)
        mixer = self.mixers["train"]
        self.model = self._trainee(len(mixer.vocabulary), len(mixer.numbers))
        _small_start(self.model, self.lm_config, books)
        self.heads = 0
        if init is not None:
            self._start_from(init)
            if not self._take_heads(init):
                # A short run must leave most of its steps to the rest.
                self.heads = min(config.train.heads, config.train.steps // 4)
        self.optimizer = self._new_optimizer()
        self.average = tree_map(mx.array, self.model.lm.parameters())
        self.step = 0
        self._update = self._compile()

    def _trainee(self, vocabulary: int, answers: int) -> Trainee:
        """What is trained, for a vocabulary heard and answers of those sizes."""
        return Trainee(self.lm_config, vocabulary, answers)

    def _utterances(self) -> list[Utterance]:
        """The corpus."""
        return read_corpus(self.config.work / "corpus")

    @property
    def _mix(self) -> MixConfig:
        """How conversations go."""
        return self.config.mix

    def auxiliary(self) -> dict[str, Head]:
        """The auxiliary heads, by name."""
        mixer = self.mixers["train"]
        labels = {"heard": mixer.vocabulary, "asked": mixer.numbers}
        return {name: Head(self.model[name].weight, tuple(labels[name])) for name in _HEADS}

    def codec(self) -> dict[str, mx.array]:
        """The tensors of the codec that the trained model is for."""
        return self._codec

    def _new_optimizer(self) -> optim.AdamW:
        train = self.config.train
        # A short run must come to its rate, too.
        warmup = min(train.warmup, train.steps // 10)
        schedule = learning_rate(train.rate, train.steps, warmup, train.final_rate, heads=(self.heads, _HEADS_RATE))
        optimizer = optim.AdamW(schedule, betas=list(train.betas), weight_decay=train.decay, bias_correction=True)
        optimizer.init(self.model.trainable_parameters())
        return optimizer

    def read(self) -> None:
        """Read the corpus, again if it has grown.

        Raises:
            ConfigError: it is empty, nobody asks anything in it, or it lacks codebooks or answers that are wanted.
        """
        config = self.config
        utterances = self._utterances()
        if not utterances:
            raise ConfigError(f"{config.work}/corpus is empty: run `python -m moshi_mlx.train.data` first.")
        self.shards = len(shards(config.work / "corpus"))
        self.mixers = {
            split: Mixer(self.script, utterances, self.tokenizer, self._mix, split, self.near, self.lm_config.dep_q)
            for split in ("train", "known", "held_out")
        }
        if not self.mixers["train"].asks:
            raise ConfigError(f"{config.work}/corpus holds no question yet: render more of it.")
        if (rows := min(len(u.codes) for u in utterances)) < config.codebooks:
            raise ConfigError(
                f"{config.work}/corpus has codes of {rows} codebooks, {config.codebooks} are to be heard: give it "
                "the codec's with `python -m moshi_mlx.train.data --recode`."
            )
        if lacking := set(self.script.answers) - self.mixers["train"].numbers.keys():
            raise ConfigError(
                f"{config.work}/corpus lacks Moshi's answer {min(lacking)!r}, and {len(lacking) - 1} more: the script "
                "has changed since it was rendered. Render it in another work folder."
            )

    def _start_from(self, folder: Path) -> None:
        files = resolve(folder, parts=["lm", "mimi", "tokenizer"])
        ours = self.lm_config
        theirs = replace(files.lm_config, n_q=ours.n_q, delays=ours.delays)
        # What Moshi says, and the user's semantic codes.
        same = 2 + ours.dep_q
        if theirs != ours or files.lm_config.delays[:same] != ours.delays[:same]:
            raise ConfigError(
                f"{folder} holds a model of another shape than the configuration's 'model', which may only hear more "
                "or fewer codebooks. `python -m moshi_mlx.train grow` gives a model more layers."
            )
        tokens, used = files.tokenizer, self.config.work / "tokenizer.model"
        if tokens is not None and tokens.read_bytes() != used.read_bytes():
            raise ConfigError(f"{folder} writes with other tokens than {used}: copy {tokens} there.")
        weights = dict(_flat(unpacked(files).parameters()))
        weights["audio_emb.weight"] = self._heard(weights["audio_emb.weight"])
        for name in weights:
            if is_output_layer(name):
                # Exported sharper than it was trained.
                weights[name] = weights[name] / self.config.train.sharpness
        if files.mimi is not None and files.mimi.is_dir():
            for k, same in enumerate(akin(files.mimi, self.config.codec)[: max(ours.dep_q, ours.user_q)]):
                if not same:
                    self._forget(weights, k)
        self.model.lm.load_weights(list(weights.items()))

    def _take_heads(self, folder: Path) -> bool:
        """Go on with the auxiliary heads of a model's folder; returns whether it has those that are wanted here."""
        theirs = read_heads(folder)
        weights = {}
        for name, head in self.auxiliary().items():
            weight = theirs[name].of(head.labels) if name in theirs else None
            if weight is None or weight.shape != head.weight.shape:
                return False
            weights[name] = {"weight": weight}
        self.model.update(weights)
        return True

    def _heard(self, tables: mx.array) -> mx.array:
        """Another model's tables of audio embeddings, with new ones for what of the user's it never heard."""
        fresh = dict(_flat(self.model.lm.parameters()))["audio_emb.weight"]
        entries = self.lm_config.card + 1
        kept = []
        for k in range(self.lm_config.n_q):
            rows = slice(k * entries, (k + 1) * entries)
            kept.append((tables if hears(tables, k, entries) else fresh)[rows])
        return mx.concatenate(kept)

    def _forget(self, weights: dict[str, mx.array], k: int) -> None:
        """Start anew with a codebook whose codes are others now: what the model knew of them would mislead it."""
        fresh = dict(_flat(self.model.lm.parameters()))
        config = self.lm_config
        entries = config.card + 1
        spoken, heard = range(config.dep_q), range(config.dep_q, config.n_q)
        for table in (*spoken[k : k + 1], *heard[k : k + 1]):
            rows = slice(table * entries, (table + 1) * entries)
            weights["audio_emb.weight"][rows] = fresh["audio_emb.weight"][rows]
        for name in (f"depformer.slices.{k}.linear_out.weight", f"depformer.slices.{k + 1}.emb.weight"):
            if name in weights:
                weights[name] = fresh[name]

    def _compile(self) -> Update:
        update = self._step()
        if not worth_compiling(self.config.train.steps):
            return update
        state = [self.model.state, self.optimizer.state]
        compiled: Update = mx.compile(update, inputs=state, outputs=state)
        return compiled

    def _step(self) -> Update:
        weights, dep_q = self.config.train.weights, self.lm_config.dep_q

        def objective(trainee: Trainee, batch: Batch | Drill) -> tuple[mx.array, dict[str, mx.array]]:
            parts = losses(trainee, batch)
            return total(parts, weights, dep_q), parts

        value_and_grad = nn.value_and_grad(self.model, objective)

        def update(*arrays: mx.array) -> tuple[dict[str, mx.array], mx.array]:
            batch = batch_of(arrays)
            (loss, parts), gradients = value_and_grad(self.model, batch)
            return {**parts, loss_name(batch): loss}, self._move(gradients)

        return update

    def _move(self, gradients: dict[str, Any]) -> mx.array:
        """Take a step along the gradients of all processes; returns their norm."""
        if self.step < self.heads:
            # The optimizer leaves alone what has no gradient, rather than decay it.
            gradients = {name: gradients[name] for name in _HEADS}
        clipped, norm = optim.clip_grad_norm(self.processes.mean(gradients), self.config.train.clip)
        self.optimizer.update(self.model, clipped)
        return cast(mx.array, norm)

    def conversations(self, step: int) -> list[Conversation]:
        """The conversations of a step, always the same for a seed."""
        return [self.mixers["train"].draw(rng) for rng in self._seeds(step, self.config.train.batch)]

    def _seeds(self, step: int, count: int) -> list[random.Random]:
        """What decides a step's examples, others in every process."""
        first = self.processes.rank * count
        return [random.Random(f"{self.config.train.seed}/{step}/{i}") for i in range(first, first + count)]

    def batch(self, step: int) -> Arrays:
        """The batch of a step, a `Batch` or a `Drill`."""
        train = self.config.train
        if step < self.heads:
            return self._drill(step)
        # Drills loosen what the depth transformer had learned: the last quarter of a run has ever fewer of them.
        drills = train.drills * min(1.0, 4 * (1 - step / train.steps))
        if random.Random(f"{train.seed}/{step}").random() < drills:
            return self._drill(step)
        draws = np.random.default_rng([train.seed, step, self.processes.rank])
        return make_batch(
            self.conversations(step),
            self.lm_config,
            draws,
            train.depth_frames,
            train.silent_share,
            self.config.mix.window,
        )

    def _drill(self, step: int) -> Drill:
        train, mixer = self.config.train, self.mixers["train"]
        count, make = train.drill_batch, mixer.drill
        if random.Random(f"{train.seed}/{step}/exchange").random() < train.exchanges:
            # Twice as long, and a bit.
            count, make = max(1, 2 * count // 5), mixer.exchange
        return make_drill([make(rng) for rng in self._seeds(step, count)], self.lm_config)

    def run(self, progress: Progress | None, steps: int | None = None) -> None:
        """Train up to `steps` (all that are configured), saving and evaluating as configured.

        Of several processes the first one shows `progress`, evaluates and saves.

        Raises:
            StorageError: disk full, no permission.
        """
        train = self.config.train
        last = min(steps or train.steps, train.steps)
        with ThreadPoolExecutor(1) as pool:
            following: Future[Arrays] = pool.submit(self.batch, self.step)
            while self.step < last:
                batch = following.result()
                following = pool.submit(self.batch, self.step + 1)
                parts, norm = self._update(*batch.arrays())
                mx.eval(parts, norm, self.model.state, self.optimizer.state)
                self.step += 1
                if self.step == self.heads:
                    self._update = self._compile()
                if self.step % train.save == 0 and self._grown():
                    self.read()
                if progress is None:
                    continue
                if self.step % _EMA_EVERY == 0 or self.step == train.steps:
                    self._average()
                means = {name: _number(value) for name, value in parts.items()}
                progress.step(self.step, means, _number(norm))
                if self.step % train.save == 0 or self.step == last:
                    self.save()
                if self.step % train.evaluate == 0 or self.step == last:
                    progress.scores(self.step, self.evaluate())

    def _grown(self) -> bool:
        return len(shards(self.config.work / "corpus")) != self.shards

    def _average(self) -> None:
        self.average = self._nearer(self.average, self.model.lm.parameters())

    def _nearer(self, average: Any, weights: Any) -> Any:
        """A running average of weights, moved on to them."""
        # Early on the weights move fast: the average then reaches back less far.
        decay = min(self.config.train.ema, 1 - 10 / (self.step + 10)) ** (self.step % _EMA_EVERY or _EMA_EVERY)
        moved = tree_map(lambda a, p: decay * a + (1 - decay) * p, average, weights)
        mx.eval(moved)
        return moved

    def evaluate(self, conversations: int = 8) -> dict[str, float]:
        """Scores of the averaged weights on conversations of held-out voices and wordings, as far as there are any."""
        trained = tree_map(lambda p: p, self.model.lm.parameters())
        self.model.lm.update(self.average)
        result = {}
        for split in ("known", "held_out"):
            if not self.mixers[split].asks:
                continue
            drawn = [self.mixers[split].draw(random.Random(f"{split}/{i}")) for i in range(conversations)]
            found = self._scored(drawn)
            result.update({f"{split} answers": found.answers, f"{split} words": found.words})
            result[f"{split} starts"] = found.starts
        self.model.lm.update(trained)
        return result

    def _scored(self, conversations: Sequence[Conversation]) -> Score:
        return score(self.model.lm, conversations)

    # What a run needs to go on.

    @property
    def path(self) -> Path:
        """Where the run's state is kept."""
        return self.config.work / f"run{self.name and '-'}{self.name}.safetensors"

    def save(self) -> None:
        """Write the state of the run into the work folder, in place of the one before.

        Raises:
            StorageError: disk full, no permission.
        """
        write_run(self.path, dict(_flat(self._state())), self.began_with)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.parameters(),
            "optimizer": self.optimizer.state,
            "average": self.average,
            "step": mx.array(self.step),
            "heads": mx.array(self.heads),
        }

    def resume(self) -> bool:
        """Continue the run saved in the work folder; returns whether there was one.

        Raises:
            CheckpointError: it is damaged, of another configuration, or learned another codec's codes.
        """
        path = self.path
        if not path.exists():
            return False
        loaded = read_run(path, self.began_with)
        state = tree_unflatten(list(loaded.items()))
        try:
            mine = [(n.removeprefix("model."), a) for n, a in loaded.items() if n.startswith("model.")]
            self.model.load_weights(mine)
        except ValueError as error:
            raise CheckpointError(f"{path} is of another model: {error}. Choose another work folder.") from error
        # Runs of earlier versions had no such steps.
        self.heads = int(state["heads"].item()) if "heads" in state else 0
        self.optimizer = self._new_optimizer()
        self._restore(state)
        self._update = self._compile()
        return True

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.optimizer.state = state["optimizer"]
        self.average = state["average"]
        self.step = int(state["step"].item())


def unpacked(files: CheckpointFiles) -> LMModel:
    """A checkpoint's language model in float32, as it is trained.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    tensors, quantization = load_lm_tensors(files.need("lm"), files.lm_config)
    return build(files.lm_config, tensors, quantization, Precision(mx.float32, unpack=True), consume=True)


def is_output_layer(name: str) -> bool:
    """Whether a tensor gives the logits of text or of a codebook."""
    return name == "text_linear.weight" or (name.endswith(".linear_out.weight") and ".gating." not in name)


def _flat(tree: Any) -> list[tuple[str, mx.array]]:
    return list(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def _number(array: mx.array) -> float:
    return float(np.array(array))


def _small_start(model: Trainee, config: LMConfig, books: Sequence[np.ndarray]) -> None:
    """Small embeddings and residual outputs, and codes that sound alike embedded alike.

    Audio embeddings start as a random projection of the codec's own codebooks: what is learned of one code then holds
    at once for its neighbours, which other voices use for the same sound.
    """
    draws = np.random.default_rng(0)
    weights = []
    for name, value in _flat(model.parameters()):
        if name == "lm.audio_emb.weight":
            weights.append((name, mx.array(_audio_embeddings(config, books, draws))))
        elif name.endswith("emb.weight"):
            weights.append((name, mx.array(draws.normal(0, 0.05, value.shape).astype(np.float32))))
        elif name.endswith(("out_proj.weight", "gating.linear_out.weight")):
            weights.append((name, 0.5 * value))
    model.load_weights(weights, strict=False)


def hears(tables: mx.array, k: int, entries: int) -> bool:
    """Whether a model knows what stands in table k of its audio embeddings, of that many entries each.

    What training never showed is exported silent, but for the entry that stands before a stream's start.
    """
    return bool(mx.any(tables[k * entries : (k + 1) * entries - 1] != 0).item())


def akin(codec: Path, other: Path) -> list[bool]:
    """Of each codebook, whether most of its codes stand for what they do in another codec, as where that was taught."""
    found = []
    for ours, theirs in zip(*(codebooks(codec_tensors(one)) for one in (codec, other)), strict=False):
        # One that was given more dimensions for further codebooks has zeros there.
        width = max(ours.shape[1], theirs.shape[1])
        ours, theirs = (np.pad(book, ((0, 0), (0, width - book.shape[1]))) for book in (ours, theirs))
        nearest = ((theirs**2).sum(axis=1) - 2 * ours @ theirs.T).argmin(axis=1)
        found.append(len(ours) == len(theirs) and bool(np.mean(nearest == np.arange(len(ours))) > 0.5))
    return found


def _audio_embeddings(config: LMConfig, books: Sequence[np.ndarray], draws: np.random.Generator) -> np.ndarray:
    tables = []
    # What the user's acoustic codes stand for adds up in the codec: so do their embeddings.
    width = books[0].shape[1]
    together, unit = draws.normal(0, width**-0.5, (width, config.dim)), 0.0
    for stream, count in ((0, config.dep_q), (config.dep_q, config.user_q)):
        for k in range(count):
            book = books[k]
            if stream and k:
                unit = unit or float(book.std())
                projected = (book / unit)[: config.card] @ together
            else:
                book = (book - book.mean(0)) / max(float(book.std()), 1e-6)
                projected = book[: config.card] @ draws.normal(0, width**-0.5, (width, config.dim))
            # The user's semantic codes carry the question: they speak louder than the rest.
            scale = (0.03 if k else 0.15) if stream else 0.04
            table = draws.normal(0, 0.2 * scale, (config.card + 1, config.dim))
            table[: len(projected)] += scale * projected
            tables.append(table.astype(np.float32))
    return np.concatenate(tables)
