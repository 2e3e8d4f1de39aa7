"""Synthetic rooms with a loudspeaker, a microphone and two people: the signals `echo.py` measures on.

A room is drawn from a seed: reverberation 0.2-0.5 s, 20-250 ms between playing and hearing, the echo 12 to 0 dB below
what was played, a loudspeaker that clips mildly, and a microphone clock up to 100 ppm away from the speaker's.
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 24000
Pcm = NDArray[np.float64]

FAR_TEXT = (
    "I was reading about the old lighthouse on the northern coast, and the story is stranger than I expected. "
    "The keeper wrote a letter every evening for thirty years. Nobody ever answered him, yet he kept the copies. "
    "They were found last spring in a tin box under the stairs, dry and perfectly readable. "
    "Some of them describe the weather, some describe ships, and a few are simply jokes about the soup. "
    "If you like, I can tell you how it ended, or we could talk about something else entirely. "
    "My favourite page is the one where he measures the height of a wave with a kitchen chair."
)
NEAR_TEXT = (
    "Wait, could you stop there for a second? I wanted to ask you about the train on Thursday. "
    "Does it leave before nine, or is there a later one? My sister needs a place to park the car. "
    "Please check the price as well, because the last time it was quite expensive. "
    "Actually no, forget that. Tell me what the weather will be like in the mountains instead."
)

ESPEAK = (
    "en-us+m3",
    "en-us+f2",
    "en-gb+m7",
    "en-gb-scotland+f4",
    "en-us+m1",
    "en-us+f5",
    "en-029+m2",
    "en-gb-x-rp+f3",
)
FLITE = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True)
class Room:
    """One acoustic situation; every value in the units of its name."""

    seed: int
    rt60_s: float
    delay_ms: float
    level_db: float
    clip: float  # the loudspeaker's ceiling, as a part of the largest sample played
    drift_ppm: float
    direct_db: float | None  # direct sound against the reverberation; None: reverberation alone
    near_db: float  # the near talker against the echo
    near_starts_s: float


@dataclass(frozen=True)
class Scene:
    """What happens in a room: float64 [samples] each, at 24 kHz.

    `played` is what the program gave to the loudspeaker, `echo` what the microphone hears of it (with its noise), and
    `near` the other talker at the microphone; `echo + near` is the microphone's signal when both talk.
    """

    room: Room
    played: Pcm
    echo: Pcm
    near: Pcm


def draw_room(seed: int) -> Room:
    """The room of a seed, drawn from the ranges this file's first lines state."""
    rng = np.random.default_rng([seed, 1])
    return Room(
        seed=seed,
        rt60_s=float(rng.uniform(0.2, 0.5)),
        delay_ms=float(rng.uniform(20, 250)),
        level_db=float(rng.uniform(-12, 0)),
        clip=float(rng.uniform(0.5, 0.9)),
        drift_ppm=float(rng.uniform(-100, 100)),
        direct_db=float(rng.uniform(-3, 9)) if rng.random() < 0.5 else None,
        near_db=float(rng.uniform(-5, 2)),
        near_starts_s=float(rng.uniform(0, 4)),
    )


def draw_scene(room: Room, voices: list[Pcm], seconds: float = 15.0) -> Scene:
    """Let two of `voices` (one played, one near) talk in `room`."""
    rng = np.random.default_rng([room.seed, 2])
    far, near = rng.choice(len(voices), 2, replace=False)
    samples = int(seconds * RATE)
    played = _fill(voices[far], samples, rng)
    played *= 0.1 / _rms(played)
    heard = np.clip(played, -room.clip * np.abs(played).max(), room.clip * np.abs(played).max())
    echo = _convolve(heard, impulse_response(room, rng))[:samples]
    echo = _drift(echo, room.drift_ppm)
    echo *= 10 ** (room.level_db / 20) * _rms(played) / _rms(echo)
    start = int(room.near_starts_s * RATE)
    talk = _fill(voices[near], samples - start, rng)
    talk = _convolve(talk, _tail(0.2, rng, direct_db=10.0))[: samples - start]
    talk *= 10 ** (room.near_db / 20) * _rms(echo) / _rms(talk)
    noise = rng.standard_normal(samples) * 10 ** (-65 / 20)
    return Scene(room, played, echo + noise, np.concatenate([np.zeros(start), talk]))


def impulse_response(room: Room, rng: np.random.Generator) -> Pcm:
    """Loudspeaker to microphone: the travel and buffering delay, the direct sound, then a decaying tail."""
    return np.concatenate([np.zeros(round(room.delay_ms * RATE / 1000)), _tail(room.rt60_s, rng, room.direct_db)])


