"""The measured ratios to the published packages as a bar chart in SVG, for light and dark pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

# Read well on white and on black.
_TEXT, _TARGET, _LIMIT = "#768390", "#d9782d", "#2da44e"
_BAR = 'fill="#4393d6" fill-opacity="0.6"'

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 250, 60, 26, 58


@dataclass(frozen=True)
class Bar:
    """One comparison; all but the name are shares of the peer's time.

    Attributes:
        name: what was compared with what.
        ratio, low, high: median and quartiles.
        limit: what reading the memory alone takes.
        target: None where there is none.
    """

    name: str
    ratio: float
    low: float
    high: float
    limit: float
    target: float | None


@dataclass(frozen=True)
class Chart:
    """Bars, and what they were measured on."""

    bars: list[Bar]
    caption: str


def ratio_bars(results: Path) -> Chart:
    """The comparisons with peers in `step.json` and `mimi.json` of a folder."""
    found: dict[str, Any] = {}
    for name in ("step", "mimi"):
        path = results / f"{name}.json"
        if not path.is_file():
            raise SystemExit(f"{path} isn't there: run benchmarks/{name}.py --json {path}, or make bench, first.")
        found[name] = json.loads(path.read_text())
    step, mimi = ({figure["name"]: figure for figure in found[name]["figures"]} for name in ("step", "mimi"))
    bars = []
    for name in found["step"]["details"]:
        if f"{name}: ratio" in step:
            what, shape, level = name.split()
            title = f"{'language model' if what == 'lm' else 'whole step'} {shape} wide, {level}"
            bars.append(_bar(title, step[f"{name}: ratio"], step[f"{name}: limit"], step[f"{name}: peers"]))
    for name, ratio in mimi.items():
        if name.startswith("ours / ") and name != "ours / limit":
            peer = name.removeprefix("ours / ")
            limit, theirs = mimi["limit: weights read once"], mimi[f"{peer}: encode + decode"]
            bars.append(_bar(f"Mimi, by {peer}", ratio, limit, theirs))
    if not bars:
        raise SystemExit("These results have no peers in them: set MOSHI_PEERS (see benchmarks/README.md).")
    machine = found["step"]["machine"]
    caption = (
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['threads']} threads, MLX {machine['mlx']} on "
        f"{machine['device']}, {found['step']['date'][:10]}"
    )
    return Chart(bars, caption)


def _bar(name: str, ratio: dict[str, Any], limit: dict[str, Any], peer: dict[str, Any]) -> Bar:
    return Bar(
        name, ratio["median"], ratio["low"], ratio["high"], limit["median"] / peer["median"], ratio.get("at_most")
    )


def draw(chart: Chart, path: Path) -> None:
    """Write the chart."""
    end = max(1.0, *(bar.high for bar in chart.bars)) * 1.02
    height = _TOP + _ROW * len(chart.bars) + 46
    bottom = _TOP + _ROW * len(chart.bars)

    def x(share: float) -> float:
        return round(_LEFT + share / end * (_WIDTH - _LEFT - _RIGHT), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13" fill="{_TEXT}">',
        '<text x="8" y="20" font-size="15">Time of a frame beside the published packages (1 = theirs; '
        "shorter is better)</text>",
        *_key(),
    ]
    for tick in range(0, int(end * 5) + 1):
        at = x(tick / 5)
        width = 1.5 if tick == 5 else 0.5
        parts.append(f'<path d="M{at} {_TOP - 4}V{bottom}" stroke="{_TEXT}" stroke-width="{width}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" font-size="11">{tick / 5:g}</text>')
    for row, bar in enumerate(chart.bars):
        top = _TOP + _ROW * row + 4
        middle = top + 9
        parts += [
            f'<text x="{_LEFT - 8}" y="{middle + 5}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{x(bar.ratio) - _LEFT:.1f}" height="18" {_BAR}/>',
            f'<path d="M{x(bar.low)} {middle}H{x(bar.high)}" stroke="{_TEXT}" stroke-width="2"/>',
            _limit(x(bar.limit), top),
            f'<text x="{_WIDTH - 8}" y="{middle + 5}" text-anchor="end">{bar.ratio:.2f}</text>',
        ]
        if bar.target is not None:
            parts.append(_target(x(bar.target), top))
    parts += [f'<text x="8" y="{height - 8}" font-size="11">{escape(chart.caption)}</text>', "</svg>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def _key() -> Sequence[str]:
    return (
        f'<rect x="{_LEFT}" y="32" width="18" height="10" {_BAR}/>'
        f'<text x="{_LEFT + 24}" y="42" font-size="11">measured (line: quartiles)</text>',
        _target(_LEFT + 190, 28) + f'<text x="{_LEFT + 198}" y="42" font-size="11">target</text>',
        _limit(_LEFT + 252, 28) + f'<text x="{_LEFT + 260}" y="42" font-size="11">memory read once</text>',
    )


def _target(x: float, top: float) -> str:
    return f'<path d="M{x} {top - 2}v22" stroke="{_TARGET}" stroke-width="3"/>'


def _limit(x: float, top: float) -> str:
    return f'<path d="M{x} {top - 2}v22" stroke="{_LIMIT}" stroke-width="3" stroke-dasharray="4 2"/>'
