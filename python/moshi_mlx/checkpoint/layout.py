"""The published layouts of the language model, as one table.

The package's own names are those of the MLX layout. Every tensor of it is a whole tensor of the PyTorch
layout or a block of its rows (`Piece`): one table says what either kind of file holds and how to convert.
Source: the names and shapes of the published files (`kyutai/moshiko-{mlx,pytorch}-*`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from ..config import LMConfig
from ..errors import CheckpointError
from .check import TensorSpec
from .header import Header
from .quantization import Quantization, quantized_specs

Layout = Literal["pytorch", "pytorch-split", "mlx"]
"""`pytorch-split` is what the published implementation saves since it keeps a weight set's projections apart."""

_SPLIT = {"self_attn.in_proj_weight": "self_attn.in_projs", "self_attn.out_proj.weight": "self_attn.out_projs"}


@dataclass(frozen=True)
class Piece:
    """Where the PyTorch layout keeps a tensor of the MLX layout: in one of the blocks of rows of `source`."""

    source: str
    shape: tuple[int, ...]
    """Shape in the MLX layout."""
    block: int = 0
    blocks: int = 1
    is_norm: bool = False

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the whole source tensor; norms carry two leading axes of 1 there."""
        if self.is_norm:
            return (1, 1, *self.shape)
        return (self.shape[0] * self.blocks, *self.shape[1:])

    def split(self) -> Piece:
        """The same where blocks of rows are tensors of their own."""
        for stacked, parts in _SPLIT.items():
            if self.source.endswith(stacked):
                source = f"{self.source.removesuffix(stacked)}{parts}.{self.block}.weight"
                return replace(self, source=source, block=0, blocks=1)
        return self

    def take(self, source: mx.array) -> mx.array:
        """The piece itself, a view of `source`."""
        if self.is_norm:
            return source.reshape(self.shape)
        if self.blocks == 1:
            return source
        rows = self.shape[0]
        return source[self.block * rows : (self.block + 1) * rows]


def pieces(config: LMConfig, layout: Layout = "pytorch") -> dict[str, Piece]:
    """Every tensor of the model by its MLX name; slices that share a weight set have equal `Piece`s."""
    found = dict(_pieces(config))
    return {name: piece.split() for name, piece in found.items()} if layout == "pytorch-split" else found


def _pieces(config: LMConfig) -> Iterator[tuple[str, Piece]]:
    D = config.dim
    yield "text_emb.weight", Piece("text_emb.weight", (config.text_card + 1, D))
    for k in range(config.n_q):
        yield f"audio_embs.{k}.weight", Piece(f"emb.{k}.weight", (config.card + 1, D))
    for i in range(config.num_layers):
        layer = f"transformer.layers.{i}"
        yield from _attention(layer, layer, D)
        yield from _mlp(f"{layer}.gating", layer if config.gating == "none" else f"{layer}.gating", D, config)
        yield from _norms(layer, layer, D, config)
    yield from _norm("out_norm", "out_norm", D, config)
    yield "text_linear.weight", Piece("text_linear.weight", (config.text_card, D))
    for s in range(config.dep_q):
        yield from _slice(config, s)
    for h in range(config.extra_heads_num_heads):
        yield f"extra_heads.{h}.weight", Piece(f"extra_heads.{h}.weight", (config.extra_heads_dim, D))
    for name, conditioner in config.conditioners.items():
        path = f"condition_provider.conditioners.{name}"
        yield f"{path}.embed.weight", Piece(f"{path}.embed.weight", (conditioner.n_bins + 1, conditioner.dim))
        yield f"{path}.output_proj.weight", Piece(f"{path}.output_proj.weight", (D, conditioner.dim))
        yield f"{path}.learnt_padding", Piece(f"{path}.learnt_padding", (1, 1, D))


def _slice(config: LMConfig, s: int) -> Iterator[tuple[str, Piece]]:
    D, W, weights = config.dim, config.depformer_dim, config.schedule[s]
    path = f"depformer.slices.{s}"
    emb = f"depformer_emb.{s - 1}" if s else "depformer_text_emb"
    entries = (config.card if s else config.text_card) + 1
    rank = config.depformer_low_rank_embeddings
    yield f"{path}.emb.weight", Piece(f"{emb}.weight", (entries, rank or W))
    if rank:
        yield f"{path}.emb.low_rank.weight", Piece(f"{emb}.low_rank.weight", (W, rank))
    yield f"{path}.linear_in.weight", Piece(f"depformer_in.{weights}.weight", (W, D))
    for i in range(config.depformer_num_layers):
        source = f"depformer.layers.{i}"
        layer = f"{path}.transformer.layers.{i}"
        yield from _attention(layer, source, W, block=weights, blocks=config.num_weight_sets)
        yield from _gated(f"{layer}.gating", f"{source}.gating.{weights}", W, config.depformer_hidden_dim)
        yield from _norms(layer, source, W, config)
    yield f"{path}.linear_out.weight", Piece(f"linears.{s}.weight", (config.card, W))


def _attention(path: str, source: str, width: int, block: int = 0, blocks: int = 1) -> Iterator[tuple[str, Piece]]:
    path, source = f"{path}.self_attn", f"{source}.self_attn"
    yield f"{path}.in_proj.weight", Piece(f"{source}.in_proj_weight", (3 * width, width), block, blocks)
    yield f"{path}.out_proj.weight", Piece(f"{source}.out_proj.weight", (width, width), block, blocks)


def _mlp(path: str, source: str, width: int, config: LMConfig) -> Iterator[tuple[str, Piece]]:
    hidden = config.hidden_dim
    if config.gating == "none":
        yield f"{path}.linear1.weight", Piece(f"{source}.linear1.weight", (hidden, width))
        yield f"{path}.linear2.weight", Piece(f"{source}.linear2.weight", (width, hidden))
    else:
        yield from _gated(path, source, width, hidden)


def _gated(path: str, source: str, width: int, hidden: int) -> Iterator[tuple[str, Piece]]:
    yield f"{path}.linear_in.weight", Piece(f"{source}.linear_in.weight", (2 * hidden, width))
    yield f"{path}.linear_out.weight", Piece(f"{source}.linear_out.weight", (width, hidden))


def _norms(path: str, source: str, width: int, config: LMConfig) -> Iterator[tuple[str, Piece]]:
    for norm in ("norm1", "norm2"):
        yield from _norm(f"{path}.{norm}", f"{source}.{norm}", width, config)


def _norm(path: str, source: str, width: int, config: LMConfig) -> Iterator[tuple[str, Piece]]:
    if config.norm.startswith("layer_norm"):
        yield f"{path}.weight", Piece(f"{source}.weight", (width,))
        yield f"{path}.bias", Piece(f"{source}.bias", (width,))
    else:
        yield f"{path}.weight", Piece(f"{source}.alpha", (width,), is_norm=True)


def detect_layout(header: Header) -> Layout:
    """Which of the layouts a file has, by its names.

    Raises:
        CheckpointError: it holds something else, such as the codec.
    """
    names = header.tensors
    if any(name.startswith(("audio_embs.", "depformer.slices.")) for name in names):
        return "mlx"
    if any("self_attn.in_projs." in name for name in names):
        return "pytorch-split"
    if "out_norm.alpha" in names or any(name.startswith(("emb.", "depformer_emb.")) for name in names):
        return "pytorch"
    if "out_norm.weight" in names:
        return "mlx"
    if any(name.startswith("quantizer.") for name in names):
        raise CheckpointError(
            f"{header.path} holds the Mimi codec; expected a language model. Pass it as --mimi-weight."
        )
    raise CheckpointError(
        f"{header.path} holds {', '.join(list(names)[:3])}, …: no Moshi language model in the "
        "PyTorch or the MLX layout. Is it the right file?"
    )


def expected_tensors(
    config: LMConfig, layout: Layout = "mlx", quantization: Mapping[str, Quantization] | None = None
) -> dict[str, TensorSpec]:
    """Names, shapes and types of the tensors that a file of this model holds.

    `quantization` gives the quantized ones, by module path (`text_emb`); the PyTorch layout has none.
    """
    if layout != "mlx":
        return {piece.source: TensorSpec(piece.source_shape) for piece in pieces(config, layout).values()}
    specs: dict[str, TensorSpec] = {}
    for name, piece in pieces(config).items():
        module = name.removesuffix(".weight")
        if quantization and module in quantization:
            specs.update(quantized_specs(module, piece.shape, quantization[module]))
        else:
            specs[name] = TensorSpec(piece.shape)
    return specs


def to_mlx_layout(tensors: Mapping[str, mx.array], config: LMConfig, layout: Layout = "pytorch") -> dict[str, mx.array]:
    """Rename and split the PyTorch layout's tensors, without evaluating any.

    Slices of the depth transformer that share a weight set share its arrays.
    """
    taken: dict[Piece, mx.array] = {}
    result = {}
    for name, piece in pieces(config, layout).items():
        if piece not in taken:
            taken[piece] = piece.take(tensors[piece.source])
        result[name] = taken[piece]
    return result
