"""The server: what is answered at which address, and how it starts and ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable

from aiohttp import WSCloseCode, web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from ..errors import InputError, MoshiError
from .access import Access
from .chat import ChatDialect
from .connection import Connection, Dialect, Ending
from .desk import Desk
from .limits import Bucket, Limits, RateLimit
from .metrics import Metrics
from .pages import Pages
from .stream import FORMATS, StreamDialect
from .worker import Speaker, Worker

# How long a connection that doesn't end by itself may hold up the end of the program.
_SHUTDOWN_SECONDS = 5.0

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PortError(MoshiError):
    """The server can't listen where it should."""

    exit_code = 8

    @classmethod
    def at(cls, host: str, port: int, error: OSError | OverflowError | UnicodeError) -> PortError:
        if isinstance(error, UnicodeError):
            error = socket.gaierror(socket.EAI_NONAME, "This is no host's name")
        elsewhere = isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        option = "--host" if elsewhere else "--port"
        reason = str(getattr(error, "strerror", None) or error).removesuffix(".")
        return cls(f"The server can't listen at {host}:{port}: {reason}. Choose another {option}.")


class Server:
    """Moshi over the network, for one model.

    Args:
        worker: the started thread that runs the model.
        make_speaker: begins a conversation, as `Moshi.session`; called in the worker's thread.
        model: its name, as clients are told.
        pages: the page's files, None for no page.
    """

    def __init__(
        self,
        worker: Worker,
        make_speaker: Callable[[], Speaker],
        metrics: Metrics,
        model: str = "",
        limits: Limits | None = None,
        access: Access | None = None,
        pages: Pages | None = None,
    ):
        self.worker = worker
        self.model = model
        self.limits = limits or Limits()
        self.metrics = metrics
        self.access = access or Access()
        self.desk = Desk(worker, make_speaker, self.limits, self.metrics)
        about = "Frames that were stepped together with those of other conversations."
        metrics.gauge("moshi_frames_together_total", about, lambda: worker.together, kind="counter")
        self._connections: set[Connection] = set()
        self._listening: list[asyncio.AbstractServer] = []
        self._runner: web.AppRunner | None = None
        self._pages = pages

    def rate_limit(self) -> RateLimit:
        return RateLimit(self.limits)

    def make_app(self) -> web.Application:
        """The routes, as an aiohttp application."""
        app = web.Application(middlewares=[_at_the_door(self)], client_max_size=1 << 16)
        app.router.add_get("/api/chat", self._chat)
        app.router.add_get("/api/stream", self._stream)
        app.router.add_get("/api/info", self._info)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        if self._pages is not None:
            app.router.add_get("/{path:.*}", self._pages.handle)
        app.on_response_prepare.append(_add_headers)
        return app

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port, which the system chose where 0 was asked for.

        Raises:
            PortError: the address is taken, isn't this machine's, or is none.
        """
        # A request whose headers aren't whole by then is closed, however slowly they come.
        runner = web.AppRunner(
            self.make_app(),
            access_log=None,
            logger=_http_log,
            keepalive_timeout=self.limits.header_seconds,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        handlers = runner.server
        assert handlers is not None

        def accept() -> asyncio.Protocol:
            if len(handlers.connections) >= self.limits.max_connections:
                return _Refusal()
            return _Meter(handlers(), self.limits, self.metrics)

        loop = asyncio.get_running_loop()
        patience = self.limits.header_seconds if tls is not None else None
        try:
            listening = await loop.create_server(
                accept, host, port, ssl=tls, backlog=64, ssl_handshake_timeout=patience
            )
        except (OSError, UnicodeError) as error:
            await runner.cleanup()
            raise PortError.at(host, port, error) from error
        self._runner = runner
        self._listening.append(listening)
        return int(listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Say goodbye to every client and stop listening; the worker is left running."""
        for listening in self._listening:
            listening.close()
        for connection in list(self._connections):
            connection.end(Ending("closing", "The server is shutting down.", WSCloseCode.GOING_AWAY))
        for _ in range(30):
            if not self._connections:
                break
            await asyncio.sleep(0.1)
        self.desk.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._talk(request, ChatDialect(), None)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        try:
            dialect = StreamDialect(request.query.get("format", FORMATS[0]))
        except InputError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return await self._talk(request, dialect, request.query.get("session"))

    async def _talk(self, request: web.Request, dialect: Dialect, token: str | None) -> web.StreamResponse:
        limits = self.limits
        # Larger messages than `message_bytes` are still read, up to this, to tell the client what's wrong with them.
        longest = max(2 << 20, limits.message_bytes)
        channel = web.WebSocketResponse(
            heartbeat=limits.heartbeat_seconds,
            autoping=False,  # the connection answers pings, and counts them
            compress=False,
            max_msg_size=longest,
            timeout=2,
            writer_limit=4096,
        )
        try:
            ready = channel.can_prepare(request).ok
        except ValueError as error:  # aiohttp's, of what isn't ASCII or can't be said in UTF-8
            raise web.HTTPBadRequest(text="The headers of this WebSocket hold what isn't ASCII.\n") from error
        if not ready:
            raise web.HTTPUpgradeRequired(text="This address speaks WebSocket.\n", headers={"Upgrade": "websocket"})
        await channel.prepare(request)
        _keep_buffers_small(request.transport)
        self.metrics.add("moshi_connections_total")
        connection = Connection(self, channel, dialect, token)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
        return channel

    async def _info(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"model": self.model, "formats": FORMATS, **self._counts()})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        alive = self.worker.alive
        status = "ok" if alive else "failed"
        return web.json_response({"status": status, **self._counts()}, status=200 if alive else 503)

    def _counts(self) -> dict[str, int]:
        desk = self.desk
        return {"sessions": desk.active, "max_sessions": self.limits.max_sessions, "waiting": desk.waiting}

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=self.metrics.text().encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


