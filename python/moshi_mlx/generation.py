"""LMGen: the language model one step at a time, with delays, sampling and forced tokens."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .arrays import ArrayLike, check_tokens
from .errors import InputError
from .lm import UNGENERATED_TOKEN, LMModel, Sampling
from .lm.conditions import Conditions
from .step_graph import GenState, StateArrays, StepGraph, queue

Hook = Callable[[mx.array], None]


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

    def step(self, user_codes: ArrayLike | None = None, forced: ArrayLike | None = None) -> mx.array | None:
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
            InputError: an argument has the wrong shape or type, or (in a NumPy array) an id out of range. Of an MLX
                array's ids, which aren't looked at, those out of range are taken for the nearest.
        """
        return self.step_result(user_codes, forced).tokens

    def step_with_extra_heads(
        self, user_codes: ArrayLike | None = None, forced: ArrayLike | None = None
    ) -> tuple[mx.array, list[mx.array]] | None:
        """As `step`, with the probabilities [B, 1, extra_heads_dim] of the model's extra heads beside the tokens."""
        result = self.step_result(user_codes, forced)
        if result.tokens is None:
            return None
        heads = self.lm.extra_heads if "extra_heads" in self.lm else []
        return result.tokens, [mx.softmax(head(result.hidden)[:, None], axis=-1) for head in heads]

    def step_result(self, user_codes: ArrayLike | None = None, forced: ArrayLike | None = None) -> StepResult:
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

    def begin(
        self, user_codes: ArrayLike | None = None, forced: ArrayLike | None = None, window: int | None = None
    ) -> dict[str, Any]:
        """The arrays that the step at hand takes; without a user stream's codes where a caller puts them in itself.

        `window` is how much of the cache it reads, where that is more than it must.
        """
        codes = None if user_codes is None else self._check(user_codes, self.lm.config.user_q, "user_codes")
        checked = None if forced is None else self._check(forced, 1 + self.lm.config.dep_q, "forced")
        return self.graph.inputs(self.state, codes, checked, self._condition, window)

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

    def _check(self, codes: ArrayLike, width: int, name: str) -> mx.array:
        shape = (self.batch_size, width)
        if isinstance(codes, (mx.array, np.ndarray)) and tuple(codes.shape) == (*shape, 1):
            codes = codes[:, :, 0]
        tops = [self.lm.config.card] * width
        if name == "forced":
            tops[0] = self.lm.config.text_card
        return check_tokens(codes, shape, tops, name, least=UNGENERATED_TOKEN)
