"""How a tensor is quantized: read off a file's shapes, or chosen by a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx

from ..errors import CheckpointError, InputError
from .check import TensorSpec
from .header import Header

LEVELS: tuple[int | str, ...] = (2, 3, 4, 5, 6, 8, "mxfp4", "nvfp4")
"""What a checkpoint can be quantized to."""

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
"""Of weights that share a scale and a bias, where the bits are those of `AFFINE_BITS`."""
FLOAT_MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Bits and group size of what has a mode of its own."""
_PACK = 32
"""Weights that are packed together, whatever the group."""

_CHUNK = 1 << 18
"""Elements quantized at once in the floating-point modes: MLX's CPU fallback takes 80 bytes for each."""


@dataclass(frozen=True)
class Quantization:
    """Bits per weight, weights per scale, and the kind of scale (see `mlx.core.quantize`)."""

    bits: int
    group_size: int
    mode: str = "affine"

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes with its share of the scale, and of the bias where there is one."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def __str__(self) -> str:
        return self.mode if self.mode != "affine" else f"{self.bits} bits, groups of {self.group_size}"


def level(value: int | str) -> Quantization:
    """A level by its usual name: 2, 3, 4, 5, 6, 8, `mxfp4` or `nvfp4`.

    Groups are those of the published files: 32 for 4 bits and fewer, 64 above.

    Raises:
        InputError: no such level.
    """
    text = str(value).lower()
    if text in FLOAT_MODES:
        return Quantization(*FLOAT_MODES[text], text)
    if text.isdecimal() and int(text) in AFFINE_BITS:
        return Quantization(int(text), 32 if int(text) <= 4 else 64)
    raise InputError(f"Can't quantize to {value!r}; expected one of {', '.join(map(str, LEVELS))}.")


def fitting(chosen: Quantization, columns: int) -> Quantization | None:
    """What comes nearest to `chosen` for rows of so many weights: smaller groups; None where no group divides them."""
    if columns % max(chosen.group_size, _PACK) == 0:
        return chosen
    smaller = [g for g in GROUP_SIZES if g < chosen.group_size and columns % g == 0]
    return Quantization(chosen.bits, max(smaller)) if chosen.mode == "affine" and smaller else None


KINDS = ("attention", "mlp", "depformer", "embeddings", "heads")
"""Kinds of tensors that a recipe tells apart."""

Kind = Literal["attention", "mlp", "depformer", "embeddings", "heads"]

_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("attention", re.compile(r"transformer\.layers\.\d+\.self_attn\.(in|out)_proj")),
    ("mlp", re.compile(r"transformer\.layers\.\d+\.gating\.linear(_in|_out|1|2)")),
    ("embeddings", re.compile(r"text_emb|audio_embs\.\d+|depformer\.slices\.\d+\.emb")),
    ("heads", re.compile(r"text_linear|depformer\.slices\.\d+\.linear_out")),
    (
        "depformer",
        re.compile(r"depformer\.slices\.\d+\.(linear_in|transformer\..*(_proj|linear_in|linear_out))"),
    ),
)


