"""recipe.json: what a recipe search found, kept beside the model that it made and usable for the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint.layout import pieces
from .checkpoint.quantization import AFFINE_BITS, FLOAT_MODES, GROUP_SIZES, Quantization, Recipe
from .config import LMConfig
from .errors import InputError
from .recipe_search import Budget, Outcome

_KNOWN = (
    *(Quantization(bits, group_size) for bits in AFFINE_BITS for group_size in GROUP_SIZES),
    *(Quantization(*layout, mode) for mode, layout in FLOAT_MODES.items()),
)


def report_of(outcome: Outcome, budget: Budget) -> dict[str, Any]:
    """A search's outcome as JSON: the recipe, and what was measured on the way to it."""
    recipe = outcome.recipe
    return {
        "default": _to_json(recipe.default),
        "modules": {module: _to_json(how) for module, how in recipe.modules.items()},
        "budget_bytes": int(budget.nbytes),
        "cost_bytes": outcome.nbytes,
        "measured": asdict(outcome.measured),
        "uniform": {
            name: {"cost_bytes": nbytes, "measured": asdict(measured)}
            for name, (nbytes, measured) in outcome.uniform.items()
        },
        "sensitivity": outcome.sensitivity,
    }


def read_recipe(path: str | Path, config: LMConfig) -> Recipe:
    """The recipe in a file that a search wrote.

    Raises:
        InputError: no such file, no recipe in it, a quantization that there isn't, or a recipe for another model.
    """
    try:
        data = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        modules = {str(module): _from_json(how) for module, how in data["modules"].items()}
        recipe = Recipe(_from_json(data["default"]), modules=modules)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no recipe ({error}). Name a recipe.json that a search wrote.") from error
    strange = [module for module in recipe.modules if f"{module}.weight" not in pieces(config)]
    if strange:
        raise InputError(
            f"{path} is a recipe for another model: this one has no {strange[0]}. Search anew with --target-gb."
        )
    return recipe


def _to_json(how: Quantization | None) -> dict[str, Any] | None:
    return None if how is None else asdict(how)


def _from_json(data: Mapping[str, Any] | None) -> Quantization | None:
    if data is None:
        return None
    found = next((how for how in _KNOWN if how == Quantization(**data)), None)
    if found is None:
        raise ValueError(
            f"there is no quantization {json.dumps(data)}: bits are {', '.join(map(str, AFFINE_BITS))} in groups of "
            f"{', '.join(map(str, GROUP_SIZES))}, or modes {', '.join(FLOAT_MODES)} with bits and groups of their own"
        )
    return found
