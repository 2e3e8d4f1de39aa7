"""How many conversations does this machine hold in real time, and would batched steps hold more?

The command as users start it, in a process of its own, and N clients that send silence and noise at the pace of
speech, as apps do (/api/stream). Told for each N: how much of what they said was answered, how long that took, frames
dropped, how even the clients were served, the server's memory. Eight clients for five minutes:
--sessions 8 --seconds 300.

Beside it, one step of the language model for B conversations at once against B steps of one each, in turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from common import Figure, options, report
from models import SHAPES, make_lm

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.generation import LMGen
from moshi_mlx.lm import LMModel
from moshi_mlx.web.worker import FRAME_SECONDS


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


async def load(url: str, process: int, sessions: int, seconds: float) -> tuple[list[Client], list[float]]:
    """N clients at once, and the server's memory every second."""
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
    return list(clients), memory


def serve(model: str, sessions: int, seconds: float) -> tuple[list[Figure], dict[str, Any]]:
    """Figures of N clients."""
    command = [sys.executable, "-m", "moshi_mlx.local_web", "--model", model, "--port", "0", "--no-browser"]
    server = subprocess.Popen(
        [*command, "--static", "none", "--max-sessions", str(sessions)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+?(?=/?\s)", server.stdout.readline())
        if found is None:
            raise RuntimeError("the server didn't start")
        clients, memory = asyncio.run(load(found[0], server.pid, sessions, seconds))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    answered = [client.answers / client.said for client in clients]
    lags = [lag for client in clients for lag in client.lag_ms]
    third = max(1, len(memory) // 3)
    name = f"{sessions} at once"
    figures = [
        Figure.of(f"{name}: answered of what was said", "%", [100 * part for part in answered]),
        Figure.of(f"{name}: sent to answered", "ms", lags),
        Figure.of(f"{name}: of that, waited for its step", "ms", [ms for client in clients for ms in client.waited_ms]),
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
        "memory_mb": memory,
        "clients": [{"said": c.said, "answers": c.answers, "dropped": c.dropped_in + c.dropped_out} for c in clients],
    }
    return figures, details


def batched(shape: str, sizes: list[int], rounds: int = 5, steps: int = 12) -> list[Figure]:
    """One batched step against as many steps as it replaces, measured in turns."""
    with tempfile.TemporaryDirectory() as folder:
        lm = LMModel.load(make_lm(Path(folder), SHAPES[shape]))
    figures = []

    def seconds(generations: list[LMGen], codes: np.ndarray) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            for generation in generations:
                np.array(generation.step(codes))
        return time.perf_counter() - start

    for size in sizes:
        single = [LMGen(lm, seed=index) for index in range(size)]
        together = [LMGen(lm, batch_size=size, seed=0)]
        codes = {count: np.zeros((count, lm.config.user_q), np.int32) for count in (1, size)}
        ratios = []
        for turn in range(rounds + 1):
            ratio = seconds(together, codes[size]) / seconds(single, codes[1])
            ratios += [ratio] if turn else []  # the first builds the graphs
        figures.append(Figure.of(f"batched step of {size} against {size} in turns, model {shape}", "", ratios))
    return figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="untrained", help="as for moshi-local-web (default: untrained)")
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 2, 4, 8], help="clients at once")
    parser.add_argument("--seconds", type=float, default=12, help="of each conversation")
    parser.add_argument("--batches", type=int, nargs="*", default=[2, 4], help="conversations in a batched step")
    parser.add_argument("--shape", default="256", help="model of the batched step")
    args = parser.parse_args()
    figures, details, held = batched(args.shape, args.batches), {}, 0
    for sessions in args.sessions:
        found, details[str(sessions)] = serve(args.model, sessions, args.seconds)
        figures += found
        clients = details[str(sessions)]["clients"]
        if all(client["dropped"] == 0 and client["answers"] >= client["said"] - 1 for client in clients):
            held = max(held, sessions)
    figures.append(Figure.exact("held in real time, of the numbers tried", "conversations", held))
    notes = [
        "A conversation is held in real time where everything said is answered and nothing is dropped.",
        "A batched step needs conversations that began together: they share their position in the cache.",
    ]
    report(__doc__, args.json, figures, {"model": args.model, "loads": details}, notes)


if __name__ == "__main__":
    main()
