"""The step loop of a live conversation: a frame heard, a step taken, a frame spoken, and all of it written down."""

import time
from collections.abc import Callable
from datetime import datetime

from ..config import FRAME_RATE
from ..errors import MoshiError, StorageError
from ..session import Frame, Session
from ..sound import Samples
from .live_ends import SILENCE, LiveSound
from .live_screen import LiveScreen
from .live_state import LiveState, level_db
from .recording import Recording
from .trace import Trace
from .transcript import Transcript

_PATIENCE = 0.2  # seconds to wait for a frame before looking at the keys again


class Conversation:
    """A session between an ear and a mouth.

    Attributes:
        transcript: Moshi's words so far, timed in seconds of conversation: steps and dropped frames, without pauses.
        quitting: set by the quit key.
    """

    def __init__(
        self,
        session: Session,
        sound: LiveSound,
        screen: LiveScreen,
        recording: Recording | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.session = session
        self.transcript = Transcript()
        self.quitting = False
        self._sound = sound
        self._screen = screen
        self._state: LiveState = screen.state
        self._recording = recording
        self._trace = trace
        self._lost = 0  # frames, in this run
        self._keys: dict[str, Callable[[], None]] = {
            "m": self.mute,
            "p": self.pause,
            "s": self.save,
            "q": self.quit,
        }

    def turn(self) -> None:
        """Wait for the next frame, hear it and speak; does nothing where no frame comes for a while.

        Raises:
            Finished: what was to be heard is over.
        """
        waiting = time.perf_counter()
        heard = None
        if self._state.paused:
            self._sound.rest(_PATIENCE)
        else:
            heard = self._sound.read(_PATIENCE)
        for notice in self._sound.notices():
            self._tell(notice)
        self._screen.tick()
        if heard is None:
            return
        if self._state.muted:
            heard = SILENCE
        self._catch_up()
        began = time.perf_counter()
        frame = self.session.step(heard)
        self._sound.write(heard, frame.pcm)
        self._write_down(heard, frame)
        self._show(heard, frame, time.perf_counter() - began)
        self._note(lambda trace: self._trace_step(trace, frame, waiting, began))

    def press(self, keys: str) -> None:
        """Do what the keys say."""
        for key in keys:
            self._keys.get(key, lambda: None)()

    def mute(self) -> None:
        """Let Moshi hear silence, or the user again."""
        self._state.muted = not self._state.muted
        self._screen.notice("Muted: Moshi hears silence." if self._state.muted else "Moshi hears you.")

    def pause(self) -> None:
        """Stop the conversation's time, or let it go on."""
        self._state.paused = not self._state.paused
        self._screen.notice("Paused." if self._state.paused else "Going on.")

    def save(self) -> None:
        """Write the conversation down, to be continued with --resume."""
        name = f"moshi-{datetime.now():%Y-%m-%d-%H%M%S}.safetensors"
        try:
            self.session.save(name)
            self._tell(f"Saved; continue it with --resume {name}")
        except StorageError as error:
            self._tell(str(error))

    def quit(self) -> None:
        """End the conversation."""
        self.quitting = True

    @property
    def steps(self) -> int:
        """Steps taken in this run."""
        return self._state.steps

    def _catch_up(self) -> None:
        """Account for frames that were lost since the last turn."""
        self._state.audio = self._sound.status()
        lost = self._state.audio.dropped - self._lost
        if lost > 0:
            self._lost += lost
            self.session.note_dropped(lost)
            self._tell(f"{lost} frames ({lost / FRAME_RATE:.1f} s) of what you said were dropped to catch up.")
            self._sound.skip(lost)
            self._keep(lambda recording: recording.skip(lost))

    def _write_down(self, heard: Samples, frame: Frame) -> None:
        self._screen.words(frame.text)
        self.transcript.add(self._state.steps + self._lost, frame.text)
        self._keep(lambda recording: recording.write(heard, frame.pcm))

    def _keep(self, write: Callable[[Recording], None]) -> None:
        """Write to the recording; a full disk ends the recording and not the conversation."""
        if self._recording is None:
            return
        try:
            write(self._recording)
        except MoshiError as error:
            self._recording = None
            self._tell(f"The recording ends here. {error}")

    def _note(self, write: Callable[[Trace], None]) -> None:
        """Write to the trace; a full disk ends the trace and not the conversation."""
        if self._trace is None:
            return
        try:
            write(self._trace)
        except MoshiError as error:
            self._trace = None
            self._tell(f"The trace ends here. {error}")

    def _show(self, heard: Samples, frame: Frame, seconds: float) -> None:
        self._state.user_db, self._state.moshi_db = level_db(heard), level_db(frame.pcm)
        self._state.step_took(seconds * 1000)

    def _tell(self, notice: str) -> None:
        self._screen.notice(notice)
        self._note(lambda trace: trace.mark(notice))

    def _trace_step(self, trace: Trace, frame: Frame, waiting: float, began: float) -> None:
        times = frame.timings
        encoded = began + times.encode_ms / 1e3
        thought = encoded + times.lm_ms / 1e3
        decoded = thought + times.decode_ms / 1e3
        spoken = time.perf_counter()
        trace.add("capture", waiting, began, step=frame.step, dropped=self.session.dropped)
        trace.add("encode", began, encoded, step=frame.step)
        trace.add("language model", encoded, thought, step=frame.step, text=frame.text)
        trace.add("decode", thought, decoded, step=frame.step)
        trace.add("playback", decoded, spoken, step=frame.step, underruns=self._state.audio.underruns)
