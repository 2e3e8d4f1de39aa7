"""Puts a fast BLAS under MLX's CPU backend, before `mlx.core` is imported."""

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
