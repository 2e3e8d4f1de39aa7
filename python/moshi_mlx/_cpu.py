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
        with _set(OPENBLAS_THREAD_TIMEOUT=_SHORTEST_WAIT, OPENBLAS_CORETYPE=_kernels()):
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


_SHORTEST_WAIT = "4"
"""For how long OpenBLAS's threads ask for work before they sleep: a power of two of the processor's cycles.

By default they ask for tens of milliseconds, without end between the steps of a conversation: that kept more than a
core busy, of which a step of nano needs an eighth.
"""

_KERNELS = (("avx512_bf16", "Cooperlake"), ("avx512f", "SkylakeX"), ("avx2", "Haswell"))


def _kernels(cpuinfo: str = "/proc/cpuinfo") -> str | None:
    """The OpenBLAS kernels for what this processor can do, None where OpenBLAS had better choose.

    A Debian stable's OpenBLAS knows processors by their model numbers, and multiplies on newer ones with what every
    x86-64 has: at a fifth of the speed.
    """
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return None
    flags = line.split()
    return next((kernels for flag, kernels in _KERNELS if flag in flags), None)


@contextmanager
def _set(**settings: str | None) -> Iterator[None]:
    """Environment variables that are set in here, those that the user hasn't set and that aren't None."""
    added = {name: value for name, value in settings.items() if value is not None and name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


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
