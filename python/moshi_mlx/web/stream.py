"""`/api/stream`: sound as it is and events as JSON, for apps and for the page.

Binary messages are sound: `s16` and `f32` are little-endian PCM of any length, mono, 24 kHz; with `opus` a message is
one bare Opus packet. Text messages are JSON objects with a `type`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..config import FRAME_SIZE, SAMPLE_RATE
from ..errors import InputError
from .connection import Answer, Connection, Dialect, Ending, Message
from .desk import Seat
from .ogg import StreamError
from .opus import PacketDecoder, PacketEncoder, Sound
from .worker import FRAME_SECONDS

FORMATS = ("s16", "f32", "opus")
_SPEAKING = 0.01  # RMS of a frame that is no silence, -40 dB
_PAUSE_FRAMES = 5  # of silence within speech


def event(kind: str, **values: Any) -> str:
    """A JSON event."""
    return json.dumps({"type": kind, **values}, allow_nan=False)


class StreamDialect(Dialect):
    """The raw protocol in one of its formats."""

    keeps_conversations = True

    def __init__(self, format: str):
        if format not in FORMATS:
            raise InputError(f"There is no sound format {format!r}; choose one of {', '.join(FORMATS)}.")
        self._format = format
        self._decoder = PacketDecoder() if format == "opus" else None
        self._encoder = PacketEncoder() if format == "opus" else None
        self._quiet = _PAUSE_FRAMES
        self._speaking = False

    def hear(self, message: bytes) -> Sound:
        if self._decoder is not None:
            return self._decoder.feed(message)
        kind = np.dtype("<i2" if self._format == "s16" else "<f4")
        if len(message) % kind.itemsize:
            raise StreamError(
                f"{len(message)} bytes aren't whole samples of {self._format}: {kind.itemsize} bytes each."
            )
        samples = np.frombuffer(message, kind).astype(np.float32)
        if self._format == "s16":
            return samples / np.float32(32768)
        if not np.isfinite(samples).all():
            raise StreamError("The sound holds NaN or infinity; send samples in [-1, 1].")
        return samples.clip(-1, 1)

    def told(self, text: str, connection: Connection) -> Iterable[Message]:
        try:
            message = json.loads(text)
            kind = message["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise StreamError('A text message should be a JSON object with a "type".') from None
        if kind == "ping":
            mark = message.get("id")
            finite = isinstance(mark, int) or (isinstance(mark, float) and math.isfinite(mark))
            fits = finite or (isinstance(mark, str) and len(mark) <= 64)
            yield event("pong", id=mark if fits else None)
        elif kind == "restart":
            connection.restart()
            yield event("restarted")
        elif kind == "end":
            connection.forget = True

    def queued(self, position: int) -> Iterable[Message]:
        yield event("queued", position=position)

    def ready(self, seat: Seat, model: str) -> Iterable[Message]:
        yield event(
            "ready",
            session=seat.token,
            resumed=seat.resumed,
            time=seat.conversation.steps * FRAME_SECONDS,
            model=model,
            format=self._format,
            sample_rate=SAMPLE_RATE,
            frame_size=FRAME_SIZE,
        )

    def speak(self, answer: Answer) -> Iterable[Message]:
        frame = answer.frame
        yield event(
            "step",
            step=frame.step,
            time=round(frame.step * FRAME_SECONDS, 2),
            heard=answer.heard,
            step_ms=round(frame.timings.total_ms, 1),
            wait_ms=round(answer.waited * 1e3, 1),
            dropped_in=answer.dropped_in,
            dropped_out=answer.dropped_out,
        )
        if self._encoder is not None:
            yield from self._encoder.feed(frame.pcm)
        elif self._format == "s16":
            yield np.clip(np.round(frame.pcm * 32767), -32768, 32767).astype("<i2").tobytes()
        else:
            yield frame.pcm.astype("<f4").tobytes()
        time = round(frame.step * FRAME_SECONDS, 2)
        if frame.text:
            yield event("text", text=frame.text, time=time)
        yield from self._state(frame.pcm, time)

    def _state(self, pcm: Sound, time: float) -> Iterable[Message]:
        """An event when Moshi begins to speak or has stopped."""
        self._quiet = 0 if float(np.sqrt(np.mean(pcm * pcm))) > _SPEAKING else self._quiet + 1
        speaking = self._quiet < _PAUSE_FRAMES
        if speaking != self._speaking:
            self._speaking = speaking
            yield event("state", state="speaking" if speaking else "listening", time=time)

    def ending(self, ending: Ending) -> Iterable[Message]:
        yield event("error", code=ending.code, message=ending.text)
