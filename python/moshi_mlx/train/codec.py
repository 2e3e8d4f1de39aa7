"""Training the codec: `python -m moshi_mlx.train codec CONFIG`.

Fits a codec to a corpus' voices from its present weights. `parts: decoder` leaves the codes as they are, so that
language models trained on them stay valid; `parts: all` also moves the encoder and, by running means, the codebooks.
`--parts semantic` teaches the semantic codebook what is said (`moshi_mlx.train.semantic`). There is no discriminator: a
codec from scratch wants one, and a GPU.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..checkpoint import write_half
from ..config import FRAME_SIZE, MimiConfig
from ..errors import CheckpointError
from ..files import make_folder, write_json
from ..mimi import Mimi
from .compiling import worth_compiling
from .config import CodecConfig, Config, SemanticConfig
from .corpus import (
    Utterance,
    codec_shape,
    codec_tensors,
    fingerprint,
    known_answers,
    read_run,
    same_take,
    write_answers,
    write_run,
)
from .loss import Arrays
from .mel import mel_distance
from .parallel import Processes
from .progress import Progress
from .render import Job, Sound, perform, plan
from .schedule import learning_rate
from .script import Script

Tensors = dict[str, mx.array]
BatchT = TypeVar("BatchT", bound=Arrays)
"""What a step learns from."""
PassT = TypeVar("PassT")
"""What of a step's pass moves the codebooks: arrays in lists or tuples."""
Update = Callable[..., tuple[dict[str, mx.array], mx.array, PassT]]
"""A step of the optimizer on a batch's arrays: the losses, the gradient's norm, and what was passed through."""
TEACHER = "teacher"
"""Prefix of what trains along and is no part of the codec."""

_OUTPUTS = ("quantizer.rvq_first.output_proj.", "quantizer.rvq_rest.output_proj.")
_DECODER = ("decoder.", "decoder_transformer.", "upsample.", *_OUTPUTS)
_CODEBOOK = "._codebook."
_WARMUP = 100
"""Steps in which the learning rate rises, at most."""


@dataclass(frozen=True)
class Coded:
    """What training needs of a pass through the codec.

    Attributes:
        pcm: the sound after encoding and decoding, [B, T].
        commitment: how far the latents are from their codewords.
        latents: by codebook, what was looked up, [N, width].
        codes: by codebook, what was found, int32 [N].
    """

    pcm: mx.array
    commitment: mx.array
    latents: list[mx.array]
    codes: list[mx.array]


def pass_through(tensors: Tensors, config: MimiConfig, pcm: mx.array, spoken: int) -> Coded:
    """Encode and decode `pcm` [B, T], differentiable by the straight-through estimate of the quantizer's gradient.

    All codebooks encode, the first `spoken` of them are decoded.
    """
    mimi = Mimi(tensors, config, config.n_q)
    B, T = pcm.shape
    frames = T // FRAME_SIZE
    state = mimi.encoder_state(B, frames)
    x, _ = mimi._encoder(pcm[..., None], state["tails"])
    x, _ = mimi._encoder_transformer(x, state["transformer"])
    x, _ = mimi._downsample(x, mx.broadcast_to(x[:, :1], state["downsample"].shape))
    quantizer = mimi._quantizer
    projected = x @ quantizer.input_proj.T
    width = quantizer.width
    semantic, rest = projected[..., :width], projected[..., width:]
    words: list[mx.array] = []
    latents: list[mx.array] = []
    codes: list[mx.array] = []
    residual = semantic
    for k in range(quantizer.num_codebooks):
        residual = semantic if k == 0 else rest if k == 1 else residual - words[-1]
        code = mx.stop_gradient(mx.argmax(residual @ quantizer.columns[k] - quantizer.half_norms[k], axis=-1))
        words.append(mx.stop_gradient(quantizer.rows[k][code]))
        latents.append(residual.reshape(-1, width))
        codes.append(code.reshape(-1))
    acoustic = sum(words[1:spoken], mx.zeros_like(words[0]))
    commitment = (semantic - words[0]).square().mean() + (rest - acoustic).square().mean()
    quantized = mx.concatenate([words[0], acoustic], axis=-1)
    quantized = projected + mx.stop_gradient(quantized - projected)
    return Coded(decoded(mimi, quantized), commitment, latents, codes)


