"""One client's WebSocket from handshake to close, whatever the protocol: queue, sound in, frames out, and its end.

Three things go on at once: `_read` takes what the client sends, `_send` gives it what waits in the outbox, and `run`
waits for a seat and then for the end. The client's sound goes to the worker; the worker's frames come to the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from ..config import FRAME_SIZE, SAMPLE_RATE
from ..session import Frame
from .desk import BusyError, Seat
from .ogg import StreamError, TooLargeError
from .worker import Sound

if TYPE_CHECKING:
    from .app import Server

log = logging.getLogger(__name__)

Message = bytes | str  # sent as a binary or a text message


@dataclass(frozen=True)
class Answer:
    """A frame of Moshi on its way to a client, and how it came about.

    Attributes:
        heard: samples of this connection's sound, dropped ones included, that were heard or lost by then.
        dropped_in: frames of this connection's sound that were dropped unheard.
        dropped_out: frames of Moshi's that were dropped because the client read too slowly.
    """

    frame: Frame
    heard: int
    waited: float
    dropped_in: int
    dropped_out: int


@dataclass
class Ending:
    """Why a connection ends, as the client is told."""

    code: str
    text: str
    close: int = WSCloseCode.OK


class Dialect(ABC):
    """How a protocol says things; one object for each connection."""

    keeps_conversations = False

    @abstractmethod
    def hear(self, message: bytes) -> Sound:
        """The sound in a client's binary message: float32 [samples] at 24 kHz, often none; StreamError if it's bad."""

    def told(self, text: str, connection: Connection) -> Iterable[Message]:
        """What to answer to a client's text message."""
        return ()

    @abstractmethod
    def queued(self, position: int) -> Iterable[Message]: ...

    @abstractmethod
    def ready(self, seat: Seat, model: str) -> Iterable[Message]: ...

    @abstractmethod
    def speak(self, answer: Answer) -> Iterable[Message]: ...

    @abstractmethod
    def ending(self, ending: Ending) -> Iterable[Message]: ...


class Outbox:
    """What waits to be sent: everything that's said, and as many frames of sound as are still worth hearing."""

    def __init__(self, frames: int, messages: int = 1000):
        self._max_frames = frames
        self._max_messages = messages
        self._items: deque[Answer | list[Message]] = deque()
        self._frames = 0
        self._filled = asyncio.Event()
        self.dropped = 0

    def say(self, messages: Iterable[Message]) -> None:
        self._items.append(list(messages))
        if len(self._items) - self._frames > self._max_messages:
            self._items.remove(next(item for item in self._items if isinstance(item, list)))
        self._filled.set()

    def frame(self, answer: Answer) -> int:
        """Add a frame; returns how many were dropped to make room, the oldest first."""
        self._items.append(answer)
        self._frames += 1
        dropped = 0
        while self._frames > self._max_frames:
            oldest = next(item for item in self._items if isinstance(item, Answer))
            self._items.remove(oldest)
            self._frames -= 1
            dropped += 1
        self.dropped += dropped
        self._filled.set()
        return dropped

    async def next(self) -> Answer | list[Message]:
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        self._frames -= isinstance(item, Answer)
        return item

    def rest(self) -> list[Message]:
        """What was said and isn't sent yet, without the sound."""
        said = [message for item in self._items if isinstance(item, list) for message in item]
        self._items.clear()
        return said


