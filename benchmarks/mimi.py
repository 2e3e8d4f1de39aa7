"""How long do encoding and decoding a frame take beside the published codecs, and how far is that from the limit?

The codec at its published size with random weights and 8 codebooks, one frame of 1920 samples at a time, from an array
on the host to codes and back. Each codec is a process that stays; they take turns, A B A B, and are compared turn by
turn, with the same threads and BLAS. Peers (`rustymimi`, `moshi_mlx`, `mlx-audio` where installed): MOSHI_PEERS=PYTHON.

The limit is reading the weights that a frame touches once, at the memory bandwidth measured in the same run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import HERE, NO_PEERS, Figure, can_import, in_turns, options, peers, report
from random_weights import make_mimi, speechlike
from traffic import bandwidth, codec_bytes_read

from moshi_mlx.config import MimiConfig

MODULES = {"rustymimi": "rustymimi", "moshi_mlx": "moshi_mlx.models", "mlx-audio": "mlx_audio.codec.models.mimi"}
TARGETS = {"rustymimi": 0.65, "moshi_mlx": 0.12}
FLOOR_MS = 80
_FRAMES = 50


def installed(python: str | None) -> list[str]:
    """The peers that this Python has."""
    return [name for name, module in MODULES.items() if python and can_import(python, module)]


def medians(rounds: list[list[float]], part: slice) -> list[float]:
    """The median of each round's encodings, decodings (every second value), or their sums."""
    return [float(np.median(np.array(times).reshape(-1, 2)[:, part].sum(axis=1))) for times in rounds]


PARTS = {"encode": slice(0, 1), "decode": slice(1, 2), "encode + decode": slice(0, 2)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each codec (default 8)")
    parser.add_argument("--frames", type=int, default=8, help="frames a turn (default 8)")
    arguments = parser.parse_args()
    python = peers()
    names = installed(python)
    with tempfile.TemporaryDirectory() as folder:
        weights = make_mimi(Path(folder) / "mimi.safetensors")
        sound = Path(folder) / "sound.npy"
        np.save(sound, speechlike(_FRAMES))
        worker = str(HERE / "mimi_worker.py")
        commands = {"ours": [sys.executable, worker, "ours", str(weights), str(sound)]}
        for name in names:
            commands[name] = [str(python), worker, name, str(weights), str(sound)]
        rate = bandwidth()
        times = in_turns(commands, arguments.rounds, arguments.frames)
    figures = []
    for side in commands:
        for part, select in PARTS.items():
            floor = FLOOR_MS if side == "ours" and part == "encode + decode" else None
            figures.append(Figure.of(f"{side}: {part}", "ms", medians(times[side], select), floor))
    both = medians(times["ours"], PARTS["encode + decode"])
    for name in names:
        theirs = medians(times[name], PARTS["encode + decode"])
        ratio = [a / b for a, b in zip(both, theirs, strict=True)]
        figures.append(Figure.of(f"ours / {name}", "x", ratio, TARGETS.get(name)))
    size = codec_bytes_read(MimiConfig.published(), 8)
    limit = 1e3 * size / rate
    figures.append(Figure.exact("limit: weights read once", "ms", limit))
    figures.append(Figure.of("ours / limit", "x", [ms / limit for ms in both]))
    notes = [f"{size / 1e6:.0f} MB of weights a frame at {rate / 1e9:.1f} GB/s."]
    if python is None:
        notes.append(NO_PEERS)
    else:
        notes += [f"MOSHI_PEERS has no {name}: not compared." for name in MODULES if name not in names]
    report(__doc__, arguments.json, figures, {"milliseconds": times, "bytes": size, "bytes_per_second": rate}, notes)


if __name__ == "__main__":
    main()
