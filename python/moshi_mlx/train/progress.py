"""What a person sees of a training run: a live table, a log of all figures, a plot of the losses."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..files import ResultFile, storage_errors

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#555555", "#17becf")


class Progress:
    """Collects a run's figures; shown as a live table on a terminal, as a line now and then elsewhere.

    Args:
        folder: gets `log.jsonl` and `loss.svg`, their names after `name` and a dash if there is one.
        steps: of the whole run.
        console: where to show.
        every: steps between two entries of the log.
    """

    def __init__(self, folder: Path, steps: int, console: Console, every: int = 10, name: str = ""):
        self.log = folder / f"{name}{'-' if name else ''}log.jsonl"
        self.picture = folder / f"{name}{'-' if name else ''}loss.svg"
        self.total = steps
        self.every = every
        self._console = console
        self._recent: dict[str, list[float]] = defaultdict(list)
        self._means: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._clock = time.monotonic()
        self._seconds = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self.plot()

    def step(self, step: int, parts: Mapping[str, float], norm: float) -> None:
        """Take the losses of a step.

        Raises:
            StorageError: disk full, no permission.
        """
        for name, value in {**parts, "gradient norm": norm}.items():
            self._recent[name].append(value)
        if step % self.every:
            return
        now = time.monotonic()
        self._seconds, self._clock = (now - self._clock) / self.every, now
        self._means = {name: sum(values) / len(values) for name, values in self._recent.items()}
        self._recent.clear()
        self._log({"step": step, "seconds": round(self._seconds, 3), **_rounded(self._means)})
        if self._live:
            self._live.update(self._table(step), refresh=True)
        elif step % (5 * self.every) == 0:
            self._line(step, {**self._means, "seconds a step": self._seconds})

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the figures of an evaluation.

        Raises:
            StorageError: disk full, no permission.
        """
        self._scores = dict(scores)
        self._log({"step": step, "scores": _rounded(scores)})
        self.plot()
        if not self._live:
            self._line(step, scores)

    def _line(self, step: int, figures: Mapping[str, float]) -> None:
        self._console.print(
            f"{step:6d}  " + "  ".join(f"{n} {v:.3f}" for n, v in figures.items()), soft_wrap=True, highlight=False
        )

    def _log(self, entry: Mapping[str, object]) -> None:
        with storage_errors(str(self.log)), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _table(self, step: int) -> Table:
        left = (self.total - step) * self._seconds / 60
        table = Table(title=f"step {step} of {self.total}, {self._seconds:.2f} s each, {left:.0f} min left")
        for column in ("loss", "mean", "held out", "share"):
            table.add_column(column, justify="right" if column in ("mean", "share") else "left")
        rows = max(len(self._means), len(self._scores))
        losses = [(n, f"{v:.3f}") for n, v in self._means.items()] + [("", "")] * rows
        scores = [(n, f"{100 * v:.1f}%") for n, v in self._scores.items()] + [("", "")] * rows
        for loss, held_out in list(zip(losses, scores, strict=False))[:rows]:
            table.add_row(*loss, *held_out)
        return table

    def plot(self) -> None:
        """Draw the log's losses into `loss.svg`."""
        if self.log.exists():
            entries = []
            for line in self.log.read_text(encoding="utf-8").splitlines():
                # One may have been cut off, as where the disk was full.
                with suppress(ValueError):
                    entries.append(json.loads(line))
            with ResultFile(self.picture) as file:
                file.write(draw([e for e in entries if "scores" not in e]).encode())


def draw(entries: list[dict[str, float]], width: int = 800, height: int = 420) -> str:
    """The losses of a log as an SVG picture, on a logarithmic scale."""
    kinds = dict.fromkeys(n for e in entries for n in e)
    names = [n for n in kinds if n not in ("step", "seconds", "gradient norm")]
    low, high = math.log10(0.003), math.log10(10)
    last = max((e["step"] for e in entries), default=1)

    def point(step: float, value: float) -> str:
        y = (min(max(math.log10(max(value, 1e-9)), low), high) - low) / (high - low)
        return f"{50 + (width - 200) * step / last:.1f},{height - 30 - (height - 50) * y:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in (0.01, 0.1, 1.0, 10.0):
        start, end = point(0, value), point(last, value)
        x, y = start.split(",")
        lines.append(f'<polyline points="{start} {end}" stroke="#ddd"/>')
        lines.append(f'<text x="{float(x) - 40}" y="{y}">{value:g}</text>')
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(point(e["step"], e[name]) for e in entries if name in e)
        lines.append(f'<polyline points="{points}" stroke="{colour}" fill="none"/>')
        lines.append(f'<text x="{width - 140}" y="{40 + 18 * i}" fill="{colour}">{name}</text>')
    lines.append(f'<text x="50" y="{height - 8}">step 0 to {last:g}</text></svg>')
    return "\n".join(lines)


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in figures.items()}
