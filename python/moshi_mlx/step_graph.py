"""The computation of one step with fixed shapes: delays, sampling, and graphs that are built once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .layers import arrays_of, compiled
from .lm import KVCache, LMModel, Sampling
from .lm.cache import LayerCache
from .lm.sampling import gumbel_noise, sample
from .lm.transformer import StepPosition

StateArrays = tuple[list[LayerCache], mx.array]

_FIRST_WINDOW = 128


@dataclass
class GenState:
    """Everything a conversation's language model remembers between steps.

    Attributes:
        kv: the KV cache, with the number of steps taken.
        line: the delay line, int32 [B, 1 + n_q, columns]; column `max_delay` is what the next step reads.
        seed: of the noise, with the step's number.
    """

    kv: KVCache
    line: mx.array
    seed: int

    @property
    def offset(self) -> int:
        """Steps taken."""
        return self.kv.offset

    def arrays(self) -> StateArrays:
        """All arrays of the state: the KV cache's layers, the delay line."""
        return self.kv.layers, self.line

    def copy(self) -> GenState:
        """An independent state with the same content."""
        return GenState(self.kv.copy(), mx.array(self.line), self.seed)


class StepGraph:
    """The computation of one step with fixed shapes, compiled once for all conversations that sample alike.

    Attributes:
        traces: how often a graph was built; it stays as it is once `LMGen.warm_up` has run.
    """

    def __init__(
        self,
        lm: LMModel,
        batch_size: int,
        audio_sampling: Sampling,
        text_sampling: Sampling,
        compile: bool = True,
        kv_bits: int | None = None,
    ):
        self.lm = lm
        self.kv_bits = kv_bits
        self.batch_size = batch_size
        self.audio_sampling = audio_sampling
        self.text_sampling = text_sampling
        self.compile = compile
        self.traces = 0
        context = lm.config.context
        doubled = [_FIRST_WINDOW << i for i in range(context.bit_length()) if _FIRST_WINDOW << i < context]
        self.windows = [*doubled, context]
        """The cache lengths that steps are compiled for: each is read until a conversation outgrows it."""
        self._functions: dict[Hashable, Callable[..., Any]] = {}

    def window(self, offset: int) -> int:
        """How much of the cache step number `offset` reads."""
        return next((w for w in self.windows if w > offset), self.windows[-1])

    def inputs(
        self,
        state: GenState,
        codes: mx.array | None,
        forced: mx.array | None,
        condition: mx.array | None,
        window: int | None = None,
    ) -> dict[str, Any]:
        """The arrays that the step at hand takes beside the state; `window` is what it reads, if more than it must."""
        config, offset = self.lm.config, state.offset
        arrays: dict[str, Any] = {
            "where": tuple(self.lm.transformer.step_position(offset, window or self.window(offset))),
            # A stream delayed by d holds initial tokens up to and including step d.
            "initial": mx.array(offset <= np.array(config.delays)),
        }
        if not self.text_sampling.is_greedy:
            arrays["text_noise"] = gumbel_noise(state.seed, 2 * offset, (self.batch_size, config.text_card))
        if config.dep_q and not self.audio_sampling.is_greedy:
            shape = (self.batch_size, config.dep_q, config.card)
            arrays["audio_noise"] = gumbel_noise(state.seed, 2 * offset + 1, shape)
        optional = {"codes": codes, "forced": forced, "condition": condition}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    def compiled(self, key: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The function that `make` gives, compiled and kept under `key`."""
        if key not in self._functions:
            function = make()

            def traced(*arrays: Any) -> Any:
                self.traces += 1
                return function(*arrays)

            self._functions[key] = compiled(traced) if self.compile else traced
        return self._functions[key]

    def step(
        self, arrays: Mapping[str, Any], state: StateArrays, window: int
    ) -> tuple[dict[str, mx.array], StateArrays]:
        """One step: what it computes, and the arrays of the state that it leaves."""
        lm, config = self.lm, self.lm.config
        cache, line = state
        now = config.max_delay
        forced = arrays.get("forced")

        columns = [line[:, :, c] for c in range(line.shape[2])]
        first_user = 1 + config.dep_q
        for delay, group in itertools.groupby(range(first_user, config.n_q + 1), key=config.delays.__getitem__):
            streams = list(group)
            codes = arrays["codes"][:, streams[0] - first_user : streams[-1] + 1 - first_user]
            columns[now + delay] = _put(columns[now + delay], streams[0], codes)
        tokens = mx.where(arrays["initial"], lm.initial_tokens(line.shape[0]), columns[now])
        where = StepPosition(*arrays["where"])
        hidden, text_logits, cache = lm.step(tokens, cache, where, window, arrays.get("condition"))
        text_token = sample(text_logits, self.text_sampling, arrays.get("text_noise")).astype(mx.int32)
        if forced is not None:
            text_token = mx.where(forced[:, 0] >= 0, mx.minimum(forced[:, 0], config.text_card), text_token)
        outputs = {"text_token": text_token, "text_logits": text_logits, "hidden": hidden}
        generated = text_token[:, None]
        if config.dep_q:
            audio_tokens = lm.depformer.step(
                hidden,
                text_token,
                self.audio_sampling,
                arrays.get("audio_noise"),
                None if forced is None else forced[:, 1:],
            )
            outputs["audio_tokens"] = audio_tokens
            generated = mx.concatenate([generated, audio_tokens], axis=1)
        columns[now + 1] = _put(columns[now + 1], 0, generated)
        outputs["tokens"] = mx.stack(
            [columns[1 + delay][:, k] for k, delay in enumerate(config.delays[: 1 + config.dep_q])], axis=1
        )
        # The line moves on by a column; what the last one then holds is overwritten before it is read.
        line = mx.stack([*columns[1:], columns[0]], axis=2)
        return outputs, (cache, line)


def joined_inputs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `StepGraph.inputs` gave for several conversations, as inputs of one step in which each has its own place."""
    joined = {name: mx.concatenate([row[name] for row in rows]) for name in rows[0] if name not in ("where", "initial")}
    where = tuple(array for row in rows for array in row["where"])
    return {**joined, "where": where, "initial": mx.stack([row["initial"] for row in rows])}


def joined_states(rows: Sequence[StateArrays]) -> StateArrays:
    """Several conversations' states as one of a batch; their caches stay where they are, side by side."""
    layers = [tuple(itertools.chain(*kept)) for kept in zip(*(cache for cache, _ in rows), strict=True)]
    return layers, mx.concatenate([line for _, line in rows])


def parted_states(batch: StateArrays) -> list[StateArrays]:
    """The states that `joined_states` put together."""
    layers, line = batch
    rows = line.shape[0]
    size = len(layers[0]) // rows
    return [([kept[r * size : (r + 1) * size] for kept in layers], line[r : r + 1]) for r in range(rows)]


def queue(outputs: dict[str, mx.array], state: Any) -> dict[str, mx.array]:
    """Start computing `outputs` and `state`, and make reading any output wait for both.

    A step that began while the one before was still under way would find that one's caches in use and copy them.
    """
    names, arrays = list(outputs), list(outputs.values())
    whole = mx.depends(arrays, list(arrays_of(state).values()))
    mx.async_eval(whole)
    return dict(zip(names, whole, strict=True))


def _put(column: mx.array, at: int, values: mx.array) -> mx.array:
    """`column` [B, K] with `values` [B, n] from row `at` on."""
    end = at + values.shape[1]
    return mx.concatenate([column[:, :at], values, column[:, end:]], axis=1)
