"""Prepares the process for MLX's CPU backend, before `mlx.core` is imported: a fast BLAS, and memory that is kept."""

import contextlib
import ctypes
import sys
from pathlib import Path

_OPENBLAS = "libopenblas.so.0"


def load_openblas() -> str | None:
    """Put OpenBLAS in the place of the BLAS that the mlx-cpu wheel is linked to, the reference one.

    A library that is loaded into the global symbol scope before `mlx.core` replaces its symbols. In front of OpenBLAS
    goes this package's extension, which has products of one or two columns done as matrix-vector products.

    Returns:
        The library's name; None where it isn't installed, and on macOS, where MLX uses Accelerate. Has no effect once
        `mlx.core` is imported.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(_OPENBLAS)
    except OSError:
        return None
    for extension in Path(__file__).parent.glob("audio_io*.so"):
        with contextlib.suppress(OSError):  # the system lacks its sound library: go without
            ctypes.CDLL(str(extension), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(_OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    return _OPENBLAS


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
