"""SEANet, the convolutional ends of the codec. Source: "Moshi", section 3.3.1, and the published weights' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from ..config import FRAME_SIZE, MimiConfig
from .activations import elu
from .conv import Conv, ConvTranspose

Tensors = Mapping[str, mx.array]
Tails = list[mx.array]


class Residual:
    """x + conv(elu(conv(elu(x)))): a dilated convolution into fewer channels and back."""

    def __init__(self, wide: Conv, narrow: Conv):
        self.wide = wide
        self.narrow = narrow

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        hidden, tail = self.wide(elu(x), tail)
        update, _ = self.narrow(elu(hidden), tail)
        return x + update, tail


Layer = Conv | ConvTranspose | Residual


class Stack:
    """Layers in a row; `elu_before` tells which have a non-linearity in front of them."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.elu_before: list[bool] = []

    def add(self, layer: Layer, elu_before: bool = False) -> None:
        self.layers.append(layer)
        self.elu_before.append(elu_before)

    def state(self, B: int) -> Tails:
        """Tails of all layers before the first input."""
        return [(layer.wide if isinstance(layer, Residual) else layer).state(B) for layer in self.layers]

    def __call__(self, x: mx.array, tails: Tails) -> tuple[mx.array, Tails]:
        """Continue `tails` with `x` [B, T, C]."""
        following = []
        for layer, before, tail in zip(self.layers, self.elu_before, tails, strict=True):
            x, tail = layer(elu(x) if before else x, tail)
            following.append(tail)
        return x, following


def _conv(tensors: Tensors, name: str, rows: int, stride: int = 1, dilation: int = 1) -> Conv:
    return Conv(tensors[f"{name}.conv.conv.weight"], tensors[f"{name}.conv.conv.bias"], rows, stride, dilation)


def _residual(tensors: Tensors, name: str, rows: int, dilation: int) -> Residual:
    return Residual(_conv(tensors, f"{name}.block.1", rows, dilation=dilation), _conv(tensors, f"{name}.block.3", rows))


def _counter() -> Callable[[int], int]:
    # The published modules sit in one sequence in which non-linearities have a number too.
    position = -1

    def advance(steps: int) -> int:
        nonlocal position
        position += steps
        return position

    return advance


def encoder(tensors: Tensors, config: MimiConfig, prefix: str = "encoder.model") -> Stack:
    """Sound [B, T, 1] to latents [B, T / hop, dimension]."""
    stack, index, rows = Stack(), _counter(), FRAME_SIZE
    stack.add(_conv(tensors, f"{prefix}.{index(1)}", rows))
    for ratio in reversed(config.ratios):
        for depth in range(config.n_residual_layers):
            stack.add(_residual(tensors, f"{prefix}.{index(1)}", rows, config.dilation_base**depth))
        rows //= ratio
        stack.add(_conv(tensors, f"{prefix}.{index(2)}", rows, stride=ratio), elu_before=True)
    stack.add(_conv(tensors, f"{prefix}.{index(2)}", rows), elu_before=True)
    return stack


def decoder(tensors: Tensors, config: MimiConfig, prefix: str = "decoder.model") -> Stack:
    """Latents [B, T, dimension] to sound [B, T * hop, 1]."""
    stack, index, rows = Stack(), _counter(), FRAME_SIZE // config.hop
    stack.add(_conv(tensors, f"{prefix}.{index(1)}", rows))
    for ratio in config.ratios:
        name = f"{prefix}.{index(2)}.convtr.convtr"
        stack.add(ConvTranspose(tensors[f"{name}.weight"], tensors[f"{name}.bias"], rows, ratio), elu_before=True)
        rows *= ratio
        for depth in range(config.n_residual_layers):
            stack.add(_residual(tensors, f"{prefix}.{index(1)}", rows, config.dilation_base**depth))
    stack.add(_conv(tensors, f"{prefix}.{index(2)}", rows), elu_before=True)
    return stack
