"""What the benchmarks share: who measured, figures with their spread, paired runs, and one way to report them.

Every benchmark prints a table and writes, with `--json FILE`, one object: `question`, `command`, `date`, `machine`,
`figures` (each with unit, median, spread, number of runs and, where there is one, the target it is held against),
`notes`, and `details`, whatever else it found.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A measured or counted quantity.

    Attributes:
        median, low, high: of the runs; low and high are the quartiles of measurements, and equal the median of counts.
        runs: how many values these are of.
        at_most, at_least: the target, where there is one.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    runs: int
    at_most: float | None = None
    at_least: float | None = None

    @classmethod
    def of(
        cls, name: str, unit: str, values: Sequence[float], at_most: float | None = None, at_least: float | None = None
    ) -> Figure:
        """The figure of several runs."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(name, unit, median, low, high, len(values), at_most, at_least)

    @classmethod
    def exact(
        cls, name: str, unit: str, value: float, at_most: float | None = None, at_least: float | None = None
    ) -> Figure:
        """A figure that doesn't vary: a count, a size, a result of arithmetic."""
        return cls(name, unit, value, value, value, 1, at_most, at_least)

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without one."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    def cells(self) -> list[str]:
        """Median, quartiles, runs and target as words."""
        several = self.runs > 1
        target = ">= " + number(self.at_least) if self.at_least is not None else ""
        return [
            f"{number(self.median)} {self.unit}".rstrip(),
            f"{number(self.low)} - {number(self.high)}" if several else "",
            str(self.runs) if several else "",
            target if self.at_most is None else "<= " + number(self.at_most),
        ]


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return parser


def report(
    doc: str | None, json_file: Path | None, figures: Sequence[Figure], details: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print the figures for people and write them for programs."""
    question = question_of(doc)
    console = Console()
    console.print(question, style="bold", highlight=False)
    console.print(machine_line(), style="dim", highlight=False)
    console.print(figures_table(figures))
    for note in notes:
        console.print(note, highlight=False)
    if json_file is None:
        return
    result = {
        "question": question,
        "command": " ".join(["python", os.path.relpath(sys.argv[0], HERE.parent), *sys.argv[1:]]).replace(
            f"{HERE.parent}/", ""
        ),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": [asdict(figure) for figure in figures],
        "notes": list(notes),
        "details": dict(details or {}),
    }
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(result, indent=1))


def question_of(doc: str | None) -> str:
    """The question at the top of a benchmark's docstring."""
    first, mark, _ = " ".join((doc or "").split("\n\n")[0].split()).partition("?")
    return first + mark


def figures_table(figures: Sequence[Figure]) -> Table:
    """Figures one a line, with their targets if any has one."""
    targets = any(figure.reached is not None for figure in figures)
    table = Table("", "median", "quartiles", "runs", *(["target"] if targets else []))
    for figure in figures:
        *cells, target = figure.cells()
        colour = "green" if figure.reached else "red"
        table.add_row(figure.name, *cells, *([f"[{colour}]{target}"] if targets else []))
    return table


def number(value: float) -> str:
    """Three significant digits, whole numbers as they are; what rounding leaves of nothing is nothing."""
    if abs(value) < 1e-12:
        return "0"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@functools.cache
def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(memory_bytes() / 2**30, 1),
        "system": platform.platform(terse=True),
        "device": "CPU" if mx.default_device() == mx.cpu else "GPU (Metal)",
        "python": platform.python_version(),
        "mlx": mx.__version__,
        "blas": moshi_mlx.BLAS,
        "threads": int(os.environ.get("OPENBLAS_NUM_THREADS") or os.cpu_count() or 1),
        "load_at_start": load,
        "commit": _commit(),
    }


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes() -> int:
    """Memory that this process holds now; on macOS, where that takes a call of its own, the most that it ever held."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine_line() -> str:
    """The machine in one line."""
    about = machine()
    blas = f", {about['blas']}" if about["blas"] else ""
    load = "" if about["load_at_start"] is None else f"; load {about['load_at_start']:.1f} at the start"
    return (
        f"{about['processor']}, {about['cpus']} CPUs, {about['memory_gb']:g} GB, {about['system']}; "
        f"MLX {about['mlx']} on {about['device']}{blas}, {about['threads']} threads; Python {about['python']}{load}"
    )


def processor() -> str:
    """The processor's name as its maker says it."""
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    return _output(["git", "-C", str(HERE), "describe", "--always", "--dirty"])


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# Peers and paired runs.

NO_PEERS = "MOSHI_PEERS isn't set: nothing is compared with the published packages (see benchmarks/README.md)."


def peers() -> str | None:
    """Python of an environment with `moshi_mlx` and `rustymimi`; None where there is none."""
    return os.environ.get("MOSHI_PEERS") or None


def environment_for(python: str) -> dict[str, str]:
    """The environment of a process; the peers' must not find this project's package, which has the same name."""
    return {name: value for name, value in os.environ.items() if python == sys.executable or name != "PYTHONPATH"}


def can_import(python: str, module: str) -> bool:
    """Whether this Python has the module."""
    command = [python, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, env=environment_for(python)).returncode == 0


def answer_of(command: Sequence[str]) -> Any:
    """What a process prints as JSON in its last line; its errors go to the terminal and end the benchmark."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment_for(command[0]))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


class Worker:
    """A process that takes steps when asked to and answers with their milliseconds (`step_worker.py`)."""

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment_for(command[0])
        )
        self._expect_line()

    def take(self, steps: int) -> list[float]:
        """Milliseconds of every one of `steps`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        milliseconds: list[float] = json.loads(self._expect_line())
        return milliseconds

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _expect_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended with code {self._process.wait()}.")
        return line


def in_turns(commands: Mapping[str, Sequence[str]], rounds: int, steps: int) -> dict[str, list[list[float]]]:
    """Have workers take `steps` in turns, A B A B ..., so that what else the machine does meets all alike.

    Returns:
        Milliseconds by worker, round and step.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in commands}
    with _workers(commands) as workers:
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.take(steps))
    return times


@contextlib.contextmanager
def _workers(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Worker]]:
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            workers[name] = Worker(command)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median of each round."""
    return [statistics.median(times) for times in rounds]


def ratios(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    """Our median by theirs, round by round."""
    return [a / b for a, b in zip(medians(ours), medians(theirs), strict=True)]
