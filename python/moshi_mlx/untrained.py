"""A small random model made on the spot: it goes through all the code that a trained one does, and speaks noise."""

from __future__ import annotations

import io
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
import sentencepiece

from .checkpoint import pieces
from .config import LMConfig, MimiConfig
from .lm.weights import build
from .mimi import Mimi, expected_tensors
from .moshi import Moshi
from .text import TextTokenizer

_SENTENCES = (
    "This model was never trained, so the words that it says mean nothing at all.",
    "Name a trained model to hear a real answer to what you asked.",
    "Every frame of eighty milliseconds still takes the way of a real one.",
    "Good evening, how are you today? Very well, thank you, and what about you?",
)
_TEXT_CARD = 128

_MIMI = MimiConfig(
    dimension=64, n_filters=8, num_heads=4, num_layers=2, dim_feedforward=128, codebook_dim=32, bins=256, n_q=8
)
_LM = LMConfig(
    dim=128,
    num_heads=4,
    num_layers=2,
    n_q=16,
    dep_q=8,
    card=_MIMI.bins,
    text_card=_TEXT_CARD,
    delays=(0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1),
    context=250,
    depformer_dim=64,
    depformer_num_heads=2,
    depformer_num_layers=1,
    depformer_dim_feedforward=264,
)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, mx.array]:
    """Float32 tensors of the given shapes: matrices that keep the scale of what they multiply, norms of one."""
    rng = np.random.default_rng(seed % (1 << 64))
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            tensors[name] = mx.zeros(shape) if name.endswith("bias") else mx.ones(shape)
        else:
            fan_in = int(np.prod(shape[1:]))
            tensors[name] = mx.array(rng.standard_normal(shape, dtype=np.float32) * fan_in**-0.5)
    return tensors


def make_untrained(seed: int = 0) -> Moshi:
    """A random language model of 1 M weights, a random codec, and a tokenizer of a few sentences.

    The same seed gives the same model.
    """
    lm = build(_LM, random_tensors({name: piece.shape for name, piece in pieces(_LM).items()}, seed))
    codec = random_tensors(expected_tensors(_MIMI), seed + 1)
    for name in codec:
        # A codebook's entries are its sums by its counts: one count for all.
        if name.endswith("cluster_usage"):
            codec[name] = mx.ones(codec[name].shape)
    mimi = Mimi(codec, _MIMI, num_codebooks=8)
    return Moshi(lm, mimi, TextTokenizer(_tokenizer()), name=f"untrained, seed {seed}")


def _tokenizer() -> bytes:
    model = io.BytesIO()
    # Ids as in the published tokenizer: 3 is padding.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        vocab_size=_TEXT_CARD,
        model_type="bpe",
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()
