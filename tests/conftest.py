"""What several test files use: a spoken question, and the command run as a user runs it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.sound import write_wav

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the network

# MLX compiles its CPU kernels into the temporary folder, and two processes that make the same one at the same time
# read each other's half: the halves of a parallel run have a folder each.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["TMPDIR"] = str(Path(tempfile.gettempdir(), f"moshi-tests-{os.getuid()}-{worker}"))
    Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spoken question of two seconds at espeak-ng's 22,050 Hz; a warble at 24 kHz where there is no espeak-ng."""
    path = tmp_path_factory.mktemp("sound") / "question.wav"
    if shutil.which("espeak-ng"):
        subprocess.run(["espeak-ng", "-w", path, "Hello there, who are you?"], check=True)
    else:
        time = np.arange(48_000) / 24_000
        write_wav(path, 0.3 * np.sin(2 * np.pi * 200 * time + 5 * np.sin(2 * np.pi * 3 * time)))
    return path


@pytest.fixture(scope="session")
def moshi_local() -> Command:
    """Runs `python -m moshi_mlx.local` with the untrained model, unless another is named, in a process of its own."""

    def run(
        *arguments: object, model: str | None = "untrained", **settings: object
    ) -> "subprocess.CompletedProcess[bytes]":
        options: dict[str, object] = {"capture_output": True, "timeout": 120, **settings}
        return subprocess.run(command_line(*arguments, model=model), **options)  # type: ignore[call-overload, no-any-return]

    return run


def command_line(*arguments: object, model: str | None = "untrained") -> list[str]:
    """The command and its arguments."""
    chosen = [] if model is None else ["--model", model]
    return [sys.executable, "-m", "moshi_mlx.local", *chosen, *(str(argument) for argument in arguments)]


def counted_waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on gets an entry for each time that the host waits for MLX: "eval", or "read" of an array by NumPy."""
    waits: list[str] = []

    def counted(*arrays: object) -> None:
        waits.append("eval")

    asarray = np.array

    def reading(value: object, *args: object, **kwargs: object) -> np.ndarray:
        if isinstance(value, mx.array):
            waits.append("read")
        return asarray(value, *args, **kwargs)

    monkeypatch.setattr(mx, "eval", counted)
    monkeypatch.setattr(mx, "synchronize", counted)
    monkeypatch.setattr(np, "array", reading)
    return waits
