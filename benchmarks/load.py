"""How long does a model take to load and to answer with its first frame, and how much memory does it need meanwhile?

Makes a checkpoint of random weights in the published layout (the 7B shape at 4 bits: 4.8 GB), then measures, each in a
process of its own: reading the file once (into one small buffer, and into memory as large as the file), loading the
language model, and a cold start up to the first frame of sound. Before a "cold" run the file's pages are dropped from
the system's cache. On a CPU small models are unpacked to float32 while loading, which is part of the time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from common import Figure, options, report
from mlx.utils import tree_flatten

from moshi_mlx.checkpoint import Quantization, Recipe, expected_tensors, pieces, write_safetensors
from moshi_mlx.checkpoint.check import FLOAT, TensorSpec
from moshi_mlx.checkpoint.saving import config_to_save
from moshi_mlx.config import FRAME_SIZE, LMConfig, MimiConfig
from moshi_mlx.mimi import expected_tensors as mimi_tensors

PUBLISHED = LMConfig.published()
SMALL = LMConfig(
    dim=1024, num_heads=16, num_layers=12, n_q=16, dep_q=8, card=2048, text_card=4000, context=3000,
    delays=PUBLISHED.delays, depformer_dim=256, depformer_num_heads=4, depformer_num_layers=2,
    depformer_dim_feedforward=1056,
)  # fmt: skip
TINY = LMConfig(
    dim=128, num_heads=2, num_layers=1, n_q=16, dep_q=8, card=2048, text_card=128, context=64, delays=PUBLISHED.delays,
    depformer_dim=64, depformer_num_heads=1, depformer_num_layers=1, depformer_dim_feedforward=264,
)  # fmt: skip
SHAPES = {"7b": PUBLISHED, "small": SMALL, "tiny": TINY}
_NOISE = np.random.default_rng(0).integers(0, 2**32, 1 << 22, dtype=np.uint32)


def make_model(folder: Path, config: LMConfig, bits: int | None) -> Path:
    """Write a complete random model, one tensor at a time, and return its weights file."""
    recipe = Recipe() if bits is None else Recipe.parse(bits)
    quantization: dict[str, Quantization] = {}
    for name, piece in pieces(config).items():
        module = name.removesuffix(".weight")
        if (how := recipe(module, piece.shape)) is not None:
            quantization[module] = how
    specs = {
        name: TensorSpec(spec.shape, "BF16" if spec.dtype == FLOAT else spec.dtype)
        for name, spec in expected_tensors(config, "mlx", quantization).items()
    }
    weights = folder / ("model.safetensors" if bits is None else f"model.q{bits}.safetensors")
    write_safetensors(weights, specs, _random(specs, bits))
    codec = {name: TensorSpec(tuple(shape), "F32") for name, shape in mimi_tensors(MimiConfig.published()).items()}
    write_safetensors(folder / "tokenizer-e351c8d8-checkpoint125.safetensors", codec, _random(codec, None))
    (folder / "text.model").write_bytes(moshi_mlx.load("untrained").tokenizer.proto)
    described = {**config_to_save({}, config), "moshi_name": weights.name, "tokenizer_name": "text.model"}
    (folder / "config.json").write_text(json.dumps(described))
    return weights


def _random(specs: dict[str, TensorSpec], bits: int | None) -> Iterator[tuple[str, mx.array]]:
    """Noise on the scale of trained weights: packed bits at random, scales and biases that centre them on 0."""
    for name, (shape, dtype) in specs.items():
        size = int(np.prod(shape))
        if dtype == "U32":
            yield name, mx.array(np.resize(_NOISE, size)).reshape(shape)
        elif name.endswith((".scales", ".biases")):
            top = 2 ** (bits or 4) - 1
            value = 0.07 / top if name.endswith(".scales") else -0.035
            yield name, mx.full(shape, value, mx.bfloat16)
        elif len(shape) == 1:
            yield name, mx.ones(shape, mx.bfloat16 if dtype == "BF16" else mx.float32)
        else:
            noise = np.resize(_NOISE, size).astype(np.float32) / 2**32 - 0.5
            yield name, mx.array(noise * 0.07).reshape(shape).astype(mx.bfloat16 if dtype == "BF16" else mx.float32)


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def drop_from_cache(folder: Path) -> None:
    """Have the system forget the pages of a folder's files, where it can be asked to."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# What runs in a process of its own; prints one line of JSON.


def read_once(folder: Path, weights: Path) -> dict[str, float]:
    """Read the weights file into a buffer, front to back."""
    buffer = bytearray(1 << 24)
    start = time.perf_counter()
    with weights.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return {"seconds": time.perf_counter() - start}


