"""What memory allows: the lowest possible time of a step and the memory it needs, by level, context and chip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from traffic import codec_bytes_read, kv_bytes, lm_bytes_held, lm_bytes_read

from moshi_mlx.checkpoint import Recipe
from moshi_mlx.config import LMConfig, MimiConfig

FRAME_MS = 80.0

TIGHT = 0.6
"""Above this share of a frame a limit is too close: large reads reach some 70-85% of the bandwidth, and a step's
thousand small operations take their time beside them."""

WORKSPACE = 300_000_000
"""Bytes set aside for activations, compiled kernels and the program itself."""

LEVELS = ("2", "3", "4", "mxfp4", "nvfp4", "5", "6", "8", "bf16")


@dataclass(frozen=True)
class Chip:
    """A chip as it is sold."""

    name: str
    gb_per_s: float
    memory_gb: tuple[int, ...]
    source: str

    def smallest_memory(self, need: int) -> int | None:
        """The smallest memory size, in GB, whose share for the GPU holds `need` bytes; None where none does."""
        return next((gb for gb in self.memory_gb if need <= gpu_share(gb) * gb * 2**30), None)


@dataclass(frozen=True)
class Need:
    """What a level needs of a machine, with the codec, at a context of some steps.

    Attributes:
        level: of the weights.
        read: bytes read per step.
        held: bytes of memory.
        file: bytes of the language model's file.
    """

    level: str
    read: int
    held: int
    file: int

    def ms(self, bytes_per_second: float) -> float:
        """The lowest possible milliseconds of a step."""
        return self.read / bytes_per_second * 1e3


@cache
def _data() -> Any:
    return json.loads((Path(__file__).parent / "apple_chips.json").read_text())


def chips() -> list[Chip]:
    """The chips of `apple_chips.json`."""
    return [Chip(c["name"], c["gb_per_s"], tuple(c["memory_gb"]), c["source"]) for c in _data()["chips"]]


def gpu_share(gb: int) -> float:
    """The share of unified memory that macOS lets the GPU use by default."""
    shares = _data()["gpu_share"]
    return float(shares["up_to_32_gb" if gb <= 32 else "above"])


def need(config: LMConfig, level: str, context: int, kv_bits: int | None = None) -> Need:
    """What a step of a whole session needs on Metal: weights packed, codec in float32.

    Args:
        config: the model's shape.
        level: of the weights.
        context: steps in the cache.
        kv_bits: of the cache, 8 or 4; None for bfloat16.

    Raises:
        InputError: no such level, or a cache that can't be quantized so.
    """
    recipe = Recipe.parse(level)
    codec_bytes = codec_bytes_read(MimiConfig.published(), max(config.user_q, config.dep_q))
    file = lm_bytes_held(config, recipe)
    read = lm_bytes_read(config, recipe) + kv_bytes(config, context, bits=kv_bits) + codec_bytes
    held = file + kv_bytes(config, config.context, bits=kv_bits) + codec_bytes + WORKSPACE
    return Need(level, read, held, file)


def verdict(chip: Chip, wanted: Need) -> str:
    """Whether a chip can do it, as far as memory decides."""
    ms = wanted.ms(chip.gb_per_s * 1e9)
    memory = chip.smallest_memory(wanted.held)
    if ms > FRAME_MS:
        return "too slow"
    if memory is None:
        return "too large"
    return f"{'tight' if ms > TIGHT * FRAME_MS else 'can'}, {memory} GB"
