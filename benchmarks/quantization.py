"""What does a quantization level of the weights or of the KV cache cost, and what does it cost in quality?

    python benchmarks/quantization.py MODEL [--levels 4 8 mxfp4 '4,attention=8'] [--kv-bits 8 4] [--plot FILE.png]
    python benchmarks/quantization.py nano --speech tests/data/spoken/hours.wav

For each level, and for the unquantized model with a quantized cache: size of the file, bytes read per step with a full
cache, memory at rest and with a full cache, milliseconds per step with an empty and with a full cache, and how far the
predictions are from the unquantized model's on the same streams of tokens: Kullback-Leibler divergence in nats and
share of equal most likely tokens, for text and for every codebook. Of a model that is quantized already (nano) only
the cache is varied. Time and memory are measured as this machine runs the level: on a CPU small models are unpacked to
float32, so their levels differ on Metal only. With a quantized cache tokens are predicted step by step, as in a
conversation, so that each is predicted from what the cache kept.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest import mock

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from common import Figure, memory_bytes, number, options, report
from limits import LEVELS
from models import SHAPES, make_lm
from plots import add_plot_option, new_axes, save
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from traffic import Chooser, kv_bytes, lm_bytes_held, lm_bytes_read

from moshi_mlx.checkpoint import LMFile, Recipe, check_lm, load_lm_tensors, resolve
from moshi_mlx.checkpoint.saving import need_floating_point
from moshi_mlx.cli.options import at_least, run_program
from moshi_mlx.config import SAMPLE_RATE, LMConfig
from moshi_mlx.errors import InputError
from moshi_mlx.lm import LMModel
from moshi_mlx.lm.cache import KV_BITS
from moshi_mlx.lm.model import LMOutput
from moshi_mlx.lm.weights import build
from moshi_mlx.precision import Precision, choose_precision
from moshi_mlx.quality import Divergence, divergence, generate_streams, predictions
from moshi_mlx.sound import load_sound

MIXED = "4,attention=8,heads=8"

STORED = "as stored"

_TURN = 5
"""Steps that a level takes at a time."""

_LISTENING = 6
"""Seconds that a model may answer speech in."""


@dataclass(frozen=True)
class Variant:
    """A way to run the model: the level of its weights (`STORED`: as in the file), the bits of its cache."""

    level: str
    kv_bits: int | None = None

    def __str__(self) -> str:
        return self.level if self.kv_bits is None else f"{self.level}, {self.kv_bits}-bit cache"

    @property
    def stored(self) -> str | None:
        """The level as it is loaded; None as it is in the file."""
        return None if self.level in ("bf16", STORED) else self.level


@dataclass(frozen=True)
class Measured:
    """What was found of one variant; bytes, milliseconds, and the divergence from the original.

    Attributes:
        file, read, at_rest, full: size of the file, bytes read per step with a full cache, memory without and with it.
        ms, full_ms: of steps with an empty and with a full cache.
    """

    variant: Variant
    file: int
    read: int
    at_rest: int
    full: int
    quality: Divergence
    ms: list[float] = field(default_factory=list)
    full_ms: list[float] = field(default_factory=list)


def load(file: LMFile, level: str | None, packed: bool) -> LMModel:
    """The model at a level; None as it is in the file."""
    tensors, quantization = load_lm_tensors(file.path, file.config, level)
    chosen = choose_precision(tensors, quantization)
    return build(file.config, tensors, quantization, Precision(chosen.dtype, unpack=False) if packed else chosen)


def timed(file: LMFile, results: Sequence[Measured], packed: bool, steps: int, at_once: bool) -> list[Measured]:
    """The results with their times: all in turns where they fit into memory together, else one after another."""
    done: list[Measured] = []
    for group in [list(results)] if at_once else [[result] for result in results]:
        generators = [
            moshi_mlx.LMGen(load(file, r.variant.stored, packed), seed=0, kv_bits=r.variant.kv_bits) for r in group
        ]
        empty = in_turns(generators, steps)
        for generator in generators:
            # A full cache is read alike whatever it holds.
            generator.state.kv.offset = file.config.context
        full = in_turns(generators, steps)
        done += [replace(r, ms=ms, full_ms=full_ms) for r, ms, full_ms in zip(group, empty, full, strict=True)]
        del generators
        mx.clear_cache()
    return done


def in_turns(generators: Sequence[moshi_mlx.LMGen], steps: int) -> list[list[float]]:
    """Milliseconds of steps by generator, after those that build their graph."""
    for generator in generators:
        step_ms(generator, 6)
    found: list[list[float]] = [[] for _ in generators]
    for _ in range(0, steps, _TURN):
        for generator, so_far in zip(generators, found, strict=True):
            so_far += step_ms(generator, _TURN)
    return found


def step_ms(generator: moshi_mlx.LMGen, steps: int) -> list[float]:
    """Milliseconds of the next steps."""
    codes = np.zeros((1, generator.lm.config.user_q), np.int32)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        tokens = generator.step(codes)
        if tokens is not None:
            np.array(tokens)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def measure(file: LMFile, variant: Variant, reference: LMOutput, codes: mx.array, packed: bool) -> Measured:
    """Everything about one variant but its times."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    lm = load(file, variant.stored, packed)
    at_rest = mx.get_active_memory() - before
    config = file.config
    how: Chooser = lambda module, _: file.quantization.get(module)  # noqa: E731
    if variant.stored:
        how = Recipe.parse(variant.stored)
    output = predictions(lm, codes) if variant.kv_bits is None else predictions_by_step(lm, codes, variant.kv_bits)
    return Measured(
        variant=variant,
        file=lm_bytes_held(config, how),
        read=lm_bytes_read(config, how) + kv_bytes(config, config.context, bits=variant.kv_bits),
        at_rest=at_rest,
        full=at_rest + kv_bytes(config, config.context, lm.dtype, variant.kv_bits),
        quality=divergence(reference, output),
    )


