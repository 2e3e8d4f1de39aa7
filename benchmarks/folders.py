"""Complete random models on disk: language model, full-size codec and a tokenizer of the right size."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
from models import SHAPES, make_lm
from random_weights import make_mimi

CODEC = "tokenizer-e351c8d8-checkpoint125.safetensors"


def make_folder(folder: Path, shape: str, bits: int | None, codec: Path | None = None) -> Path:
    """Write the model of a shape of `models.SHAPES`, with `codec` or a random one, and return its weights file."""
    config = SHAPES[shape]
    weights = make_lm(folder, config, bits)
    if codec:
        (folder / CODEC).symlink_to(codec.resolve())
    else:
        make_mimi(folder / CODEC)
    (folder / "text.model").write_bytes(make_tokenizer(config["text_card"]))
    names = {"moshi_name": weights.name, "mimi_name": CODEC, "tokenizer_name": "text.model"}
    (folder / "config.json").write_text(json.dumps({**config, **names}))
    return weights


def make_tokenizer(size: int) -> bytes:
    """A sentencepiece model of `size` pieces, padding at 3 as in the published one, that makes no sense."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ab ba", "a b ab"]), model_writer=model, vocab_size=size, model_type="bpe", pad_id=3,
        user_defined_symbols=[f"\u2581word{i}" for i in range(size - 12)], hard_vocab_limit=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    return model.getvalue()