def kind_of(module: str) -> Kind | None:
    """The kind of the tensor at a module path; None for what stays as it is (norms, conditions)."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(module)), None)


@dataclass(frozen=True)
class Recipe:
    """Which tensors are quantized, and how: one level for all, exceptions by kind, exceptions by module path.

    None stands for "left in bfloat16".
    """

    default: Quantization | None = None
    kinds: Mapping[str, Quantization | None] = field(default_factory=dict)
    modules: Mapping[str, Quantization | None] = field(default_factory=dict)

    def __call__(self, module: str, shape: tuple[int, ...]) -> Quantization | None:
        """What to do with the tensor `module`.weight; rows that no group size divides stay as they are."""
        kind = kind_of(module)
        if kind is None:
            return None
        chosen = self.modules.get(module, self.kinds.get(kind, self.default))
        return None if chosen is None else fitting(chosen, shape[-1])

    @classmethod
    def parse(cls, value: int | str | Recipe) -> Recipe:
        """A recipe from a level (`4`, `mxfp4`) or a text such as `4,attention=8,embeddings=bf16`.

        Raises:
            InputError: an unknown kind or level.
        """
        if isinstance(value, Recipe):
            return value
        default: Quantization | None = None
        kinds: dict[str, Quantization | None] = {}
        for part in str(value).split(","):
            kind, equals, name = part.strip().rpartition("=")
            chosen = None if name in ("bf16", "16") else level(name)
            if not equals:
                default = chosen
            elif kind in KINDS:
                kinds[kind] = chosen
            else:
                raise InputError(f"No tensors are of the kind {kind!r}; expected one of {', '.join(KINDS)}.")
        return cls(default, kinds)


def quantized_specs(module: str, shape: tuple[int, ...], how: Quantization) -> dict[str, TensorSpec]:
    """The tensors that stand for a quantized `module`.weight of `shape` in a file."""
    rows, columns = shape[0], shape[-1]
    groups = (rows, columns // how.group_size)
    specs = {f"{module}.weight": TensorSpec((rows, columns * how.bits // 32), "U32")}
    if how.mode == "affine":
        return {**specs, f"{module}.scales": TensorSpec(groups), f"{module}.biases": TensorSpec(groups)}
    return {**specs, f"{module}.scales": TensorSpec(groups, "U8")}


def read_quantization(header: Header, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantization]:
    """How each quantized tensor of a file was quantized, by module path, from its shape and its scales'.

    `shapes` are the model's, by tensor name (`text_emb.weight`).

    Raises:
        CheckpointError: shapes that no quantization of this model has.
    """
    result = {}
    for name in header.tensors:
        module = name.removesuffix(".scales")
        weight = header.tensors.get(f"{module}.weight")
        if module == name or weight is None or f"{module}.weight" not in shapes:
            continue  # whatever this is, the comparison of names will say
        result[module] = _infer(header, module, shapes[f"{module}.weight"])
    return result


def _infer(header: Header, module: str, shape: tuple[int, ...]) -> Quantization:
    weight, scales = header.tensors[f"{module}.weight"], header.tensors[f"{module}.scales"]
    columns = shape[-1]
    packed = weight.shape[-1] if weight.shape else 0
    groups = scales.shape[-1] if scales.shape else 0
    if packed and groups and packed * 32 % columns == 0 and columns % groups == 0:
        bits, group_size = packed * 32 // columns, columns // groups
        if f"{module}.biases" in header.tensors:
            if bits in AFFINE_BITS and group_size in GROUP_SIZES:
                return Quantization(bits, group_size)
        else:
            for mode, layout in FLOAT_MODES.items():
                if layout == (bits, group_size):
                    return Quantization(bits, group_size, mode)
    raise CheckpointError(
        f"{header.path}: {module}.weight {list(weight.shape)} with scales {list(scales.shape)} is no "
        f"quantization of the {list(shape)} that the model has there. "
        "Check that config.json and weights belong together."
    )


def quantize_weight(weight: mx.array, how: Quantization) -> dict[str, mx.array]:
    """Quantize a matrix [rows, columns] now: `weight`, `scales` and, if affine, `biases`."""
    rows, columns = weight.shape
    step = rows if how.mode == "affine" else max(1, _CHUNK // columns)
    parts = []
    for start in range(0, rows, step):
        part = mx.quantize(weight[start : start + step], group_size=how.group_size, bits=how.bits, mode=how.mode)
        mx.eval(part)
        parts.append(part)
    joined = parts[0] if len(parts) == 1 else tuple(mx.concatenate(list(same)) for same in zip(*parts, strict=True))
    result = dict(zip(("weight", "scales", "biases"), joined, strict=False))
    mx.eval(result)
    return result


def dequantize_weight(parts: Mapping[str, mx.array], how: Quantization, dtype: mx.Dtype) -> mx.array:
    """A matrix [rows, columns] from what `quantize_weight` gives."""
    scales, biases = parts["scales"], parts.get("biases")
    if how.mode == "affine":
        scales = scales.astype(dtype)
    return mx.dequantize(
        parts["weight"],
        scales,
        None if biases is None else biases.astype(dtype),
        how.group_size,
        how.bits,
        how.mode,
        dtype=dtype,
    )


def bytes_of(shape: tuple[int, ...], how: Quantization | None) -> int:
    """Bytes that a tensor of `shape` takes in a file, in bfloat16 if not quantized."""
    return math.ceil(math.prod(shape) * (how.bits_per_weight if how else 16) / 8)
