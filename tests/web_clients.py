"""Clients and servers for the tests of the web server: real sockets, the real model code."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import sphn
from aiohttp import WSMsgType

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.session_batch import warm_up
from moshi_mlx.web.access import Access
from moshi_mlx.web.app import Server
from moshi_mlx.web.limits import Limits
from moshi_mlx.web.metrics import Metrics
from moshi_mlx.web.ogg import write_page
from moshi_mlx.web.pages import BUILT, Pages
from moshi_mlx.web.worker import Worker

SILENCE = np.zeros(FRAME_SIZE, np.float32)
PATIENCE = 60.0  # seconds until a test gives up waiting; what it waits for comes much sooner


class House:
    """A model in its thread, on which servers with any limits can be opened."""

    def __init__(self) -> None:
        from moshi_mlx import moshi

        self.metrics = Metrics()
        self.worker = Worker(lambda step, waited: self.metrics.step(step, waited))
        self.worker.start()
        self.model = self.worker.call(lambda: moshi.load("untrained")).result()
        self.worker.call(self.model.warm_up).result()
        self.worker.call(lambda: warm_up(self.model, 2)).result()
        self.worker.batch_sizes = (2,)
        self.seed = 0

    def make_speaker(self) -> Any:
        self.seed += 1
        return self.model.session(seed=self.seed)

    @asynccontextmanager
    async def open(
        self,
        access: Access | None = None,
        speaker: Callable[[], Any] | None = None,
        pages: Pages | None = None,
        **limits: Any,
    ) -> AsyncIterator[Address]:
        self.metrics = Metrics()
        settings = Limits(**{"max_sessions": 2, **limits})
        make = speaker or self.make_speaker
        server = Server(self.worker, make, self.metrics, "untrained", settings, access, pages or Pages(BUILT))
        port = await server.start("localhost", 0)
        try:
            async with aiohttp.ClientSession() as http:
                yield Address(f"http://localhost:{port}", port, http, server)
        finally:
            await server.stop()


class Address:
    """Where a server answers."""

    def __init__(self, url: str, port: int, http: aiohttp.ClientSession, server: Server):
        self.url, self.port, self.http, self.server = url, port, http, server

    @asynccontextmanager
    async def stream(self, **query: str) -> AsyncIterator[StreamClient]:
        async with self.http.ws_connect(f"{self.url}/api/stream", params=query) as socket:
            yield StreamClient(socket)

    @asynccontextmanager
    async def chat(self) -> AsyncIterator[ChatClient]:
        async with self.http.ws_connect(f"{self.url}/api/chat") as socket:
            yield ChatClient(socket)

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.http.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        text = (await self.get("/metrics"))[1]
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))

    async def until(self, name: str, value: float) -> None:
        """Wait for a metric to have a value."""
        end = time.monotonic() + PATIENCE
        while (found := await self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            await asyncio.sleep(0.02)


class RawClient:
    """A WebSocket client that does what none should; it blocks, but on loopback not for long."""

    def __init__(self, port: int, path: str, headers: str = "Upgrade: websocket\r\nConnection: Upgrade\r\n"):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}{key}\r\n".encode())

    def send(self, opcode: int, payload: bytes, first: int = 0x80, masked: bool = True) -> None:
        """Send a frame, whole and well-formed unless asked otherwise."""
        size, mask = len(payload), b"\0\0\0\0" if masked else b""
        flag = 0x80 if masked else 0
        if size < 126:
            header = bytes([first | opcode, flag | size])
        elif size < 1 << 16:
            header = bytes([first | opcode, flag | 126]) + struct.pack(">H", size)
        else:
            header = bytes([first | opcode, flag | 127]) + struct.pack(">Q", size)
        self.socket.sendall(header + mask + payload)

    async def until_closed(self) -> bytes:
        """Read until the server closes the connection; returns what it sent."""
        return await asyncio.get_running_loop().run_in_executor(None, self._read)

    def _read(self) -> bytes:
        received = b""
        try:
            while piece := self.socket.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received

    def close(self) -> None:
        self.socket.close()


class StreamClient:
    """A client of /api/stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.sounds: list[bytes] = []
        self.events: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any] | None:
        """The next event, None at the end; sound that comes before it is kept in `sounds`."""
        while (message := await self.socket.receive(PATIENCE)).type in (WSMsgType.BINARY, WSMsgType.TEXT):
            if message.type is WSMsgType.TEXT:
                self.events.append(json.loads(message.data))
                return self.events[-1]
            self.sounds.append(message.data)
        return None

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        while (event := await self.next()) is not None:
            if event["type"] == kind:
                return event
        raise AssertionError(f"closed before any {kind}: {self.events}")

    async def say(self, pcm: np.ndarray = SILENCE) -> None:
        await self.socket.send_bytes((pcm * 32767).astype("<i2").tobytes())

    async def converse(self, frames: int) -> list[dict[str, Any]]:
        """Say silence at the pace of the answers; returns the steps."""
        steps = []
        for _ in range(frames):
            await self.say()
            steps.append(await self.until("step"))
        return steps


class ChatClient:
    """A client of /api/chat, as the published ones behave: sphn's Opus in blocks of 1920 samples."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.writer = sphn.OpusStreamWriter(24000)
        self.reader = sphn.OpusStreamReader(24000)
        self.samples = 0
        self.peak = 0.0
        self.text = ""
        self.kinds: list[int] = []
        self.error = ""

    async def next(self) -> int | None:
        """Take the next message; returns its kind, None at the end."""
        message = await self.socket.receive(PATIENCE)
        if message.type is not WSMsgType.BINARY:
            return None
        kind, payload = message.data[0], message.data[1:]
        self.kinds.append(kind)
        if kind == 1:
            pcm = self.reader.append_bytes(payload)
            self.samples += len(pcm)
            self.peak = max(self.peak, float(np.abs(pcm).max(initial=0)))
        elif kind == 2:
            self.text += payload.decode()
        elif kind == 5:
            self.error = payload.decode()
        return kind

    async def until(self, kind: int) -> None:
        while (found := await self.next()) != kind:
            assert found is not None, f"closed before any message of kind {kind}: {self.kinds}"

    async def say(self, pcm: np.ndarray = SILENCE) -> None:
        await self.socket.send_bytes(b"\x01" + bytes(self.writer.append_pcm(pcm)))

    async def until_closed(self) -> int | None:
        """Take everything; returns the close code."""
        while await self.next() is not None:
            pass
        return self.socket.close_code


def opus_headers(serial: int = 7) -> bytes:
    """The two header pages of a mono stream at 24 kHz."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 312, 24000, 0, 0)
    return write_page(head, serial, 0, 2) + write_page(b"OpusTags" + struct.pack("<II", 0, 0), serial, 1)
