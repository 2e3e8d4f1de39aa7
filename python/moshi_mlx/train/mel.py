"""Mel spectrograms in MLX, differentiable: what the codec's reconstruction is compared by."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

from ..config import SAMPLE_RATE

SCALES = ((256, 32), (512, 48), (1024, 80), (2048, 120))
"""Window in samples and number of bands, as in the recipe of nano's codec."""


@functools.cache
def _filters(window: int, bands: int) -> np.ndarray:
    """Triangular filters [window / 2 + 1, bands], evenly spaced in mel."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return np.asarray(2595 * np.log10(1 + hertz / 700))

    edges = np.linspace(0, float(mel(np.array(SAMPLE_RATE / 2))), bands + 2)
    frequencies = mel(np.linspace(0, SAMPLE_RATE / 2, window // 2 + 1))[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)), dtype=np.float32)


@functools.cache
def _fourier(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Windowed cosines and sines [window, window / 2 + 1]: a Fourier transform as two matrix products."""
    time, frequency = np.arange(window)[:, None], np.arange(window // 2 + 1)[None]
    angle = 2 * np.pi * time * frequency / window
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window) + 0.5) / window))[:, None] * np.sqrt(2 / window)
    return (np.cos(angle) * hann).astype(np.float32), (np.sin(angle) * hann).astype(np.float32)


def mel_spectrogram(pcm: mx.array, window: int, bands: int) -> mx.array:
    """Magnitudes in mel bands [B, frames, bands] of `pcm` [B, T], every quarter of a window."""
    hop = window // 4
    frames = (pcm.shape[1] - window) // hop + 1
    quarters = pcm[:, : (frames + 3) * hop].reshape(pcm.shape[0], frames + 3, hop)
    x = mx.concatenate([quarters[:, i : i + frames] for i in range(4)], axis=2)
    cosines, sines = (mx.array(table) for table in _fourier(window))
    power = (x @ cosines).square() + (x @ sines).square()
    return mx.sqrt(power + 1e-8) @ mx.array(_filters(window, bands))


def mel_distance(a: mx.array, b: mx.array) -> mx.array:
    """Mean over all scales of the L1 distance of logarithms plus half that of magnitudes; a, b are pcm [B, T]."""
    total = mx.zeros(())
    for window, bands in SCALES:
        x, y = mel_spectrogram(a, window, bands), mel_spectrogram(b, window, bands)
        total = total + mx.abs(mx.log(x + 1e-4) - mx.log(y + 1e-4)).mean() + 0.5 * mx.abs(x - y).mean()
    return total / len(SCALES)
