"""Which codewords latents find, as training needs it: with gradients through the choice."""

from __future__ import annotations

import mlx.core as mx

_NEARNESS = 0.1
"""Of a softmax over the codewords' squared distances, relative to their mean between latents and what they found."""


def look_up(book: mx.array, latents: mx.array) -> tuple[mx.array, mx.array]:
    """Numbers [...] of the codewords nearest to `latents` [..., width] in `book` [bins, width], and the words."""
    return _found(book, _likeness(book, latents))


def embedded(book: mx.array, latents: mx.array, table: mx.array) -> tuple[mx.array, mx.array]:
    """Embeddings of the codewords nearest to latents, and the words.

    The gradients reach the embeddings of what was found, and the latents as if an embedding were the mean of all,
    weighted by how near their codewords are (the straight-through estimator of Bengio et al. 2013 on a softmax of the
    distances).

    Args:
        book: [bins, width].
        latents: [..., width].
        table: of the codewords' embeddings, [bins, D].

    Returns:
        [..., D], and, without gradients, [..., width].
    """
    likeness = _likeness(book, latents)
    codes, words = _found(book, likeness)
    apart = mx.stop_gradient((latents - words).square().sum(axis=-1).mean())
    near = mx.softmax(likeness / (_NEARNESS * apart + 1e-9), axis=-1) @ mx.stop_gradient(table)
    return table[codes] + near - mx.stop_gradient(near), words


def _likeness(book: mx.array, latents: mx.array) -> mx.array:
    return latents @ book.T - 0.5 * book.square().sum(axis=1)


def _found(book: mx.array, likeness: mx.array) -> tuple[mx.array, mx.array]:
    codes = mx.stop_gradient(mx.argmax(likeness, axis=-1))
    return codes, mx.stop_gradient(book[codes])
