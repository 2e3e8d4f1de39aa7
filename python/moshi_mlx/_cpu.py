"""Prepares the process for MLX's CPU backend, before `mlx.core` is imported: a fast BLAS, and memory that is kept."""

import ctypes
import sys

# The mlx-cpu wheel is linked to the reference BLAS; a libopenblas loaded globally first replaces its symbols.
_CANDIDATES = ("libopenblas.so.0", "libopenblas.so")


def load_openblas() -> str | None:
    """Load OpenBLAS into the global symbol scope and return the library's name, or None where there is none.

    Does nothing on macOS, where MLX uses Accelerate, and has no effect once `mlx.core` is imported.
    """
    if not sys.platform.startswith("linux"):
        return None
    for name in _CANDIDATES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


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
