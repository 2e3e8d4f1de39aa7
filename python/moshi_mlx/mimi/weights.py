"""What a codec's file must hold, and reading it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..config import MimiConfig
from ..config_values import read_config
from ..errors import CheckpointError

_SAVED_NOW = re.compile(r"\.self_attn\.in_projs\.0\.weight$")
_CODEBOOK_FILES = ("tokenizer*.safetensors", "mimi*.safetensors")


def expected_tensors(config: MimiConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a codec of this shape, in the published layout."""
    return {
        **_seanet(config),
        **_transformer("encoder_transformer", config),
        **_transformer("decoder_transformer", config),
        "downsample.conv.conv.conv.weight": (config.dimension, config.dimension, 4),
        "upsample.convtr.convtr.convtr.weight": (config.dimension, 1, 4),
        **_quantizer("rvq_first", 1, config),
        **_quantizer("rvq_rest", config.n_q - 1, config),
    }


def _conv(name: str, shape: tuple[int, int, int], bias: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (bias,)}


def _residuals(prefix: str, index: int, width: int, c: MimiConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    hidden = width // c.compress
    for i in range(index, index + c.n_residual_layers):
        shapes |= _conv(f"{prefix}.{i}.block.1.conv.conv", (hidden, width, c.residual_kernel_size), hidden)
        shapes |= _conv(f"{prefix}.{i}.block.3.conv.conv", (width, hidden, 1), width)
    return shapes


def _seanet(c: MimiConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    width, index = c.n_filters, 1
    shapes |= _conv("encoder.model.0.conv.conv", (width, 1, c.kernel_size), width)
    for ratio in reversed(c.ratios):
        shapes |= _residuals("encoder.model", index, width, c)
        index += c.n_residual_layers + 1
        shapes |= _conv(f"encoder.model.{index}.conv.conv", (2 * width, width, 2 * ratio), 2 * width)
        width, index = 2 * width, index + 1
    shapes |= _conv(f"encoder.model.{index + 1}.conv.conv", (c.dimension, width, c.last_kernel_size), c.dimension)
    shapes |= _conv("decoder.model.0.conv.conv", (width, c.dimension, c.kernel_size), width)
    index = 1
    for ratio in c.ratios:
        index += 1
        shapes |= _conv(f"decoder.model.{index}.convtr.convtr", (width, width // 2, 2 * ratio), width // 2)
        width, index = width // 2, index + 1
        shapes |= _residuals("decoder.model", index, width, c)
        index += c.n_residual_layers
    shapes |= _conv(f"decoder.model.{index + 1}.conv.conv", (1, width, c.last_kernel_size), 1)
    return shapes


def _transformer(prefix: str, c: MimiConfig) -> dict[str, tuple[int, ...]]:
    D, hidden = c.dimension, c.dim_feedforward
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(c.layers_of(prefix)):
        layer = f"{prefix}.transformer.layers.{i}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}.{norm}.weight": (D,), f"{layer}.{norm}.bias": (D,)}
        shapes |= {f"{layer}.layer_scale_1.scale": (D,), f"{layer}.layer_scale_2.scale": (D,)}
        shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * D, D), f"{layer}.self_attn.out_proj.weight": (D, D)}
        shapes |= {f"{layer}.linear1.weight": (hidden, D), f"{layer}.linear2.weight": (D, hidden)}
    return shapes


def _quantizer(half: str, layers: int, c: MimiConfig) -> dict[str, tuple[int, ...]]:
    name = f"quantizer.{half}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.input_proj.weight": (c.codebook_dim, c.dimension, 1),
        f"{name}.output_proj.weight": (c.dimension, c.codebook_dim, 1),
    }
    for i in range(layers):
        book = f"{name}.vq.layers.{i}._codebook"
        shapes |= {f"{book}.embedding_sum": (c.bins, c.codebook_dim), f"{book}.cluster_usage": (c.bins,)}
        shapes[f"{book}._initialized"] = (1,)
    return shapes


