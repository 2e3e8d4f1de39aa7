"""How fast is a conversation on this machine, beside what its memory allows?

    python benchmarks/report.py                              random 7B models, 4 and 8 bits (13 GB of temporary files)
    python benchmarks/report.py kyutai/moshiko-mlx-q4 ...    models that are here or on the hub
    python benchmarks/report.py random-512 nano              small ones, in a minute

Takes whole steps (encode, language model, decode) at the beginning of a conversation and with a full cache, and prints
a table in Markdown, ready to be pasted into an issue, and this machine's line of the table in `benchmarks/README.md`.
The limit is what such a step reads, as this machine holds it, by the chip's stated memory bandwidth, or where that
isn't known by the bandwidth measured here.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from common import Figure, machine, memory_bytes, options, processor, report
from folders import make_folder
from limits import FRAME_MS, Chip, chips
from load import make_model
from macs import HEAD, line
from models import SHAPES
from traffic import Chooser, bandwidth, codec_bytes_read, kv_bytes, lm_bytes_read

from moshi_mlx.checkpoint import check_lm, resolve
from moshi_mlx.checkpoint.quantization import AFFINE_BITS
from moshi_mlx.cli.options import at_least, run_program
from moshi_mlx.config import FRAME_SIZE, LMConfig, MimiConfig
from moshi_mlx.errors import InputError
from moshi_mlx.layers import arrays_of
from moshi_mlx.lm.cache import KV_BITS

SPEAKING = [name for name, config in SHAPES.items() if config["card"] == MimiConfig.published().bins]
"""Shapes that go with the published codec."""

DEFAULT = ("random-7b-4", "random-7b-8")


@dataclass(frozen=True)
class Row:
    """What was measured of one model; times in milliseconds.

    Attributes:
        model, level: what ran.
        read_start, read_full: bytes that a step reads at the beginning, and with a full cache.
        held: bytes that MLX holds.
        start, full: times of steps.
    """

    model: str
    level: str
    read_start: int
    read_full: int
    held: int
    start: list[float]
    full: list[float]


def find(model: str, folder: Path) -> str | Path:
    """A folder or repository; `random-SHAPE[-BITS]` is made, `7b` being a shape, too.

    Raises:
        InputError: no such shape or bits.
    """
    if not model.startswith("random-"):
        return model
    shape, _, bits = model.removeprefix("random-").partition("-")
    if bits and bits not in map(str, AFFINE_BITS):
        raise InputError(f"{model}: there are no {bits!r} bits. Expected one of {', '.join(map(str, AFFINE_BITS))}.")
    if shape == "7b":
        make_model(folder, LMConfig.published(), int(bits or 4))
    elif shape in SPEAKING:
        make_folder(folder, shape, int(bits) if bits else None)
    else:
        raise InputError(f"No shape {shape}: there are 7b, {', '.join(SPEAKING)}.")
    return folder


def measure(model: str, where: str | Path, steps: int, kv_bits: int | None) -> Row:
    """Load a model and take its steps."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    moshi = moshi_mlx.load(where)
    session = moshi.session(seed=0, kv_bits=kv_bits)
    start = step_ms(session, steps)
    # A full cache is read alike whatever it holds.
    session._gen.state.kv.offset = moshi.lm.config.context
    full = step_ms(session, steps)
    held = mx.get_active_memory() - before
    read, level = read_by(moshi, where)
    config = moshi.lm.config
    first, last = (read + kv_bytes(config, n, moshi.lm.dtype, kv_bits) for n in (steps // 2, config.context))
    return Row(model, level + (f"; {kv_bits}-bit cache" if kv_bits else ""), first, last, held, start, full)


def step_ms(session: moshi_mlx.Session, steps: int) -> list[float]:
    """Milliseconds of steps, after those that build their graph."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(FRAME_SIZE).astype(np.float32)
    return [session.step(noise).timings.total_ms for _ in range(steps + 4)][4:]


def read_by(moshi: moshi_mlx.Moshi, where: str | Path) -> tuple[int, str]:
    """Bytes of weights that a step reads as they are held here, and the checkpoint's level."""
    files = resolve(where, parts=["lm"])
    quantization = check_lm(files.need("lm"), files.lm_config).quantization
    level = " and ".join(sorted({str(how) for how in quantization.values()})) or "not quantized"
    packed = any(name.endswith("scales") for name in arrays_of(moshi.lm.parameters()))
    how: Chooser = (lambda module, shape: quantization.get(module)) if packed else (lambda module, shape: None)
    codec = codec_bytes_read(moshi.mimi.config, moshi.mimi.num_codebooks, moshi.mimi.dtype.size)
    return lm_bytes_read(
        moshi.lm.config, how, moshi.lm.dtype.size
    ) + codec, level if packed or not quantization else f"{level}, unpacked"


def this_chip() -> Chip | None:
    """The Apple chip at hand, as far as its name tells; of two bandwidths the higher."""
    name = processor().removeprefix("Apple ")
    found = [chip for chip in chips() if chip.name.split(",")[0] == name]
    return max(found, key=lambda chip: chip.gb_per_s) if found and sys.platform == "darwin" else None


def markdown(rows: Sequence[Row], bytes_per_second: float, stated: bool) -> str:
    """The table."""
    about = machine()
    by = "stated" if stated else "measured"
    gigabytes = memory_bytes() / 2**30
    lines = [
        f"{about['processor']}, {gigabytes:.0f} GB, {about['system']}, MLX {about['mlx']} on {about['device']}, "
        f"{about['threads']} threads; memory {bytes_per_second / 1e9:.0f} GB/s ({by}); commit {about['commit']}; "
        f"medians (quartiles) of {len(rows[0].full)} steps of a whole session",
        "",
        "| model | level | memory | limit, ms | measured, ms | full cache: limit, ms | measured, ms | in time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        start_limit, full_limit = (read / bytes_per_second * 1e3 for read in (row.read_start, row.read_full))
        in_time = "yes" if np.quantile(row.full, 0.95) < FRAME_MS else "no"
        lines.append(
            f"| {row.model} | {row.level} | {row.held / 1e9:.2f} GB | {start_limit:.1f} | {_spread(row.start)} "
            f"| {full_limit:.1f} | {_spread(row.full)} | {in_time} |"
        )
    return "\n".join(lines)


def readme_line(rows: Sequence[Row], bytes_per_second: float, chip: Chip | None) -> str:
    """This machine's line of the table of Macs."""
    measured = "; ".join(f"{row.model}: {np.median(row.start):.0f} - {np.median(row.full):.0f}" for row in rows)
    about = machine()
    name = chip.name if chip else f"{about['processor']}, {about['cpus']} CPUs, {about['device']}"
    return line(name, bytes_per_second / 1e9, chip, measured)


def _spread(times: Sequence[float]) -> str:
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return f"{median:.1f} ({low:.1f} - {high:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("models", nargs="*", default=DEFAULT, help="folders, repositories or random-SHAPE[-BITS]")
    parser.add_argument("--steps", type=at_least(1), default=50, help="of each kind (%(default)s)")
    parser.add_argument("--kv-bits", type=int, choices=KV_BITS, help="quantize the cache")
    parser.add_argument("--folder", help="where to make random models (removed afterwards)")
    chosen = parser.parse_args(arguments)
    if chosen.folder and not Path(chosen.folder).is_dir():
        parser.error(f"--folder {chosen.folder}: there is no such folder")
    chip = this_chip()
    bytes_per_second = chip.gb_per_s * 1e9 if chip else bandwidth()
    rows = []
    for model in chosen.models:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            rows.append(measure(model, find(model, Path(folder)), chosen.steps, chosen.kv_bits))
    figures = [Figure.exact("memory bandwidth", "GB/s", bytes_per_second / 1e9)]
    for row in rows:
        figures.append(Figure.of(f"{row.model}: step", "ms", row.start))
        figures.append(Figure.exact(f"{row.model}: limit", "ms", row.read_start / bytes_per_second * 1e3))
        figures.append(Figure.of(f"{row.model}: step, full cache", "ms", row.full))
        figures.append(Figure.exact(f"{row.model}: limit, full cache", "ms", row.read_full / bytes_per_second * 1e3))
    table = markdown(rows, bytes_per_second, chip is not None)
    ours = readme_line(rows, bytes_per_second, chip)
    report(__doc__, chosen.json, figures, {"markdown": table, "line": ours})
    print("\n" + table)
    print(f"\nIts line in the table of benchmarks/README.md ({', '.join(HEAD)}):\n\n{ours}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
