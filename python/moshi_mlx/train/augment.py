"""What a microphone adds to a voice: level, colour, noise, a room, an echo of the loudspeaker."""

from __future__ import annotations

import numpy as np

from ..config import SAMPLE_RATE

_WINDOW, _HOP = 1024, 256
"""Of the spectra in which a throat is changed, in samples."""
_ENVELOPE = 44
"""Samples of the cepstrum that are a throat's; pitch is beyond."""


def noise(rng: np.random.Generator, samples: int, colour: float) -> np.ndarray:
    """Noise of unit power whose spectrum falls as 1 / f**colour: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 40.0)
    shaped = np.fft.irfft(spectrum * frequencies ** (-colour / 2), samples)
    return (shaped / max(float(shaped.std()), 1e-9)).astype(np.float32)


def power(sound: np.ndarray) -> float:
    """Mean square of the parts where something is to be heard."""
    loud = sound[np.abs(sound) > 0.02 * np.abs(sound).max(initial=0)]
    return float(np.mean(loud**2)) if len(loud) else 0.0


def add_noise(sound: np.ndarray, background: np.ndarray, snr_db: float) -> np.ndarray:
    """Mix `background` (unit power) under `sound` at a signal-to-noise ratio."""
    level = np.sqrt(power(sound) / 10 ** (snr_db / 10))
    return sound + background[: len(sound)] * np.float32(level)


def room(rng: np.random.Generator, sound: np.ndarray, seconds: float) -> np.ndarray:
    """Let `sound` ring in a room: noise that decays by 60 dB in `seconds` (RT60), the direct sound before it."""
    length = int(seconds * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = np.concatenate([[1.0], np.zeros(int(rng.uniform(0.002, 0.01) * SAMPLE_RATE)), 0.04 * tail])
    size = 1 << (len(sound) + len(response) - 1).bit_length()  # quicker than a length with large prime factors
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size), size)[: len(sound)]
    return _with_peak_of(sound, wet)


def microphone(rng: np.random.Generator, sound: np.ndarray, spread_db: float = 4.0) -> np.ndarray:
    """Colour `sound` as some microphone would: a smooth random curve over frequency; the peak stays what it was."""
    knots = np.array([60.0, 200.0, 600.0, 1500.0, 3500.0, 8000.0, SAMPLE_RATE / 2])
    frequencies = np.maximum(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE), knots[0])
    curve = np.interp(np.log(frequencies), np.log(knots), rng.normal(0, spread_db, len(knots)))
    coloured = np.fft.irfft(np.fft.rfft(sound) * 10 ** (curve / 20), len(sound))
    return _with_peak_of(sound, coloured)


def throat(sound: np.ndarray, factor: float) -> np.ndarray:
    """`sound` as a longer (`factor` below 1) or shorter throat would have it: formants moved, pitch and timing kept.

    The spectral envelope of each moment, the smooth part of its cepstrum, is stretched over frequency; the peak stays.
    """
    window = np.sin(np.pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)
    padded = np.pad(sound, (_WINDOW, 2 * _WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP] * window
    spectra = np.fft.rfft(frames)
    cepstra = np.fft.irfft(np.log(np.abs(spectra) + 1e-5))
    cepstra[:, _ENVELOPE : _WINDOW - _ENVELOPE + 1] = 0
    envelope = np.fft.rfft(cepstra).real
    places = np.minimum(np.arange(envelope.shape[1]) / factor, envelope.shape[1] - 1)
    low = np.minimum(places.astype(int), envelope.shape[1] - 2)
    moved = envelope[:, low] + (envelope[:, low + 1] - envelope[:, low]) * (places - low)
    shaped = np.fft.irfft(spectra * np.exp(np.clip(moved - envelope, -3, 3))) * window
    result = np.zeros((len(frames) + _WINDOW // _HOP, _HOP))
    for i in range(_WINDOW // _HOP):
        result[i : i + len(frames)] += shaped[:, i * _HOP : (i + 1) * _HOP]
    other = result.reshape(-1)[_WINDOW : _WINDOW + len(sound)]
    return _with_peak_of(sound, other)


def _with_peak_of(sound: np.ndarray, changed: np.ndarray) -> np.ndarray:
    return np.asarray(changed * (np.abs(sound).max() / max(float(np.abs(changed).max()), 1e-6)), dtype=np.float32)


def gain(sound: np.ndarray, db: float) -> np.ndarray:
    """Change the level, clipped as a sound card would."""
    return np.asarray(np.clip(sound * np.float32(10 ** (db / 20)), -1.0, 1.0), dtype=np.float32)


def perturbed(
    convolved: np.ndarray, spread: np.ndarray, gain: float, noise: float, draws: np.random.Generator
) -> np.ndarray:
    """What the codec's convolutions would make of another voice or microphone, about.

    Args:
        convolved: what they made of a stream, [F, C].
        spread: of each channel, [C].
        gain: of the channels' gains, the standard deviation of the logarithm.
        noise: as a share of the spread.
        draws: what decides both.

    Returns:
        [F, C].
    """
    gains = np.exp(draws.normal(0, gain, convolved.shape[1]))
    result: np.ndarray = convolved * gains + draws.normal(0, noise, convolved.shape) * spread
    return result
