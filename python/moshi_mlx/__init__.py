"""Moshi in MLX: a full-duplex voice companion for Apple Silicon.

import moshi_mlx

moshi = moshi_mlx.load("kyutai/moshiko-mlx-q4")
session = moshi.session()
frame = session.step(pcm)  # float32 [1920] in, frame.pcm and frame.text out, 12.5 times a second
"""

from typing import TYPE_CHECKING, Any

from ._cpu import accelerate_blas, keep_freed_memory

keep_freed_memory()
BLAS = accelerate_blas()
"""The BLAS put under MLX's CPU backend, None where MLX's own is used."""

from .config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, LMConfig, MimiConfig  # noqa: E402
from .errors import MoshiError  # noqa: E402
from .generation import LMGen  # noqa: E402
from .lm import LMModel, LMOutput  # noqa: E402
from .mimi import Mimi  # noqa: E402
from .moshi import Moshi, load  # noqa: E402
from .session import Frame, Session, Timings  # noqa: E402

if TYPE_CHECKING:
    from .audio_io import AudioIO, EchoCanceller, list_devices

_SOUND = ("AudioIO", "EchoCanceller", "list_devices")


def __getattr__(name: str) -> Any:
    # The extension needs the system's sound libraries: only who uses it must have them.
    if name in _SOUND:
        from . import audio_io

        return getattr(audio_io, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BLAS",
    "FRAME_RATE",
    "FRAME_SIZE",
    "SAMPLE_RATE",
    "AudioIO",
    "EchoCanceller",
    "Frame",
    "LMConfig",
    "LMGen",
    "LMModel",
    "LMOutput",
    "Mimi",
    "MimiConfig",
    "Moshi",
    "MoshiError",
    "Session",
    "Timings",
    "list_devices",
    "load",
]
