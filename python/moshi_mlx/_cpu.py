"""Prepares the process for MLX's CPU backend: a fast BLAS, and memory that is kept."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def accelerate_blas() -> str | None:
    """Put OpenBLAS in the place of the BLAS that the mlx-cpu wheel is linked to, the reference one.

    Products of up to four columns or rows, which are most of a step's, are done by this package's extension
    (`rust/cpu_blas`). MLX may have been imported before.

    Returns:
        "OpenBLAS"; None where it isn't installed, and on macOS, where MLX uses Accelerate.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        with _quick_to_sleep():
            # Where MLX comes later and the extension can't be loaded, this alone has MLX use it.
            ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    import mlx.core  # noqa: F401  (whose library the extension changes)

    try:
        from . import audio_io
    except ImportError:  # the system has no sound library
        return "OpenBLAS"
    return "OpenBLAS" if audio_io.accelerate_mlx() else None


_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"


@contextmanager
def _quick_to_sleep() -> Iterator[None]:
    """An OpenBLAS that is loaded in here lets its threads sleep as soon as they have nothing to do.

    By default they ask for work for tens of milliseconds, without end between the steps of a conversation: that kept
    more than a core busy, of which a step of nano needs an eighth.
    """
    if _TIMEOUT in os.environ:
        yield
        return
    os.environ[_TIMEOUT] = "4"  # a power of two of the processor's cycles, the least there is
    try:
        yield
    finally:
        del os.environ[_TIMEOUT]


# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc reuse the buffers of a step in the next one, rather than return them to the system and fault them in.

    MLX's CPU backend takes every array from malloc, which maps and unmaps those above 128 KiB one by one: a page fault
    for each 4 KiB of them, at every step. Up to 256 MiB are kept, blocks up to 32 MiB (glibc's limit) reused.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 256 << 20)
