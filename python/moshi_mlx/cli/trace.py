"""Where each step's time went, as a Chrome trace: open it at chrome://tracing or ui.perfetto.dev."""

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType

from ..files import storage_errors, write_all

ROWS = ("capture", "encode", "language model", "decode", "playback")
"""One row each, from top to bottom."""


class Trace:
    """A file of trace events that grows in place, one line an event; viewers open it even where it was cut off.

    Raises:
        StorageError: the file can't be made or written; from any method. The trace has ended then, with a whole event.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._origin = time.perf_counter()
        with storage_errors(self.name):
            self._file = Path(path).open("wb", buffering=0)  # noqa: SIM115  (closed by close)
        self._size = 0
        self._write("[")
        self._comma = ""
        self._meta("process_name", 0, {"name": "moshi-local"})
        for row, name in enumerate(ROWS):
            self._meta("thread_name", row, {"name": name})
            self._meta("thread_sort_index", row, {"sort_index": row})

    def add(self, row: str, begin: float, end: float, **about: object) -> None:
        """Show that `row` was busy from `begin` to `end`, as `time.perf_counter` gave them, and what is known of it."""
        event = {
            "name": row,
            "ph": "X",
            "pid": 1,
            "tid": ROWS.index(row),
            "ts": round((begin - self._origin) * 1e6),
            "dur": max(round((end - begin) * 1e6), 0),
            "args": about,
        }
        self._line(event)

    def mark(self, text: str) -> None:
        """Show that something happened now, over all rows."""
        now = round((time.perf_counter() - self._origin) * 1e6)
        self._line({"name": text, "ph": "i", "s": "g", "pid": 1, "tid": 0, "ts": now})

    def close(self) -> None:
        """End the list of events and close the file."""
        if not self._file.closed:
            self._write("\n]\n")
            self._file.close()

    def _meta(self, kind: str, row: int, about: dict[str, object]) -> None:
        self._line({"name": kind, "ph": "M", "pid": 1, "tid": row, "args": about})

    def _line(self, event: dict[str, object]) -> None:
        self._write(f"{self._comma}\n{json.dumps(event)}")
        self._comma = ","

    def _write(self, text: str) -> None:
        data = text.encode()
        with storage_errors(self.name):
            try:
                write_all(self._file, data)
            except OSError:
                with contextlib.suppress(OSError):  # a pipe keeps what it got
                    self._file.truncate(self._size)
                self._file.close()
                raise
        self._size += len(data)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
