"""Speech synthesizers as voices: text in, 24 kHz float samples out.

Engines: `piper` (package piper-tts with a voice package), `pico` (package ttspico), `flite`, `espeak` (espeak-ng) and
`festival` (Debian), `rhvoice` (its command `RHVoice-test`, which some distributions have).
"""

from __future__ import annotations

import functools
import importlib
import random
import subprocess
import tempfile
import wave
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..audio_io import resample
from ..config import SAMPLE_RATE
from ..errors import ConfigError, MoshiError


class SynthesisError(MoshiError):
    """A speech synthesizer is not installed or failed."""


@dataclass(frozen=True)
class Voice:
    """A speaker: `engine:name`, and how far each utterance may differ from it.

    Attributes:
        engine: piper, pico, flite, espeak, festival or rhvoice.
        name: the engine's voice.
        speed: range of speaking rates, 1 is the engine's own.
        pitch: range of pitch shifts by resampling (also changes the formants), 1 is none.
    """

    engine: str
    name: str
    speed: tuple[float, float] = (0.85, 1.2)
    pitch: tuple[float, float] = (0.84, 1.2)

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Voice:
        """A voice from `engine:name`.

        Raises:
            ConfigError: no such engine.
        """
        engine, _, name = text.partition(":")
        if engine not in _ENGINES:
            raise ConfigError(f"Voice {text!r}: engines are {', '.join(_ENGINES)}.")
        return cls(engine, name)

    def say(self, text: str, rng: random.Random | None = None) -> np.ndarray:
        """Speak `text`; with `rng` at a random speed and pitch, without it always the same.

        Returns:
            float32 [samples] at 24 kHz, silence trimmed off both ends, peak 0.5.

        Raises:
            SynthesisError: the engine isn't installed or failed.
        """
        speed = rng.uniform(*self.speed) if rng else 1.0
        pitch = rng.uniform(*self.pitch) if rng else 1.0
        # Resampling by `pitch` also speeds up: the engine speaks that much slower.
        sound, rate = _ENGINES[self.engine](self.name, text, speed / pitch, rng)
        sound = resample(sound, round(rate * pitch), SAMPLE_RATE)
        return trim(sound * (0.5 / max(float(np.abs(sound).max(initial=0)), 1e-4)))


def trim(sound: np.ndarray, threshold: float = 0.01, margin: int = 240) -> np.ndarray:
    """Cut silence (below `threshold`) off both ends but `margin` samples."""
    loud = np.flatnonzero(np.abs(sound) > threshold)
    if not len(loud):
        return sound[:0]
    return sound[max(0, loud[0] - margin) : loud[-1] + margin]


def _run(command: list[str], what: str, text: str = "") -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60, input=text.encode())
    except FileNotFoundError as error:
        raise SynthesisError(f"{what} isn't installed: no command '{command[0]}'.") from error
    except subprocess.SubprocessError as error:
        raise SynthesisError(f"{what} failed: {error}") from error


def _through_file(what: str, command: Callable[[str], list[str]], text: str = "") -> tuple[np.ndarray, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        _run(command(str(path)), what, text)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
            return samples.astype(np.float32) / 32768, file.getframerate()


def _flite(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    stretch = f"duration_stretch={1 / speed:.3f}"
    return _through_file("flite", lambda path: ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", path])


def _espeak(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    options = ["-v", name, "-s", str(round(165 * speed)), "-p", str(rng.randint(25, 80) if rng else 50)]
    return _through_file("espeak-ng", lambda path: ["espeak-ng", *options, "-w", path, text])


def _festival(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    quoted = text.replace('"', "")
    commands = [
        f"(voice_{name})",
        f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})",
        f'(set! spoken (utt.synth (Utterance Text "{quoted}")))',
    ]
    return _through_file(
        "festival", lambda path: ["festival", "-b", *commands, f'(utt.save.wave spoken "{path}" \'riff)']
    )


def _rhvoice(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    options = ["-p", name, "-r", str(round(100 * speed)), "-t", str(rng.randint(85, 118) if rng else 100)]
    return _through_file("RHVoice", lambda path: ["RHVoice-test", *options, "-o", path], text)


@functools.cache
def _piper_voice(package: str) -> Any:
    try:
        import onnxruntime
        from piper import PiperVoice

        folder = Path(str(importlib.import_module(package).__file__)).parent
    except ImportError as error:
        raise SynthesisError(f"piper voice {package}: {error}. Install with: pip install '.[train]'") from error
    models = sorted(folder.rglob("*.onnx"))
    if not models:
        raise SynthesisError(f"The package {package} holds no piper voice (*.onnx).")
    voice = PiperVoice.load(models[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(str(models[0]), options, providers=["CPUExecutionProvider"])
    return voice


def _piper(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    voice = _piper_voice(name)
    from piper import SynthesisConfig

    # Without noise piper always says a text in the same way.
    noise, width = (rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.0)) if rng else (0.0, 0.0)
    config = SynthesisConfig(length_scale=1 / speed, noise_scale=noise, noise_w_scale=width)
    chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, config)]
    return np.concatenate(chunks).astype(np.float32), int(voice.config.sample_rate)


_PICO_RATE = 16000


@functools.cache
def _pico_voice(language: str) -> Any:
    try:
        from ttspico import TtsEngine
    except ImportError as error:
        raise SynthesisError(f"pico: {error}. Install with: pip install '.[train]'") from error
    try:
        return TtsEngine(language)
    except RuntimeError as error:
        raise SynthesisError(f"pico has no voice {language!r}: en-US and en-GB are its English ones.") from error


def _pico(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    voice = _pico_voice(name)
    voice.rate = round(100 * speed)
    voice.pitch = rng.randint(80, 125) if rng else 100
    try:
        spoken = voice.speak(text)
    except RuntimeError as error:
        raise SynthesisError(f"pico failed on {text!r}: {error}") from error
    return np.frombuffer(spoken or b"", dtype="<i2").astype(np.float32) / 32768, _PICO_RATE


_ENGINES: dict[str, Callable[[str, str, float, random.Random | None], tuple[np.ndarray, int]]] = {
    "piper": _piper,
    "pico": _pico,
    "flite": _flite,
    "espeak": _espeak,
    "festival": _festival,
    "rhvoice": _rhvoice,
}


def parse_voices(texts: Iterable[str]) -> list[Voice]:
    """Voices from a configuration's list."""
    return [Voice.parse(text) for text in texts]
