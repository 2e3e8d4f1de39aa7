"""How many conversations does this machine hold in real time, stepped together and in turns?

The command as users start it, in a process of its own, and N clients that send silence and noise at the pace of
speech, as apps do (/api/stream). Told for each N: how much of what they said was answered, how long that took, frames
dropped, how even the clients were served, the server's memory. Eight clients for five minutes:
--sessions 8 --seconds 300. The same with a server that steps one conversation at a time.

Beside it, one step of B conversations together against B steps of one each, in turns, without a server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from common import Figure, options, report

import moshi_mlx
from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.session_batch import ready_sessions, step_together
from moshi_mlx.web.worker import FRAME_SECONDS

IN_TURNS = """
from moshi_mlx.web import batching
batching.SIZES = ()
from moshi_mlx.local_web import main
raise SystemExit(main())
"""
"""The server's command, with no batch to try."""


@dataclass
class Client:
    """What one client found."""

    said: int = 0
    answers: int = 0
    lag_ms: list[float] = field(default_factory=list)
    waited_ms: list[float] = field(default_factory=list)
    dropped_in: int = 0
    dropped_out: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)


async def converse(http: aiohttp.ClientSession, url: str, seconds: float, index: int) -> Client:
    """Speak at the pace of speech for some seconds and listen."""
    client = Client()
    rng = np.random.default_rng(index)
    async with http.ws_connect(f"{url}/api/stream", max_msg_size=0) as socket:
        await socket.receive()  # ready

        async def speak() -> None:
            start = time.perf_counter()
            while (now := time.perf_counter() - start) < seconds:
                frame = rng.normal(0, 3000 if client.said % 50 < 25 else 1, FRAME_SIZE).astype("<i2")
                client.said += 1
                client.sent_at[client.said] = time.perf_counter()
                await socket.send_bytes(frame.tobytes())
                await asyncio.sleep(max(0.0, client.said * FRAME_SECONDS - now))
            await asyncio.sleep(0.5)
            await socket.send_str('{"type": "end"}')

        speaking = asyncio.ensure_future(speak())
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["type"] == "step":
                heard = event["heard"] // FRAME_SIZE
                client.answers += 1
                client.lag_ms.append((time.perf_counter() - client.sent_at[heard]) * 1e3)
                client.waited_ms.append(event["wait_ms"])
                client.dropped_in, client.dropped_out = event["dropped_in"], event["dropped_out"]
            elif event["type"] == "error":
                raise RuntimeError(event["message"])
        await speaking
    return client


def resident_mb(process: int) -> float:
    """Memory that a process holds now."""
    pages = Path(f"/proc/{process}/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(shown.stdout) / 1024


async def load(url: str, process: int, sessions: int, seconds: float) -> tuple[list[Client], list[float], float]:
    """N clients at once, the server's memory every second, and which part of all frames was stepped with others."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(resident_mb(process))
            await asyncio.sleep(1)

    async with aiohttp.ClientSession() as http:
        await converse(http, url, 2, 0)  # what the first conversation leaves behind is no leak
        watching = asyncio.ensure_future(watch())
        clients = await asyncio.gather(*(converse(http, url, seconds, index) for index in range(sessions)))
        await asyncio.sleep(1.2)
        watching.cancel()
        async with http.get(f"{url}/metrics") as answer:
            told = dict(re.findall(r"^(\w+) (\S+)$", await answer.text(), re.M))
    return list(clients), memory, float(told["moshi_frames_together_total"]) / float(told["moshi_step_seconds_count"])


def serve(model: str, sessions: int, seconds: float, together: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Figures of N clients, and whether all were held in real time."""
    program = ["-m", "moshi_mlx.local_web"] if together else ["-c", IN_TURNS]
    command = [sys.executable, *program, "--model", model, "--port", "0", "--no-browser", "--static", "none"]
    server = subprocess.Popen([*command, "--max-sessions", str(sessions)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+?(?=/?\s)", server.stdout.readline())
        if found is None:
            raise RuntimeError("the server didn't start")
        clients, memory, part = asyncio.run(load(found[0], server.pid, sessions, seconds))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    answered = [client.answers / client.said for client in clients]
    lags = [lag for client in clients for lag in client.lag_ms]
    third = max(1, len(memory) // 3)
    name = f"{sessions} {'together' if together else 'in turns'}"
    figures = [
        Figure.of(f"{name}: answered of what was said", "%", [100 * part for part in answered]),
        Figure.of(f"{name}: sent to answered", "ms", lags),
        Figure.of(f"{name}: of that, waited for its step", "ms", [ms for client in clients for ms in client.waited_ms]),
        Figure.exact(f"{name}: frames stepped with others", "%", 100 * part),
        Figure.exact(f"{name}: sent to answered, 99%", "ms", float(np.quantile(lags, 0.99))),
        Figure.exact(f"{name}: least against most served", "", min(answered) / max(answered)),
        Figure.exact(f"{name}: dropped", "frames", sum(client.dropped_in + client.dropped_out for client in clients)),
        Figure.exact(f"{name}: server's memory at the end", "MB", memory[-1]),
        Figure.exact(
            f"{name}: memory gained from the 2nd third to the last", "MB",
            float(np.median(memory[-third:]) - np.median(memory[third : 2 * third] or memory)),
        ),
    ]  # fmt: skip
    details = {
        "held": all(c.dropped_in + c.dropped_out == 0 and c.answers >= c.said - 1 for c in clients),
        "memory_mb": memory,
        "clients": [{"said": c.said, "answers": c.answers, "dropped": c.dropped_in + c.dropped_out} for c in clients],
    }
    return figures, details


def batched(model: str, sizes: list[int], rounds: int = 7, steps: int = 5) -> list[Figure]:
    """A step of several sessions together against as many in turns, measured alternately."""
    moshi = moshi_mlx.load(model)
    silence = np.zeros(FRAME_SIZE, np.float32)
    figures = []
    for size in sizes:
        sessions = ready_sessions(moshi, size)
        ratios = []
        for turn in range(rounds + 1):
            start = time.perf_counter()
            for _ in range(steps):
                for session in sessions:
                    session.step(silence)
            middle = time.perf_counter()
            for _ in range(steps):
                step_together(sessions, [silence] * size)
            ratio = (time.perf_counter() - middle) / (middle - start)
            ratios += [ratio] if turn else []  # the first builds the graphs
        figures.append(Figure.of(f"step of {size} together against {size} in turns", "", ratios))
    return figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="untrained", help="as for moshi-local-web (default: untrained)")
    parser.add_argument("--sessions", type=int, nargs="*", default=[2, 4, 8], help="clients at once")
    parser.add_argument("--seconds", type=float, default=12, help="of each conversation")
    parser.add_argument("--batches", type=int, nargs="*", default=[2, 4, 8], help="conversations in a step together")
    args = parser.parse_args()
    figures, details = batched(args.model, args.batches), {}
    held = {"together": 0, "in turns": 0}
    for sessions in args.sessions:
        for way in held:
            found, details[f"{sessions} {way}"] = serve(args.model, sessions, args.seconds, way == "together")
            figures += found
            if details[f"{sessions} {way}"]["held"]:
                held[way] = max(held[way], sessions)
    for way, most in held.items() if args.sessions else ():
        figures.append(Figure.exact(f"held in real time {way}, of the numbers tried", "conversations", most))
    notes = [
        "A conversation is held in real time where everything said is answered and nothing is dropped.",
        "A server steps conversations together where it found that faster when it started.",
    ]
    report(__doc__, args.json, figures, {"model": args.model, "loads": details}, notes)


if __name__ == "__main__":
    main()
