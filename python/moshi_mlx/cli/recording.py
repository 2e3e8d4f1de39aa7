"""A conversation recorded while it goes on: at any moment the file on disk is a WAV file that opens."""

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from ..config import FRAME_SIZE, SAMPLE_RATE
from ..files import storage_errors, write_all
from ..sound import Samples, to_int16, wav_header

_CHANNELS = 2
_MANY = 125  # frames


class Recording:
    """A 16-bit stereo WAV file, user left and Moshi right, that grows in place.

    Each block goes to the system at once, and the header's length after it: a process killed at any time leaves all
    blocks but the last.

    Raises:
        StorageError: the file can't be made or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.samples = 0
        with storage_errors(self.name):
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115  (closed by close)
            write_all(self._file, wav_header(0, _CHANNELS, SAMPLE_RATE))

    @property
    def seconds(self) -> float:
        """The length so far."""
        return self.samples / SAMPLE_RATE

    def write(self, user: Samples, moshi: Samples) -> None:
        """Append what both said at the same time, float32 [samples] each, at 24 kHz."""
        data = to_int16(np.stack([user, moshi], axis=1), _CHANNELS)
        with storage_errors(self.name):
            write_all(self._file, data)
            self.samples += len(user)
            length = self.samples * 2 * _CHANNELS
            os.pwrite(self._file.fileno(), wav_header(length, _CHANNELS, SAMPLE_RATE), 0)

    def skip(self, frames: int) -> None:
        """Append the silence of `frames` lost frames; many, where a computer slept, so not all at once."""
        for start in range(0, frames, _MANY):
            silence = np.zeros(min(_MANY, frames - start) * FRAME_SIZE, np.float32)
            self.write(silence, silence)

    def close(self) -> None:
        """Close the file, which is complete already."""
        with storage_errors(self.name):
            self._file.close()

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
