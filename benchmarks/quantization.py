"""What does a quantization level cost, and what does it cost in quality?

    python benchmarks/quantization.py MODEL [--levels 4 8 mxfp4 '4,attention=8'] [--plot FILE.png]

For each level: size of the file, bytes read per step, memory at rest and with a full cache, milliseconds per step, and
how far its predictions are from the unquantized model's on the same streams of tokens: Kullback-Leibler divergence in
nats and share of equal most likely tokens, for text and for every codebook. Time and memory at rest are measured as
this machine runs the level: on a CPU small models are unpacked to float32, so levels differ on Metal only.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from common import Figure, memory_bytes, number, options, report
from limits import LEVELS
from models import SHAPES, make_lm
from rich.console import Console
from rich.table import Table
from traffic import kv_bytes, lm_bytes_held, lm_bytes_read

from moshi_mlx.checkpoint import LMFile, Recipe, check_lm, load_lm_tensors, resolve
from moshi_mlx.checkpoint.saving import need_floating_point
from moshi_mlx.config import LMConfig
from moshi_mlx.lm import LMModel
from moshi_mlx.lm.model import LMOutput
from moshi_mlx.lm.weights import build
from moshi_mlx.precision import Precision, choose_precision
from moshi_mlx.quality import Divergence, divergence, generate_streams, predictions

MIXED = "4,attention=8,heads=8"

_TURN = 5
"""Steps that a level takes at a time."""


@dataclass(frozen=True)
class Measured:
    """What was found of one level; bytes, milliseconds, and the divergence from the original."""

    level: str
    file: int
    read: int
    at_rest: int
    full: int
    quality: Divergence
    ms: list[float] = field(default_factory=list)


def load(file: LMFile, level: str | None, packed: bool) -> LMModel:
    """The model at a level; None as it is in the file."""
    tensors, quantization = load_lm_tensors(file.path, file.config, level)
    chosen = choose_precision(tensors, quantization)
    return build(file.config, tensors, quantization, Precision(chosen.dtype, unpack=False) if packed else chosen)


def in_turns(file: LMFile, levels: Sequence[str], packed: bool, steps: int, at_once: bool) -> list[list[float]]:
    """Milliseconds of steps by level: all levels in turns where they fit into memory together, else one by one."""
    groups = [list(levels)] if at_once else [[level] for level in levels]
    times: list[list[float]] = []
    for group in groups:
        generators = [moshi_mlx.LMGen(load(file, _stored(level), packed), seed=0) for level in group]
        for generator in generators:
            step_ms(generator, 6)
        found: list[list[float]] = [[] for _ in group]
        for _ in range(0, steps, _TURN):
            for generator, so_far in zip(generators, found, strict=True):
                so_far += step_ms(generator, _TURN)
        times += found
        del generators
        mx.clear_cache()
    return times


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


def _stored(level: str) -> str | None:
    return None if level == "bf16" else level


def measure(file: LMFile, level: str, reference: LMOutput, codes: mx.array, packed: bool) -> Measured:
    """Everything about one level."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    lm = load(file, _stored(level), packed)
    at_rest = mx.get_active_memory() - before
    recipe, config = Recipe.parse(level), file.config
    return Measured(
        level=level,
        file=lm_bytes_held(config, recipe),
        read=lm_bytes_read(config, recipe) + kv_bytes(config, config.context),
        at_rest=at_rest,
        full=at_rest + kv_bytes(config, config.context, lm.dtype.size),
        quality=divergence(reference, predictions(lm, codes)),
    )


def streams(path: Path | None, lm: LMModel, length: int, seed: int) -> mx.array:
    """Token streams int32 [B, 1 + n_q, T]: those in a .npy file, or what the model makes of itself."""
    if path is None:
        return generate_streams(lm, length, seed=seed)
    codes = np.load(path)
    if codes.ndim != 3 or codes.shape[1] != lm.config.n_q + 1:
        raise SystemExit(f"{path} holds {list(codes.shape)}; expected [batch, {lm.config.n_q + 1}, steps].")
    return mx.array(codes.astype(np.int32))


def table_of(results: Sequence[Measured]) -> Table:
    """One line a level."""
    table = Table(
        "level", "file MB", "MB read a step", "MB at rest", "with full cache", "ms a step", "KL text", "KL audio",
        "same top text", "same top audio: first", "mean", "last",
    )  # fmt: skip
    for r in results:
        audio = r.quality.audio_agreement
        table.add_row(
            r.level, *(f"{size / 1e6:,.1f}" for size in (r.file, r.read, r.at_rest, r.full)),
            number(float(np.median(r.ms))), f"{r.quality.text_kl:.2e}",
            f"{np.mean(r.quality.audio_kl):.2e}" if audio else "", f"{r.quality.text_agreement:.1%}",
            *((f"{audio[0]:.1%}", f"{np.mean(audio):.1%}", f"{audio[-1]:.1%}") if audio else ("", "", "")),
        )  # fmt: skip
    return table


def plot(results: Sequence[Measured], path: Path, title: str) -> None:
    """Size against divergence, one point a level."""
    from plots import new_axes, save

    figure, axes = new_axes(title, "file, MB", "KL divergence from bf16, nats")
    for r in results:
        if r.quality.kl > 0 and r.level != "bf16":
            axes.plot(r.file / 1e6, r.quality.kl, "o")
            axes.annotate(r.level, (r.file / 1e6, r.quality.kl), xytext=(5, 5), textcoords="offset points")
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("model", help="bf16 model (folder, repository, nano), or random-256, random-512")
    parser.add_argument("--levels", nargs="+", default=[*LEVELS, MIXED], help="levels or recipes (%(default)s)")
    parser.add_argument("--streams", type=Path, metavar="NPY", help="tokens [batch, 1 + n_q, steps] to predict")
    parser.add_argument("--length", type=int, default=48, help="steps of generated streams (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of generated streams")
    parser.add_argument("--steps", type=int, default=30, help="steps to time (%(default)s)")
    parser.add_argument("--packed", action="store_true", help="keep weights packed on a CPU as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="size against divergence, PNG or SVG")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = find(chosen.model, Path(folder))
        need_floating_point(file)
        original = load(file, None, packed=False)
        codes = streams(chosen.streams, original, chosen.length, chosen.seed)
        reference = predictions(original, codes)
        del original
        results = [measure(file, level, reference, codes, chosen.packed) for level in chosen.levels]
        at_once = sum(r.at_rest for r in results) < memory_bytes() // 8
        times = in_turns(file, chosen.levels, chosen.packed, chosen.steps, at_once)
    results = [replace(result, ms=ms) for result, ms in zip(results, times, strict=True)]
    Console().print(table_of(results))
    notes = [] if at_once else ["Levels were timed one after another, not in turns: compare times with care."]
    if chosen.model.startswith("random-"):
        notes.append("Random weights: sizes and times are as of a trained model, divergences are not.")
    if chosen.plot:
        plot(results, chosen.plot, f"Quantization of {Path(chosen.model).name}")
    details = {"model": chosen.model, "levels": [asdict(result) for result in results]}
    report(__doc__, chosen.json, list(figures(results)), details, notes)


def figures(results: Sequence[Measured]) -> list[Figure]:
    """What is compared across runs."""
    found: list[Figure] = []
    for r in results:
        found.append(Figure.of(f"{r.level}: step", "ms", r.ms))
        found.append(Figure.exact(f"{r.level}: KL", "nats", r.quality.kl))
    return found


if __name__ == "__main__":
    main()
