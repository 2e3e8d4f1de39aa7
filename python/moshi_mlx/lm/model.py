"""The dual-stream language model: text and two audio streams, 12.5 steps a second.

Source: "Moshi: a speech-text foundation model for real-time dialogue" (Défossez et al., 2024), sections 3.4.1-3.4.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ..arrays import ArrayLike, check_tokens
from ..config import LMConfig
from ..errors import InputError
from ..layers import Linear, make_norm
from .cache import KVCache, LayerCache
from .conditions import ConditionProvider, Conditions
from .depth import DepthTransformer
from .sampling import Sampling
from .transformer import StepPosition, TemporalTransformer, embed

# A token that says "nothing here": it adds nothing to the input, and no loss is taken on it.
ZERO_TOKEN = -1
# A forced token that says "to be generated".
UNGENERATED_TOKEN = -2


@dataclass(frozen=True)
class LMOutput:
    """Teacher-forced predictions, aligned with the codes given: `logits[:, k, t]` predicts `codes[:, 1 + k, t]`.

    Attributes:
        logits: float [B, dep_q, T, card], NaN where a delay leaves none; None without a depth transformer.
        text_logits: float [B, 1, T, text_card].
        mask: bool [B, dep_q, T], positions at which a loss may be taken.
        text_mask: bool [B, 1, T].
    """

    logits: mx.array | None
    text_logits: mx.array
    mask: mx.array | None
    text_mask: mx.array


class LMModel(nn.Module):
    """Temporal transformer over steps, depth transformer over a step's codebooks."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.text_emb = nn.Embedding(config.text_card + 1, config.dim)
        # One table for all codebooks, one after another, so that a step's lookups are one operation.
        self.audio_emb = nn.Embedding(config.n_q * (config.card + 1), config.dim)
        self._codebook_rows = mx.array([k * (config.card + 1) for k in range(config.n_q)], dtype=mx.int32)
        self.transformer = TemporalTransformer(config)
        self.out_norm = make_norm(config.norm, config.dim)
        self.text_linear = Linear(config.dim, config.text_card)
        if config.dep_q:
            self.depformer = DepthTransformer(config)
        if config.extra_heads_num_heads:
            self.extra_heads = [Linear(config.dim, config.extra_heads_dim) for _ in range(config.extra_heads_num_heads)]
        if config.conditioners:
            self.condition_provider = ConditionProvider(config.conditioners, config.dim)

    @staticmethod
    def load(where: str | Path) -> LMModel:
        """Load a language model from a folder with `config.json` and weights in either published layout.

        Raises:
            CheckpointError: a file is missing or damaged, or its tensors don't fit the configuration.
        """
        from ..checkpoint import load_lm

        return load_lm(where)

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the activations."""
        dtype: mx.Dtype = self.out_norm.weight.dtype
        return dtype

    def make_state(self, batch_size: int = 1, kv_bits: int | None = None) -> KVCache:
        """An empty KV cache for `batch_size` conversations in lockstep, its numbers quantized to `kv_bits` (8 or 4).

        Raises:
            InputError: `batch_size` is below 1, or the cache can't be quantized so.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        config = self.config
        shape = (batch_size, config.num_heads, config.context, config.dim // config.num_heads)
        return KVCache.empty(config.num_layers, shape, self.dtype, kv_bits)

    def embed(self, tokens: mx.array, condition: mx.array | None = None) -> mx.array:
        """Summed input vectors [B, T, D] of `tokens` [B, 1 + n_q, T], of the nearest id there is."""
        audio = tokens[:, 1:].swapaxes(1, 2)
        present = (audio >= 0).astype(self.dtype)[:, :, None]
        vectors = self.audio_emb(mx.clip(audio, 0, self.config.card) + self._codebook_rows)
        x: mx.array = (present @ vectors)[:, :, 0] + embed(self.text_emb, tokens[:, 0])
        return x if condition is None else x + condition.astype(x.dtype)

    def forward_text(
        self, tokens: ArrayLike, state: KVCache | None = None, condition: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Run the temporal transformer on raw input tokens, delays already applied.

        Args:
            tokens: integers [B, 1 + n_q, T]; -1 adds nothing.
            state: continued and moved on; None starts anew.
            condition: from `condition_vector`, [B, 1, D].

        Returns:
            Hidden states [B, T, D] and text logits [B, T, text_card].

        Raises:
            InputError: `tokens` has another shape or type, or (in a NumPy array) an id out of range.
        """
        vectors = self.embed(self._check(tokens, "tokens"), condition)
        hidden = self.out_norm(self.transformer(vectors, state))
        return hidden, self.text_linear(hidden)

    def step(
        self, tokens: mx.array, cache: list[LayerCache], where: StepPosition, window: int, condition: mx.array | None
    ) -> tuple[mx.array, mx.array, list[LayerCache]]:
        """One step of the temporal transformer with fixed shapes, for compilation.

        Returns:
            Hidden states [B, D], text logits [B, text_card] and the moved-on cache.
        """
        x = self.embed(tokens[:, :, None], condition)
        x, cache = self.transformer.step(x, cache, where, window)
        hidden = self.out_norm(x)[:, 0]
        return hidden, self.text_linear(hidden), cache

    def sample_audio(
        self,
        hidden: mx.array,
        text_token: mx.array,
        sampling: Sampling | None = None,
        noise: mx.array | None = None,
        forced: mx.array | None = None,
    ) -> mx.array:
        """Run the depth transformer for one frame.

        Args:
            hidden: temporal state, [B, D].
            text_token: the frame's text token, int32 [B]; of those there are, the nearest is taken.
            sampling: temperature and top-k; None is greedy.
            noise: Gumbel noise [B, dep_q, card]; needed unless greedy.
            forced: int32 [B, dep_q], tokens to take instead of sampled ones where not negative.

        Returns:
            Audio tokens, int32 [B, dep_q].
        """
        text_token = mx.clip(text_token, 0, self.config.text_card)
        return self.depformer.step(hidden, text_token, sampling or Sampling.greedy(), noise, forced)

    def condition_vector(self, conditions: Conditions | None, batch_size: int) -> mx.array | None:
        """The vectors [B, 1, D] that `conditions` add to every step's input, None where the model has no conditions.

        Raises:
            InputError: a condition or value that the model doesn't have.
        """
        if "condition_provider" in self:
            vector: mx.array = self.condition_provider(conditions or {}, batch_size)
            return vector
        if conditions:
            raise InputError(f"The model takes no conditions; got {', '.join(conditions)}.")
        return None

    def initial_tokens(self, batch_size: int) -> mx.array:
        """What every stream holds before its first token, int32 [B, 1 + n_q]."""
        config = self.config
        row = [config.text_initial_token_id] + [config.initial_token_id] * config.n_q
        return mx.broadcast_to(mx.array(row, dtype=mx.int32), (batch_size, len(row)))

    def __call__(self, codes: ArrayLike, conditions: Conditions | None = None) -> LMOutput:
        """Teacher-forced predictions for whole sequences.

        Args:
            codes: integers [B, 1 + n_q, T], text first, then Moshi's codebooks, then the user's, aligned in time.
            conditions: values by name, as the model has them.

        Raises:
            InputError: `codes` has another shape or type, or (in a NumPy array) an id out of range; a condition is
                unknown.
        """
        config = self.config
        codes = self._check(codes, "codes")
        B, _, T = codes.shape
        initial = self.initial_tokens(B)[:, :, None]
        # Stream k is moved right by its delay, and all by one step: a step predicts what the next one reads.
        inputs = mx.concatenate(
            [
                mx.concatenate([mx.repeat(initial[:, k], delay + 1, axis=1), codes[:, k]], axis=1)[:, None, : T + 1]
                for k, delay in enumerate(config.delays)
            ],
            axis=1,
        )
        hidden, text_logits = self.forward_text(inputs[:, :, :T], condition=self.condition_vector(conditions, B))
        text_logits, text_mask = _undelay([text_logits], config.delays[:1], codes[:, :1])
        if not config.dep_q:
            return LMOutput(None, text_logits, None, text_mask)
        tokens = inputs[:, : config.dep_q, 1:].swapaxes(1, 2).reshape(B * T, config.dep_q)
        logits = self.depformer(hidden.reshape(B * T, -1), tokens).reshape(B, T, config.dep_q, config.card)
        streams = slice(1, 1 + config.dep_q)
        logits, mask = _undelay(
            [logits[:, :, k] for k in range(config.dep_q)], config.delays[streams], codes[:, streams]
        )
        return LMOutput(logits, text_logits, mask, text_mask)

    def _check(self, tokens: ArrayLike, name: str) -> mx.array:
        config = self.config
        return check_tokens(tokens, ("B", config.n_q + 1, "T"), [config.text_card] + [config.card] * config.n_q, name)


def _undelay(logits: list[mx.array], delays: tuple[int, ...], codes: mx.array) -> tuple[mx.array, mx.array]:
    """Move every stream's logits [B, T, V] left by its delay; returns [B, K, T, V] and the mask [B, K, T]."""
    B, T, V = logits[0].shape
    moved = [
        mx.concatenate([x[:, delay:], mx.full((B, min(delay, T), V), mx.nan, x.dtype)], axis=1) if delay else x
        for x, delay in zip(logits, delays, strict=True)
    ]
    valid = mx.arange(T)[None] < T - mx.array(delays)[:, None]
    return mx.stack(moved, axis=1), valid[None] & (codes != ZERO_TOKEN)
