"""From a checkpoint's tensors, named as in the published MLX layout, to a model, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..config import LMConfig
from ..errors import CheckpointError
from ..layers import arrays_of
from ..precision import Precision, choose_precision
from .model import LMModel

if TYPE_CHECKING:
    from ..checkpoint.quantization import Quantization

_GATED = ("gating.linear_in", "gating.linear_out")
_PLAIN = ("gating.linear1", "gating.linear2")
_BLOCK = ("self_attn.in_proj", "self_attn.out_proj", "norm1", "norm2")
_LEAVES = ("weight", "bias", "scales", "biases")


def published_names(config: LMConfig) -> dict[str, list[str]]:
    """Where every module of `LMModel` comes from: the published module or modules, stacked along dimension 0."""
    names = {
        "text_emb": ["text_emb"],
        "audio_emb": [f"audio_embs.{k}" for k in range(config.n_q)],
        "out_norm": ["out_norm"],
        "text_linear": ["text_linear"],
    }
    for i in range(config.num_layers):
        for part in (*_BLOCK, *(_PLAIN if config.gating == "none" else _GATED)):
            names[f"transformer.layers.{i}.{part}"] = [f"transformer.layers.{i}.{part}"]
    for s in range(config.dep_q):
        names[f"depformer.slices.{s}.emb"] = [f"depformer.slices.{s}.emb"]
        names[f"depformer.slices.{s}.linear_out"] = [f"depformer.slices.{s}.linear_out"]
        if config.depformer_low_rank_embeddings:
            names[f"depformer.slices.{s}.low_rank"] = [f"depformer.slices.{s}.emb.low_rank"]
    # Slices that share a weight set hold the same tensors: the set is read from the first of them.
    first = [config.schedule.index(w) for w in range(config.num_weight_sets)]
    if config.dep_q:
        names["depformer.linear_in"] = [f"depformer.slices.{s}.linear_in" for s in first]
    for w, s in enumerate(first):
        for i in range(config.depformer_num_layers):
            for part in (*_BLOCK, *_GATED):
                names[f"depformer.weight_sets.{w}.{i}.{part}"] = [f"depformer.slices.{s}.transformer.layers.{i}.{part}"]
    for i in range(config.extra_heads_num_heads):
        names[f"extra_heads.{i}"] = [f"extra_heads.{i}"]
    for name in config.conditioners:
        prefix = f"condition_provider.conditioners.{name}"
        names[prefix] = [prefix]
        for part in ("embed", "output_proj"):
            names[f"{prefix}.{part}"] = [f"{prefix}.{part}"]
    return names


def build(
    config: LMConfig,
    tensors: Mapping[str, mx.array],
    quantization: Mapping[str, Quantization] | None = None,
    precision: Precision | None = None,
    consume: bool = False,
) -> LMModel:
    """Make a model of checked tensors.

    Args:
        config: the model's shape.
        tensors: by name in the published MLX layout.
        quantization: by module name in that layout, for the quantized ones.
        precision: how to hold the weights; chosen by device and size unless given.
        consume: take the tensors out of `tensors`, a dict, so that what is unpacked isn't held in its packed form too.

    Raises:
        CheckpointError: tensors that are stacked here are quantized in different ways, or some hold NaN or infinity.
    """
    from ..checkpoint.check import check_finite
    from ..checkpoint.quantization import dequantize_weight

    quantization = quantization or {}
    precision = precision or choose_precision(tensors, quantization)
    model = LMModel(config)
    modules = dict(model.named_modules())
    take = tensors.pop if consume and isinstance(tensors, dict) else tensors.__getitem__
    weights: list[tuple[str, mx.array]] = []
    for module_name, sources in published_names(config).items():
        how = _common_how(sources, quantization)
        leaves = {leaf for name in sources for leaf in _LEAVES if f"{name}.{leaf}" in tensors}
        if f"{sources[0]}.learnt_padding" in tensors:
            leaves = {"learnt_padding"}
        parts = {leaf: _stack([take(f"{name}.{leaf}") for name in sources]) for leaf in leaves}
        if how is not None and not precision.unpack:
            mx.eval(parts)
            _replace(model, module_name, _quantized(modules[module_name], how, parts))
            continue
        if how is not None:
            parts = {"weight": dequantize_weight(parts, how, precision.dtype)}
        parts = {leaf: array.astype(precision.dtype) for leaf, array in parts.items()}
        mx.eval(parts)  # now, so that memory holds the sources of one module at a time
        weights += [(f"{module_name}.{leaf}", array) for leaf, array in parts.items()]
    model.load_weights(weights, strict=False)
    model.eval()
    # A graph compiled of weights that weren't read yet would read them from the file again at every step.
    mx.eval(model.parameters())
    check_finite(arrays_of(model.parameters()), "The language model's weights")
    return model


def export(model: LMModel) -> dict[str, mx.array]:
    """A model's float weights as tensors named in the published MLX layout."""
    config = model.config
    parameters = arrays_of(model.parameters())
    tensors: dict[str, mx.array] = {}
    for module_name, targets in published_names(config).items():
        for leaf in ("weight", "bias", "learnt_padding"):
            array = parameters.get(f"{module_name}.{leaf}")
            if array is None:
                continue
            pieces = mx.split(array, len(targets)) if len(targets) > 1 else [array]
            tensors.update({f"{name}.{leaf}": piece for name, piece in zip(targets, pieces, strict=True)})
    for s, w in enumerate(config.schedule):
        first = f"depformer.slices.{config.schedule.index(w)}."
        for name in [n for n in tensors if n.startswith(first)]:
            rest = name.removeprefix(first)
            if rest.startswith(("linear_in", "transformer")):
                tensors[f"depformer.slices.{s}.{rest}"] = tensors[name]
    return tensors


def _stack(arrays: list[mx.array]) -> mx.array:
    return mx.concatenate(arrays, axis=0) if len(arrays) > 1 else arrays[0]


def _common_how(names: Sequence[str], quantization: Mapping[str, Quantization]) -> Quantization | None:
    found = {
        (p.bits, p.group_size, p.mode) if (p := quantization.get(name)) is not None else None: name for name in names
    }
    if len(found) > 1:
        raise CheckpointError(
            f"{' and '.join(found.values())} are quantized differently; tensors of one kind must be quantized alike. "
            "Quantize the model again with `python -m moshi_mlx.quantize`."
        )
    return quantization.get(names[0])


def _quantized(module: Any, how: Quantization, parts: Mapping[str, mx.array]) -> nn.Module:
    """A quantized module in the place of a linear or embedding layer."""
    outputs, inputs = module.weight.shape
    kind = nn.QuantizedEmbedding if isinstance(module, nn.Embedding) else nn.QuantizedLinear
    quantized = kind.__new__(kind)
    nn.Module.__init__(quantized)
    quantized.bits, quantized.group_size, quantized.mode = how.bits, how.group_size, how.mode
    if kind is nn.QuantizedEmbedding:
        quantized.num_embeddings, quantized.dims = outputs, inputs
    quantized.weight, quantized.scales, quantized.biases = parts["weight"], parts["scales"], parts.get("biases")
    quantized.freeze()
    return quantized


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent: Any = model
    *path, last = name.split(".")
    for key in path:
        parent = parent[int(key)] if isinstance(parent, list) else parent[key]
    parent[last] = module
