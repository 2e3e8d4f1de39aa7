"""`config.json` as typed values.

A published `config.json` carries more keys than a model needs to run; what changes the computation is read and
checked here, the rest is left alone. Source: the published files, described key by key in the model's own repositories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config_values import at_least, get_value, require, section, whole_numbers
from .errors import ConfigError

SAMPLE_RATE = 24_000
FRAME_SIZE = 1920
FRAME_RATE = SAMPLE_RATE / FRAME_SIZE

NORM_EPS = {
    "rms_norm_f32": 1e-8, "real_rms_norm_f32": 1e-8, "rms_norm": 1e-5, "layer_norm": 1e-5, "layer_norm_f32": 1e-8,
}  # fmt: skip
"""What the language model's norms add to the variance, by their names in `config.json`."""

_ARCHITECTURE = {"norm": "layer_norm", "gating": "none", "positional_embedding": "sin"}
"""What the published implementation builds of a configuration that says none of these; real models say all."""


def _gated_width(feedforward: int, width: int) -> int:
    """Hidden width of a gated MLP; the published one rounds differently where `feedforward` is four widths."""
    return 21 * width // 8 if feedforward == 4 * width else 2 * feedforward // 3


@dataclass(frozen=True)
class ConditionerConfig:
    """A lookup-table condition such as Hibiki's `description`, summed into the temporal transformer's input.

    Where `possible_values` is empty, any text is a value, and its hash says which entry it has.
    """

    n_bins: int
    dim: int
    possible_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class LMConfig:
    """Shape of the dual-stream language model; field names are `config.json`'s keys."""

    dim: int
    num_heads: int
    num_layers: int
    n_q: int
    dep_q: int
    card: int
    text_card: int
    delays: tuple[int, ...]
    context: int
    max_period: float = 10_000.0
    hidden_scale: float = 4.125
    norm: str = "rms_norm_f32"
    gating: str = "silu"
    positional_embedding: str = "rope"
    existing_text_padding_id: int = 3
    depformer_dim: int = 1024
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    depformer_dim_feedforward: int = 4224
    depformer_pos_emb: str = "none"
    depformer_max_period: float = 10_000.0
    depformer_weights_per_step_schedule: tuple[int, ...] | None = None
    depformer_low_rank_embeddings: int | None = None
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 6
    conditioners: Mapping[str, ConditionerConfig] = field(default_factory=dict)

    @property
    def initial_token_id(self) -> int:
        """What an audio stream holds before its first token."""
        return self.card

    @property
    def text_initial_token_id(self) -> int:
        """What the text stream holds before its first token."""
        return self.text_card

    @property
    def user_q(self) -> int:
        """Codebooks of the user's stream, those the model hears and doesn't generate."""
        return self.n_q - self.dep_q

    @property
    def max_delay(self) -> int:
        """Steps between sampling a frame's semantic token and its last acoustic token."""
        return max(self.delays)

    @property
    def hidden_dim(self) -> int:
        """Width of the temporal transformer's MLP."""
        feedforward = int(self.hidden_scale * self.dim)
        return feedforward if self.gating == "none" else _gated_width(feedforward, self.dim)

    @property
    def depformer_hidden_dim(self) -> int:
        """Width of the depth transformer's gated MLP."""
        return _gated_width(self.depformer_dim_feedforward, self.depformer_dim)

    @property
    def schedule(self) -> tuple[int, ...]:
        """Weight set of every slice of the depth transformer."""
        return self.depformer_weights_per_step_schedule or tuple(range(self.dep_q))

    @property
    def num_weight_sets(self) -> int:
        """Weight sets of the depth transformer; slices may share one."""
        return max(self.schedule, default=-1) + 1

    @classmethod
    def published(cls) -> LMConfig:
        """Shape of the published 7B models (Moshiko, Moshika), whose repositories may have no `config.json`."""
        return cls(
            dim=4096,
            num_heads=32,
            num_layers=32,
            n_q=16,
            dep_q=8,
            card=2048,
            text_card=32_000,
            delays=(0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1),
            context=3000,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LMConfig:
        """Read `config.json`'s content.

        Raises:
            ConfigError: a key is missing or has a value that this package can't run.
        """
        if not _ARCHITECTURE.keys() & data.keys():
            data = {**_ARCHITECTURE, "depformer_pos_emb": "sin", **data}
        require(data, "norm", tuple(NORM_EPS))
        require(data, "gating", ("silu", "none"))
        require(data, "positional_embedding", ("rope", "sin"))
        require(data, "causal", (True,))
        require(data, "layer_scale", (None,))
        require(data, "cross_attention", (False, None))
        for key in ("demux_second_stream", "demux_second_text_stream"):
            require(data, key, (False, None))
        dep_q = get_value(data, "dep_q", int)
        if dep_q:
            require(data, "depformer_pos_emb", ("none", "sin"))
            require(data, "depformer_multi_linear", (True,))
            require(data, "depformer_weights_per_step", (True,))
            require(data, "depformer_layer_scale", (None,))
            require(data, "depformer_gating", ("silu",))
        fuser = section(data, "fuser")
        for kind in ("cross", "prepend"):
            if fuser.get(kind):
                raise ConfigError(f"config.json: condition(s) {fuser[kind]} are fused by '{kind}'; supported is 'sum'.")
        depformer_dim = get_value(data, "depformer_dim", int, 0) or 0
        hidden_scale = float(get_value(data, "hidden_scale", (int, float), 4.125))
        feedforward = get_value(data, "depformer_dim_feedforward", int, None)
        if feedforward is None:
            feedforward = int(hidden_scale * depformer_dim)
        num_layers = get_value(data, "num_layers", int)
        max_period = float(get_value(data, "max_period", (int, float), 10_000.0))
        config = cls(
            dim=get_value(data, "dim", int),
            num_heads=get_value(data, "num_heads", int),
            num_layers=num_layers,
            n_q=get_value(data, "n_q", int),
            dep_q=dep_q,
            card=get_value(data, "card", int),
            text_card=get_value(data, "text_card", int),
            delays=whole_numbers(data, "delays"),
            context=get_value(data, "context", int),
            max_period=max_period,
            hidden_scale=hidden_scale,
            norm=data.get("norm", cls.norm),
            gating=data.get("gating", cls.gating),
            positional_embedding=data.get("positional_embedding", cls.positional_embedding),
            existing_text_padding_id=get_value(data, "existing_text_padding_id", int, 3),
            depformer_dim=depformer_dim,
            depformer_num_heads=get_value(data, "depformer_num_heads", int, 16),
            depformer_num_layers=get_value(data, "depformer_num_layers", int, num_layers if dep_q else 0),
            depformer_dim_feedforward=feedforward,
            depformer_pos_emb=data.get("depformer_pos_emb", cls.depformer_pos_emb),
            depformer_max_period=float(get_value(data, "depformer_max_period", (int, float), max_period)),
            depformer_weights_per_step_schedule=whole_numbers(data, "depformer_weights_per_step_schedule", ()) or None,
            depformer_low_rank_embeddings=get_value(data, "depformer_low_rank_embeddings", int, None),
            extra_heads_num_heads=get_value(data, "extra_heads_num_heads", int, 0),
            extra_heads_dim=get_value(data, "extra_heads_dim", int, 6),
            conditioners=_conditioners(section(data, "conditioners"), get_value(fuser, "sum", list, [])),
        )
        config._check()
        return config

    def _check(self) -> None:
        if len(self.delays) != self.n_q + 1:
            raise ConfigError(
                f"config.json: {len(self.delays)} delays; expected one for text and one for each of {self.n_q} streams."
            )
        if any(d < 0 for d in self.delays):
            raise ConfigError(f"config.json: delays {list(self.delays)}; a delay can't be negative.")
        if not 0 <= self.dep_q <= self.n_q:
            raise ConfigError(f"config.json: dep_q is {self.dep_q}; expected 0 to n_q = {self.n_q}.")
        if not (self.max_period > 0 and self.depformer_max_period > 0):
            raise ConfigError("config.json: a max_period is 0 or less; expected a number of steps such as 10000.")
        for name, width, heads in (
            ("dim", self.dim, self.num_heads),
            ("depformer_dim", self.depformer_dim if self.dep_q else 0, self.depformer_num_heads),
        ):
            if heads <= 0 or width < 0 or width % heads:
                raise ConfigError(f"config.json: {name} = {width} can't be divided among {heads} heads.")
        for name in ("dim", "num_layers", "card", "text_card", "context"):
            at_least(1, name, getattr(self, name))
        for name in ("depformer_num_layers", "depformer_dim_feedforward", "extra_heads_num_heads", "extra_heads_dim"):
            at_least(0, name, getattr(self, name))
        schedule = self.depformer_weights_per_step_schedule
        if schedule is not None and len(schedule) != self.dep_q:
            raise ConfigError(f"config.json: weight schedule of {len(schedule)} slices; expected dep_q = {self.dep_q}.")
        if sorted(set(self.schedule)) != list(range(len(set(self.schedule)))):
            raise ConfigError(
                f"config.json: weight schedule {list(self.schedule)}; expected weight sets counted from 0, all used."
            )


def _conditioners(data: Mapping[str, Any], summed: Sequence[str]) -> dict[str, ConditionerConfig]:
    result = {}
    for name in data:
        spec = section(data, name)
        if spec.get("type") != "lut":
            raise ConfigError(f"config.json: conditioner '{name}' is of type {spec.get('type')!r}; supported is 'lut'.")
        if name not in summed:
            raise ConfigError(f"config.json: conditioner '{name}' is not listed under fuser.sum.")
        lut = section(spec, "lut")
        values = tuple(get_value(lut, "possible_values", list, None) or ())
        bins = at_least(max(1, len(values)), "n_bins", get_value(lut, "n_bins", int))
        result[name] = ConditionerConfig(bins, get_value(lut, "dim", int), values)
    return result


@dataclass(frozen=True)
class MimiConfig:
    """Shape of the Mimi codec; the published one is `MimiConfig.published()`."""

    dimension: int = 512
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    dilation_base: int = 2
    n_residual_layers: int = 1
    num_heads: int = 8
    num_layers: int = 8
    encoder_layers: int | None = None
    """Layers of the encoder's transformer where it has others than the decoder's `num_layers`."""
    context: int = 250
    max_period: float = 10_000.0
    dim_feedforward: int = 2048
    codebook_dim: int = 256
    bins: int = 2048
    n_q: int = 32

    def layers_of(self, transformer: str) -> int:
        """How many layers a transformer has, by its name in the published layout."""
        own = self.encoder_layers if transformer == "encoder_transformer" else None
        return self.num_layers if own is None else own

    @property
    def hop(self) -> int:
        """Samples per SEANet latent: 960, two of them to a frame."""
        return math.prod(self.ratios)

    @classmethod
    def published(cls) -> MimiConfig:
        """Shape of `tokenizer-e351c8d8-checkpoint125.safetensors`."""
        return cls()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MimiConfig:
        """Read a codec folder's `config.json`.

        Raises:
            ConfigError: a key is missing or has a value that this package can't run.
        """
        seanet, quantizer, transformer = (section(data, key) for key in ("seanet", "quantizer", "transformer"))
        require(data, "sample_rate", (SAMPLE_RATE,))
        require(data, "channels", (1,))
        require(data, "frame_rate", (FRAME_RATE,))
        require(seanet, "activation", ("ELU",))
        require(seanet, "causal", (True,))
        require(seanet, "norm", ("none", "weight_norm"))
        require(seanet, "pad_mode", ("constant",))
        require(seanet, "true_skip", (True,))
        require(transformer, "gating", ("none",))
        require(transformer, "norm", ("layer_norm",))
        require(transformer, "positional_embedding", ("rope",))
        require(transformer, "causal", (True,))
        if "layer_scale" in transformer and transformer["layer_scale"] is None:
            raise ConfigError("config.json: the codec's transformer has no layer_scale; this package needs one.")
        config = cls(
            dimension=get_value(seanet, "dimension", int),
            n_filters=get_value(seanet, "n_filters", int),
            ratios=whole_numbers(seanet, "ratios"),
            kernel_size=get_value(seanet, "kernel_size", int, 7),
            residual_kernel_size=get_value(seanet, "residual_kernel_size", int, 3),
            last_kernel_size=get_value(seanet, "last_kernel_size", int, 3),
            compress=get_value(seanet, "compress", int, 2),
            dilation_base=get_value(seanet, "dilation_base", int, 2),
            n_residual_layers=get_value(seanet, "n_residual_layers", int, 1),
            num_heads=get_value(transformer, "num_heads", int),
            num_layers=get_value(transformer, "num_layers", int),
            encoder_layers=get_value(transformer, "encoder_num_layers", int, None),
            context=get_value(transformer, "context", int),
            max_period=float(get_value(transformer, "max_period", (int, float), 10_000.0)),
            dim_feedforward=get_value(transformer, "dim_feedforward", int),
            codebook_dim=get_value(quantizer, "dimension", int),
            bins=get_value(quantizer, "bins", int),
            n_q=get_value(quantizer, "n_q", int),
        )
        config._check()
        if transformer.get("d_model", config.dimension) != config.dimension:
            raise ConfigError(
                f"config.json: the codec's transformer is {transformer['d_model']} wide, its SEANet {config.dimension}."
            )
        return config

    def _check(self) -> None:
        for name in ("dimension", "n_filters", "kernel_size", "compress", "num_heads", "context", "bins", "n_q"):
            at_least(1, name, getattr(self, name))
        if self.hop * 2 != FRAME_SIZE or min(self.ratios) < 1:
            raise ConfigError(
                f"config.json: ratios {list(self.ratios)} make frames of {self.hop * 2} samples, not {FRAME_SIZE}."
            )
        if self.dimension % self.num_heads:
            raise ConfigError(f"config.json: {self.dimension} can't be divided among {self.num_heads} heads.")
        if not self.max_period > 0:
            raise ConfigError(f"config.json: max_period is {self.max_period}; expected a number such as 10000.")
