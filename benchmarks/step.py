"""How long does a step take beside the published implementations, and how far is it from what memory allows?

A step of the language model against `moshi_mlx`'s, and a session's whole step (encode, language model, decode) against
`rustymimi`'s encoder and decoder around `moshi_mlx`'s step; random weights of two shapes, the codec full-size with 8
codebooks. Each side is a process that stays; they take turns, A B A B, and are compared turn by turn. Both have the
same threads and BLAS, and `moshi_mlx` computes in float32, its fastest way on CPU. Peers: MOSHI_PEERS=PYTHON.

The limit is what is read once a step (weights as the model holds them here, half-filled cache) at the memory bandwidth
measured in the same run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moshi_mlx  # noqa: F401  (puts OpenBLAS under MLX)

import mlx.core as mx  # isort: skip
from common import HERE, NO_PEERS, Figure, in_turns, medians, options, peers, ratios, report
from folders import CODEC, make_folder
from models import SHAPES, make_lm
from random_weights import make_mimi
from step_worker import MAX_STEPS
from traffic import bandwidth, codec_bytes_read, kv_bytes, lm_bytes_read

from moshi_mlx.checkpoint import Recipe
from moshi_mlx.config import LMConfig, MimiConfig

LEVELS: dict[str, int | None] = {"float32": None, "q8": 8, "q4": 4}
LM_TARGETS = {("512", "float32"): 0.65, ("512", "q8"): 0.4, ("512", "q4"): 0.4, ("256", "float32"): 0.5}
SESSION_TARGET = 0.65


def commands(what: str, model: Path) -> dict[str, list[str]]:
    """Both sides of a comparison; one where there are no peers."""
    worker = str(HERE / "step_worker.py")
    sides = {"ours": [sys.executable, worker, "ours", what, str(model)]}
    if python := peers():
        sides["peers"] = [python, worker, "peers", what, str(model)]
    return sides


def limit_ms(shape: str, what: str, steps: int, bytes_per_second: float) -> float:
    """Milliseconds to read what a step reads, everything in float32 as a small model is held on CPU."""
    config = LMConfig.from_dict(SHAPES[shape])
    total = lm_bytes_read(config, Recipe(), float_bytes=4) + kv_bytes(config, steps // 2, mx.float32)
    if what == "session":
        total += codec_bytes_read(MimiConfig.published(), 8)
    return total / bytes_per_second * 1e3


def measure(
    what: str, shape: str, level: str, model: Path, rounds: int, steps: int, bytes_per_second: float
) -> tuple[list[Figure], dict[str, Any]]:
    """Figures of one comparison, and all times."""
    times = in_turns(commands(what, model), rounds, steps)
    name = f"{what} {shape} {level}"
    target = SESSION_TARGET if what == "session" else LM_TARGETS.get((shape, level))
    figures = [Figure.of(f"{name}: ours", "ms", medians(times["ours"]))]
    if "peers" in times:
        figures.append(Figure.of(f"{name}: peers", "ms", medians(times["peers"])))
        figures.append(Figure.of(f"{name}: ratio", "x", ratios(times["ours"], times["peers"]), target))
    limit = limit_ms(shape, what, rounds * steps, bytes_per_second)
    figures.append(Figure.exact(f"{name}: limit", "ms", limit))
    return figures, {name: {"ms": times, "limit_ms": limit}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--session-levels", nargs="*", choices=LEVELS, default=["float32", "q4"])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each side (%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="steps a turn (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.rounds * chosen.steps > MAX_STEPS - 16:
        parser.error(f"rounds times steps must be below {MAX_STEPS - 16}: the published generator takes no more.")
    figures, details = [], {}
    bytes_per_second = bandwidth()
    figures.append(Figure.exact("memory bandwidth, best", "GB/s", bytes_per_second / 1e9))
    with tempfile.TemporaryDirectory() as name:
        codec = make_mimi(Path(name) / CODEC) if chosen.session_levels else None
        for shape in chosen.shapes:
            for level in chosen.levels:
                folder = Path(name) / f"{shape}-{level}"
                # The codec's codebooks have 2,048 entries; a model of fewer doesn't go with it.
                if level in chosen.session_levels and SHAPES[shape]["card"] == MimiConfig.published().bins:
                    jobs = [("lm", make_folder(folder, shape, LEVELS[level], codec)), ("session", folder)]
                else:
                    jobs = [("lm", make_lm(folder, SHAPES[shape], LEVELS[level]))]
                for what, model in jobs:
                    found, all_times = measure(what, shape, level, model, chosen.rounds, chosen.steps, bytes_per_second)
                    figures += found
                    details |= all_times
    report(__doc__, chosen.json, figures, details, [] if peers() else [NO_PEERS])


if __name__ == "__main__":
    main()
