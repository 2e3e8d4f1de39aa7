"""Where a live conversation's sound comes from and goes to: microphone and speaker, or a file for either."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FRAME_RATE, FRAME_SIZE
from ..errors import StorageError
from ..sound import Samples, WavWriter
from .live_state import AudioStatus

if TYPE_CHECKING:
    from ..audio_io import AudioIO

SILENCE = np.zeros(FRAME_SIZE, np.float32)
"""A frame in which nobody speaks."""


class Finished(Exception):
    """The sound that is heard has come to its end."""


class FileEar:
    """A sound file heard in real time, as if spoken into a microphone, then `tail` seconds of silence.

    A conversation that stalls finds the file where it left it: nothing is lost, and nothing hurried.
    """

    def __init__(self, sound: Samples, tail: float) -> None:
        self._sound = sound
        self._frames = -(-len(sound) // FRAME_SIZE) + round(tail * FRAME_RATE)
        self._next = 0
        self._due: float | None = None

    def read(self, timeout: float) -> Samples | None:
        """The next frame, once its 80 ms have passed.

        Raises:
            Finished: there is none.
        """
        if self._next == self._frames:
            raise Finished
        if not self.wait(timeout):
            return None
        start = self._next * FRAME_SIZE
        self._next += 1
        frame = np.zeros(FRAME_SIZE, np.float32)
        rest = self._sound[start : start + FRAME_SIZE]
        frame[: len(rest)] = rest
        return frame

    def wait(self, timeout: float) -> bool:
        """Let a frame's time pass, `timeout` seconds of it at most; returns whether it has."""
        now = time.monotonic()
        if self._due is None or now > self._due + 1 / FRAME_RATE:
            self._due = now + 1 / FRAME_RATE
        time.sleep(min(max(self._due - now, 0.0), timeout))
        if time.monotonic() < self._due:
            return False
        self._due += 1 / FRAME_RATE
        return True


class FileMouth:
    """A WAV file in the speaker's place; user left and Moshi right where it is stereo.

    A full disk ends the file and not the conversation.
    """

    def __init__(self, writer: WavWriter) -> None:
        self._writer: WavWriter | None = writer
        self.notices: list[str] = []
        """What happened to the file, in sentences."""

    def write(self, user: Samples, moshi: Samples) -> None:
        """Append the frame."""
        if self._writer is None:
            return
        try:
            self._writer.write(moshi if self._writer.channels == 1 else np.stack([user, moshi], axis=1))
        except StorageError as error:
            self._writer = None
            self.notices.append(f"The file of what Moshi says ends here. {error}")


class LiveSound:
    """Both ends of a conversation: a device where no file is given.

    Args:
        device: the microphone, the speaker or both; None where both ends are files.
        ear: what is heard in the microphone's place.
        mouth: what keeps Moshi's sound in the speaker's place.
        cancels: whether the device takes Moshi's echo out of what it hears.
    """

    def __init__(
        self,
        device: "AudioIO | None",
        ear: FileEar | None = None,
        mouth: FileMouth | None = None,
        cancels: bool = False,
    ) -> None:
        self._cancels = cancels and not ear and not mouth
        self._device = device
        self._ear = ear
        self._mouth = mouth

    def read(self, timeout: float) -> Samples | None:
        """The next frame that the user says, float32 [1920]; None where there was none for `timeout` seconds.

        Raises:
            Finished: the file has come to its end.
        """
        if self._ear:
            return self._ear.read(timeout)
        try:
            return self._device.read(timeout) if self._device else None
        except TimeoutError:
            return None

    def write(self, user: Samples, moshi: Samples) -> None:
        """Say `moshi`, float32 [1920], which answers `user`; doesn't wait."""
        if self._mouth:
            self._mouth.write(user, moshi)
        elif self._device:
            self._device.write(moshi)

    def rest(self, timeout: float) -> None:
        """Let a frame's time pass in a pause, `timeout` seconds of it at most.

        Files stand still; what a microphone hears is let go, and a speaker says nothing.
        """
        passed = self._ear.wait(timeout) if self._ear else self.read(timeout) is not None
        if passed and not self._mouth:
            self.write(SILENCE, SILENCE)

    def skip(self, frames: int) -> None:
        """Keep a file in the speaker's place in time, where the user's `frames` were lost."""
        if self._mouth:
            for _ in range(frames):
                self._mouth.write(SILENCE, SILENCE)

    def stats(self) -> dict[str, Any]:
        """Everything that the devices measure; see AudioIO."""
        return self._device.stats() if self._device else {}

    def status(self) -> AudioStatus:
        """What of it is shown."""
        status = AudioStatus()
        if stats := self.stats():
            status = AudioStatus(
                microphone=stats["input_device"] or "none",
                speaker=stats["output_device"] or "none",
                lag_ms=stats["lag_ms"],
                dropped=stats["dropped_frames"],
                underruns=stats["output_underruns"] + stats["output_xruns"],
                echo_db=stats["echo_reduction_db"] if self._cancels else None,
            )
        if self._ear:
            status.microphone = "a file"
        if self._mouth:
            status.speaker = "a file"
        return status

    def notices(self) -> list[str]:
        """What happened to devices and files since the last call, in sentences."""
        notices = [event["message"] for event in self._device.events()] if self._device else []
        if self._mouth:
            notices += self._mouth.notices
            self._mouth.notices.clear()
        return notices

    def __enter__(self) -> "LiveSound":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device:
            self._device.close()
