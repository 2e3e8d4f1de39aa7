"""Moshi in MLX: a full-duplex voice companion for Apple Silicon."""

from ._blas import load_openblas

BLAS = load_openblas()
