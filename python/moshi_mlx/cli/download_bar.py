"""A download's progress on the terminal, drawn by rich behind tqdm's interface."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class DownloadBar:
    """What `huggingface_hub` asks of a progress bar, for one file; draws on standard error."""

    def __init__(self, *, desc: str = "", total: int | None = None, initial: int = 0, **_: Any) -> None:
        self.n, self.total = initial, total
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task(desc, total=total, completed=initial)
        self._progress.start()

    def update(self, n: float | None = 1) -> None:
        """Count `n` bytes more (fewer if negative)."""
        self.n += int(n or 0)
        self._progress.update(self._task, completed=self.n, total=self.total)

    def set_description(self, desc: str, refresh: bool = True) -> None:
        self._progress.update(self._task, description=desc, refresh=refresh)

    def refresh(self) -> None:
        self._progress.refresh()

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> DownloadBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
