"""A model with more layers that computes what it did: `python -m moshi_mlx.train grow FOLDER --out FOLDER`.

Source: Wu et al. 2024, "LLaMA Pro: Progressive LLaMA with Block Expansion".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..checkpoint import resolve
from ..config import MimiConfig
from ..errors import ConfigError
from ..files import write_json
from ..lm.weights import export as published_tensors
from .corpus import codec_shape, codec_tensors
from .export import write_model
from .heads import read_heads
from .lm import unpacked

_LM, _ENCODER = "transformer.layers.", "encoder_transformer.transformer.layers."
_OUTPUTS = ("self_attn.out_proj.weight", "gating.linear_out.weight", "gating.linear2.weight", "linear2.weight")
"""What a layer adds to its input comes out of these."""


def grow(folder: Path, out: Path, layers: int | None = None, encoder_layers: int | None = None) -> None:
    """Write a model with more layers, in half precision, with its auxiliary heads, as one more model's folder.

    Args:
        folder: of the model; a quantized one is unpacked.
        out: made if missing.
        layers: of the temporal transformer; as many as it has.
        encoder_layers: of the transformer in the codec's encoder; as many as it has.

    Raises:
        CheckpointError: the folder lacks a part, its codec is in no folder of its own, or its files are damaged.
        ConfigError: it has more layers already.
        StorageError: disk full, no permission.
    """
    files = resolve(folder, parts=["lm", "mimi", "tokenizer"])
    about = codec_shape(files.need("mimi"))
    found, heard = files.lm_config.num_layers, MimiConfig.from_dict(about).layers_of("encoder_transformer")
    layers, encoder_layers = layers or found, encoder_layers or heard
    for name, has, wanted in (("temporal transformer", found, layers), ("encoder", heard, encoder_layers)):
        if wanted < has:
            raise ConfigError(f"The {name} in {folder} has {has} layers already; {wanted} are fewer.")
    lm = grown(published_tensors(unpacked(files)), _LM, found, layers)
    codec = grown(codec_tensors(files.need("mimi")), _ENCODER, heard, encoder_layers)
    config = {**files.config, "num_layers": layers}
    write_model(out, lm, config, files.need("tokenizer"), files.need("mimi"), codec, read_heads(folder))
    transformer = {**about["transformer"], "encoder_num_layers": encoder_layers}
    write_json(out / "codec" / "config.json", {**about, "transformer": transformer})


def grown(weights: Mapping[str, mx.array], prefix: str, layers: int, wanted: int) -> dict[str, mx.array]:
    """Weights of which a transformer has `wanted` layers and computes what its `layers` do.

    The new ones are spread evenly, the last one on top: copies of the layers before them, with outputs of zero. They
    look at what is known to be worth looking at, and learn what to make of it.

    Args:
        weights: by name.
        prefix: how its layers' names begin, before their numbers.
        layers: how many there are.
        wanted: how many there are to be.
    """
    result = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    origins = [layers - 1 - (wanted - 1 - i) * layers // wanted for i in range(wanted)]
    for i, origin in enumerate(origins):
        copied = i > 0 and origin == origins[i - 1]
        start = f"{prefix}{origin}."
        for name, tensor in weights.items():
            if name.startswith(start):
                own = name.removeprefix(start)
                result[f"{prefix}{i}.{own}"] = mx.zeros_like(tensor) if copied and own in _OUTPUTS else tensor
    return result
