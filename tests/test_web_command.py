"""`python -m moshi_mlx.local_web` as users start it, and the README's client."""

import asyncio
import errno
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.local_web import main, parser
from moshi_mlx.web.app import PortError, Server
from moshi_mlx.web.metrics import Metrics
from moshi_mlx.web.worker import Worker

Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command with a random model; returns it and the address that it printed."""
    started = []

    def run(*arguments: str) -> "tuple[subprocess.Popen[str], str]":
        command = [sys.executable, "-m", "moshi_mlx.local_web", "--model", "untrained", "--no-browser", "--port", "0"]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        )
        started.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return process, line.rstrip().rsplit(" ", 1)[1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_the_readmes_client_runs(start: Start, question: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "/api/stream" in block)
    assert sum(bool(line) for line in code.splitlines()) <= 20
    from moshi_mlx.audio_io import read_sound, resample

    sound, rate = read_sound(str(question))
    spoken = resample(sound[0], rate, 24000)
    with wave.open(str(tmp_path / "question.wav"), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes((spoken * 32767).astype("<i2").tobytes())
    (tmp_path / "client.py").write_text(code)
    _, address = start("--max-sessions", "1")
    client = subprocess.run(
        [sys.executable, "client.py", "question.wav", "answer.wav", f"{address}api/stream"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr
    assert len(client.stdout) > 10, "no words came"
    with wave.open(str(tmp_path / "answer.wav")) as file:
        answer = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(answer) >= 40 * 1920 and np.abs(answer).max() > 300


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_listens_for_this_machine_only_and_ends_when_asked(start: Start, ending: signal.Signals) -> None:
    process, address = start()
    assert re.fullmatch(r"http://localhost:\d+/", address)
    with urllib.request.urlopen(address) as answer:
        assert b"<title>Moshi</title>" in answer.read()
    assert set(listening(process.pid)) <= {"127.0.0.1", "::1"}
    process.send_signal(ending)
    assert process.wait(60) == 0
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_an_address_of_version_6_can_be_listened_at(start: Start) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    process, address = start("--host", "::1")
    assert re.fullmatch(r"http://\[::1\]:\d+/", address)
    assert listening(process.pid) == ["::1"]


def listening(process: int) -> list[str]:
    """Addresses at which a process listens."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp: sockets of another process can't be listed")
    own = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()}
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            field = line.split()
            if field[3] == "0A" and f"socket:[{field[9]}]" in own:
                packed = bytes.fromhex(field[1].split(":")[0])
                words = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
                found.append(socket.inet_ntop(family, words))
    assert found, "it listens nowhere"
    return found


def test_for_others_there_is_tls_and_a_token_in_the_address(start: Start, tmp_path: Path) -> None:
    _, address = start("--host", "0.0.0.0")
    found = re.fullmatch(r"https://[^/]+:(\d+)/#token=([\w-]{20,})", address)
    assert found, address
    certificate = next(tmp_path.rglob("cert.pem"))
    trusting = ssl.create_default_context(cafile=str(certificate))
    local = f"https://localhost:{found[1]}"
    with urllib.request.urlopen(f"{local}/api/info?token={found[2]}", context=trusting) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{local}/api/info", context=trusting)


def test_a_taken_port_is_named(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "moshi_mlx.local_web", "--model", "untrained", "--no-browser"]
        second = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, timeout=120)
    assert second.returncode == 8 and "Loading" not in second.stderr
    assert f"localhost:{port}" in second.stderr and "--port" in second.stderr and "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("error", "option"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "--port"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "--host"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "--host"),
    ],
)
def test_where_it_cant_listen_the_option_to_change_is_named(error: OSError, option: str) -> None:
    assert str(PortError.at("elsewhere", 8998, error)).endswith(f"Choose another {option}.")


@pytest.mark.parametrize("host", ["a..b", "münchen.invalid", "nobody.invalid", 300 * "x"])
def test_a_host_that_is_none_is_named(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "untrained", "--port", "0", "--host", host]) == 8
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and host in error and error.endswith("Choose another --host.\n")


@pytest.mark.parametrize("host", ["a..b", "nobody.invalid"])
def test_a_server_at_a_host_that_is_none_says_so(host: str) -> None:
    worker = Worker(lambda step, waited: None)
    server = Server(worker, lambda: None, Metrics())  # type: ignore[arg-type,return-value]
    with pytest.raises(PortError, match="Choose another --host"):
        asyncio.run(server.start(host, 0))


def test_ctrl_c_while_a_model_loads_is_obeyed_at_once() -> None:
    code = """
import sys, numpy as np, moshi_mlx
from moshi_mlx.local_web import main
from moshi_mlx.web import serve

def endless(args, console):
    session = moshi_mlx.load("untrained").session()
    session.step(np.zeros(1920))  # MLX compiles kernels here, where an interruption can get lost
    print("loading", flush=True)
    while True:
        session.step(np.zeros(1920))

serve.load_model = endless
sys.exit(main(["--no-browser", "--port", "0"]))
"""

    def interruptible() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, as these tests may be, ignore it

    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and errors.split() == ["Interrupted."]


def test_bad_options_are_named_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--model", "untrained", "--port", "0", "--ssl", str(tmp_path)]) == 2
    assert "cert.pem" in capsys.readouterr().err
    assert main(["--model", "untrained", "--static", str(tmp_path)]) == 2
    assert "index.html" in capsys.readouterr().err
    for option in ("--ssl", "--static"):
        assert main(["--model", "untrained", "--port", "0", option, 300 * "x"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "File name too long" in error and f"{option} " in error
    with pytest.raises(SystemExit):
        parser().parse_args(["--max-sessions", "0"])
