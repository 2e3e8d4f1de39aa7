"""Sound in and out: files, resampling, echo cancellation, microphone and speaker (the Rust extension)."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.floating[Any]]
"""Samples in [-1, 1], one-dimensional; float32 is taken as it is. Whatever takes them raises InputError for others."""

def accelerate_mlx() -> bool:
    """Lead MLX's matrix products on the CPU to OpenBLAS, those of few columns to this extension.

    Returns whether that was done: on Linux, where OpenBLAS is installed and MLX is loaded.
    """

def read_sound(source: str | os.PathLike[str] | bytes, partial: bool = False) -> tuple[NDArray[np.float32], int]:
    """Read a sound file: (samples float32 [channels, samples] in [-1, 1], samples per second).

    WAV, FLAC, MP3, OGG/Vorbis, AAC and ALAC in M4A, from a path or from bytes. With `partial`, a file that is cut off
    gives what is there. Raises AudioFileError: missing, empty, not a sound file, cut off, damaged.
    """

def resample(x: Sound, from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """Convert a whole sound, float32 [samples]: round(samples * to_rate / from_rate) samples, aligned with the input.

    Raises InputError for a rate outside of 1000 to 1536000 Hz.
    """

class Resampler:
    """Converts one stream from a rate to another, any number of samples at a time.

    Raises InputError for a rate outside of 1000 to 1536000 Hz.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None: ...
    def process(self, x: Sound) -> NDArray[np.float32]:
        """Convert the next samples, float32 [samples]; the result is all that can be known by now."""

    def flush(self) -> NDArray[np.float32]:
        """Give the last samples, so that all of them number delay + round(total * to_rate / from_rate); start anew."""

    @property
    def delay(self) -> int:
        """How late the output is, in output samples: drop as many from the beginning to align it with the input."""

class EchoCanceller:
    """Takes what the loudspeaker played out of what the microphone heard; the delay and the clocks' drift are found.

    For 8000 to 48000 Hz, tuned at 24000. What lies below 20 Hz, which nobody hears, is removed; with `high_pass`, what
    lies below 80 Hz. `noise_suppression` lowers steady noise. Raises InputError for another rate. Sources:
    rust/audio_io/src/echo_filter.rs.
    """

    def __init__(self, sample_rate: int = 24000, high_pass: bool = False, noise_suppression: bool = False) -> None: ...
    def process(self, mic: Sound, played: Sound) -> NDArray[np.float32]:
        """Cancel in the next samples, float32 [samples] both: as many come out, `delay` samples late.

        Any number at a time; the state is kept between calls. Values that are not finite count as silence. Raises
        InputError when the two differ in length.
        """

    @property
    def delay(self) -> int:
        """How late the output is, in samples (256 at 24 kHz: 10.7 ms)."""

    @property
    def drift_ppm(self) -> float:
        """How fast the loudspeaker's clock leaves the microphone's, in parts per million, as found so far."""

def list_devices() -> list[dict[str, Any]]:
    """List the microphones and speakers of every sound system there is, the preferred system first.

    Each has `number`, `host` (CoreAudio, PulseAudio, ALSA, ...), `name`, `id`, and `input` and `output`: None, or
    `channels`, `rate`, `rates` (common ones that it can have) and `default`.
    """

class AudioIO:
    """The microphone and the speaker of a conversation, at 24 kHz mono whatever the devices are.

    `input` and `output`: None for the system's default (followed when it changes), a number from list_devices(), a part
    of a name, or False for no such side. A device that goes away is replaced by what is there, and taken back when it
    returns and can be opened; while there is none, `read` gives silence. With `echo_cancel`, what the speaker really
    played is removed from what the microphone heard; `noise_suppression` also lowers steady background noise. More than
    `max_lag_ms` of sound that waits to be read is dropped but for its newest frame.

    Raises DeviceError: no device, unknown, busy, refused. Raises InputError: `max_lag_ms` isn't from 80 to 60000.
    """

    def __init__(
        self,
        input: int | str | bool | None = None,
        output: int | str | bool | None = None,
        echo_cancel: bool = True,
        max_lag_ms: float = 400.0,
        noise_suppression: bool = False,
    ) -> None: ...
    def read(self, timeout: float = 1.0) -> NDArray[np.float32]:
        """Wait for the next frame, float32 [1920].

        Raises TimeoutError after `timeout` seconds without one, InputError where `input` is False.
        """

    def write(self, pcm: Sound, timeout: float | None = None) -> None:
        """Hand over at most one frame, float32 [samples].

        Without a timeout it returns at once, and sound that would wait for more than two frames is skipped, oldest
        first: right for answers to `read`, which come in its rhythm. With a timeout it first waits until the frame
        would not queue up: right for a file; raises TimeoutError after `timeout` seconds. Raises InputError for more
        than a frame, and where `output` is False.
        """

    @property
    def dropped_frames(self) -> int:
        """Frames dropped since the start because `read` came too late, or the program stood still."""

    def stats(self) -> dict[str, Any]:
        """Everything that is measured: the name ends with the unit (ms, us, db, ppm, rate), others are counts.

        Devices: input_device, input_host, input_rate, input_channels, input_rebuilds, input_xruns (noticed by the
        system), and the same for output. Lag: frames, dropped_frames, lag_ms. Losses: input_overruns,
        input_overrun_ms, output_underruns, output_skipped_ms, output_unheard_frames. Rings: input_ring_ms,
        output_ring_ms, output_set_point_ms, output_drift_ppm. Paths: capture_to_read_ms (without the 80 ms of
        the frame itself; capture_to_read_with_frame_ms with them), write_to_speaker_ms, input_device_latency_ms,
        output_device_latency_ms. Levels: input_level_db, heard_level_db (after echo cancellation), output_level_db,
        echo_reduction_db. Callbacks: input_callbacks, input_callback_frames, input_callback_mean_us,
        input_callback_worst_us, input_callback_worst_gap_ms, and the same for output. Numbers of a stream are missing
        while there is none.
        """

    def events(self) -> list[dict[str, str]]:
        """What happened to the devices since the last call, for the user.

        Each has `kind` (lost, rebuilt, moved, hint), `side` (input, output) and `message`, a sentence.
        """

    def clear(self) -> None:
        """Forget what was heard so far: the conversation begins now."""

    def close(self) -> None:
        """Close the devices; a second call does nothing, other calls raise DeviceError from then on.

        A sound system that hangs is left to itself after a second.
        """

    def __enter__(self) -> AudioIO: ...
    def __exit__(self, *exception: object) -> None: ...