def _tail(rt60_s: float, rng: np.random.Generator, direct_db: float | None) -> Pcm:
    time = np.arange(int(rt60_s * RATE)) / RATE
    tail = rng.standard_normal(time.size) * 10 ** (-3 * time / rt60_s)
    if direct_db is not None:
        tail[: int(0.002 * RATE)] = 0.0
        tail[0] = np.sqrt(np.sum(tail**2) * 10 ** (direct_db / 10))
    return tail


def _drift(x: Pcm, ppm: float) -> Pcm:
    """`x` as a clock `ppm` parts per million slower hears it (32-point windowed sinc)."""
    where = np.arange(x.size) * (1 + ppm * 1e-6)
    whole = np.floor(where).astype(int)
    taps = np.arange(-15, 17)
    offset = (where - whole)[:, None] - taps
    kernel = np.sinc(offset) * np.cos(np.pi * offset / 34) ** 2
    return np.sum(kernel * x[np.clip(whole[:, None] + taps, 0, x.size - 1)], axis=1)


def _fill(voice: Pcm, samples: int, rng: np.random.Generator) -> Pcm:
    """`samples` of a voice, from a random sentence on, over and over."""
    start = int(rng.integers(voice.size // 2))
    return np.resize(np.roll(voice, -start), samples).copy()


def _convolve(x: Pcm, h: Pcm) -> Pcm:
    size = 1 << (x.size + h.size - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(h, size), size)[: x.size + h.size - 1]


def _rms(x: Pcm) -> float:
    """Loudness of the parts where something is heard: 20 ms windows within 40 dB of the loudest."""
    energy = np.mean(x[: x.size // 480 * 480].reshape(-1, 480) ** 2, axis=1)
    return float(np.sqrt(np.mean(energy[energy > 1e-4 * energy.max()])))


def resample(x: Pcm, rate: int) -> Pcm:
    """A whole recording at 24 kHz (by its spectrum)."""
    if rate == RATE:
        return x
    samples = round(x.size * RATE / rate)
    spectrum = np.fft.rfft(x)
    kept = np.zeros(samples // 2 + 1, complex)
    size = min(kept.size, spectrum.size)
    kept[:size] = spectrum[:size]
    return np.fft.irfft(kept, samples) * samples / x.size


def _wav(data: bytes) -> Pcm:
    with wave.open(io.BytesIO(data)) as file:
        rate, frames = file.getframerate(), file.readframes(1 << 30)
    pcm = np.frombuffer(frames[: len(frames) // 2 * 2], "<i2").astype(float) / 32768
    return resample(pcm, rate)


@lru_cache
def speech_voices() -> dict[str, Pcm]:
    """Voices of the synthesizers found here (espeak-ng, flite), by name, each saying both texts.

    Raises RuntimeError when neither is installed.
    """
    voices: dict[str, Pcm] = {}
    text = NEAR_TEXT + " " + FAR_TEXT
    if shutil.which("espeak-ng"):
        for name in ESPEAK:
            command = ["espeak-ng", "-v", name, "-s", "160", "--stdout", text]
            voices[f"espeak-ng {name}"] = _wav(subprocess.run(command, check=True, capture_output=True).stdout)
    if shutil.which("flite"):
        for name in FLITE:
            command = ["flite", "-voice", name, "-t", text, "-o", "/dev/stdout"]
            voices[f"flite {name}"] = _wav(subprocess.run(command, check=True, capture_output=True).stdout)
    if not voices:
        raise RuntimeError("no speech synthesizer found: install espeak-ng or flite (apt-get install espeak-ng flite)")
    return voices


@lru_cache
def recorded_voices(folder: str = "/usr/share/asterisk/sounds") -> dict[str, Pcm]:
    """People's voices from Debian's asterisk-core-sounds-*-g722 packages, by folder; empty where none is installed."""
    if not shutil.which("ffmpeg"):
        return {}
    voices = {}
    for path in sorted(Path(folder).glob("*_*_*")):
        files = itertools.islice(_long_prompts(path), 12)
        parts = [_decode(file) for file in files]
        if parts:
            voices[path.name] = np.concatenate(parts)
    return voices


def _long_prompts(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*.g722")) if file.stat().st_size > 20000)


def _decode(file: Path) -> Pcm:
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(file), "-ar", "16000", "-f", "s16le", "-"]
    pcm = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, "<i2")
    return resample(pcm.astype(float) / 32768, 16000)