def decoded(mimi: Mimi, quantized: mx.array) -> mx.array:
    """Sound [B, T] of codewords [B, F, 2 width], the semantic ones before the sums of the acoustic ones."""
    B, frames, _ = quantized.shape
    y = quantized @ mimi._quantizer.output_proj.T
    decoding = mimi.decoder_state(B, frames)
    y, _ = mimi._upsample(y, decoding["upsample"])
    y, _ = mimi._decoder_transformer(y, decoding["transformer"])
    y, _ = mimi._decoder(y, decoding["tails"])
    return y[..., 0]


def words_of(mimi: Mimi, codes: mx.array) -> mx.array:
    """Codewords [B, F, 2 width] of codes [B, K, F], as `decoded` takes them."""
    words = [mx.stop_gradient(rows[codes[:, k]]) for k, rows in enumerate(mimi._quantizer.rows)]
    return mx.concatenate([words[0], sum(words[1:], mx.zeros_like(words[0]))], axis=-1)


class CodecRun(ABC, Generic[BatchT, PassT]):
    """One run of codec training: weights, optimizer, checkpoints; what is learned, and how, is up to a subclass.

    Several processes can share it (`moshi_mlx.train.parallel`).

    Args:
        config: the run; the codec it names is the start.
        settings: how long, and at which rate.
        name: of what is trained, for the checkpoint's file.
        kind: makes what a step learns from of its arrays.
        later: the step from which on all learns, if some of it does so before.

    Raises:
        CheckpointError: no codec there.
    """

    compiles: ClassVar[bool] = False
    """If a step can be compiled: `Mimi` computes at once what it derives from weights, which a trace can't hold."""

    def __init__(
        self,
        config: Config,
        settings: CodecConfig | SemanticConfig,
        name: str,
        kind: Callable[..., BatchT],
        later: int = 0,
    ):
        self.config = config
        self.settings = settings
        self.name = name
        self.kind = kind
        self._updates: dict[tuple[str, ...], Update[PassT]] = {}
        self.shape = MimiConfig.from_dict(codec_shape(config.codec))
        tensors = codec_tensors(config.codec)
        self.began_with = fingerprint(tensors)
        self.fixed: Tensors = {}
        self.free: Tensors = {}
        for name, tensor in tensors.items():
            learns = tensor.ndim > 0 and _CODEBOOK not in name and self.learns(name)
            (self.free if learns else self.fixed)[name] = tensor.astype(mx.float32)
        self.processes = Processes()
        warmup = min(_WARMUP, settings.steps // 10)
        schedule = learning_rate(settings.rate, settings.steps, warmup, later=later)
        self.optimizer = optim.AdamW(schedule, betas=[0.8, 0.99], weight_decay=0.01, bias_correction=True)
        self.step = 0

    @abstractmethod
    def learns(self, name: str) -> bool:
        """Whether a tensor of the codec is trained."""

    @abstractmethod
    def batch(self, step: int) -> BatchT:
        """What a step learns from, always the same for a step."""

    @abstractmethod
    def losses(self, free: Tensors, batch: BatchT) -> tuple[mx.array, PassT, dict[str, mx.array]]:
        """The loss of a batch with `free` as what is trained, what was passed through, and the loss's parts."""

    @abstractmethod
    def move_codebooks(self, passed: PassT, batch: BatchT) -> None:
        """Move the codebooks that learn, which gradients don't reach."""

    def learning(self) -> tuple[str, ...]:
        """Names of what learns in the step to come."""
        return tuple(self.free)

    def update(self, batch: BatchT) -> tuple[dict[str, float], float]:
        """One step on a batch: the losses before it, and the gradient's norm."""
        names = self.learning()
        if names not in self._updates:
            self._updates[names] = self._compile(names)
        parts, norm, passed = self._updates[names](*batch.arrays())
        self.move_codebooks(passed, batch)
        mx.eval(self.free, self.fixed, self.optimizer.state, parts, norm)
        return {name: float(np.array(value)) for name, value in parts.items()}, float(np.array(norm))

    def _compile(self, names: Sequence[str]) -> Update[PassT]:
        def update(*arrays: mx.array) -> tuple[dict[str, mx.array], mx.array, PassT]:
            batch = self.kind(*arrays)

            def objective(learning: Tensors) -> tuple[mx.array, PassT, dict[str, mx.array]]:
                return self.losses({**self.free, **learning}, batch)

            learning = {name: self.free[name] for name in names}
            (loss, passed, parts), gradients = mx.value_and_grad(objective)(learning)
            gradients, norm = optim.clip_grad_norm(self.processes.mean(gradients), 1.0)
            self.free.update(self.optimizer.apply_gradients(gradients, learning))
            return {**parts, "loss": loss}, norm, passed

        if not self.compiles or not worth_compiling(self.settings.steps):
            return update
        known = [self.free, self.fixed, self.optimizer.state]
        compiled: Update[PassT] = mx.compile(update, inputs=known, outputs=[self.free, self.optimizer.state])
        return compiled

    def move_means(self, book: str, latents: mx.array, chosen: mx.array, decay: float) -> None:
        """Move a codebook's running means of what each codeword stands for, as the published files store them.

        Args:
            book: its name in the file.
            latents: what was looked up, [N, width].
            chosen: 1 where a latent found a codeword, [N, bins].
            decay: of the means.
        """
        total, usage = f"{book}.embedding_sum", f"{book}.cluster_usage"
        used, summed = self.processes.mean([chosen.sum(axis=0), chosen.T @ mx.stop_gradient(latents)])
        self.fixed[usage] = decay * self.fixed[usage] + (1 - decay) * used
        self.fixed[total] = decay * self.fixed[total] + (1 - decay) * summed

    @abstractmethod
    def lasting_answers(self) -> Sequence[Utterance]:
        """Moshi's answers in the codes that language models say them with, as far as these stay valid."""

    def evaluate(self) -> dict[str, float]:
        """Figures to show now and then, if there are any."""
        return {}

    def run(self, progress: Progress | None) -> None:
        """Train to the end, saving now and then; of several processes the first one shows `progress`.

        Raises:
            StorageError: disk full, no permission.
        """
        with ThreadPoolExecutor(1) as pool:
            following: Future[BatchT] = pool.submit(self.batch, self.step)
            while self.step < self.settings.steps:
                batch = following.result()
                following = pool.submit(self.batch, self.step + 1)
                parts, norm = self.update(batch)
                self.step += 1
                if progress is None:
                    continue
                progress.step(self.step, parts, norm)
                if self.step % self.settings.save == 0 or self.step == self.settings.steps:
                    self.save()
                    if scores := self.evaluate():
                        progress.scores(self.step, scores)

    # What a run needs to go on.

    @property
    def path(self) -> Path:
        """Where the run's state is kept."""
        return self.config.work / f"codec-{self.name}.safetensors"

    def save(self) -> None:
        """Write the state of the run into the work folder, in place of the one before.

        Raises:
            StorageError: disk full, no permission.
        """
        state = {
            "free": self.free,
            "fixed": self.fixed,
            "optimizer": self.optimizer.state,
            "step": mx.array(self.step),
        }
        write_run(self.path, _flatten(state), self.began_with)

    def resume(self) -> bool:
        """Continue the run saved in the work folder; returns whether there was one.

        Raises:
            CheckpointError: it is damaged, began with another codec, or trains other parts or on another corpus.
        """
        if not self.path.exists():
            return False
        loaded = read_run(self.path, self.began_with)
        free = {n.removeprefix("free:"): a for n, a in loaded.items() if n.startswith("free:")}
        if {n: a.shape for n, a in free.items()} != {n: a.shape for n, a in self.free.items()}:
            raise CheckpointError(
                f"{self.path} trains other parts of a codec, or on a corpus of other words. Choose another work "
                "folder, or remove that file to begin anew."
            )
        self.free = free
        self.fixed = {n.removeprefix("fixed:"): a for n, a in loaded.items() if n.startswith("fixed:")}
        self.step = int(np.array(loaded["step"]))
        self.optimizer.init(self.free)
        for name, array in loaded.items():
            if name.startswith("optimizer:"):
                _put(self.optimizer.state, name.removeprefix("optimizer:").split("|"), array)
        return True

    def export(self, folder: Path) -> None:
        """Write the codec as a folder in the published layout, in half precision.

        Raises:
            StorageError: disk full, no permission.
        """
        make_folder(folder)
        tensors = {**self.fixed, **self.free}
        write_half(folder / "model.safetensors", {n: a for n, a in tensors.items() if not n.startswith(f"{TEACHER}.")})
        about = codec_shape(self.config.codec)
        about["transformer"] |= {"num_layers": self.shape.num_layers, "context": self.shape.context}
        if self.shape.encoder_layers is not None:
            about["transformer"]["encoder_num_layers"] = self.shape.encoder_layers
        write_json(folder / "config.json", about)
        write_answers(folder, self.lasting_answers())


@dataclass(frozen=True)
class Crops(Arrays):
    """What a step learns from: crops of sound [B, T], and of the first ones, which are Moshi's, their codes [b, K, F].

    A crop's codes are those it has within its answer, which are what the language model will say.
    """

    pcm: mx.array
    codes: mx.array


class CodecTrainer(CodecRun[Crops, tuple[list[mx.array], list[mx.array]]]):
    """Learning from sound and what is left of it after encoding and decoding."""

    def __init__(self, config: Config):
        self.parts = config.codec_training.parts
        super().__init__(config, config.codec_training, self.parts, Crops)
        self.script = Script.load(config.script)
        jobs = plan(self.script, config.data, config.train.seed)
        spoken = [j for j in jobs if j.group != "backgrounds" and j.split == "train"]
        self.own = [j for j in spoken if j.group == "answers"]
        self.spoken = spoken
        # Moshi's answers are always the same: spoken and encoded once, kept.
        self._answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._known = known_answers(config.codec) if self.parts == "decoder" else {}
        # Further ones are for what users say.
        self.codebooks = min(self.shape.n_q, int(config.model["dep_q"]))
        self._encoder = Mimi({**self.fixed, **self.free}, self.shape, self.codebooks)

    def learns(self, name: str) -> bool:
        """Whether a tensor of the codec is trained."""
        return self.parts == "all" or name.startswith(_DECODER)

    def batch(self, step: int) -> Crops:
        """Crops of rendered speech, always the same for a step."""
        rng = random.Random(f"{self.config.train.seed}/{step}/{self.processes.rank}")
        size = self.settings.batch
        own = round(size * self.config.codec_training.own)
        moshi = [self._own_crop(rng) for _ in range(own)]
        pcm = [pcm for pcm, _ in moshi] + [self._crop(rng) for _ in range(size - own)]
        codes = [codes for _, codes in moshi] or [np.zeros((self.codebooks, self.settings.frames), np.int32)]
        return Crops(mx.array(np.stack(pcm)), mx.array(np.stack(codes)[: len(moshi)]))

    def _own_crop(self, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Of an answer, as it will be decoded: at its level, on a frame's edge."""
        job = rng.choice(self.own)
        if job.number not in self._answers:
            sound = self._sound(job)
            pcm = sound.pcm
            frames = len(pcm) // FRAME_SIZE
            whole = self.parts == "decoder"
            codes = np.array(self._encoder.encode(pcm[None, None]))[0] if whole else np.zeros((1, frames), np.int32)
            if known := same_take(self._known, job.voice, job.name, sound.end):
                said = known.codes[:, :frames]
                codes[:, : said.shape[1]] = said[: self.codebooks]
            self._answers[job.number] = pcm, codes
        pcm, codes = self._answers[job.number]
        frames = self.settings.frames
        start = rng.randrange(codes.shape[1] - frames + 1)
        return pcm[FRAME_SIZE * start : FRAME_SIZE * (start + frames)], codes[:, start : start + frames]

    def _crop(self, rng: random.Random) -> np.ndarray:
        length = self.settings.frames * FRAME_SIZE
        pcm = self._sound(rng.choice(self.spoken)).pcm
        start = rng.randrange(len(pcm) - length + 1)
        return np.asarray(pcm[start : start + length] * rng.uniform(0.5, 1.6), dtype=np.float32)

    def _sound(self, job: Job) -> Sound:
        """What a job says, as long as a crop at least."""
        sound = perform(job, self.script, self.config.data, self.config.train.seed)
        return replace(sound, pcm=np.pad(sound.pcm, (0, max(0, self.settings.frames * FRAME_SIZE - len(sound.pcm)))))

    def losses(
        self, free: Tensors, batch: Crops
    ) -> tuple[mx.array, tuple[list[mx.array], list[mx.array]], dict[str, mx.array]]:
        """How far what comes out of the codec is from what went in; latents and codes by codebook."""
        tensors, pcm = {**self.fixed, **free}, batch.pcm
        if self.parts == "decoder":
            mimi, own = Mimi(tensors, self.shape, self.codebooks), len(batch.codes)
            others = mimi.encode(pcm[own:, None]) if own < len(pcm) else mx.zeros((0, *batch.codes.shape[1:]), mx.int32)
            codes = mx.concatenate([batch.codes, others])
            sound = decoded(mimi, words_of(mimi, mx.stop_gradient(codes)))
            coded = Coded(sound, mx.zeros(()), [], [])
        else:
            coded = pass_through(tensors, self.shape, pcm, self.codebooks)
        parts = {"mel": mel_distance(coded.pcm, pcm), "wave": mx.abs(coded.pcm - pcm).mean()}
        if self.parts == "all":
            parts["commitment"] = coded.commitment
        loss = parts["mel"] + 2 * parts["wave"] + parts.get("commitment", mx.zeros(()))
        return loss, (coded.latents, coded.codes), parts

    def lasting_answers(self) -> Sequence[Utterance]:
        """Those that came with the codec, where only the decoder learns."""
        return list(self._known.values())

    def move_codebooks(self, passed: tuple[list[mx.array], list[mx.array]], batch: Crops) -> None:
        """Move all of them, unless the codes are to stay as they are."""
        if self.parts == "decoder":
            return
        for k, (latents, codes) in enumerate(zip(*passed, strict=True)):
            part = "rvq_first.vq.layers.0" if k == 0 else f"rvq_rest.vq.layers.{k - 1}"
            chosen = (codes[:, None] == mx.arange(self.shape.bins)).astype(mx.float32)
            self.move_means(f"quantizer.{part}._codebook", latents, chosen, decay=0.99)


def _flatten(state: Mapping[str, object]) -> Tensors:
    flat: Tensors = {}
    for part, content in state.items():
        if isinstance(content, mx.array):
            flat[part] = content
        elif isinstance(content, dict) and part == "optimizer":
            for key, value in content.items():
                if isinstance(value, dict):
                    flat.update({f"optimizer:{key}|{leaf}": array for leaf, array in value.items()})
                else:
                    flat[f"optimizer:{key}"] = value
        elif isinstance(content, dict):
            flat.update({f"{part}:{name}": array for name, array in content.items()})
    return flat


def _put(tree: dict[str, object], path: Sequence[str], array: mx.array) -> None:
    *parents, leaf = path
    for key in parents:
        tree = tree[key]  # type: ignore[assignment]
    tree[leaf] = array