class Connection:
    """A client's connection; `run` returns when it's over."""

    def __init__(self, server: Server, socket: web.WebSocketResponse, dialect: Dialect, token: str | None = None):
        self._server = server
        self._socket = socket
        self._dialect = dialect
        self._token = token
        self._seat: Seat | None = None
        self._outbox = Outbox(server.limits.outgoing_frames)
        self._buffer: Sound = np.zeros(0, np.float32)
        self._base_heard = self._base_dropped = 0
        self._noted_dropped = 0
        self._last_heard = time.monotonic()
        self._over: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        self._restarting: Future[None] | None = None
        self.forget = False  # set by a client that won't come back

    async def run(self) -> None:
        """Queue, converse, and close."""
        reading = asyncio.ensure_future(self._read())
        sending = asyncio.ensure_future(self._send())
        conversing = asyncio.ensure_future(self._converse())
        try:
            ends: tuple[asyncio.Future[Any], ...] = (reading, sending, conversing, self._over)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            ending = self._why(reading, sending, conversing)
        finally:
            tasks = (reading, sending, conversing)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._leave()
        await self._close(ending)

    def _why(self, *tasks: asyncio.Task[None]) -> Ending | None:
        """What to tell the client at the end; None where it ended the connection itself."""
        if self._over.done():
            return self._over.result()
        error = next((e for task in tasks if task.done() and (e := task.exception()) is not None), None)
        metrics = self._server.metrics
        if isinstance(error, StreamError):
            self.forget = True
            metrics.add("moshi_client_errors_total")
            too_large = isinstance(error, TooLargeError)
            close = WSCloseCode.MESSAGE_TOO_BIG if too_large else WSCloseCode.POLICY_VIOLATION
            return Ending("bad-stream", str(error), close)
        if isinstance(error, BusyError):
            metrics.add("moshi_refused_total")
            return Ending("busy", f"The server is busy: {error}", WSCloseCode.TRY_AGAIN_LATER)
        if isinstance(error, ConnectionError):
            return None
        if error is not None:
            log.error("a connection failed", exc_info=error)
            metrics.add("moshi_server_errors_total")
            return Ending("failed", "Something failed in the server; its log says what.", WSCloseCode.INTERNAL_ERROR)
        return None

    async def _converse(self) -> None:
        """Wait for a seat, take it, and watch the clock."""
        desk, limits, worker = self._server.desk, self._server.limits, self._server.worker
        seat = await desk.take(self, self._token, lambda position: self._outbox.say(self._dialect.queued(position)))
        self._seat = seat
        conversation = seat.conversation
        self._base_heard = conversation.inbox.heard + conversation.inbox.dropped
        self._base_dropped = conversation.inbox.dropped
        loop = asyncio.get_running_loop()

        def post(*args: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(*args)  # type: ignore[arg-type]

        conversation.on_frame = lambda frame, heard, waited: post(self._answered, frame, heard, waited)
        conversation.on_error = lambda error: post(self._failed)
        self._outbox.say(self._dialect.ready(seat, self._server.model))
        self._buffer = self._buffer[:0]
        worker.add(conversation)
        self._last_heard = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, limits.idle_seconds / 4, limits.session_seconds / 4))
            now = time.monotonic()
            if now - self._last_heard > limits.idle_seconds:
                self.forget = True
                text = f"No sound came for {limits.idle_seconds:g} s; the place goes to the next."
                self.end(Ending("idle", text, WSCloseCode.POLICY_VIOLATION))
            elif now - seat.began > limits.session_seconds:
                self.forget = True
                text = f"A conversation may last {limits.session_seconds / 60:g} minutes; start another."
                self.end(Ending("time-over", text, WSCloseCode.POLICY_VIOLATION))

    def asked_away(self) -> None:
        """Its client has come back in another connection, which has the seat now."""
        text = "The conversation goes on in another connection."
        self.end(Ending("replaced", text, WSCloseCode.POLICY_VIOLATION))

    def restart(self) -> None:
        """Begin the conversation anew, in the same seat; asked for again before that is done, it's done once."""
        if self._seat is not None and (self._restarting is None or self._restarting.done()):
            self._restarting = self._server.worker.call(self._seat.conversation.restart)

    async def _read(self) -> None:
        """Take what the client sends until it ends the connection."""
        rate = self._server.rate_limit()
        async for message in self._socket:
            if message.type is WSMsgType.ERROR:
                return  # no WebSocket any more; it's closed
            rate.add(len(message.data), time.monotonic())
            if message.type is WSMsgType.BINARY:
                sound = self._dialect.hear(message.data)
                rate.hear(len(sound) / SAMPLE_RATE)
                self._hear(sound)
            elif message.type is WSMsgType.TEXT:
                answer = list(self._dialect.told(message.data, self))
                if answer:
                    self._outbox.say(answer)
            elif message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            if self.forget:
                return

    def _hear(self, sound: Sound) -> None:
        if not len(sound):
            return
        self._last_heard = time.monotonic()
        if self._seat is None:
            return  # said before anybody listened
        self._buffer = np.concatenate((self._buffer, sound))
        while len(self._buffer) >= FRAME_SIZE:
            frame, self._buffer = self._buffer[:FRAME_SIZE], self._buffer[FRAME_SIZE:]
            self._server.worker.put(self._seat.conversation, frame)

    def _answered(self, frame: Frame, heard: int, waited: float) -> None:
        """A frame from the worker, now in the event loop's thread."""
        if self._seat is None:
            return
        dropped_in = self._seat.conversation.inbox.dropped - self._base_dropped
        self._server.metrics.add("moshi_frames_in_dropped_total", dropped_in - self._noted_dropped)
        self._noted_dropped = dropped_in
        samples = (heard - self._base_heard) * FRAME_SIZE
        dropped = self._outbox.frame(Answer(frame, samples, waited, dropped_in, self._outbox.dropped))
        self._server.metrics.add("moshi_frames_out_dropped_total", dropped)

    def _failed(self) -> None:
        self.forget = True
        self._server.metrics.add("moshi_server_errors_total")
        text = "The model failed in this conversation; the server's log says how."
        self.end(Ending("failed", text, WSCloseCode.INTERNAL_ERROR))

    def end(self, ending: Ending) -> None:
        """End the connection, telling the client why."""
        if not self._over.done():
            self._over.set_result(ending)

    async def _send(self) -> None:
        """Send what waits; the connection ends where the client reads nothing for too long."""
        stalled = Ending("stalled", "The connection is too slow to go on.", WSCloseCode.POLICY_VIOLATION)
        loop, patience = asyncio.get_running_loop(), self._server.limits.stalled_seconds
        while True:
            item = await self._outbox.next()
            messages = self._dialect.speak(item) if isinstance(item, Answer) else item
            for message in messages:
                # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes as the message is sent.
                timer = loop.call_later(patience, self.end, stalled)
                try:
                    await self._send_one(message)
                finally:
                    timer.cancel()

    async def _send_one(self, message: Message) -> None:
        if isinstance(message, str):
            await self._socket.send_str(message)
        else:
            await self._socket.send_bytes(message)

    def _leave(self) -> None:
        """Give the seat back at once; nothing of this connection outlives it but a kept conversation."""
        seat, self._seat = self._seat, None
        if seat is None:
            return
        said_goodbye = self._socket.close_code in (WSCloseCode.OK, WSCloseCode.GOING_AWAY)
        self._server.desk.leave(seat, self, self._dialect.keeps_conversations and not self.forget, said_goodbye)

    async def _close(self, ending: Ending | None) -> None:
        """Say the last words, as far as the client still listens, and close."""
        if ending is not None and not self._socket.closed:
            try:
                for message in (*self._outbox.rest(), *self._dialect.ending(ending)):
                    await asyncio.wait_for(self._send_one(message), 1)
            except (ConnectionError, asyncio.TimeoutError):
                pass  # it doesn't
        reason = ending.text.encode()[:120].decode(errors="ignore") if ending is not None else ""
        await self._socket.close(code=ending.close if ending is not None else WSCloseCode.OK, message=reason.encode())
