"""Which codewords latents find, as training needs it: with gradients through the choice."""

from __future__ import annotations

from typing import cast

import mlx.core as mx

from ..fast_math import softmax

_NEARNESS = 0.1
"""Of a softmax over the codewords' squared distances, relative to their mean between latents and what they found."""


def look_up(book: mx.array, latents: mx.array) -> tuple[mx.array, mx.array]:
    """Numbers [...] of the codewords nearest to `latents` [..., width] in `book` [bins, width], and the words."""
    return _found(book, _likeness(book, latents))


def look_up_softly(book: mx.array, latents: mx.array, table: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Numbers and words as `look_up` gives them, and zeros to add to the embeddings of what was found.

    Through the zeros gradients reach the latents as if the embedding were the mean of all, weighted by how near their
    codewords are (the straight-through estimator of Bengio et al. 2013 on a softmax of the distances).

    Args:
        book: [bins, width].
        latents: float32 [..., width].
        table: of the codewords' embeddings, [bins, D]; no gradients reach it.

    Returns:
        int32 [...], [..., width] without gradients, and [..., D].
    """
    likeness = _likeness(book, latents)
    codes, words = _found(book, likeness)
    apart = mx.stop_gradient((latents - words).square().sum(axis=-1).mean())
    return codes, words, cast(mx.array, _pull(likeness / (_NEARNESS * apart + 1e-9), table))


@mx.custom_function
def _pull(scores: mx.array, table: mx.array) -> mx.array:
    return mx.zeros((*scores.shape[:-1], table.shape[-1]))


@_pull.vjp
def _pull_back(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    scores, table = primals
    shares = softmax(scores)
    gains = shares * (cotangent @ table.T)
    return gains - shares * gains.sum(axis=-1, keepdims=True), mx.zeros_like(table)


def _likeness(book: mx.array, latents: mx.array) -> mx.array:
    return latents @ book.T - 0.5 * book.square().sum(axis=1)


def _found(book: mx.array, likeness: mx.array) -> tuple[mx.array, mx.array]:
    codes = mx.stop_gradient(mx.argmax(likeness, axis=-1))
    return codes, mx.stop_gradient(book[codes])
