"""Saving a language model quantized, in the published MLX layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import LMConfig
from ..errors import CheckpointError
from .check import FLOAT, TensorSpec
from .loading import LMFile, Progress, quantized_tensors, work_by_source
from .quantization import Quantization, Recipe, bytes_of, quantized_specs
from .writing import write_safetensors

# What the published files say of every Moshi model and `LMConfig` has no field for.
_COMMON = {
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
    "depformer_layer_scale": None,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_max_period": 10000,
}


def save_quantized(file: LMFile, path: str | Path, recipe: Recipe, progress: Progress | None = None) -> int:
    """Write a checkpoint in floating point anew, quantized by `recipe` and in bfloat16 where it says nothing.

    Reads, quantizes and writes one tensor at a time. Returns the new file's size in bytes.

    Raises:
        CheckpointError: the checkpoint is quantized already.
        StorageError: the file can't be written.
    """
    need_floating_point(file)
    specs: dict[str, TensorSpec] = {}
    for items in work_by_source(file, recipe).values():
        for (piece, how), names in items.items():
            for name in names:
                specs.update(_stored(name, piece.shape, how))
    return write_safetensors(path, specs, _parts(file, recipe, progress))


def need_floating_point(file: LMFile) -> None:
    """Raise CheckpointError if the checkpoint is quantized already."""
    if file.quantization:
        levels = " and ".join(sorted({str(q) for q in file.quantization.values()}))
        raise CheckpointError(f"{file.path} is quantized already, to {levels}. Start from a bf16 checkpoint.")


def _stored(name: str, shape: tuple[int, ...], how: Quantization | None) -> dict[str, TensorSpec]:
    specs = {name: TensorSpec(shape)} if how is None else quantized_specs(name.removesuffix(".weight"), shape, how)
    return {n: TensorSpec(s, "BF16" if dtype == FLOAT else dtype) for n, (s, dtype) in specs.items()}


def _parts(file: LMFile, recipe: Recipe, progress: Progress | None) -> Iterator[tuple[str, mx.array]]:
    for names, _, parts in quantized_tensors(file, recipe, progress, dtype=mx.bfloat16):
        for name in names:
            stem = name.removesuffix(".weight")
            for part, array in parts.items():
                yield (name if part == "weight" else f"{stem}.{part}"), array


def size_of(file: LMFile, recipe: Recipe) -> int:
    """Bytes of the tensors that `save_quantized` would write."""
    return sum(
        bytes_of(piece.shape, how) * len(names)
        for items in work_by_source(file, recipe).values()
        for (piece, how), names in items.items()
    )


def config_to_save(source: Mapping[str, Any], config: LMConfig) -> dict[str, Any]:
    """`config.json` for a saved model: the source's own, or the published shape spelt out where it had none."""
    return dict(source) if source else {**_COMMON, **json.loads(json.dumps(asdict(config)))}
