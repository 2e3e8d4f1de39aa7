"""The table of what fits which Mac, in Markdown: limits by chip and level, and what was measured there.

`roofline.py --markdown` prints it, `report.py` the line of the machine at hand; `README.md` holds what came of both.
"""

from __future__ import annotations

from limits import Chip, Need, chips, need, verdict

from moshi_mlx.config import LMConfig

LEVELS = ("4", "8", "bf16")
"""The published files', and what they were made of; a column each."""

HEAD = ("machine", "GB/s", "4 bits", "8 bits", "bf16", "measured, ms a step, empty - full cache")


def needs() -> list[tuple[Need, Need]]:
    """What the published model needs at each of the levels, with an empty and with a full cache."""
    config = LMConfig.published()
    return [(need(config, level, 0), need(config, level, config.context)) for level in LEVELS]


def line(name: str, gb_per_s: float, chip: Chip | None = None, measured: str = "") -> str:
    """A machine's line: its limits in milliseconds, of a chip that is sold in Macs the verdict, too."""
    cells = []
    for empty, full in needs():
        cell = f"{empty.ms(gb_per_s * 1e9):.0f} - {full.ms(gb_per_s * 1e9):.0f}"
        cells.append(f"{cell}: {verdict(chip, full)}" if chip else cell)
    return f"| {name} | {gb_per_s:.0f} | {' | '.join(cells)} | {measured} |"


def table() -> str:
    """All chips, a line each."""
    known = [line(chip.name, chip.gb_per_s, chip) for chip in chips()]
    return "\n".join([f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|", *known])
