"""LMGen: the language model one step at a time, with delays, sampling and forced tokens."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .errors import InputError
from .layers import arrays_of, compiled
from .lm import UNGENERATED_TOKEN, KVCache, LMModel, Sampling
from .lm.cache import LayerCache
from .lm.conditions import Conditions
from .lm.sampling import gumbel_noise, sample
from .lm.transformer import StepPosition

Tokens = mx.array | npt.NDArray[Any]
Hook = Callable[[mx.array], None]
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


@dataclass(frozen=True)
class StepResult:
    """What one step computed, before the delays are undone; arrays may not be evaluated yet.

    Attributes:
        tokens: int32 [B, 1 + dep_q], aligned frame (text and semantic code of the frame before); None while the
            delay has not passed.
        text_token: int32 [B], as sampled at this step.
        audio_tokens: int32 [B, dep_q], as sampled at this step; None without a depth transformer.
        text_logits: float [B, text_card].
        hidden: float [B, D].
    """

    tokens: mx.array | None
    text_token: mx.array
    audio_tokens: mx.array | None
    text_logits: mx.array
    hidden: mx.array


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
        self, state: GenState, codes: mx.array | None, forced: mx.array | None, condition: mx.array | None
    ) -> dict[str, Any]:
        """The arrays that the step at hand takes beside the state."""
        config, offset = self.lm.config, state.offset
        arrays: dict[str, Any] = {
            "where": tuple(self.lm.transformer.step_position(offset, self.window(offset))),
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
        tokens = mx.where(arrays["initial"], lm.initial_tokens(self.batch_size), columns[now])
        where = StepPosition(*arrays["where"])
        hidden, text_logits, cache = lm.step(tokens, cache, where, window, arrays.get("condition"))
        text_token = sample(text_logits, self.text_sampling, arrays.get("text_noise")).astype(mx.int32)
        if forced is not None:
            text_token = mx.where(forced[:, 0] >= 0, forced[:, 0], text_token)
        outputs = {"text_token": text_token, "text_logits": text_logits, "hidden": hidden}
        generated = text_token[:, None]
        if config.dep_q:
            audio_tokens = lm.sample_audio(
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


class LMGen:
    """Steps of the two streams: user codes in, text and Moshi's codes out.

    A user frame's semantic code is seen by the very step that it is given to. Step 0 sees only initial tokens.

    Args:
        lm: the model; several generators may share it.
        temp, top_k: sampling of audio tokens; 0 and 0 mean greedy and the whole vocabulary.
        temp_text, top_k_text: sampling of text tokens.
        seed: of the sampling; None draws one.
        batch_size: conversations in lockstep.
        conditions: values by name, for models that have conditions.
        compile: build a step's graph once, where MLX can.
        on_text_logits, on_text, on_audio: called at every step with `[B, text_card]`, `[B]` and `[B, dep_q]`.
        kv_bits: quantize the KV cache to 8 or 4 bits.
        graph: another generator's, to share what it compiled; sampling and cache are then as that graph has them.

    Raises:
        InputError: a parameter is out of range or a condition unknown.
    """

    def __init__(
        self,
        lm: LMModel,
        temp: float = 0.8,
        temp_text: float = 0.7,
        top_k: int = 250,
        top_k_text: int = 25,
        seed: int | None = None,
        batch_size: int = 1,
        conditions: Conditions | None = None,
        on_text_logits: Hook | None = None,
        on_text: Hook | None = None,
        on_audio: Hook | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        graph: StepGraph | None = None,
    ):
        self.lm = lm
        self.batch_size = batch_size
        self.graph = graph or StepGraph(
            lm, batch_size, Sampling(temp, top_k), Sampling(temp_text, top_k_text), compile, kv_bits
        )
        self.on_text_logits, self.on_text, self.on_audio = on_text_logits, on_text, on_audio
        self._condition = lm.condition_vector(conditions, batch_size)
        if self._condition is not None:
            mx.eval(self._condition)
        self._seed = secrets.randbits(63) if seed is None else seed
        self.state = self.make_state()

    def make_state(self, seed: int | None = None) -> GenState:
        """The state of a conversation that hasn't begun."""
        config = self.lm.config
        columns = config.max_delay + max(config.max_delay, 1) + 1
        line = mx.full((self.batch_size, config.n_q + 1, columns), UNGENERATED_TOKEN, dtype=mx.int32)
        kv = self.lm.make_state(self.batch_size, self.graph.kv_bits)
        return GenState(kv, line, self._seed if seed is None else seed)

    def reset(self) -> None:
        """Begin a new conversation with the same seed."""
        self.state = self.make_state()

    def step(self, user_codes: Tokens | None = None, forced: Tokens | None = None) -> mx.array | None:
        """Take one step.

        Args:
            user_codes: the user's frame, int [B, n_q - dep_q]; -1 stands for a code that isn't there. A further axis of
                length 1 is accepted.
            forced: int [B, 1 + dep_q], tokens (text, then Moshi's codebooks) that this step shall take instead of
                sampling them; a negative one is sampled.

        Returns:
            int32 [B, 1 + dep_q], text and Moshi's codes of one frame with delays undone; None during the first
            `max(delays)` steps. The array may not be evaluated yet: reading it is the step's one synchronisation.

        Raises:
            InputError: an argument has the wrong shape or an id out of range.
        """
        return self.step_result(user_codes, forced).tokens

    def step_with_extra_heads(
        self, user_codes: Tokens | None = None, forced: Tokens | None = None
    ) -> tuple[mx.array, list[mx.array]] | None:
        """As `step`, with the probabilities [B, 1, extra_heads_dim] of the model's extra heads beside the tokens."""
        result = self.step_result(user_codes, forced)
        if result.tokens is None:
            return None
        heads = self.lm.extra_heads if "extra_heads" in self.lm else []
        return result.tokens, [mx.softmax(head(result.hidden)[:, None], axis=-1) for head in heads]

    def step_result(self, user_codes: Tokens | None = None, forced: Tokens | None = None) -> StepResult:
        """As `step`, with all that the step computed."""
        if user_codes is None and self.lm.config.user_q:
            raise InputError(f"user_codes is missing; expected integers [batch, {self.lm.config.user_q}].")
        arrays = self.begin(user_codes, forced)
        window = self.graph.window(self.state.offset)
        step = self.graph.compiled(("step", window, "forced" in arrays), lambda: self._step(window))
        outputs, state = step(arrays, self.state.arrays())
        self.advance(state)
        return self.report(queue(outputs, state))

    def _step(self, window: int) -> Callable[..., Any]:
        return lambda arrays, state: self.graph.step(arrays, state, window)

    def begin(self, user_codes: Tokens | None = None, forced: Tokens | None = None) -> dict[str, Any]:
        """The arrays that the step at hand takes; without a user stream's codes where a caller puts them in itself."""
        codes = None if user_codes is None else self._check(user_codes, self.lm.config.user_q, "user_codes")
        checked = None if forced is None else self._check(forced, 1 + self.lm.config.dep_q, "forced")
        return self.graph.inputs(self.state, codes, checked, self._condition)

    def advance(self, arrays: StateArrays) -> None:
        """Take over the state that a step leaves; before the step is queued, or it will copy the cache it moves on."""
        self.state.kv.layers, self.state.line = arrays
        self.state.kv.offset += 1

    def report(self, outputs: Mapping[str, mx.array]) -> StepResult:
        """What the step gave, after calling the hooks."""
        result = StepResult(
            outputs["tokens"] if self.state.offset > self.lm.config.max_delay else None,
            outputs["text_token"],
            outputs.get("audio_tokens"),
            outputs["text_logits"],
            outputs["hidden"],
        )
        if self.on_text_logits:
            self.on_text_logits(result.text_logits)
        if self.on_text:
            self.on_text(result.text_token)
        if self.on_audio and result.audio_tokens is not None:
            self.on_audio(result.audio_tokens)
        return result

    def warm_up(self) -> None:
        """Build and run every graph that a conversation will need, so that none is built while it runs."""
        kept, self.state = self.state, self.make_state()
        for window in self.graph.windows:
            self.state.kv.offset = window - 1
            self.step(np.zeros((self.batch_size, self.lm.config.user_q), np.int32))
            mx.eval(self.state.arrays())
        self.state = kept

    def _check(self, codes: Tokens, width: int, name: str) -> mx.array:
        shape = (self.batch_size, width)
        if tuple(codes.shape) == (*shape, 1):
            codes = codes[:, :, 0]
        if tuple(codes.shape) != shape:
            raise InputError(f"{name} has shape {tuple(codes.shape)}; expected {shape}: batch, codebooks.")
        if isinstance(codes, mx.array):
            # Reading the ids would wait for what computes them.
            return codes.astype(mx.int32)
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"{name} is of type {codes.dtype}; expected integers.")
        config = self.lm.config
        top = np.full(width, config.card)
        if name == "forced":
            top[0] = config.text_card
        if (codes > top).any() or (codes < UNGENERATED_TOKEN).any():
            raise InputError(f"{name} holds ids from {codes.min()} to {codes.max()}; expected -1 to {top.max()}.")
        return mx.array(np.ascontiguousarray(codes, dtype=np.int32))


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
