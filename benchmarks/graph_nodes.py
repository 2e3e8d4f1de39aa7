"""Counts of what a computation asks of the device and of the host, taken from MLX's graphs before they run.

Serves `dispatches.py` in this project's environment and in the peers' alike, so it knows neither.

On Metal an RMS norm, a rotary embedding, an attention and a dequantization are one kernel each; on CPU, MLX composes
them of many operations. While counting, each is therefore replaced by a single operation of another kind.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Copy", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split",
    "Squeeze", "StopGradient", "Transpose", "Unflatten", "View",
}  # fmt: skip
"""Operations that describe memory anew and launch nothing."""

STAND_INS = {"CumSum": "RMSNorm", "CumProd": "RoPE", "CumMax": "Attention", "CumMin": "Dequantize"}
"""What is counted, by the operation that stands for it; no step has any of these otherwise."""

_NODE = re.compile(r'\[label ="(\w+)", shape=rectangle\]')
_SYNCHRONISING = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__", "__dlpack__")


def nodes(*arrays: mx.array) -> Counter[str]:
    """Operations that must run before `arrays` are there, views not counted, by name."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return Counter(
        "Fused elementwise" if name.startswith("Compiled") else STAND_INS.get(name, name)
        for name in _NODE.findall(text.getvalue())
        if name not in VIEWS
    )


@contextmanager
def kernels_of_metal() -> Iterator[None]:
    """Inside, every operation that is one kernel on Metal is one node."""
    with ExitStack() as stack:
        for name, stand_in in (
            ("rms_norm", lambda x, *_, **__: mx.cumsum(x, axis=-1)),
            ("layer_norm", lambda x, *_, **__: mx.cumsum(x, axis=-1)),
            ("rope", lambda x, *_, **__: mx.cumprod(x, axis=-1)),
            ("scaled_dot_product_attention", _attention),
        ):
            stack.enter_context(mock.patch.object(mx.fast, name, stand_in))
        stack.enter_context(mock.patch.object(mx, "dequantize", _dequantize))
        yield


def _attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any) -> mx.array:
    sources = [k, v, mask] if isinstance(mask, mx.array) else [k, v]
    return mx.cummax(mx.depends([q], sources)[0], axis=-1)


def _dequantize(
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    group_size: int = 64,
    bits: int = 4,
    mode: str = "",
    dtype: Any = None,
) -> mx.array:
    sources = [w] if biases is None else [w, biases]
    first = mx.depends([scales], sources)[0][..., :1]
    return mx.cummin(mx.broadcast_to(first, (*w.shape[:-1], w.shape[-1] * 32 // bits)), axis=-1)


class Observer:
    """What happened between `watch`'s beginning and end.

    Attributes:
        nodes: operations launched, by name.
        synchronisations: times that the host waited for a result.
    """

    def __init__(self) -> None:
        self.nodes: Counter[str] = Counter()
        self.synchronisations = 0
        self._eval, self._async_eval = mx.eval, mx.async_eval
        self._under_way = False

    def synchronise(self, *trees: Any) -> None:
        """The host waits for all arrays of `trees`."""
        arrays = list(_arrays(trees))
        counted = nodes(*arrays)
        self.nodes += counted
        # Reading what is there already is no wait.
        self.synchronisations += bool(counted) or self._under_way
        self._under_way = False
        self._eval(arrays)

    def queue(self, *trees: Any) -> None:
        """All arrays of `trees` are handed to the device, nobody waiting."""
        arrays = list(_arrays(trees))
        self.nodes += nodes(*arrays)
        self._under_way = True
        self._async_eval(arrays)


@contextmanager
def watch() -> Iterator[Observer]:
    """Observe everything that is evaluated inside, in whatever way."""
    observer = Observer()
    with ExitStack() as stack:
        for name in _SYNCHRONISING:
            if original := getattr(mx.array, name, None):
                stack.enter_context(mock.patch.object(mx.array, name, _observed(original, observer)))
        stack.enter_context(mock.patch.object(mx, "eval", observer.synchronise))
        stack.enter_context(mock.patch.object(mx, "async_eval", observer.queue))
        for name in ("array", "asarray", "ascontiguousarray"):
            stack.enter_context(mock.patch.object(np, name, _reading(getattr(np, name), observer)))
        yield observer


def _observed(original: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    def method(self: mx.array, *arguments: Any, **options: Any) -> Any:
        observer.synchronise(self)
        return original(self, *arguments, **options)

    return method


def _reading(original: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    def function(source: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(source, mx.array):
            observer.synchronise(source)
        return original(source, *arguments, **options)

    return function


def _arrays(tree: Any) -> Iterator[mx.array]:
    if isinstance(tree, mx.array):
        yield tree
    elif isinstance(tree, dict):
        yield from _arrays(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _arrays(item)
