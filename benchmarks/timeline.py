"""A conversation as a picture: both waveforms and Moshi's words over time, in SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from talking import FRAME, Record

from moshi_mlx.config import SAMPLE_RATE


def draw(record: Record, path: Path, title: str = "", second: int = 90) -> None:
    """Write a picture of a conversation; `second` is the width of one in pixels."""
    seconds = record.frames * FRAME
    width, height = round(seconds * second) + 80, 250
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="18" font-size="13">{escape(title)}</text>',
    ]
    for t in range(int(seconds) + 1):
        x = 70 + t * second
        parts.append(f'<path d="M{x} 30V225" stroke="#eee"/><text x="{x - 4}" y="242" font-size="11">{t} s</text>')
    for name, frames, middle, colour in (
        ("user", record.heard, 70, "#1f77b4"),
        ("Moshi", record.spoken, 150, "#d62728"),
    ):
        parts.append(f'<text x="10" y="{middle + 4}" font-size="12" fill="{colour}">{name}</text>')
        parts.append(f'<path d="{_outline(np.concatenate(frames), middle, second)}" stroke="{colour}" fill="none"/>')
    for i, text in enumerate(record.texts):
        if text.strip():
            x, y = 70 + i * FRAME * second, 205 if i % 2 else 220
            parts.append(f'<text x="{x:.0f}" y="{y}" font-size="11">{escape(text.strip())}</text>')
    path.write_text("\n".join([*parts, "</svg>"]), encoding="utf-8")


def _outline(pcm: np.ndarray, middle: int, second: int, swing: float = 70) -> str:
    step = SAMPLE_RATE // second
    blocks = pcm[: len(pcm) // step * step].reshape(-1, step)
    pairs = zip(blocks.min(1), blocks.max(1), strict=True)
    return "".join(
        f"M{70 + i} {middle - swing * a:.1f}V{middle - swing * b - 0.5:.1f}" for i, (a, b) in enumerate(pairs)
    )
