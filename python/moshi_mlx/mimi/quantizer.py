"""The split residual quantizer: one semantic codebook beside a chain of acoustic ones.

Source: "Moshi", section 3.3.2: the semantic codebook isn't part of the residual chain; both halves see the latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from ..layers import linear

_MIN_USAGE = 1e-5


class SplitQuantizer:
    """Latents [B, T, dimension] to codes [B, K, T] and back.

    Args:
        num_codebooks: how many to keep, the semantic one included.
    """

    def __init__(self, tensors: Mapping[str, mx.array], num_codebooks: int):
        self.num_codebooks = num_codebooks
        halves = ["rvq_first"] if num_codebooks == 1 else ["rvq_first", "rvq_rest"]
        books = [codebook(tensors, "rvq_first", 0)]
        books += [codebook(tensors, "rvq_rest", i) for i in range(num_codebooks - 1)]
        self.bins, self.width = books[0].shape
        self.books = mx.stack(books)
        # Words as rows to look up and as columns to compare with: one row times columns is what BLAS reads fastest.
        self.rows = _parts(self.books)
        self.columns = _parts(mx.contiguous(self.books.swapaxes(1, 2)))
        self.half_norms = _parts(0.5 * self.books.square().sum(axis=2))
        self.input_proj = mx.concatenate([tensors[f"quantizer.{h}.input_proj.weight"][:, :, 0] for h in halves])
        self.output_proj = mx.concatenate(
            [tensors[f"quantizer.{h}.output_proj.weight"][:, :, 0] for h in halves], axis=1
        )

    def encode(self, x: mx.array) -> mx.array:
        """Nearest codewords of `x` [B, T, dimension] as int32 [B, K, T]."""
        latents = linear(x, self.input_proj)
        codes = [self._nearest(latents[..., : self.width], 0)]
        residual = latents[..., self.width :]
        for k in range(1, self.num_codebooks):
            codes.append(self._nearest(residual, k))
            if k + 1 < self.num_codebooks:
                residual = residual - self.rows[k][codes[-1]]
        return mx.stack(codes, axis=1).astype(mx.int32)

    def _nearest(self, x: mx.array, k: int) -> mx.array:
        # |x - e|^2 is smallest where x·e - |e|^2 / 2 is largest.
        return mx.argmax(x @ self.columns[k] - self.half_norms[k], axis=-1)

    def decode(self, codes: mx.array) -> mx.array:
        """Latents [B, T, dimension] of `codes` [B, K, T], the nearest there are; K may be less than `num_codebooks`."""
        B, K, T = codes.shape
        offsets = mx.arange(K, dtype=mx.int32)[:, None] * self.bins
        words = self.books.reshape(-1, self.width)[mx.clip(codes.astype(mx.int32), 0, self.bins - 1) + offsets]
        if K == 1:
            return linear(words[:, 0], self.output_proj[:, : self.width])
        return linear(mx.concatenate([words[:, 0], words[:, 1:].sum(axis=1)], axis=-1), self.output_proj)


def _parts(stacked: mx.array) -> list[mx.array]:
    # Views, made once: picking one of a stack by its number in a step would copy it.
    return [part.squeeze(0) for part in mx.split(stacked, len(stacked))]


def codebook(tensors: Mapping[str, mx.array], half: str, index: int) -> mx.array:
    """Codewords [bins, width] of half `rvq_first` or `rvq_rest`, from the sums and counts that files hold."""
    name = f"quantizer.{half}.vq.layers.{index}._codebook"
    usage = tensors[f"{name}.cluster_usage"].astype(mx.float32)
    total = tensors[f"{name}.embedding_sum"]
    return (total.astype(mx.float32) / mx.maximum(usage, _MIN_USAGE)[:, None]).astype(total.dtype)