def predictions_by_step(lm: LMModel, codes: mx.array, kv_bits: int | None) -> LMOutput:
    """As `predictions`, by the steps that a conversation takes: what a step sees of those before is in the cache."""

    def forward_text(tokens: mx.array, condition: mx.array | None = None) -> tuple[mx.array, mx.array]:
        B, _, T = tokens.shape
        cache, window = lm.make_state(B, kv_bits).layers, min(T, lm.config.context)
        found = []
        for t in range(T):
            where = lm.transformer.step_position(t, window)
            hidden, text_logits, cache = lm.step(tokens[:, :, t], cache, where, window, condition)
            mx.eval(hidden, text_logits, cache)
            found.append((hidden, text_logits))
        hidden, text_logits = (mx.stack(parts, axis=1) for parts in zip(*found, strict=True))
        return hidden, text_logits

    with mock.patch.object(lm, "forward_text", forward_text):
        return predictions(lm, codes)


def stored_streams(path: Path, config: LMConfig) -> mx.array:
    """Token streams int32 [B, 1 + n_q, T] of a .npy file.

    Raises:
        InputError: no such file, or no streams in it.
    """
    expected = f"expected tokens [batch, {config.n_q + 1}, steps] in a .npy file"
    try:
        with path.open("rb") as file:
            codes = np.lib.format.read_array(file).astype(np.int32)
    except (OSError, ValueError) as error:
        raise InputError(f"--streams {path} can't be read ({error}); {expected}.") from error
    if codes.ndim != 3 or codes.shape[1] != config.n_q + 1 or not codes.size:
        raise InputError(f"--streams {path} holds {list(codes.shape)}; {expected}.")
    return mx.array(codes)


def answer_streams(model: str, speech: Path, seed: int) -> mx.array:
    """Token streams int32 [1, 1 + n_q, T] of a conversation: what is said in a sound file, and what the model says."""
    moshi = moshi_mlx.load(model)
    pcm = np.pad(load_sound(speech), (0, _LISTENING * SAMPLE_RATE))
    heard = np.array(moshi.mimi.encode(pcm[None, None]))[:, : moshi.lm.config.user_q]
    generator = moshi_mlx.LMGen(moshi.lm, seed=seed)
    steps = [generator.step(heard[:, :, t]) for t in range(heard.shape[2])]
    said = np.stack([np.array(tokens) for tokens in steps if tokens is not None], axis=2)
    return mx.array(np.concatenate([said, heard[:, :, : said.shape[2]]], axis=1).astype(np.int32))


def costs(results: Sequence[Measured]) -> Table:
    """Memory and time, one line a variant."""
    table = Table(
        "level", "file, MB", "read a step, MB", "at rest, MB", "with full cache, MB", "ms a step", "with full cache, ms"
    )
    for r in results:
        sizes = [f"{size / 1e6:,.1f}" for size in (r.file, r.read, r.at_rest, r.full)]
        table.add_row(str(r.variant), *sizes, *(number(float(np.median(times))) for times in (r.ms, r.full_ms)))
    return table


