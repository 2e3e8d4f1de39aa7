"""The one thread that runs the model: conversations take turns, a frame each, several at a time where that is faster.

Nobody is waited for: a batch is made of the conversations that have a frame ready when the step before ends, so the
busier the machine, the larger the batches. `benchmarks/serve.py` measures how many that holds in real time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config import FRAME_SIZE, SAMPLE_RATE
from ..errors import InputError
from ..session import Frame, Session
from ..session_batch import batch_key, step_together

log = logging.getLogger(__name__)

FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
Sound = npt.NDArray[np.float32]
T = TypeVar("T")


class Speaker(Protocol):
    """What a conversation needs of `moshi_mlx.Session`."""

    def step(self, pcm: Sound) -> Frame: ...

    def note_dropped(self, frames: int) -> None: ...

    def reset(self, seed: int | None = None) -> None: ...


class Heard(Protocol):
    """Called in the worker's thread with each frame that the model answered."""

    def __call__(self, frame: Frame, heard: int, waited: float) -> None: ...


class Inbox:
    """Frames on their way to the model, each with the time by which it should have been heard.

    A frame is due when it arrives; one that arrives early, in a burst, is due nearly 80 ms after the one before: so a
    burst is answered whole, and a stall that came before it is forgotten in time. A frame that is overdue by more than
    `max_lag` seconds is stale: it's dropped with those behind it until half of that is left.
    """

    PACE = 0.9 * FRAME_SECONDS

    def __init__(self, max_lag: float, max_frames: int = 125):
        self._max_lag = max_lag
        self._max_frames = max_frames
        self._frames: deque[tuple[float, float, Sound]] = deque()
        self.dropped = 0
        self.heard = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, pcm: Sound, now: float) -> None:
        """Add a frame; where there's no room for it, the oldest is dropped."""
        due = max(now, self._frames[-1][1] + self.PACE) if self._frames else now
        self._frames.append((now, due, pcm))
        if len(self._frames) > self._max_frames:
            self._drop()

    def take(self, now: float) -> tuple[Sound, float] | None:
        """The next frame that isn't stale, and how many seconds it waited; None where there's none."""
        if self._frames and now - self._frames[0][1] > self._max_lag:
            while len(self._frames) > 1 and now - self._frames[0][1] > self._max_lag / 2:
                self._drop()
        if not self._frames:
            return None
        arrived, _, pcm = self._frames.popleft()
        self.heard += 1
        return pcm, now - arrived

    def clear(self) -> None:
        """Forget what waits."""
        self._frames.clear()

    def _drop(self) -> None:
        self._frames.popleft()
        self.dropped += 1


class Conversation:
    """A session of the model and the frames that wait for it; used by the worker's thread and the network's."""

    def __init__(self, speaker: Speaker, max_lag: float):
        self.speaker = speaker
        self.inbox = Inbox(max_lag)
        self.on_frame: Heard | None = None
        self.on_error: Callable[[Exception], None] | None = None
        self.steps = 0
        self.told_dropped = 0

    def restart(self) -> None:
        """Begin anew; called in the worker's thread."""
        self.speaker.reset()
        self.steps = 0


@dataclass(frozen=True)
class _Turn:
    """A conversation's frame that is to be stepped; `waited` is for how many seconds it has been ready."""

    conversation: Conversation
    pcm: Sound
    waited: float


