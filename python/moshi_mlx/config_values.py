"""Reading a `config.json`: the file, and its values with the types that they should have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError

_MISSING = object()
_TOO_LARGE = 1 << 31


def read_config(path: Path) -> dict[str, Any]:
    """Parse a `config.json`.

    Raises:
        ConfigError: the file can't be read or isn't a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}. A model folder needs a config.json.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}). Download the file again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected a JSON object.")
    return data


def get_value(data: Mapping[str, Any], key: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
    """The value of `key`, which must be of type `kind` or equal to `default`.

    Raises:
        ConfigError: it is missing, of another type, or of no size that a model can have.
    """
    value = data.get(key, default)
    if value is _MISSING:
        raise ConfigError(f"config.json has no '{key}'. Is it a Moshi model's or codec's configuration?")
    if value is default:
        return value
    sane = not isinstance(value, (int, float)) or abs(value) < _TOO_LARGE  # neither infinite nor NaN
    if not isinstance(value, kind) or isinstance(value, bool) or not sane:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ConfigError(f"config.json: '{key}' is {value!r}; expected {' or '.join(k.__name__ for k in kinds)}.")
    return value


def whole_numbers(data: Mapping[str, Any], key: str, default: Any = _MISSING) -> tuple[int, ...]:
    """The list of integers at `key`; an empty one where null stands there and `default` is given.

    Raises:
        ConfigError: it is missing, or something else.
    """
    if default is not _MISSING and data.get(key) is None:
        return tuple(default)
    values = get_value(data, key, list)
    if not all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_LARGE for value in values):
        raise ConfigError(f"config.json: '{key}' is {values}; expected whole numbers.")
    return tuple(values)


def section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at `key`; an empty one where there is none.

    Raises:
        ConfigError: something else stands there.
    """
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config.json: '{key}' is {value!r}; expected an object.")
    return value


def require(data: Mapping[str, Any], key: str, supported: Sequence[Any]) -> None:
    """Raise ConfigError where `key` has a value that isn't among the `supported` ones."""
    if key in data and data[key] not in supported:
        raise ConfigError(
            f"config.json: '{key}' is {data[key]!r}; this package supports {', '.join(map(repr, supported))}."
        )


def at_least(least: int, name: str, value: int) -> int:
    """`value`, or ConfigError where it is below `least`."""
    if value < least:
        raise ConfigError(f"config.json: {name} is {value}; expected at least {least}.")
    return value
