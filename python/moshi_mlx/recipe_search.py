"""Searching the recipe of best measured quality within a budget of bytes.

The weights fall into units: what one transformer block's attention holds, its MLP, all audio embeddings, and so on.
Every unit is quantized alone to every level and the divergence from the original is measured; then, from the lowest
level everywhere, the unit and level are raised that win most divergence per byte, until the budget is spent. As
divergences of units don't simply add up, the result is measured as a whole, beside the uniform levels that fit, and
the best of these is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .checkpoint.layout import pieces
from .checkpoint.loading import LMFile, load_lm_tensors
from .checkpoint.quantization import Quantization, Recipe, bytes_of, kind_of, level
from .config import LMConfig, MimiConfig
from .errors import InputError
from .lm.cache import KV_BITS, KVCache
from .lm.weights import build
from .mimi import expected_tensors
from .precision import choose_precision
from .quality import Divergence, divergence, generate_streams, predictions

DEFAULT_LEVELS: tuple[int | str, ...] = (2, 3, 4, 5, 6, 8)

_ANY = Recipe.parse(4)

Cost = Callable[[str, tuple[int, ...], Quantization | None], int]
"""Bytes that the tensor of a module path and shape costs when quantized so (None: bfloat16)."""
Progress = Callable[[str, int, int], None]
"""Called with what is going on, and how much of it is done and to do."""


@dataclass(frozen=True)
class Budget:
    """How many bytes a model may cost, and how they are counted."""

    nbytes: float
    cost: Cost
    refusal: Callable[[int], str]
    """What to say where even the smallest model, of so many bytes, costs more."""

    def of(self, config: LMConfig, recipe: Recipe) -> int:
        """What a model costs with a recipe."""
        return sum(
            self.cost(name.removesuffix(".weight"), piece.shape, _how(recipe, name, piece.shape))
            for name, piece in pieces(config).items()
        )


def file_budget(gigabytes: float) -> Budget:
    """A budget for the size of the weights' file, in 10^9 bytes."""

    def refusal(smallest: int) -> str:
        return (
            f"The smallest model that these levels allow costs {smallest / 1e9:.3g} GB, the budget is "
            f"{gigabytes:.3g} GB. Raise the budget or allow a lower level."
        )

    return Budget(gigabytes * 1e9, lambda _, shape, how: bytes_of(shape, how), refusal)


def time_budget(
    milliseconds: float, gigabytes_per_second: float, config: LMConfig, kv_bits: int | None = None,
    codec: MimiConfig | None = None,
) -> Budget:  # fmt: skip
    """A budget for the bytes of weights that a step may read: a time's at a bandwidth, less a full KV cache and codec.

    Args:
        milliseconds: of a step.
        gigabytes_per_second: bandwidth of the memory, 10^9 bytes a second.
        config: the language model's shape.
        kv_bits: of the cache, 8 or 4; None for bfloat16.
        codec: its shape, which is the published one if not given.

    Raises:
        InputError: a cache that can't be quantized so.
    """
    read = milliseconds * gigabytes_per_second * 1e6
    kv_cache = kv_bytes(config, config.context, bits=kv_bits)
    codec_bytes = codec_bytes_read(codec or MimiConfig.published(), max(config.user_q, config.dep_q))

    def least_ms(nbytes: int) -> float:
        return math.ceil((nbytes + codec_bytes) / gigabytes_per_second / 1e5) / 10

    def refusal(smallest: int) -> str:
        left = max(0.0, read - kv_cache - codec_bytes)
        least, with_small_cache = (least_ms(smallest + cache) for cache in (kv_cache, _smallest_cache(config)))
        ways = f"Allow {least:g} ms or a lower level"
        if with_small_cache < least:
            ways += f", or quantize the cache: with --kv-bits {KV_BITS[0]}, {with_small_cache:g} ms will do"
        return (
            f"Of the smallest model that these levels allow a step reads {smallest / 1e9:.3g} GB. {milliseconds:g} ms "
            f"at {gigabytes_per_second:g} GB/s are {read / 1e9:.3g} GB: a full KV cache takes {kv_cache / 1e9:.3g} GB "
            f"of them, the codec {codec_bytes / 1e9:.3g} GB, and {left / 1e9:.3g} GB are left. {ways}."
        )

    def cost(module: str, shape: tuple[int, ...], how: Quantization | None) -> int:
        return bytes_of(shape_read(config, module, shape), how)

    return Budget(read - kv_cache - codec_bytes, cost, refusal)


