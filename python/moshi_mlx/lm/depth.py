"""The depth transformer: from a temporal state and a text token to a frame's audio tokens, one after another."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config import LMConfig
from ..layers import Linear, Sinusoid, merge_heads
from .sampling import Sampling, sample
from .transformer import Block, embed


class DepthSlice(nn.Module):
    """One codebook's own weights: its input embedding (of the token before it) and its output projection."""

    def __init__(self, config: LMConfig, vocabulary: int):
        super().__init__()
        rank = config.depformer_low_rank_embeddings
        self.emb = nn.Embedding(vocabulary, rank or config.depformer_dim)
        if rank:
            self.low_rank = Linear(rank, config.depformer_dim)
        self.linear_out = Linear(config.depformer_dim, config.card)

    def embed(self, tokens: mx.array) -> mx.array:
        """Input vectors [..., depformer_dim] of `tokens`; -1 gives zero."""
        return self._widen(embed(self.emb, tokens))

    def embed_generated(self, tokens: mx.array) -> mx.array:
        """As `embed`, for tokens that were sampled or forced and so are never -1."""
        return self._widen(self.emb(tokens))

    def _widen(self, x: mx.array) -> mx.array:
        return self.low_rank(x) if "low_rank" in self else x


class DepthTransformer(nn.Module):
    """Slices in a chain, each seeing those before it; without positional embedding, except where the config has one.

    Several slices may share one set of transformer weights (`config.schedule`).
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        self._schedule = config.schedule
        self._card = config.card
        self._width = config.depformer_dim
        self._heads = config.depformer_num_heads
        self._places: list[mx.array] | None = None
        if config.depformer_pos_emb == "sin":
            sinusoid = Sinusoid(config.depformer_dim, config.depformer_max_period)
            self._places = [sinusoid.positions(s, 1) for s in range(config.dep_q)]
        # The temporal state's projections for all weight sets, in one product.
        self.linear_in = Linear(config.dim, config.num_weight_sets * config.depformer_dim)
        self.weight_sets = [
            [
                Block(config.depformer_dim, config.depformer_num_heads, config.depformer_hidden_dim, config.norm)
                for _ in range(config.depformer_num_layers)
            ]
            for _ in range(config.num_weight_sets)
        ]
        self.slices = [DepthSlice(config, (config.card if s else config.text_card) + 1) for s in range(config.dep_q)]

    def step(
        self,
        hidden: mx.array,
        text_token: mx.array,
        sampling: Sampling,
        noise: mx.array | None = None,
        forced: mx.array | None = None,
    ) -> mx.array:
        """The tokens of one frame.

        Args:
            hidden: temporal state, [B, D].
            text_token: the frame's text token, int32 [B], of those there are.
            sampling: temperature and top-k.
            noise: Gumbel noise [B, dep_q, card]; needed unless greedy.
            forced: int32 [B, dep_q], tokens to take instead of sampled ones where not negative.

        Returns:
            int32 [B, dep_q].
        """
        B = hidden.shape[0]
        inputs = self.linear_in(hidden).reshape(B, 1, -1, self._width)
        cache: list[mx.array] = []
        token = text_token
        tokens = []
        for s, (slice_, weight_set) in enumerate(zip(self.slices, self._schedule, strict=True)):
            x = self._placed(s, inputs[:, :, weight_set] + slice_.embed_generated(token)[:, None])
            for i, block in enumerate(self.weight_sets[weight_set]):
                qkv = block.project(x)
                if s == 0:
                    # One position attends to itself alone: the result is its value.
                    attended = merge_heads(qkv[:, 2])
                    cache.append(qkv[:, 1:])
                else:
                    keys_values = mx.concatenate([cache[i], qkv[:, 1:]], axis=3)
                    cache[i] = keys_values
                    attended = block.attend(qkv[:, 0], keys_values, None)
                x = block.finish(x, attended)
            token = sample(slice_.linear_out(x[:, 0]), sampling, None if noise is None else noise[:, s])
            if forced is not None:
                known = mx.minimum(forced[:, s], self._card).astype(token.dtype)
                token = mx.where(forced[:, s] >= 0, known, token)
            tokens.append(token)
        return mx.stack(tokens, axis=1).astype(mx.int32)

    def _placed(self, s: int, x: mx.array) -> mx.array:
        """Slice `s`'s input `x` [..., depformer_dim] with its position."""
        return x if self._places is None else x + self._places[s].astype(x.dtype)

    def __call__(self, hidden: mx.array, tokens: mx.array) -> mx.array:
        """Teacher-forced logits.

        Args:
            hidden: temporal states, [N, D].
            tokens: int32 [N, dep_q]: text, then all audio codebooks but the last.

        Returns:
            Logits [N, dep_q, card].
        """
        N, K = tokens.shape
        inputs = self.linear_in(hidden).reshape(N, -1, self._width)
        xs = [
            self._placed(s, inputs[:, weight_set] + slice_.embed(tokens[:, s]))
            for s, (slice_, weight_set) in enumerate(zip(self.slices, self._schedule, strict=True))
        ]
        mask = mx.tril(mx.ones((K, K), dtype=mx.bool_))
        for i in range(len(self.weight_sets[0])):
            blocks = [self.weight_sets[w][i] for w in self._schedule]
            qkv = mx.concatenate([b.project(x[:, None]) for b, x in zip(blocks, xs, strict=True)], axis=3)
            attended = blocks[0].attend(qkv[:, 0], qkv[:, 1:], mask)
            xs = [b.finish(x, attended[:, s]) for s, (b, x) in enumerate(zip(blocks, xs, strict=True))]
        return mx.stack([slice_.linear_out(x) for slice_, x in zip(self.slices, xs, strict=True)], axis=1)
