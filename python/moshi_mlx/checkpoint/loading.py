"""Loading a language model's tensors: checked first, read lazily, quantized one at a time where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..config import LMConfig
from ..errors import CheckpointError
from .check import check_tensors
from .header import Header, read_header
from .layout import Layout, Piece, detect_layout, expected_tensors, pieces, to_mlx_layout
from .quantization import Quantization, Recipe, quantize_weight, read_quantization

Progress = Callable[[int, int], None]
"""Called with the number of tensors done and their total."""


@dataclass(frozen=True)
class LMFile:
    """A language model's weights file that was checked against its configuration, nothing loaded yet."""

    header: Header
    config: LMConfig
    layout: Layout
    quantization: dict[str, Quantization]
    """By module path (`text_emb`); empty for a file in floating point."""

    @property
    def path(self) -> Path:
        return self.header.path


def open_tensors(path: str | Path) -> dict[str, mx.array]:
    """Every tensor of a safetensors file, unread: MLX fetches its bytes from the file when it is evaluated.

    Raises:
        CheckpointError: no such file, not a safetensors file, or one that was cut off.
    """
    header = read_header(path)
    try:
        tensors = mx.load(str(header.path), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}). Download the file again.") from error
    assert isinstance(tensors, dict)
    return tensors


def check_lm(path: str | Path, config: LMConfig) -> LMFile:
    """Check every name, shape and type in a weights file against the model, from its header alone.

    Raises:
        CheckpointError: the file isn't a checkpoint of this model.
    """
    header = read_header(path)
    layout = detect_layout(header)
    quantization = {}
    if layout == "mlx":
        quantization = read_quantization(header, {name: piece.shape for name, piece in pieces(config).items()})
    check_tensors(expected_tensors(config, layout, quantization), header.tensors, header.path)
    return LMFile(header, config, layout, quantization)


def load_lm_tensors(
    path: str | Path,
    config: LMConfig,
    quantize: int | str | Recipe | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, mx.array], dict[str, Quantization]]:
    """Load a language model's tensors under the MLX layout's names, and how each quantized one was quantized.

    Without `quantize` the arrays are lazy. With it, they are quantized one tensor at a time, so that memory
    holds no more than the result and one tensor of the source. Slices that share a weight set share arrays.

    Args:
        path: weights file in either layout.
        quantize: a level (2, 3, 4, 5, 6, 8, "mxfp4", "nvfp4") or a recipe, for a file in floating point.
            For one that is quantized already, the level that it must have.

    Raises:
        CheckpointError: the file isn't a checkpoint of this model, or `quantize` contradicts it.
        InputError: no such level.
    """
    file = check_lm(path, config)
    recipe = None if quantize is None else Recipe.parse(quantize)
    if file.quantization and quantize is not None:
        refuse_other_level(file, Recipe.parse(quantize))
        recipe = None
    if recipe is None:
        tensors = open_tensors(path)
        renamed = tensors if file.layout == "mlx" else to_mlx_layout(tensors, config, file.layout)
        return renamed, file.quantization
    arrays: dict[str, mx.array] = {}
    quantization: dict[str, Quantization] = {}
    for names, how, parts in quantized_tensors(file, recipe, progress):
        for name in names:
            module = name.removesuffix(".weight")
            if how is None:
                arrays[name] = parts["weight"]
            else:
                arrays.update({f"{module}.{part}": array for part, array in parts.items()})
                quantization[module] = how
    return arrays, quantization


def refuse_other_level(file: LMFile, recipe: Recipe) -> None:
    """Raise CheckpointError unless the file's quantized tensors are all as `recipe` would have them."""
    shapes = {name: piece.shape for name, piece in pieces(file.config).items()}
    levels = set(file.quantization.values())
    wanted = {recipe(module, shapes[f"{module}.weight"]) for module in file.quantization}
    if {(q.bits, q.mode) for q in levels} != {(q.bits, q.mode) if q else None for q in wanted}:
        found = " and ".join(sorted(str(q) for q in levels))
        asked = " and ".join(sorted(str(q) if q else "bf16" for q in wanted))
        raise CheckpointError(
            f"{file.path} is quantized already, to {found}; {asked} was asked for. "
            "Leave -q out, or start from a bf16 checkpoint."
        )


def quantized_tensors(
    file: LMFile, recipe: Recipe, progress: Progress | None = None, dtype: mx.Dtype | None = None
) -> Iterator[tuple[list[str], Quantization | None, dict[str, mx.array]]]:
    """Read the tensors of a file in floating point one at a time, quantizing those that the recipe says.

    All are turned into `dtype` first, if given.

    Yields the names (in the MLX layout) that share an array, how it was quantized, and its parts (`weight`,
    and `scales`, `biases` if quantized). A source tensor is released once all of its pieces were given.
    """
    work = work_by_source(file, recipe)
    tensors = open_tensors(file.path)
    total, done = sum(len(items) for items in work.values()), 0
    for source, items in work.items():
        array = tensors.pop(source)
        for (piece, how), names in items.items():
            weight = array if file.layout == "mlx" else piece.take(array)
            weight = weight if dtype is None else weight.astype(dtype)
            if how is None:
                mx.eval(weight)
                yield names, None, {"weight": weight}
            else:
                yield names, how, quantize_weight(weight, how)
            del weight
            done += 1
            if progress is not None:
                progress(done, total)
        del array
        mx.clear_cache()


def work_by_source(file: LMFile, recipe: Recipe) -> dict[str, dict[tuple[Piece, Quantization | None], list[str]]]:
    """The pieces to make of each tensor in the file, in the file's order: it is read once, front to back."""
    work: dict[str, dict[tuple[Piece, Quantization | None], list[str]]] = {}
    for name, piece in pieces(file.config, file.layout).items():
        how = recipe(name.removesuffix(".weight"), piece.shape) if name.endswith(".weight") else None
        source = name if file.layout == "mlx" else piece.source
        work.setdefault(source, {}).setdefault((piece, how), []).append(name)
    return dict(sorted(work.items(), key=lambda item: file.header.tensors[item[0]].start))