def _smallest_cache(config: LMConfig) -> int:
    """Bytes of a full KV cache of the fewest bits that the model's heads allow."""
    try:
        return kv_bytes(config, config.context, bits=KV_BITS[0])
    except InputError:
        return kv_bytes(config, config.context)


def shape_read(config: LMConfig, module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a weight's shape, what one step of the language model reads.

    All of both transformers and of the output projections, every slice of the depth transformer reading its own; of an
    embedding the one row that is looked up; of conditions, further heads and an input projection that is computed for
    another slice, too, nothing.
    """
    if module.startswith(("extra_heads", "condition_provider")) or _is_shared_input(config, module):
        return (0, *shape[1:])
    return (1, *shape[1:]) if kind_of(module) == "embeddings" else shape


def _is_shared_input(config: LMConfig, module: str) -> bool:
    """Whether this input projection of a slice is another's, computed once for both."""
    parts = module.split(".")
    if parts[0] != "depformer" or parts[3] != "linear_in":
        return False
    slice_ = int(parts[2])
    return config.schedule.index(config.schedule[slice_]) != slice_


def kv_bytes(config: LMConfig, steps: int, dtype: mx.Dtype = mx.bfloat16, bits: int | None = None) -> int:
    """Keys and values of the last `steps` steps, or of the window where it is shorter.

    Args:
        config: the model's shape.
        steps: how many.
        dtype: of the numbers, or of the scales of quantized ones.
        bits: of a quantized cache, 8 or 4.

    Raises:
        InputError: a cache that can't be quantized so.
    """
    one_step = KVCache.empty(1, (1, config.num_heads, 1, config.dim // config.num_heads), dtype, bits)
    return config.num_layers * min(steps, config.context) * one_step.nbytes


def codec_bytes_read(config: MimiConfig, codebooks: int, item_bytes: int = 4) -> int:
    """Weights of encoder and decoder for one frame: every codebook searched once, of its entries one decoded."""
    total = 0
    for name, shape in expected_tensors(config).items():
        if "_codebook." in name:
            index = int(name.split(".")[4]) + ("rvq_rest" in name)
            # Sum and usage are one table of entries once they are loaded.
            if name.endswith("embedding_sum") and index < codebooks:
                total += (shape[0] + 1) * shape[1]
        else:
            total += math.prod(shape)
    return total * item_bytes


@dataclass(frozen=True)
class Outcome:
    """What a search found."""

    recipe: Recipe
    levels: Mapping[str, Quantization]
    """By unit, of the recipe that the search composed (`recipe` itself unless a uniform level was better)."""
    nbytes: int
    """What the recipe costs, as the budget counts."""
    measured: Divergence
    uniform: Mapping[str, tuple[int, Divergence]]
    """Cost and divergence of every uniform level, those above the budget included."""
    sensitivity: Mapping[str, Mapping[str, float]]
    """Divergence by unit and level, when only that unit is quantized."""


def units(config: LMConfig) -> dict[str, list[str]]:
    """Module paths of what can be quantized, by the unit that they belong to; a unit's tensors get the same level."""
    result: dict[str, list[str]] = {}
    for name, piece in pieces(config).items():
        module = name.removesuffix(".weight")
        if _ANY(module, piece.shape) is not None:
            result.setdefault(_unit(module, config), []).append(module)
    return result


def _unit(module: str, config: LMConfig) -> str:
    parts = module.split(".")
    if parts[0] == "transformer":
        return ".".join(parts[:4])
    if parts[0] != "depformer":
        return parts[0]
    if parts[3] == "emb":
        return "depformer.text_emb" if parts[2] == "0" else "depformer.audio_embs"
    if parts[3] == "transformer":
        return f"depformer.weights.{config.schedule[int(parts[2])]}"
    return f"depformer.{parts[3]}"


def search(
    file: LMFile, budget: Budget, levels: Sequence[int | str] = DEFAULT_LEVELS, steps: int = 48, seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:  # fmt: skip
    """Find the recipe of least measured divergence whose cost is within the budget.

    Args:
        file: a checkpoint in floating point.
        levels: what a unit may be quantized to.
        steps: length of the two generated streams on which divergence is measured.

    Raises:
        InputError: even the lowest level costs more than the budget.
    """
    config = file.config
    ladder = [level(value) for value in levels]
    costs = _unit_costs(config, budget, ladder)
    smallest = min(budget.of(config, Recipe(how)) for how in ladder)
    spare = budget.nbytes - smallest
    if spare < 0:
        raise InputError(budget.refusal(smallest))
    trials = _Trials(file, steps, seed)
    sensitivity: dict[str, dict[str, float]] = {}
    jobs = [(unit, how) for unit in units(config) for how in ladder]
    for done, (unit, how) in enumerate(jobs, 1):
        recipe = Recipe(modules=dict.fromkeys(units(config)[unit], how))
        sensitivity.setdefault(unit, {})[str(how)] = trials.measure(recipe).kl
        if progress is not None:
            progress(f"{unit}: {how}", done, len(jobs) + len(ladder) + 1)
    chosen = _climb(sensitivity, costs, spare)
    composed = Recipe(modules={module: chosen[unit] for unit, modules in units(config).items() for module in modules})
    measured = trials.measure(composed)
    uniform = {}
    for done, how in enumerate(ladder, len(jobs) + 2):
        uniform[str(how)] = (budget.of(config, Recipe(how)), trials.measure(Recipe(how)))
        if progress is not None:
            progress(f"all: {how}", done, len(jobs) + len(ladder) + 1)
    best, result = composed, measured
    for how in ladder:
        nbytes, alone = uniform[str(how)]
        if nbytes <= budget.nbytes and alone.kl < result.kl:
            best, result = Recipe(how), alone
    return Outcome(best, chosen, budget.of(config, best), result, uniform, sensitivity)


def _unit_costs(config: LMConfig, budget: Budget, ladder: list[Quantization]) -> dict[str, dict[Quantization, int]]:
    shapes = {name.removesuffix(".weight"): piece.shape for name, piece in pieces(config).items()}
    return {
        unit: {how: sum(budget.cost(m, shapes[m], Recipe(how)(m, shapes[m])) for m in modules) for how in ladder}
        for unit, modules in units(config).items()
    }


def _climb(
    sensitivity: Mapping[str, Mapping[str, float]], costs: Mapping[str, Mapping[Quantization, int]], spare: float
) -> dict[str, Quantization]:
    """Start every unit at its cheapest level and take the best step per byte while one fits into `spare` bytes."""
    chosen = {unit: min(levels, key=lambda how: levels[how]) for unit, levels in costs.items()}
    while steps := list(_affordable(chosen, sensitivity, costs, spare)):
        _, price, unit, how = max(steps, key=lambda step: step[0])
        chosen[unit] = how
        spare -= price
    return chosen


def _affordable(
    chosen: Mapping[str, Quantization],
    sensitivity: Mapping[str, Mapping[str, float]],
    costs: Mapping[str, Mapping[Quantization, int]],
    spare: float,
) -> Iterator[tuple[float, int, str, Quantization]]:
    """Every raise of a unit's level that lowers divergence and can be paid: gain per byte, price, unit, level."""
    for unit, now in chosen.items():
        for how, cost in costs[unit].items():
            gain = sensitivity[unit][str(now)] - sensitivity[unit][str(how)]
            price = cost - costs[unit][now]
            if gain > 0 and price <= spare:
                yield gain / max(price, 1), price, unit, how


class _Trials:
    """Measures recipes against the original, with weights quantized and turned back, so that one model runs all."""

    def __init__(self, file: LMFile, steps: int, seed: int):
        self._config = file.config
        self._shapes = {name.removesuffix(".weight"): piece.shape for name, piece in pieces(file.config).items()}
        tensors, _ = load_lm_tensors(file.path, file.config)
        self._precision = choose_precision(tensors, {})
        self._stored = tensors
        self._tensors = {name: array.astype(self._precision.dtype) for name, array in tensors.items()}
        original = build(self._config, self._tensors, precision=self._precision)
        self._codes = generate_streams(original, steps, seed=seed)
        self._reference = predictions(original, self._codes)

    def measure(self, recipe: Recipe) -> Divergence:
        changed = dict(self._tensors)
        for module, shape in self._shapes.items():
            how = _how(recipe, f"{module}.weight", shape) if kind_of(module) else None
            if how is not None:
                changed[f"{module}.weight"] = self._there_and_back(self._stored[f"{module}.weight"], how)
        return divergence(
            self._reference, predictions(build(self._config, changed, precision=self._precision), self._codes)
        )

    def _there_and_back(self, weight: mx.array, how: Quantization) -> mx.array:
        parts = mx.quantize(weight.astype(mx.bfloat16), group_size=how.group_size, bits=how.bits, mode=how.mode)
        return mx.dequantize(
            *parts, group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=self._precision.dtype
        )


def _how(recipe: Recipe, name: str, shape: tuple[int, ...]) -> Quantization | None:
    return recipe(name.removesuffix(".weight"), shape) if name.endswith(".weight") else None
