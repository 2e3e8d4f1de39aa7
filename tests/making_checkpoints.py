"""Checkpoints made for tests: small random ones, and full-size ones that take no room on the disk."""

import json
import math
from pathlib import Path

import mlx.core as mx

from moshi_mlx.checkpoint import TensorSpec, expected_tensors, write_safetensors
from moshi_mlx.checkpoint.header import DTYPE_BYTES
from moshi_mlx.config import LMConfig

SAFETENSORS_NAMES = {"bfloat16": "BF16", "float32": "F32", "uint32": "U32"}


def small_config(**changes):
    """`config.json`'s content for a small model that has everything: shared weight sets, low rank, a condition."""
    config = {
        "card": 64,
        "text_card": 128,
        "dim": 64,
        "num_heads": 4,
        "num_layers": 2,
        "n_q": 8,
        "dep_q": 4,
        "context": 24,
        "hidden_scale": 4.125,
        "norm": "rms_norm_f32",
        "gating": "silu",
        "positional_embedding": "rope",
        "depformer_dim": 32,
        "depformer_dim_feedforward": 132,
        "depformer_num_heads": 2,
        "depformer_num_layers": 2,
        "depformer_weights_per_step_schedule": [0, 1, 1, 1],
        "depformer_low_rank_embeddings": 16,
        "extra_heads_num_heads": 2,
        "extra_heads_dim": 6,
        "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
        "conditioners": {"description": {"type": "lut", "lut": {"n_bins": 31, "dim": 16, "possible_values": ["good"]}}},
        "fuser": {"sum": ["description"], "cross": [], "prepend": []},
    }
    return {**config, **changes}


def random_tensors(config, layout="pytorch", dtype=mx.float32, seed=0):
    """Random weights for every tensor of a model."""
    keys = iter(mx.random.split(mx.random.key(seed), 4096))
    return {
        name: mx.random.normal(spec.shape, key=next(keys)).astype(dtype) * 0.1
        for name, spec in expected_tensors(LMConfig.from_dict(config), layout).items()
    }


def write_checkpoint(folder, config, tensors, name="model.safetensors"):
    """A model folder: config.json and weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / name), tensors)
    return folder / name


def write_streaming(path, config, layout, seed=0):
    """A bfloat16 checkpoint of random weights that repeat, made quickly and one tensor at a time."""
    specs = {
        name: TensorSpec(spec.shape, "BF16")
        for name, spec in expected_tensors(LMConfig.from_dict(config), layout).items()
    }
    noise = mx.random.normal((1 << 20,), key=mx.random.key(seed)).astype(mx.bfloat16)
    tensors = ((name, mx.tile(noise, -(-size // noise.size))[:size].reshape(shape)) for name, shape, size in (
        (name, spec.shape, math.prod(spec.shape)) for name, spec in specs.items()))  # fmt: skip
    return write_safetensors(path, specs, tensors)


def write_hollow(path, tensors):
    """A file of zeros with a real header, of any size: its data is a hole. `tensors`: name -> (shape, dtype)."""
    table, position = {}, 0
    for name, (shape, dtype) in tensors.items():
        dtype = SAFETENSORS_NAMES.get(dtype, dtype)
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
    return Path(path)
