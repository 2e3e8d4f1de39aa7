"""A trained model as a checkpoint folder in the published layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from ..checkpoint import write_half
from ..files import copy_file, make_folder, write_json
from ..lm.weights import export as published_tensors
from .corpus import known_answers, write_answers
from .heads import Heads, write_heads
from .lm import Trainer, is_output_layer


def export(trainer: Trainer, folder: Path, averaged: bool = True) -> None:
    """Write a model with its codec and tokenizer, all in half precision, ready for `moshi_mlx.load(folder)`.

    Beside it are the run's auxiliary heads, for a run that starts from it.

    Args:
        trainer: the run.
        folder: made if missing.
        averaged: take the averaged weights rather than the last ones.

    Raises:
        StorageError: disk full, no permission.
    """
    config = trainer.config
    model = trainer.model.lm
    trained = tree_map(lambda p: p, model.parameters())
    if averaged:
        model.update(trainer.average)
    tensors = published_tensors(model)
    model.update(trained)
    _silence_unheard(tensors, trainer)
    for name in tensors:
        if is_output_layer(name):
            tensors[name] = config.train.sharpness * tensors[name]
    tokenizer = config.work / "tokenizer.model"
    write_model(folder, tensors, config.model, tokenizer, config.codec, trainer.codec(), trainer.auxiliary())


def write_model(
    folder: Path,
    tensors: dict[str, mx.array],
    about: Mapping[str, Any],
    tokenizer: Path,
    codec: Path,
    codec_weights: dict[str, mx.array],
    heads: Heads,
) -> None:
    """Write a model's folder, all in half precision.

    Args:
        folder: made if missing; it may be one of those that the parts are from.
        tensors: of the language model.
        about: keys of its `config.json`.
        tokenizer: its file.
        codec: its folder.
        codec_weights: the codec's tensors.
        heads: the auxiliary heads that a run from this model starts with, if any.

    Raises:
        StorageError: disk full, no permission.
    """
    make_folder(folder / "codec")
    copy_file(tokenizer, folder / "tokenizer.model")
    copy_file(codec / "config.json", folder / "codec" / "config.json")
    write_half(folder / "model.safetensors", tensors)
    write_half(folder / "codec" / "model.safetensors", codec_weights)
    write_answers(folder / "codec", known_answers(codec).values())
    write_heads(folder, heads)
    names = {"moshi_name": "model.safetensors", "mimi_name": "codec", "tokenizer_name": "tokenizer.model"}
    # Half precision is not quantized, whatever the model was that this comes of.
    kept = {key: value for key, value in about.items() if key not in ("quantization", "quantization_config")}
    write_json(folder / "config.json", {**kept, **names})


def _silence_unheard(tensors: dict[str, mx.array], trainer: Trainer) -> None:
    # Codebooks of the user that training never showed: what their embeddings hold is chance, and would be heard.
    first = trainer.lm_config.dep_q + trainer.config.mix.user_codebooks
    initial = trainer.lm_config.initial_token_id
    for k in range(first, trainer.lm_config.n_q):
        table = tensors[f"audio_embs.{k}.weight"]
        kept = mx.arange(table.shape[0])[:, None] == initial
        tensors[f"audio_embs.{k}.weight"] = mx.where(kept, table, 0)
