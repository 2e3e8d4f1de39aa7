"""What a run took: milliseconds a step and memory, as a person reads them."""

import resource
import sys
from collections.abc import Iterable

import numpy as np
from rich.table import Table

from ..config import FRAME_RATE
from ..session import Timings

_PARTS = {"encode": "encode_ms", "language model": "lm_ms", "decode": "decode_ms", "together": "total_ms"}


def timings_table(timings: Iterable[Timings]) -> Table:
    """Median and 95th percentile of a step and of its parts, in milliseconds."""
    steps = list(timings)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("ms per step")
    table.add_column("median", justify="right")
    table.add_column("95%", justify="right")
    for label, part in _PARTS.items():
        values = np.array([getattr(step, part) for step in steps])
        values = values[np.isfinite(values)]
        if values.size:
            table.add_row(label, f"{np.median(values):.1f}", f"{np.percentile(values, 95):.1f}")
    return table


def real_time_factor(steps: int, seconds: float) -> float:
    """Seconds of work for a second of sound; below 1 is faster than speech."""
    return seconds * FRAME_RATE / max(steps, 1)


def memory_line() -> str:
    """The process's peak memory and MLX's share of it."""
    import mlx.core as mx

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, kilobytes here
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"memory: {peak / 1e6:.0f} MB at most, {mx.get_peak_memory() / 1e6:.0f} MB of it MLX arrays"