def qualities(results: Sequence[Measured]) -> Table:
    """Divergence and agreement, one line a variant and one column a stream."""
    streams = ["text", *(f"{k + 1}" for k in range(len(results[0].quality.audio_kl)))]
    title = "KL divergence in nats, and same most likely token: text and every codebook"
    table = Table("level", *streams, title=title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for r in results:
        kl = [r.quality.text_kl, *r.quality.audio_kl]
        agreement = [r.quality.text_agreement, *r.quality.audio_agreement]
        table.add_row(
            str(r.variant), *(f"{max(x, 0):.0e}\n{share:.0%}" for x, share in zip(kl, agreement, strict=True))
        )
    return table


def plot(results: Sequence[Measured], path: Path, title: str) -> None:
    """Size against divergence, one point a level."""
    figure, axes = new_axes(title, "file, MB", "KL divergence from bf16, nats")
    for r in results:
        if r.variant.stored and r.quality.kl > 0:
            axes.plot(r.file / 1e6, r.quality.kl, "o")
            axes.annotate(r.variant.level, (r.file / 1e6, r.quality.kl), xytext=(5, 5), textcoords="offset points")
    axes.set_yscale("log")
    save(figure, path)


def find(model: str, folder: Path) -> LMFile:
    """The weights of a model by folder, repository or name, or random ones of a shape (`random-256`)."""
    shape = model.removeprefix("random-")
    if shape != model and shape in SHAPES:
        weights = make_lm(folder, SHAPES[shape])
        return check_lm(weights, LMConfig.from_dict(SHAPES[shape]))
    files = resolve(model, parts=["lm"])
    return check_lm(files.need("lm"), files.lm_config)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("model", help="model (folder, repository, nano), or random-256, random-512")
    default = [*LEVELS, MIXED]
    parser.add_argument("--levels", nargs="+", help=f"of an unquantized model, levels or recipes ({default})")
    parser.add_argument(
        "--kv-bits", nargs="*", type=int, choices=KV_BITS, default=KV_BITS[::-1], help="of quantized caches"
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--streams", type=Path, metavar="NPY", help="tokens [batch, 1 + n_q, steps] to predict")
    given.add_argument("--speech", type=Path, metavar="FILE", help="predict a conversation: this, and the answer to it")
    parser.add_argument("--length", type=at_least(1), default=48, help="steps of streams made of nothing (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of generated streams")
    parser.add_argument("--steps", type=at_least(1), default=30, help="steps to time (%(default)s)")
    parser.add_argument("--packed", action="store_true", help="keep weights packed on a CPU as well")
    add_plot_option(parser, "size against divergence")
    chosen = parser.parse_args(arguments)
    notes = []
    for level in chosen.levels or ():
        Recipe.parse(level)  # before anything takes long
    with tempfile.TemporaryDirectory() as folder:
        file = find(chosen.model, Path(folder))
        if chosen.levels:
            need_floating_point(file)
        elif file.quantization and chosen.plot:
            parser.error(f"--plot draws levels of an unquantized model; {chosen.model} is quantized already.")
        variants = [Variant(level) for level in chosen.levels or ([STORED] if file.quantization else default)]
        original = load(file, None, packed=False)
        if chosen.streams:
            codes = stored_streams(chosen.streams, file.config)
        elif chosen.speech:
            codes = answer_streams(chosen.model, chosen.speech, chosen.seed)
        else:
            codes = generate_streams(original, chosen.length, seed=chosen.seed)
        reference = predictions(original, codes)
        try:
            original.make_state(1, KV_BITS[0])
            variants += [Variant(STORED if file.quantization else "bf16", bits) for bits in chosen.kv_bits]
        except InputError as error:
            notes.append(str(error))
        del original
        results = [measure(file, variant, reference, codes, chosen.packed) for variant in variants]
        at_once = sum(r.full for r in results) < memory_bytes() // 8
        results = timed(file, results, chosen.packed, chosen.steps, at_once)
    for table in (costs(results), qualities(results)):
        Console().print(table)
    if not at_once:
        notes.append("Levels were timed one after another, not in turns: compare times with care.")
    if chosen.model.startswith("random-"):
        notes.append("Random weights: sizes and times are as of a trained model, divergences are not.")
    if chosen.plot:
        plot(results, chosen.plot, f"Quantization of {Path(chosen.model).name}")
    details = {"model": chosen.model, "levels": [asdict(result) for result in results]}
    report(__doc__, chosen.json, list(figures(results)), details, notes)
    return 0


def figures(results: Sequence[Measured]) -> list[Figure]:
    """What is compared across runs."""
    found: list[Figure] = []
    for r in results:
        found.append(Figure.of(f"{r.variant}: step", "ms", r.ms))
        found.append(Figure.of(f"{r.variant}: step, full cache", "ms", r.full_ms))
        found.append(Figure.exact(f"{r.variant}: memory, full cache", "MB", r.full / 1e6))
        found.append(Figure.exact(f"{r.variant}: KL", "nats", r.quality.kl))
    return found


if __name__ == "__main__":
    sys.exit(run_program(main))
