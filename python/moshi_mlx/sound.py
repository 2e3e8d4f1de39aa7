"""Sound files: any of them read as the model's 24 kHz mono, WAV written as the sound comes."""

import os
import struct
import sys
from types import TracebackType

import numpy as np
import numpy.typing as npt

from .config import SAMPLE_RATE
from .errors import AudioFileError, InputError, MoshiError
from .files import STDOUT, ResultFile

Samples = npt.NDArray[np.float32]

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_MOST_BYTES = (0xFFFFFFFF - _HEADER.size) // 4 * 4  # what a WAV header can say, in whole frames


def load_sound(path: str | os.PathLike[str]) -> Samples:
    """Read a sound file of any rate and channel count as float32 [samples], mono at 24 kHz.

    WAV, FLAC, MP3, OGG and AAC/M4A are known; "-" reads one from standard input, to its end.

    Raises:
        AudioFileError: no such file, no sound file, or one without a sample.
        MoshiError: the Rust extension is not built.
    """
    need_extension()
    from . import audio_io

    if path == STDOUT:
        data = sys.stdin.buffer.read()
        if not data:
            raise AudioFileError("Standard input is empty. Expected a sound file: WAV, FLAC, MP3, OGG or M4A.")
        channels, rate = audio_io.read_sound(data, partial=True)  # whoever wrote the pipe may have been stopped
    else:
        channels, rate = audio_io.read_sound(path)
    mono = np.nan_to_num(channels.mean(axis=0, dtype=np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    if mono.size == 0:
        raise AudioFileError(f"{path} is empty: it has a sound file's header, but no sample follows.")
    return mono if rate == SAMPLE_RATE else audio_io.resample(mono, rate, SAMPLE_RATE)


def write_wav(path: str | os.PathLike[str], pcm: npt.ArrayLike, sample_rate: int = SAMPLE_RATE) -> None:
    """Write pcm, float32 [samples] or [samples, channels] in [-1, 1], as a 16-bit WAV file, whole or not at all.

    Raises:
        StorageError: the file can't be written.
    """
    samples = np.asarray(pcm, dtype=np.float32)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with WavWriter(path, channels, sample_rate, expected=len(samples)) as writer:
        writer.write(samples)


class WavWriter:
    """Writes a 16-bit WAV file as the sound comes.

    The file takes its name when it is closed without an error (see `ResultFile`). Standard output ("-"), pipes
    and devices get each block as it is written; as nobody can go back to their header, it says `expected`.

    Args:
        path: where to, "-" for standard output.
        channels: 1, or 2 for user left and Moshi right.
        sample_rate: in Hz.
        expected: samples a channel that will be written, as far as known before the first is; None makes a pipe's
            header say "endless".

    Raises:
        StorageError: disk full, no such folder, no permission; from any method.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: int = 1,
        sample_rate: int = SAMPLE_RATE,
        expected: int | None = None,
    ) -> None:
        self.channels = channels
        self.sample_rate = sample_rate
        self.expected = expected
        self.samples = 0  # a channel, so far
        self._begun = False
        self._file = ResultFile(path)

    @property
    def seconds(self) -> float:
        """The length so far."""
        return self.samples / self.sample_rate

    def write(self, pcm: npt.ArrayLike) -> None:
        """Append pcm, float32 [samples] or [samples, channels] in [-1, 1]; what lies beyond is clipped."""
        self._begin()
        data = to_int16(pcm, self.channels)
        self._file.write(data)
        self.samples += len(data) // (2 * self.channels)

    def close(self) -> None:
        """Put the true length into the header and give the file its name; a second call does nothing."""
        if self._file.closed:
            return
        self._begin()
        if self._file.seekable:
            length = self.samples * self.channels * 2
            self._file.rewrite(0, wav_header(length, self.channels, self.sample_rate))
        self._file.commit()

    def _begin(self) -> None:
        if not self._begun:
            length = _MOST_BYTES if self.expected is None else self.expected * self.channels * 2
            self._file.write(wav_header(length, self.channels, self.sample_rate))
            self._begun = True

    def discard(self) -> None:
        """Stop, and leave no file."""
        self._file.discard()

    def __enter__(self) -> "WavWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()


def wav_header(data_bytes: int, channels: int, sample_rate: int) -> bytes:
    """The 44 bytes before `data_bytes` bytes of 16-bit samples."""
    length = min(data_bytes, _MOST_BYTES)
    rate, frame = sample_rate, 2 * channels
    return _HEADER.pack(
        *(b"RIFF", length + _HEADER.size - 8, b"WAVE", b"fmt ", 16),
        *(1, channels, rate, rate * frame, frame, 16, b"data", length),
    )


def to_int16(pcm: npt.ArrayLike, channels: int = 1) -> bytes:
    """Samples in [-1, 1], float32 [samples] or [samples, channels], as interleaved little-endian 16-bit ones.

    Raises:
        InputError: another shape.
    """
    samples = np.asarray(pcm, dtype=np.float32)
    if samples.ndim != (1 if channels == 1 else 2) or (channels > 1 and samples.shape[1] != channels):
        expected = "[samples]" if channels == 1 else f"[samples, {channels}]"
        raise InputError(f"Sound of shape {list(samples.shape)} was given; expected {expected}.")
    scaled = np.nan_to_num(samples).clip(-1.0, 1.0) * 32767.0
    return np.rint(scaled).astype("<i2").tobytes()


def need_extension() -> None:
    """Make sure that the Rust extension, `moshi_mlx.audio_io`, can be imported.

    Raises:
        MoshiError: it is not built.
    """
    try:
        from . import audio_io  # noqa: F401
    except ImportError as error:
        raise MoshiError(
            f"The Rust extension moshi_mlx.audio_io can't be loaded ({error}). "
            "Build it: make build in a checkout, or pip install . once more."
        ) from error
