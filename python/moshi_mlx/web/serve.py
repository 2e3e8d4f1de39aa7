"""The command's work: load the model, open the door, tell the address, and serve until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import webbrowser
from pathlib import Path

from rich.console import Console

from ..cli.options import INTERRUPTED, load_model, sampling
from .access import Access, is_local, make_token
from .app import PortError, Server
from .batching import build, measure, most_in_memory
from .limits import Limits
from .metrics import Metrics
from .pages import BUILT, Pages
from .tls import load_context, outward_address, own_certificate
from .worker import Worker

MOST_SESSIONS = 8
"""Conversations at once where the machine would keep up with more and nobody said how many."""


def serve(args: argparse.Namespace) -> int:
    """Do what the command line says; returns its exit code.

    Raises:
        MoshiError: the model can't be loaded, or the server can't listen.
    """
    console = Console(stderr=True)
    host = str(args.host)
    pages = None if args.static == "none" else Pages(Path(args.static) if args.static else BUILT)
    _check_port(host, args.port)
    tls = _tls(args, host, console)
    metrics = Metrics()
    worker = Worker(metrics.step)
    worker.start()
    try:
        # MLX's arrays belong to the thread that made them, so the model is loaded where it runs.
        moshi = worker.call(lambda: load_model(args, console)).result()
        settings = sampling(args)
        most = args.max_sessions or worker.call(lambda: min(MOST_SESSIONS, most_in_memory(moshi, **settings))).result()
        times = worker.call(lambda: measure(moshi, most, **settings)).result()
        seats = args.max_sessions or times.held(most)
        sizes = tuple(size for size in times.sizes if size <= seats)
        worker.call(lambda: build(moshi, sizes, **settings)).result()
        worker.batch_sizes = sizes
        limits = Limits(
            max_sessions=seats, max_waiting=args.max_waiting, session_seconds=60 * args.session_minutes or 1e9
        )
        console.print(f"{times} Conversations at once: {seats}.", style="dim", highlight=False)
        access = Access(None if is_local(host) else make_token(), frozenset(args.allow_origin))
        name = moshi.name or str(args.model or "moshi")
        server = Server(worker, lambda: moshi.session(seed=args.seed, **settings), metrics, name, limits, access, pages)
        asyncio.run(_run(server, args, host, tls, access, console))
    except KeyboardInterrupt:
        # A download isn't waited for; and Python's own end, while a thread is within MLX, would be an abort.
        console.show_cursor()  # a progress bar may have hidden it
        print("\nInterrupted.", file=sys.__stderr__, flush=True)
        os._exit(INTERRUPTED)
    finally:
        worker.stop()
    return 0


def _check_port(host: str, port: int) -> None:
    """Find out that the host is none or the port is taken before a model is loaded, not after."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host or None, 0, family)  # create_server doesn't tell this apart from a port's errors
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise PortError.at(host, port, error) from error


async def _run(
    server: Server, args: argparse.Namespace, host: str, tls: ssl.SSLContext | None, access: Access, console: Console
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.add_signal_handler(name, stopped.set)
    port = await server.start(host, args.port, tls)
    shown = outward_address() or "localhost" if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"{'https' if tls else 'http'}://{shown}:{port}/" + (f"#token={access.token}" if access.token else "")
    print(f"Talk with Moshi at {address}", flush=True)
    if access.token:
        console.print(
            "Whoever knows this address, token and all, can converse and listen with your machine.", style="dim"
        )
    if args.static != "none" and not args.no_browser:
        loop.run_in_executor(None, webbrowser.open, address)
    try:
        await stopped.wait()
    finally:
        await server.stop()


def _tls(args: argparse.Namespace, host: str, console: Console) -> ssl.SSLContext | None:
    """TLS as asked for; where others may connect and nobody gave a certificate, with one made here."""
    if args.ssl:
        return load_context(Path(args.ssl))
    if is_local(host):
        return None
    folder = own_certificate(_state_folder() / "tls", host)
    console.print(
        f"TLS with a certificate made on this machine ({folder / 'cert.pem'}): browsers will warn of it once. "
        "Give one that they know with --ssl.",
        style="yellow",
        highlight=False,
    )
    return load_context(folder)


def _state_folder() -> Path:
    """Where this package keeps what it makes for a user."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "moshi-duplex"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "moshi-duplex"
