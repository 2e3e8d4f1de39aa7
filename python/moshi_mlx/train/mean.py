"""The mean of models that started from the same weights: `python -m moshi_mlx.train mean FOLDER FOLDER --out FOLDER`.

Source: Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of zero-shot models": the mean of runs with other
seeds and rates, or of the weights before and after a run, often knows more than each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoint import CheckpointFiles, resolve
from ..errors import ConfigError
from ..lm.weights import export as published_tensors
from .corpus import codec_tensors
from .export import write_model
from .lm import unpacked

_ALIKE = "Give models that `python -m moshi_mlx.train lm` made from the same weights (--init), with the same codec."


def mean(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of models, in half precision, as one more model's folder.

    Args:
        folders: of models of one shape, with one codec and one tokenizer; quantized ones are unpacked. Named twice, a
            model counts twice.
        out: made if missing.

    Raises:
        CheckpointError: a folder lacks a part, or its files are damaged.
        ConfigError: the models differ in more than the language model's weights.
        StorageError: disk full, no permission.
    """
    counts = Counter(folders)
    found = [resolve(folder, parts=["lm", "mimi", "tokenizer"]) for folder in counts]
    first = found[0]
    codec = _codec(first)
    for other in found[1:]:
        if other.lm_config != first.lm_config:
            raise ConfigError(f"{other.name} holds a model of another shape than {first.name}. {_ALIKE}")
        if other.need("tokenizer").read_bytes() != first.need("tokenizer").read_bytes():
            raise ConfigError(f"{other.name} writes with other tokens than {first.name}. {_ALIKE}")
        theirs = _codec(other)
        if theirs.keys() != codec.keys() or not all(mx.array_equal(x, codec[name]) for name, x in theirs.items()):
            raise ConfigError(f"{other.name} hears and speaks with another codec than {first.name}. {_ALIKE}")
    total: dict[str, mx.array] = {}
    for files, count in zip(found, counts.values(), strict=True):
        for name, tensor in published_tensors(unpacked(files)).items():
            total[name] = total.get(name, 0) + tensor * (count / len(folders))
        mx.eval(total)
    write_model(out, total, first.config, first.need("tokenizer"), first.need("mimi"), codec)


def _codec(files: CheckpointFiles) -> dict[str, mx.array]:
    folder = files.need("mimi")
    if not folder.is_dir():
        raise ConfigError(f"{files.name} has its codec in no folder of its own, as `moshi_mlx.train lm` writes it.")
    return codec_tensors(folder)
