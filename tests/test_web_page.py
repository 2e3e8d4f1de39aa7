"""The page in a real browser: headless Chromium with a spoken question as its microphone."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.web.pages import BUILT

pytestmark = pytest.mark.alone

WEB = Path(__file__).parents[1] / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def need_browser() -> None:
    """Skip where there's no browser or nothing to drive it with."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    if shutil.which("node") is None:
        pytest.skip("no node: it drives the browser")
    if not (WEB / "node_modules" / "playwright-core").is_dir():
        pytest.skip("no playwright-core: make web-tools")


class Proxy:
    """A TCP proxy that can break every connection which goes through it."""

    def __init__(self, port: int):
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, "localhost", 0), self._loop)
        self.port = server.result(10).sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("localhost", self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()
        self._writers.discard(writer)

    def cut(self) -> None:
        def abort() -> None:
            for writer in self._writers:
                writer.transport.abort()
            self._writers.clear()

        self._loop.call_soon_threadsafe(abort)

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture
def server() -> Iterator[int]:
    """The port of the command with one place and a random model."""
    command = [sys.executable, "-m", "moshi_mlx.local_web", "--model", "untrained", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--no-browser", "--max-sessions", "1", "--seed", "3"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Talk with Moshi at http://localhost:"), line
        yield int(line.rstrip().rstrip("/").rsplit(":", 1)[1])
    finally:
        process.terminate()
        assert process.wait(30) == 0


def read(path: Path) -> np.ndarray:
    """A stereo WAV file: float32 [2, samples]."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 24000, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.reshape(-1, 2).T / 32768


def loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(sound**2)))


def test_a_conversation_in_the_browser(server: int, question: Path, tmp_path: Path) -> None:
    need_browser()
    microphone = tmp_path / "microphone.wav"
    with wave.open(str(question)) as file:
        rate, spoken = file.getframerate(), file.readframes(file.getnframes())
    with wave.open(str(microphone), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(spoken + bytes(rate))  # half a second of silence, then again
    proxy = Proxy(server)
    pictures = Path(os.environ.get("MOSHI_PICTURES") or tmp_path)
    script = subprocess.Popen(
        ["node", "e2e/conversation.mjs", f"http://localhost:{proxy.port}/", microphone, pictures],
        cwd=WEB,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CHROMIUM": CHROMIUM or ""},
    )
    assert script.stdout is not None and script.stderr is not None
    saw: dict[str, dict[str, str]] = {}
    try:
        for line in script.stdout:
            fact = json.loads(line)
            saw[fact["what"]] = fact
            if fact["what"] == "cut":
                proxy.cut()
        assert script.wait(30) == 0, f"{script.stderr.read()}\nsaw: {saw}"
    finally:
        script.kill()
        script.communicate()
    with urllib.request.urlopen(f"http://localhost:{server}/metrics") as answer:
        metrics = answer.read().decode()
    proxy.close()

    assert "error" not in saw, saw["error"]
    assert saw["live"]["roundTrip"].endswith(" ms") and saw["live"]["step"].endswith(" ms")
    assert saw["live"]["where"].startswith("untrained")
    assert saw["queued"]["title"] == "You’re next"
    assert "back" in saw and "\nmoshi_sessions_resumed_total 1\n" in metrics
    assert saw["muted"]["pressed"] == "true"
    assert saw["refused"]["title"] == "Moshi can’t hear you"
    assert saw["opus"]["how"] == "Sound goes as Opus"
    for name in ("conversation.wav", "opus.wav"):
        user, moshi = read(pictures / name)
        print(f"{name}: {len(user) / 24000:.1f} s, user {loudness(user):.3f}, Moshi {loudness(moshi):.3f}")
        assert loudness(user) > 0.01, "the user's side of the recording is silence"
        assert loudness(moshi) > 0.01, "Moshi's side of the recording is silence"
    user, _ = read(pictures / "conversation.wav")
    assert loudness(user[-12000:]) == 0, "the muted microphone was heard"
    transcript = (pictures / "conversation.txt").read_text()
    assert "] Moshi: " in transcript and "(you spoke, " in transcript


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = (BUILT / "index.html").read_text()
    names = {path.name for path in BUILT.iterdir()}
    for part in page.replace('src="', 'href="').split('href="')[1:]:
        link = part.split('"')[0]
        assert link.startswith("./") and link[2:] in names, f"{link} isn't in the package"
    assert sum(path.stat().st_size for path in BUILT.iterdir()) < 200_000


def test_the_built_page_is_the_sources() -> None:
    if shutil.which("node") is None or not (WEB / "node_modules" / "vite").is_dir():
        pytest.skip("no vite: make web-tools")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        build = ["node", "node_modules/vite/bin/vite.js", "build", "--outDir", folder, "--emptyOutDir"]
        subprocess.run(build, cwd=WEB, check=True, capture_output=True)
        for path in Path(folder).iterdir():
            assert path.read_bytes() == (BUILT / path.name).read_bytes(), f"{path.name} is old: make web"


def test_the_pages_own_tests() -> None:
    if shutil.which("node") is None or not (WEB / "node_modules" / "vitest").is_dir():
        pytest.skip("no vitest: make web-tools")
    tests = subprocess.run(
        ["node", "node_modules/vitest/vitest.mjs", "run"], cwd=WEB, capture_output=True, text=True, timeout=120
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