def read_into_memory(folder: Path, weights: Path) -> dict[str, float]:
    """Read the weights file into memory that is as large: what any loading without a copy has to do."""
    start = time.perf_counter()
    content = memoryview(np.empty(weights.stat().st_size, np.uint8))
    position = 0
    with weights.open("rb", buffering=0) as file:
        while got := file.readinto(content[position : position + (1 << 26)]):
            position += got
    return {"seconds": time.perf_counter() - start}


def load_lm(folder: Path, weights: Path) -> dict[str, float]:
    """Load the language model and have all of its weights in memory."""
    from moshi_mlx.checkpoint import load_lm as load

    before, start = peak_memory(), time.perf_counter()
    lm = load(folder)
    mx.eval(lm.parameters())
    seconds, held = time.perf_counter() - start, sum(array.nbytes for _, array in tree_flatten(lm.parameters()))
    return {"seconds": seconds, "peak": peak_memory() - before, "held": held}


def first_frame(folder: Path, weights: Path) -> dict[str, float]:
    """From nothing to the first frame of sound."""
    marks = [time.perf_counter()]
    moshi = moshi_mlx.load(folder)
    marks.append(time.perf_counter())
    session = moshi.session(seed=0)
    session.step(np.zeros(FRAME_SIZE, np.float32))
    marks.append(time.perf_counter())
    session.step(np.zeros(FRAME_SIZE, np.float32))
    marks.append(time.perf_counter())
    load, first, second = np.diff(marks).tolist()
    return {"load": load, "first_frame": first, "second_frame": second, "peak": peak_memory()}


QUESTIONS = {question.__name__: question for question in (read_once, read_into_memory, load_lm, first_frame)}


def ask(question: str, folder: Path, weights: Path, cold: bool) -> dict[str, float]:
    """Run a question in a process of its own; adds the time of the whole process."""
    if cold:
        drop_from_cache(folder)
    start = time.perf_counter()
    command = [sys.executable, __file__, "--ask", question, str(folder), str(weights)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{question} failed:\n{done.stderr}")
    return {**json.loads(done.stdout), "process": time.perf_counter() - start}


def measure(folder: Path, weights: Path, runs: int) -> tuple[list[Figure], dict[str, Any]]:
    """Everything, warm runs in turns so that each is paired with a reading of the same moment."""
    size = weights.stat().st_size
    cold = {name: ask(name, folder, weights, cold=True)["seconds"] for name in ("read_once", "load_lm")}
    names = ("read_once", "read_into_memory", "load_lm")
    warm = [{name: ask(name, folder, weights, cold=False) for name in names} for _ in range(runs)]
    by = {
        name: [run["load_lm"]["seconds"] / run[name]["seconds"] for run in warm]
        for name in ("read_once", "read_into_memory")
    }
    start = ask("first_frame", folder, weights, cold=False)
    # Where a checkpoint stays packed, memory must stay near the file's size; unpacked to float32 it can't.
    packed = warm[0]["load_lm"]["held"] < 1.05 * size
    figures = [
        Figure.exact("file", "GB", size / 1e9),
        *(Figure.of(f"{_WORDS[name]}", "s", [run[name]["seconds"] for run in warm]) for name in names),
        *(Figure.of(f"loading by {_WORDS[name]}", "x", ratios) for name, ratios in by.items()),
        *(Figure.exact(f"{_WORDS[name]}, not in the system's cache", "s", value) for name, value in cold.items()),
        Figure.of("peak memory by file", "x", [r["load_lm"]["peak"] / size for r in warm], 1.1 if packed else None),
        Figure.of("peak memory by what is held", "x", [r["load_lm"]["peak"] / r["load_lm"]["held"] for r in warm]),
        Figure.exact("start of the process to first frame", "s", start["process"] - start["second_frame"]),
        Figure.exact("  of which loading", "s", start["load"]),
        Figure.exact("  of which the first step", "s", start["first_frame"]),
    ]
    return figures, {"warm": warm, "cold": cold, "first_frame": start}


_WORDS = {
    "read_once": "reading the file into one buffer",
    "read_into_memory": "reading the file into memory",
    "load_lm": "loading the language model",
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="7b: 4.8 GB at 4 bits")
    parser.add_argument("--bits", type=int, default=4, help="0: bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where to make the model (removed afterwards)")
    parser.add_argument("--ask", nargs=3, metavar=("QUESTION", "FOLDER", "WEIGHTS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.ask:
        question, folder, weights = chosen.ask
        print(json.dumps(QUESTIONS[question](Path(folder), Path(weights))))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        weights = make_model(Path(name), SHAPES[chosen.shape], chosen.bits or None)
        figures, details = measure(Path(name), weights, chosen.runs)
    report(__doc__, chosen.json, figures, {"shape": chosen.shape, "bits": chosen.bits or 16, **details})


if __name__ == "__main__":
    main()
