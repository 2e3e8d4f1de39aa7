"""What the command shows while it works on files: words as they are spoken, progress, and a summary."""

import os
import time
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..config import FRAME_RATE
from ..session import Frame, Timings
from .measures import memory_line, real_time_factor, timings_table

_LINES_OF_WORDS = 12


class FileScreen:
    """Words and progress of a run over `steps` steps.

    On a terminal the words stand over a progress bar that redraws. The words also go to `words_to` piece by piece,
    unless that is the same terminal, which gets them once more at the end, to stay.

    Args:
        console: where progress and summary go (standard error).
        words_to: where Moshi's words go (standard output, unless that carries the sound).
        steps: how many are expected.
    """

    def __init__(self, console: Console, words_to: IO[str], steps: int) -> None:
        self.console = console
        self.timings: list[Timings] = []
        self._words = ""
        self._spoken: list[float] = []  # seconds at which there was a word, or a part of one
        self._words_to = words_to
        self._at_end_only = console.is_terminal and words_to.isatty()
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TextColumn("real-time factor {task.fields[factor]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, done="", factor="-")
        self._live = Live(self._render(), console=console, refresh_per_second=8, transient=True)
        self._started = time.perf_counter()
        self.elapsed = 0.0

    def show(self, frame: Frame) -> None:
        """Take in one step."""
        self.timings.append(frame.timings)
        self.elapsed = time.perf_counter() - self._started
        if frame.text:
            self._words += frame.text
            self._spoken.append((len(self.timings) - 1) / FRAME_RATE)
            self._say(frame.text)
        if self._live.is_started:
            steps = len(self.timings)
            total = self._progress.tasks[0].total or steps
            done = f"{steps / FRAME_RATE:.1f} of {total / FRAME_RATE:.1f} s"
            factor = f"{real_time_factor(steps, self.elapsed):.2f}"
            self._progress.update(self._task, completed=steps, done=done, factor=factor)
            self._live.update(self._render())

    def summary(self) -> None:
        """Print when Moshi spoke and what the run took."""
        steps = len(self.timings)
        if self._spoken:
            said = f"Moshi's first word is at {self._spoken[0]:.1f} s, its last at {self._spoken[-1]:.1f} s."
        else:
            said = "Moshi said nothing. An answer takes silence after the question: --tail 3 adds some."
        self.console.print(said, highlight=False)
        factor = real_time_factor(steps, self.elapsed)
        self.console.print(
            f"{steps} steps, {steps / FRAME_RATE:.1f} s of sound, in {self.elapsed:.1f} s: "
            f"real-time factor {factor:.2f}",
            highlight=False,
        )
        if steps:
            self.console.print(timings_table(self.timings))
        self.console.print(memory_line(), highlight=False)

    def _render(self) -> Group:
        words = Text(self._words.strip()).wrap(self.console, max(self.console.width - 1, 10))
        shown = Text("\n").join(words[-_LINES_OF_WORDS:])
        return Group(shown, self._progress) if self._words else Group(self._progress)

    def _say(self, text: str) -> None:
        if not self._at_end_only:
            say(self._words_to, text)

    def __enter__(self) -> "FileScreen":
        self._started = time.perf_counter()
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._words:
            say(self._words_to, f"{self._words.strip()}\n" if self._at_end_only else "\n")


def say(stream: IO[str], text: str) -> None:
    """Write `text` at once; a reader or terminal that is gone, or an encoding that lacks a character, stops nothing."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, errors="replace").decode(encoding))
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is still buffered, and all that follows, goes there
        os.close(nowhere)


class _Shown:
    """A stream whose text is written by `say`."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        say(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console_on(stream: IO[str]) -> Console:
    """A console that a terminal which closes doesn't stop: what there is to keep is written all the same."""
    return Console(file=cast(IO[str], _Shown(stream)))
