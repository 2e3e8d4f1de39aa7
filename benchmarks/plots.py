"""Plots in one style; needs the `bench` extra (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def new_axes(title: str, x: str, y: str, rows: int = 1) -> Any:
    """A figure and its axes (a list of them for several rows); ends with a sentence where matplotlib isn't there."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("Plots need matplotlib: pip install 'moshi-duplex[bench]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, 1, figsize=(7.5, 3.2 * rows + 1.2), sharex=True, squeeze=False)
    column = [row[0] for row in axes]
    column[0].set_title(title)
    column[-1].set_xlabel(x)
    for one in column:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    column[0].set_ylabel(y)
    return figure, column[0] if rows == 1 else column


def save(figure: Any, path: Path) -> None:
    """Write the plot in the format that the file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
