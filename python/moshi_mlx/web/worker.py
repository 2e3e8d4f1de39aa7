"""The one thread that runs the model: conversations take turns, a frame each.

Conversations begin at different times, and a batched step needs rows that stand at one position of the cache, so they
take turns; `benchmarks/serve.py` measures how many that holds in real time, and what batches would change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..config import FRAME_SIZE, SAMPLE_RATE
from ..session import Frame

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


class Worker:
    """A thread that owns the model: every call into MLX is made there, one at a time."""

    def __init__(self, observe: Callable[[float, float], None] = lambda step, waited: None):
        self._observe = observe
        self._ready = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._turn: deque[Conversation] = deque()
        self._stopping = False
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
                for _ in range(len(self._turn)):
                    conversation = self._turn[0]
                    self._turn.rotate(-1)
                    taken = conversation.inbox.take(time.monotonic())
                    if taken is not None:
                        pcm, waited = taken
                        return lambda c=conversation, p=pcm, w=waited: self._step(c, p, w)  # type: ignore[misc]
                self._ready.wait()
        return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # or the thread would keep a closed conversation's state while it waits
        mx.synchronize()
        # A thread's streams are torn down with it, or MLX ends the process when it exits (0.32; older ones share them).
        if clear := getattr(mx, "clear_streams", None):
            clear()

    def _step(self, conversation: Conversation, pcm: Sound, waited: float) -> None:
        inbox = conversation.inbox
        dropped = inbox.dropped
        if dropped > conversation.told_dropped:
            conversation.speaker.note_dropped(dropped - conversation.told_dropped)
            conversation.told_dropped = dropped
        heard = inbox.heard + dropped
        started = time.monotonic()
        try:
            frame = conversation.speaker.step(pcm)
        except Exception as error:
            log.exception("a step failed; its conversation ends")
            on_error = conversation.on_error
            self.remove(conversation)
            if on_error is not None:
                on_error(error)
            return
        conversation.steps += 1
        self._observe(time.monotonic() - started, waited)
        if (on_frame := conversation.on_frame) is not None:
            on_frame(frame, heard, waited)