class Worker:
    """A thread that owns the model: every call into MLX is made there, one at a time.

    Attributes:
        batch_sizes: how many conversations to step together, ascending; with none, each is stepped alone.
        together: frames that were stepped together with others so far.
    """

    def __init__(self, observe: Callable[[float, float], None] = lambda step, waited: None):
        self._observe = observe
        self._ready = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._turn: deque[Conversation] = deque()
        self._stopping = False
        self.batch_sizes: tuple[int, ...] = ()
        self.together = 0
        self._thread = threading.Thread(target=self._run, name="moshi-model", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it's in; waits for that."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in the worker's thread, between two steps."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._ready:
            self._jobs.append(job)
            self._ready.notify()
        return future

    def add(self, conversation: Conversation) -> None:
        """Let a conversation take turns from now on."""
        with self._ready:
            self._turn.append(conversation)
            self._ready.notify()

    def remove(self, conversation: Conversation) -> None:
        """End a conversation's turns; a step that it's in still finishes, and is told to nobody."""
        with self._ready:
            conversation.on_frame = conversation.on_error = None
            conversation.inbox.clear()
            if conversation in self._turn:
                self._turn.remove(conversation)

    def put(self, conversation: Conversation, pcm: Sound) -> None:
        """A frame for the conversation: float32 [1920]."""
        with self._ready:
            conversation.inbox.put(pcm, time.monotonic())
            self._ready.notify()

    def _next(self) -> Callable[[], Any] | None:
        """What to do next, waited for; None when the thread should end."""
        with self._ready:
            while not self._stopping:
                if self._jobs:
                    return self._jobs.popleft()
                if turns := self._take():
                    return lambda: self._step(turns)
                self._ready.wait()
        return None

    def _take(self) -> list[_Turn]:
        """The frames to step next: that of the conversation whose turn it is, and of those that go together with it."""
        ready = [conversation for conversation in self._turn if len(conversation.inbox)]
        if not ready:
            return []
        if (key := _key(ready[0])) is not None:
            ready = [conversation for conversation in ready if _key(conversation) is key]
            ready = ready[: largest(self.batch_sizes, len(ready))]
        else:
            ready = ready[:1]
        turns = []
        for conversation in ready:
            self._turn.remove(conversation)
            self._turn.append(conversation)
            if (taken := conversation.inbox.take(time.monotonic())) is not None:
                turns.append(_Turn(conversation, *taken))
        return turns

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # or the thread would keep a closed conversation's state while it waits
        mx.synchronize()
        # A thread's streams are torn down with it, or MLX ends the process when it exits (0.32; older ones share them).
        if clear := getattr(mx, "clear_streams", None):
            clear()

    def _step(self, turns: list[_Turn]) -> None:
        heard = [self._heard(turn.conversation) for turn in turns]
        started = time.monotonic()
        try:
            frames = _frames(turns)
        except Exception as error:
            if len(turns) > 1 and isinstance(error, InputError):
                # One of them is at fault, and none has changed.
                for turn in turns:
                    self._step([turn])
            else:
                self._fail(turns, error)
            return
        seconds = time.monotonic() - started
        if len(turns) > 1:
            self.together += len(turns)
        for turn, frame, samples in zip(turns, frames, heard, strict=True):
            turn.conversation.steps += 1
            self._observe(seconds, turn.waited)
            if (on_frame := turn.conversation.on_frame) is not None:
                on_frame(frame, samples, turn.waited)

    def _heard(self, conversation: Conversation) -> int:
        """Frames that the conversation's client has sent up to this step; tells the session which were dropped."""
        dropped = conversation.inbox.dropped
        if dropped > conversation.told_dropped:
            conversation.speaker.note_dropped(dropped - conversation.told_dropped)
            conversation.told_dropped = dropped
        return conversation.inbox.heard + dropped

    def _fail(self, turns: list[_Turn], error: Exception) -> None:
        """End the conversations of a step that failed."""
        log.error("a step failed; its conversations end", exc_info=error)
        for turn in turns:
            on_error = turn.conversation.on_error
            self.remove(turn.conversation)
            if on_error is not None:
                on_error(error)


def largest(sizes: Sequence[int], count: int) -> int:
    """The largest of `sizes` that `count` conversations fill, 1 where there is none."""
    return max((size for size in sizes if size <= count), default=1)


def _key(conversation: Conversation) -> object | None:
    speaker = conversation.speaker
    return batch_key(speaker) if isinstance(speaker, Session) else None


def _frames(turns: list[_Turn]) -> list[Frame]:
    if len(turns) == 1:
        return [turns[0].conversation.speaker.step(turns[0].pcm)]
    sessions = [turn.conversation.speaker for turn in turns if isinstance(turn.conversation.speaker, Session)]
    return step_together(sessions, [turn.pcm for turn in turns])