class _Malformed(logging.Filter):
    """Keeps what clients send that is no HTTP out of the log: it's answered, and nothing here failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_Malformed())


def _at_the_door(server: Server) -> Middleware:
    """Origin and token are checked before anything else is done."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            server.access.check_origin(request)
            if request.path.startswith("/api/") or request.path == "/metrics":
                server.access.check_token(request)
        except web.HTTPException:
            server.metrics.add("moshi_refused_total")
            raise
        return await handler(request)

    return check


def _keep_buffers_small(transport: asyncio.Transport | None) -> None:
    """Let what waits for a slow client wait in its outbox, where stale sound is dropped, and not on the way."""
    if transport is None:
        return
    transport.set_write_buffer_limits(high=8192)
    connection = transport.get_extra_info("socket")
    # The kernel would else take megabytes, which is minutes of sound.
    if connection is not None and (unsent := getattr(socket, "TCP_NOTSENT_LOWAT", None)) is not None:
        connection.setsockopt(socket.IPPROTO_TCP, unsent, 8192)


class _Meter(asyncio.Protocol):
    """Breaks off a connection through which more bytes come than any client has to send.

    It stands before the connection's own protocol: aiohttp joins the fragments of a message, so that `RateLimit` sees
    nothing of a message without end, whose fragments may be empty. Twice its bytes are enough for all that's around
    them, and for those to be told why who are too fast with whole messages.
    """

    def __init__(self, protocol: asyncio.Protocol, limits: Limits, metrics: Metrics):
        self._protocol = protocol
        self._bucket = Bucket(2 * limits.bytes_per_second, limits.burst_seconds)
        self._metrics = metrics

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._bucket.add(len(data), time.monotonic()):
            self._protocol.data_received(data)
        else:
            self._metrics.add("moshi_client_errors_total")
            self._transport.abort()

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)


class _Refusal(asyncio.Protocol):
    """What a connection too many gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
