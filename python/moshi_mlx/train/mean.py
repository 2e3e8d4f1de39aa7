"""The mean of models that started from the same weights: `python -m moshi_mlx.train mean FOLDER FOLDER --out FOLDER`.

Source: Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of zero-shot models": the mean of runs with other
seeds and rates, or of the weights before and after a run, often knows more than each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoint import CheckpointFiles, resolve
from ..errors import ConfigError
from ..lm.weights import export as published_tensors
from .corpus import codec_tensors
from .export import write_model
from .heads import mean_heads, read_heads
from .joint import ENCODER
from .lm import unpacked

_ALIKE = "Give models that `python -m moshi_mlx.train lm` made from the same weights (--init), with the same codec."


def mean(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of models, in half precision, as one more model's folder.

    Args:
        folders: of models of one shape and one tokenizer, with one codec but for encoders that learned along with them;
            quantized ones are unpacked. Named twice, a model counts twice.
        out: made if missing.

    Raises:
        CheckpointError: a folder lacks a part, or its files are damaged.
        ConfigError: the models differ in more than the weights of language model and encoder.
        StorageError: disk full, no permission.
    """
    counts = Counter(folders)
    found = [resolve(folder, parts=["lm", "mimi", "tokenizer"]) for folder in counts]
    first = found[0]
    codecs = [_codec(files) for files in found]
    codec = codecs[0]
    for other, theirs in zip(found[1:], codecs[1:], strict=True):
        if other.lm_config != first.lm_config:
            raise ConfigError(f"{other.name} holds a model of another shape than {first.name}. {_ALIKE}")
        if other.need("tokenizer").read_bytes() != first.need("tokenizer").read_bytes():
            raise ConfigError(f"{other.name} writes with other tokens than {first.name}. {_ALIKE}")
        if theirs.keys() != codec.keys() or not all(
            name.startswith(ENCODER) or mx.array_equal(x, codec[name]) for name, x in theirs.items()
        ):
            raise ConfigError(f"{other.name} hears and speaks with another codec than {first.name}. {_ALIKE}")
    shares = [count / len(folders) for count in counts.values()]
    lm = _mean((published_tensors(unpacked(files)) for files in found), shares)
    encoder = _mean(({n: x for n, x in one.items() if n.startswith(ENCODER)} for one in codecs), shares)
    heads = mean_heads([read_heads(folder) for folder in counts], shares)
    write_model(out, lm, first.config, first.need("tokenizer"), first.need("mimi"), {**codec, **encoder}, heads)


def _mean(models: Iterable[Mapping[str, mx.array]], shares: Sequence[float]) -> dict[str, mx.array]:
    total: dict[str, mx.array] = {}
    for tensors, share in zip(models, shares, strict=True):
        for name, tensor in tensors.items():
            total[name] = total.get(name, 0) + tensor.astype(mx.float32) * share
        mx.eval(total)
    return total


def _codec(files: CheckpointFiles) -> dict[str, mx.array]:
    folder = files.need("mimi")
    if not folder.is_dir():
        raise ConfigError(f"{files.name} has its codec in no folder of its own, as `moshi_mlx.train lm` writes it.")
    return codec_tensors(folder)
