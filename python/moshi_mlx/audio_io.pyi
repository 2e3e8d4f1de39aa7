"""Sound in and out: files, resampling, echo cancellation, microphone and speaker (the Rust extension)."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

def read_sound(source: str | os.PathLike[str] | bytes, partial: bool = False) -> tuple[NDArray[np.float32], int]:
    """Read a sound file: (samples float32 [channels, samples] in [-1, 1], samples per second).

    WAV, FLAC, MP3, OGG/Vorbis, AAC and ALAC in M4A, from a path or from bytes. With `partial`, a file that is cut off
    gives what is there. Raises AudioFileError: missing, empty, not a sound file, cut off, damaged.
    """

def resample(x: NDArray[np.float32], from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """Convert a whole sound, float32 [samples]: round(samples * to_rate / from_rate) samples, aligned with the input.

    Raises InputError for a rate outside of 1000 to 1536000 Hz.
    """

class Resampler:
    """Converts one stream from a rate to another, any number of samples at a time.

    Raises InputError for a rate outside of 1000 to 1536000 Hz.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None: ...
    def process(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert the next samples, float32 [samples]; the result is all that can be known by now."""

    def flush(self) -> NDArray[np.float32]:
        """Give the last samples, so that all of them number delay + round(total * to_rate / from_rate); start anew."""

    @property
    def delay(self) -> int:
        """How late the output is, in output samples: drop as many from the beginning to align it with the input."""
