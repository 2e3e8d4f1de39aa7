"""Results on disk: complete or not there at all, and pipes and devices where a file is asked for."""

import errno
import json
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .errors import StorageError

log = logging.getLogger(__name__)

STDOUT = "-"
"""The name that stands for standard output (and, for an input, standard input)."""


class ResultFile:
    """A file that takes its name only when it is complete.

    A regular file is written under a temporary name beside the one asked for and moved there by `commit`, so that
    an interrupted run leaves what was there before. Standard output ("-"), named pipes and devices have no name
    to move to: they are written as it comes.

    Raises:
        StorageError: the folder is missing, or the disk is full, or there is no permission; from any method.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._target: Path | None = None
        self._temporary: Path | None = None
        self.name = "standard output" if path == STDOUT else os.fspath(path)
        with storage_errors(self.name):
            self._file = self._open(path)
        self.seekable = self._target is not None

    def _open(self, path: str | os.PathLike[str]) -> BinaryIO:
        if path == STDOUT:
            return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        target = Path(os.path.realpath(path))  # a link stays a link, its file is replaced
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            return open(target, "wb", buffering=0)
        temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
        self._target, self._temporary = target, temporary
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        return os.fdopen(descriptor, "wb", buffering=0)

    def __del__(self) -> None:
        # Ctrl-C can come when the file is there and nobody holds it yet who would discard it.
        with suppress(OSError):
            if hasattr(self, "_file"):
                self.discard()
            elif self._temporary is not None:
                self._temporary.unlink(missing_ok=True)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written."""
        return self._file.closed

    def write(self, data: bytes) -> None:
        """Append `data`."""
        with storage_errors(self.name):
            write_all(self._file, data)

    def rewrite(self, offset: int, data: bytes) -> None:
        """Replace the bytes at `offset`; only where `seekable`."""
        with storage_errors(self.name):
            os.pwrite(self._file.fileno(), data, offset)

    def commit(self) -> None:
        """Close the file and give it its name."""
        if self._file.closed:
            return
        with storage_errors(self.name):
            if self._target is None or self._temporary is None:
                self._file.close()
                return
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._target)

    def discard(self) -> None:
        """Close the file and leave nothing behind; does nothing after `commit`."""
        if self._file.closed and (self._temporary is None or not self._temporary.exists()):
            return
        self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or discard where an exception ended the block."""
        if kind is None:
            try:
                self.commit()
            finally:
                self.discard()
        else:
            self.discard()


def keep_all(*keep: Callable[[], None]) -> None:
    """Keep several results, each whatever becomes of the others.

    Raises:
        StorageError: the first that couldn't be kept, after all were tried.
    """
    errors: list[StorageError] = []
    for one in keep:
        try:
            one()
        except StorageError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write every byte of `data` to an unbuffered `file`, which may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        StorageError: it's a file, disk full, no permission.
    """
    with storage_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, unless both are the same file.

    Raises:
        StorageError: disk full, no permission.
    """
    with storage_errors(str(target)), suppress(shutil.SameFileError):
        shutil.copyfile(source, target)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write what a person may want to read, too, whole or not at all.

    Raises:
        StorageError: disk full, no permission.
    """
    with ResultFile(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Turn what the system says about writing to `name` into a StorageError that says what to do.

    Raises:
        StorageError: where the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_explain(name, error)) from error


def _explain(name: str, error: OSError) -> str:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a folder, some of it was copied
        return f"Can't write {name}: {error.args[0][0][2]}."
    folder = os.path.dirname(os.path.abspath(name))
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"Can't write {name}: the disk is full. Free some space or write elsewhere."
        case errno.ENOENT | errno.ENOTDIR:
            return f"Can't write {name}: there is no folder {folder}. Make it first: mkdir -p {folder}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"Can't write {name}: no permission to write there. Name another place."
        case errno.EISDIR:
            return f"Can't write {name}: it is a folder. Name a file in it."
        case errno.EPIPE:
            return f"Can't write {name}: the program that read it has ended."
        case _:
            return f"Can't write {name}: {error.strerror or error}."