def locate(where: str | Path) -> tuple[Path, MimiConfig]:
    """The weights file and the shape of the codec at `where`: a file, or a folder that may have a `config.json`.

    Raises:
        CheckpointError: there is no codec.
        ConfigError: the folder's `config.json` describes none that this package can run.
    """
    path = Path(where)
    if path.is_file():
        return path, MimiConfig.published()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder. Expected a codec's .safetensors file or its folder.")
    if (path / "config.json").exists():
        data = read_config(path / "config.json")
        if "seanet" in data:
            return path / "model.safetensors", MimiConfig.from_dict(data)
    for pattern in _CODEBOOK_FILES:
        for file in sorted(path.glob(pattern)):
            return file, MimiConfig.published()
    raise CheckpointError(
        f"{path} holds no codec: neither a codec's config.json nor {' or '.join(_CODEBOOK_FILES)}. "
        "Name the codec's file or folder."
    )


def read_weights(path: Path, config: MimiConfig) -> dict[str, mx.array]:
    """Every tensor of a codec's file, checked by name, shape and type before anything is read, then for NaN.

    Quantized ones come in float16, as what is trained on from there is written.

    Raises:
        CheckpointError: not a safetensors file, cut off, not a codec of this shape, or one with NaN or infinity.
    """
    from ..checkpoint import TensorSpec, check_tensors, open_tensors, read_header
    from ..checkpoint.check import check_finite
    from ..checkpoint.quantization import dequantize_weight, quantized_specs, read_quantization

    header = read_header(path)
    shapes = expected_tensors(config)
    saved_now = any(map(_SAVED_NOW.search, header.tensors))
    stored = {_as_saved_now(name) if saved_now else name: name for name in shapes}
    matrices = {name: rows for name, ours in stored.items() if (rows := _matrix(ours, shapes[ours])) is not None}
    quantization = read_quantization(header, matrices)
    specs: dict[str, TensorSpec] = {}
    for name, ours in stored.items():
        how = quantization.get(module := name.removesuffix(".weight"))
        specs |= quantized_specs(module, matrices[name], how) if how else {name: TensorSpec(shapes[ours])}
    check_tensors(
        specs,
        header.tensors,
        path,
        optional=[name for name in shapes if name.endswith("._initialized")],
        what="a Mimi codec of the expected shape",
    )
    tensors = open_tensors(path)
    check_finite(tensors, str(path))
    result = {ours: tensors[name] for name, ours in stored.items() if name in tensors}
    for module, how in quantization.items():
        names = quantized_specs(module, matrices[f"{module}.weight"], how)
        parts = {name.removeprefix(f"{module}."): tensors[name] for name in names}
        ours = stored[f"{module}.weight"]
        result[ours] = dequantize_weight(parts, how, mx.float32).reshape(shapes[ours]).astype(mx.float16)
    return result


def quantize_weights(path: Path, config: MimiConfig, bits: int) -> None:
    """Write a codec's file anew: convolutions and transformers in `bits`, all else in float16.

    What codes are found by, the codebooks and their projections, stays as it is.

    Raises:
        CheckpointError: as `read_weights`.
        StorageError: disk full, no permission.
    """
    from ..checkpoint import write_half
    from ..checkpoint.quantization import fitting, level, quantize_weight

    result: dict[str, mx.array] = {}
    for name, tensor in read_weights(path, config).items():
        matrix = _matrix(name, tensor.shape)
        how = None if matrix is None else fitting(level(bits), matrix[1])
        if matrix is None or how is None:
            result[name] = tensor
            continue
        parts = quantize_weight(tensor.astype(mx.float32).reshape(matrix), how)
        result |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in parts.items()}
    write_half(path, result)


def _matrix(name: str, shape: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of what may be quantized, a convolution's kernel in one with its inputs; None for all else."""
    if name.startswith("quantizer.") or not name.endswith(".weight") or len(shape) < 2:
        return None
    return shape[0], math.prod(shape[1:])


def _as_saved_now(name: str) -> str:
    """What the published implementation calls a tensor since it numbers an attention's projections."""
    name = name.replace("self_attn.in_proj_weight", "self_attn.in_projs.0.weight")
    return name.replace("self_attn.out_proj.weight", "self_attn.out_projs.0.weight")
