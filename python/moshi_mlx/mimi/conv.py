"""Causal convolutions as matrix products, on channels-last activations [B, T, C].

MLX's CPU convolution kernels take many times what BLAS takes for the same work. A kernel's taps see the same input
shifted by whole rows, so the products are taken of views and summed by the product itself; where rows are few, a
window is laid out as one row instead. A layer's state is what it still needs of its input: the last `tail` steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..layers import linear

_FEW_ROWS = 4


def _product(parts: Sequence[mx.array], weights: Sequence[mx.array]) -> mx.array:
    """Sum of the products of `parts` [B, T, C] with `weights` [C, N]."""
    total = parts[0] @ weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = mx.addmm(total, part, weight)
    return total


class Conv:
    """A causal convolution; every `stride` inputs give one output.

    Args:
        weight: [out, in, kernel], the published layout.
        bias: [out] or None.
        rows: outputs in a streaming call, which decide how the weights are laid out.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None, rows: int, stride: int = 1, dilation: int = 1):
        self.outputs, self.inputs, self.kernel = weight.shape
        self.stride = stride
        self.dilation = dilation
        self.tail = (self.kernel - 1) * dilation + 1 - stride
        self.bias = bias
        # Taps that are neighbours in the input can be multiplied together: one stride, or the whole window.
        self.group = stride if self.kernel == 2 * stride else 1
        self.wide = rows <= _FEW_ROWS or self.inputs == 1
        flat = weight.swapaxes(1, 2).reshape(self.outputs, self.kernel * self.inputs)
        if self.wide:
            self.weights = [mx.contiguous(flat)]
        else:
            self.weights = [mx.contiguous(w.T) for w in mx.split(flat, self.kernel // self.group, axis=1)]

    def state(self, B: int) -> mx.array:
        """What came before the first input: silence."""
        return mx.zeros((B, self.tail, self.inputs), dtype=self.weights[0].dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, in], giving [B, T / stride, out] and the next tail."""
        T = x.shape[1]
        if self.tail:
            x = mx.concatenate([tail, x], axis=1)
            tail = x[:, T:]
        y = self._windows(x, T) if self.wide else _product(self._shifted(x, T), self.weights)
        return (y if self.bias is None else y + self.bias), tail

    def _windows(self, x: mx.array, T: int) -> mx.array:
        if self.kernel == 1:
            return linear(x, self.weights[0])
        last = T - self.stride + 1
        taps = [x[:, i : i + last : self.stride] for i in range(0, self.kernel * self.dilation, self.dilation)]
        return linear(mx.concatenate(taps, axis=2), self.weights[0])

    def _shifted(self, x: mx.array, T: int) -> list[mx.array]:
        if self.group > 1:
            blocks = x.reshape(x.shape[0], -1, self.group * self.inputs)
            return [blocks[:, :-1], blocks[:, 1:]]
        last = T - self.stride + 1
        return [x[:, i : i + last : self.stride] for i in range(0, self.kernel * self.dilation, self.dilation)]


class ConvTranspose:
    """A causal transposed convolution with a kernel of two strides; every input gives `stride` outputs.

    An output is a product of the two inputs that reach it, so no partial sums are carried, only the last input.

    Args:
        weight: [in, out, 2 * stride], the published layout.
        bias: [out] or None.
        rows: inputs in a streaming call, which decide how the weights are laid out.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None, rows: int, stride: int):
        self.inputs, self.outputs, _ = weight.shape
        self.stride = stride
        self.bias = bias
        self.wide = rows <= _FEW_ROWS
        # Of an input, the first `stride` taps reach the outputs that the second half of the one before reaches.
        taps = weight.reshape(self.inputs, self.outputs, 2, stride).transpose(2, 0, 3, 1)
        before, now = taps[1], taps[0]
        if self.wide:
            both = mx.concatenate([before, now]).reshape(2 * self.inputs, stride * self.outputs)
            self.weights = [mx.contiguous(both.T)]
        else:
            self.weights = [mx.contiguous(w.reshape(self.inputs, stride * self.outputs)) for w in (before, now)]

    def state(self, B: int) -> mx.array:
        """What came before the first input: nothing."""
        return mx.zeros((B, 1, self.inputs), dtype=self.weights[0].dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, in], giving [B, T * stride, out] and the next tail."""
        B, T, _ = x.shape
        both = mx.concatenate([tail, x], axis=1)
        if self.wide:
            y = linear(mx.concatenate([both[:, :T], x], axis=2), self.weights[0])
        else:
            y = _product([both[:, :T], both[:, 1:]], self.weights)
        y = y.reshape(B, T * self.stride, self.outputs)
        return (y if self.bias is None else y + self.bias), both[:, T:]


class Upsample:
    """A depthwise transposed convolution with a kernel of two strides.

    Args:
        weight: [channels, 1, 2 * stride], the published layout.
    """

    def __init__(self, weight: mx.array):
        self.channels, _, kernel = weight.shape
        self.stride = kernel // 2
        self.now = mx.contiguous(weight[:, 0, : self.stride].T)
        self.before = mx.contiguous(weight[:, 0, self.stride :].T)

    def state(self, B: int) -> mx.array:
        """What came before the first input: nothing."""
        return mx.zeros((B, 1, self.channels), dtype=self.now.dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, C], giving [B, T * stride, C] and the next tail."""
        B, T, C = x.shape
        before = mx.concatenate([tail, x], axis=1)
        y = x[:, :, None] * self.now + before[:, :T, None] * self.before
        return y.reshape(B, T * self.stride, C), before[:, T:]
