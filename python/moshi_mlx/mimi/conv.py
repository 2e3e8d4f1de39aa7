"""Causal convolutions as matrix products, on channels-last activations [B, T, C].

MLX's CPU convolution kernels take many times what BLAS takes for the same work, so a window is laid out as a row and
multiplied. A layer's state is what it still needs of its input: the last `tail` steps [B, tail, C].
"""

from __future__ import annotations

import mlx.core as mx

from ..layers import linear


class Conv:
    """A causal convolution; every `stride` inputs give one output.

    Args:
        weight: [out, in, kernel], the published layout.
        bias: [out] or None.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None, stride: int = 1, dilation: int = 1):
        self.outputs, self.inputs, self.kernel = weight.shape
        self.stride = stride
        self.dilation = dilation
        self.tail = (self.kernel - 1) * dilation + 1 - stride
        self.weight = weight.swapaxes(1, 2).reshape(self.outputs, self.kernel * self.inputs)
        self.bias = bias

    def state(self, B: int) -> mx.array:
        """What came before the first input: silence."""
        return mx.zeros((B, self.tail, self.inputs), dtype=self.weight.dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, in], giving [B, T / stride, out] and the next tail."""
        B, T, C = x.shape
        if self.tail:
            x = mx.concatenate([tail, x], axis=1)
            tail = x[:, T:]
        if self.kernel == 1:
            y = linear(x, self.weight)
        else:
            last = T - self.stride + 1
            taps = [x[:, i : i + last : self.stride] for i in range(0, self.kernel * self.dilation, self.dilation)]
            y = linear(mx.concatenate(taps, axis=2), self.weight)
        return (y if self.bias is None else y + self.bias), tail


class ConvTranspose:
    """A causal transposed convolution with a kernel of two strides; every input gives `stride` outputs.

    An output is a product of the two inputs that reach it, so no partial sums are carried, only the last input.

    Args:
        weight: [in, out, 2 * stride], the published layout.
        bias: [out] or None.
    """

    tail = 1

    def __init__(self, weight: mx.array, bias: mx.array | None, stride: int):
        self.inputs, self.outputs, _ = weight.shape
        self.stride = stride
        # Rows are (phase, output), columns (this input, the one before).
        taps = weight.reshape(self.inputs, self.outputs, 2, stride).transpose(3, 1, 2, 0)
        self.weight = taps.reshape(stride * self.outputs, 2 * self.inputs)
        self.bias = bias

    def state(self, B: int) -> mx.array:
        """What came before the first input: nothing."""
        return mx.zeros((B, 1, self.inputs), dtype=self.weight.dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, in], giving [B, T * stride, out] and the next tail."""
        B, T, C = x.shape
        before = mx.concatenate([tail, x], axis=1)
        y = linear(mx.concatenate([x, before[:, :T]], axis=2), self.weight).reshape(B, T * self.stride, self.outputs)
        return (y if self.bias is None else y + self.bias), before[:, T:]


class Upsample:
    """A depthwise transposed convolution with a kernel of two strides.

    Args:
        weight: [channels, 1, 2 * stride], the published layout.
    """

    def __init__(self, weight: mx.array):
        self.channels, _, kernel = weight.shape
        self.stride = kernel // 2
        self.now = weight[:, 0, : self.stride].T
        self.before = weight[:, 0, self.stride :].T

    def state(self, B: int) -> mx.array:
        """What came before the first input: nothing."""
        return mx.zeros((B, 1, self.channels), dtype=self.now.dtype)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """Continue `tail` with `x` [B, T, C], giving [B, T * stride, C] and the next tail."""
        B, T, C = x.shape
        before = mx.concatenate([tail, x], axis=1)
        y = x[:, :, None] * self.now + before[:, :T, None] * self.before
        return y.reshape(B, T * self.stride, C), before[:, T:]
