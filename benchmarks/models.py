"""Random language models of given shapes, in the published MLX layout, for measurements that weights don't change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import moshi_mlx  # noqa: F401  (puts OpenBLAS under MLX)

import mlx.core as mx  # isort: skip
from moshi_mlx.checkpoint import Recipe, pieces
from moshi_mlx.checkpoint.quantization import quantize_weight
from moshi_mlx.config import LMConfig
from moshi_mlx.untrained import random_tensors


def shape(
    dim: int, layers: int, heads: int, depth: tuple[int, int, int], text_card: int, card: int, context: int = 3000
) -> dict[str, Any]:
    """A `config.json`; `depth` is the depth transformer's width, layers and slices."""
    depth_dim, depth_layers, slices = depth
    return {
        "dim": dim,
        "num_heads": heads,
        "num_layers": layers,
        "hidden_scale": 4.125,
        "n_q": 2 * slices,
        "dep_q": slices,
        "card": card,
        "text_card": text_card,
        "delays": [0, *([0] + [1] * (slices - 1)) * 2],
        "context": context,
        "causal": True,
        "layer_scale": None,
        "max_period": 10_000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "existing_text_padding_id": 3,
        "depformer_dim": depth_dim,
        "depformer_dim_feedforward": int(4.125 * depth_dim),
        "depformer_num_heads": max(1, depth_dim // 64),
        "depformer_num_layers": depth_layers,
        "depformer_multi_linear": True,
        "depformer_weights_per_step": True,
        "depformer_pos_emb": "none",
        "depformer_gating": "silu",
        "depformer_context": slices,
        "depformer_max_period": 10_000,
    }


SHAPES = {
    "256": shape(256, 4, 4, (128, 2, 8), 512, 512),
    "512": shape(512, 8, 8, (256, 2, 8), 4000, 2048),
}


def make_lm(folder: Path, config: dict[str, Any], bits: int | None = None, seed: int = 0) -> Path:
    """Write a random model's folder and return its weights file: float32, or quantized to `bits`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors({name: piece.shape for name, piece in pieces(LMConfig.from_dict(config)).items()}, seed)
    if bits:
        # As in the published files: what isn't quantized is bfloat16, like the scales.
        tensors = {name: tensor.astype(mx.bfloat16) for name, tensor in tensors.items()}
        recipe = Recipe.parse(bits)
        for name in list(tensors):
            module = name.removesuffix(".weight")
            if (how := recipe(module, tensors[name].shape)) is not None:
                parts = quantize_weight(tensors.pop(name), how)
                tensors |= {f"{module}.{part}": array for part, array in parts.items()}
    path = folder / (f"model.q{bits}.safetensors" if bits else "model.safetensors")
    mx.save_safetensors(str(path), tensors)
    return path
