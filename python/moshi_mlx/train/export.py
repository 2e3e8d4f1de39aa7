"""A trained model as a checkpoint folder in the published layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..checkpoint import TensorSpec, write_safetensors
from ..errors import ConfigError
from ..files import ResultFile, storage_errors
from ..lm.weights import export as published_tensors
from .lm import Trainer, is_output_layer


def check_keep(trainer: Trainer, keep: float) -> None:
    """Refuse a share of the weights that a run started from which `export` couldn't keep.

    Raises:
        ConfigError: it is no share, or the run started from no weights.
    """
    if not 0 <= keep <= 1 or (keep and trainer.initial is None):
        raise ConfigError(f"keep is {keep}; expected 0 to 1, and 0 unless the run started from weights (--init).")


def export(trainer: Trainer, folder: Path, averaged: bool = True, keep: float = 0.0) -> None:
    """Write a model with its codec and tokenizer, all in half precision, ready for `moshi_mlx.load(folder)`.

    Args:
        trainer: the run.
        folder: made if missing.
        averaged: take the averaged weights rather than the last ones.
        keep: share of the weights that the run started from, 0 to 1. What was learned on a small corpus then costs
            less of what was known before (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    Raises:
        ConfigError: `keep` is no such share, or the run started from no weights.
        StorageError: disk full, no permission.
    """
    config = trainer.config
    check_keep(trainer, keep)
    with storage_errors(str(folder)):
        (folder / "codec").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config.work / "tokenizer.model", folder / "tokenizer.model")
        shutil.copyfile(config.codec / "config.json", folder / "codec" / "config.json")
    model = trainer.model.lm
    trained = tree_map(lambda p: p, model.parameters())
    if averaged:
        model.update(trainer.average)
    if keep and trainer.initial is not None:
        learned = dict(tree_flatten(model.parameters()))
        model.load_weights([(n, keep * before + (1 - keep) * learned[n]) for n, before in trainer.initial.items()])
    tensors = published_tensors(model)
    model.update(trained)
    _silence_unheard(tensors, trainer)
    for name in tensors:
        if is_output_layer(name):
            tensors[name] = config.train.sharpness * tensors[name]
    write_half(folder / "model.safetensors", tensors)
    codec = mx.load(str(config.codec / "model.safetensors"))
    assert isinstance(codec, dict)
    write_half(folder / "codec" / "model.safetensors", codec)
    about = {
        **config.model,
        "moshi_name": "model.safetensors",
        "mimi_name": "codec",
        "tokenizer_name": "tokenizer.model",
    }
    with ResultFile(folder / "config.json") as file:
        file.write(json.dumps(about, indent=1).encode())


def _silence_unheard(tensors: dict[str, mx.array], trainer: Trainer) -> None:
    # Codebooks of the user that training never showed: what their embeddings hold is chance, and would be heard.
    first = trainer.lm_config.dep_q + trainer.config.mix.user_codebooks
    initial = trainer.lm_config.initial_token_id
    for k in range(first, trainer.lm_config.n_q):
        table = tensors[f"audio_embs.{k}.weight"]
        kept = mx.arange(table.shape[0])[:, None] == initial
        tensors[f"audio_embs.{k}.weight"] = mx.where(kept, table, 0)


def write_half(path: Path, tensors: dict[str, mx.array]) -> int:
    """Write tensors in float16; returns the file's size.

    Raises:
        StorageError: disk full, no permission.
    """
    halves = {name: array.astype(mx.float16) for name, array in tensors.items()}
    specs = {name: TensorSpec(tuple(array.shape), "F16") for name, array in halves.items()}
    return write_safetensors(path, specs, iter(halves.items()))
