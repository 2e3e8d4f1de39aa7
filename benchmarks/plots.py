"""Plots in one style; needs the `bench` extra (matplotlib)."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any


def add_plot_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--plot FILE`; without matplotlib it ends the program, before hours were spent on what can't be drawn."""

    def drawable(name: str) -> Path:
        if importlib.util.find_spec("matplotlib") is None:
            raise SystemExit("--plot needs matplotlib: .venv/bin/pip install matplotlib")
        return Path(name)

    parser.add_argument("--plot", type=drawable, metavar="FILE", help=f"{what}, PNG or SVG")


def new_axes(title: str, x: str, y: str, rows: int = 1) -> Any:
    """A figure and its axes (a list of them for several rows)."""
    import matplotlib

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
