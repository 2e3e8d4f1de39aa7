"""Where a model's files are: a folder, a file, a hub repository, or a name of the package's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import hub
from ..config import LMConfig
from ..config_values import get_value, read_config
from ..errors import CheckpointError, DownloadError

Part = Literal["lm", "mimi", "tokenizer"]
PARTS: tuple[Part, ...] = ("lm", "mimi", "tokenizer")

OWN_NAMES = ("nano",)
"""Models that come with the package, each in a folder of that name."""

PUBLISHED_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
PUBLISHED_TOKENIZER = "tokenizer_spm_32k_3.model"

_WEIGHTS = ("model.safetensors", "model.q4.safetensors", "model.q8.safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WHAT: dict[Part, str] = {"lm": "a language model's weights", "mimi": "the Mimi codec", "tokenizer": "a text tokenizer"}
_FLAGS: dict[Part, str] = {"lm": "--moshi-weight", "mimi": "--mimi-weight", "tokenizer": "--tokenizer"}


@dataclass(frozen=True)
class CheckpointFiles:
    """A model's files on this machine. A part that wasn't found, or not asked for, is None."""

    name: str
    """What was asked for: repository, folder or own name."""
    lm: Path | None = None
    mimi: Path | None = None
    """The codec: a file in the published shape, or a folder with its own `config.json`."""
    tokenizer: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """`config.json`'s content; empty where there is none, which means the published 7B shape."""

    @property
    def lm_config(self) -> LMConfig:
        """Shape of the language model."""
        return LMConfig.from_dict(self.config) if self.config else LMConfig.published()

    def need(self, part: Part) -> Path:
        """Path of a part.

        Raises:
            CheckpointError: it wasn't found.
        """
        path: Path | None = getattr(self, part)
        if path is None:
            raise CheckpointError(
                f"{self.name} has no file that looks like {_WHAT[part]}. Give one with {_FLAGS[part]}."
            )
        return path


def resolve(
    where: str | Path,
    moshi_weight: str | Path | None = None,
    mimi_weight: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    parts: Collection[Part] = PARTS,
    progress: type | None = None,
) -> CheckpointFiles:
    """Find a model's files, downloading those that aren't here yet.

    Args:
        where: a hub repository (`kyutai/moshiko-mlx-q4`), a folder, a weights file with its `config.json` beside it,
            or `nano`, the model in the package.
        moshi_weight, mimi_weight, tokenizer: files to use instead of those that `where` has; a language model's
            `config.json` beside `moshi_weight` comes with it.
        parts: what to look for.
        progress: a class with tqdm's interface that shows downloads, such as `download_bar.DownloadBar`.

    Raises:
        CheckpointError: nothing there.
        DownloadError: a file can't be fetched.
        ConfigError: `config.json` is unreadable.
    """
    given: dict[Part, str | Path | None] = {"lm": moshi_weight, "mimi": mimi_weight, "tokenizer": tokenizer}
    chosen = {part: _existing(path, _FLAGS[part]) for part, path in given.items() if path is not None}
    wanted = [part for part in parts if part not in chosen]
    own_config = _config_beside(chosen["lm"]) if "lm" in chosen else None
    folder = _folder(where)
    found: dict[Part, Path] = {}
    if folder is None and not wanted:
        config = own_config or _config_in_repository(str(where), progress, needed=False)
    elif folder is None:
        found, config = _in_repository(str(where), wanted, progress)
    elif folder.is_file():
        beside = folder.with_name("config.json")
        found, config = {"lm": folder}, read_config(beside) if beside.exists() else {}
    else:
        found, config = _in_folder(folder, wanted)
    found |= chosen
    config = own_config or config
    return CheckpointFiles(str(where), found.get("lm"), found.get("mimi"), found.get("tokenizer"), config)


def _config_beside(weights: Path) -> dict[str, Any] | None:
    """The language model's `config.json` beside its weights, None if there is none."""
    path = weights.with_name("config.json")
    config = read_config(path) if path.exists() else {}
    return config if "dep_q" in config else None  # without it: a codec's, or an app's own


def _config_in_repository(repo: str, progress: type | None, needed: bool) -> dict[str, Any]:
    """A repository's `config.json`; {}, the published shape, if there is none, or none to be had that isn't `needed`.

    Whoever filled the cache may have left no note that the repository has none.
    """
    try:
        path = hub.fetch(repo, "config.json", progress)
    except DownloadError:
        if needed:
            raise
        return {}
    return read_config(path) if path is not None else {}


def _existing(path: str | Path, flag: str) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, given as {flag}. Check the path.")
    return path


def _folder(where: str | Path) -> Path | None:
    """The folder or file that is meant, or None if it is a hub repository."""
    if where in OWN_NAMES:
        folder = Path(__file__).parent.parent / str(where)
        if not (folder / "config.json").exists():
            raise CheckpointError(f"This installation comes without the model '{where}'. Name a folder or repository.")
        return folder
    path = Path(where).expanduser()
    if path.exists():
        return path
    if isinstance(where, str) and _REPOSITORY.fullmatch(where) and where[0] not in "./~":
        return None
    raise CheckpointError(
        f"{where}: no such folder. Expected a folder, a hub repository such as kyutai/moshiko-mlx-q4, "
        f"or one of {', '.join(OWN_NAMES)}."
    )


def _in_folder(folder: Path, parts: Collection[Part]) -> tuple[dict[Part, Path], dict[str, Any]]:
    config = read_config(folder / "config.json") if (folder / "config.json").exists() else {}
    found: dict[Part, Path] = {}
    for part in parts:
        name = get_value(config, _CONFIG_KEYS[part], str, None)
        if name:
            found[part] = folder / name
            if not found[part].exists():
                raise CheckpointError(f"{folder}/config.json names {name}, which isn't there. Download it as well.")
        elif path := _FINDERS[part](folder):
            found[part] = path
    return found, config


_CONFIG_KEYS: dict[Part, str] = {"lm": "moshi_name", "mimi": "mimi_name", "tokenizer": "tokenizer_name"}


def _find_lm(folder: Path) -> Path | None:
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(("tokenizer", "mimi")))
    usual = [p for p in files if p.name in _WEIGHTS]
    candidates = usual or files
    if len(candidates) > 1:
        names = ", ".join(p.name for p in candidates)
        raise CheckpointError(f"{folder} has several weights: {names}. Say which with --moshi-weight.")
    return candidates[0] if candidates else None


def _find_mimi(folder: Path) -> Path | None:
    files = [*sorted(folder.glob("tokenizer*.safetensors")), *sorted(folder.glob("mimi*.safetensors"))]
    files += [folder / name for name in ("mimi", "codec") if (folder / name / "config.json").exists()]
    return files[0] if files else None


def _find_tokenizer(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.model"))), None)


_FINDERS: dict[Part, Callable[[Path], Path | None]] = {
    "lm": _find_lm,
    "mimi": _find_mimi,
    "tokenizer": _find_tokenizer,
}


def _in_repository(
    repo: str, parts: Collection[Part], progress: type | None
) -> tuple[dict[Part, Path], dict[str, Any]]:
    config = _config_in_repository(repo, progress, needed=not any(hub.is_cached(repo, n) for n in _weights_names(repo)))
    usual: dict[Part, tuple[str, ...]] = {
        "lm": _weights_names(repo),
        "mimi": (PUBLISHED_MIMI,),
        "tokenizer": (PUBLISHED_TOKENIZER,),
    }
    found: dict[Part, Path] = {}
    for part in parts:
        named = get_value(config, _CONFIG_KEYS[part], str, None)
        names = (named,) if named else usual[part]
        paths = (hub.fetch(repo, name, progress) for name in names)
        path = next((path for path in paths if path is not None), None)
        if path is None:
            raise DownloadError(
                f"{repo} has no {' or '.join(names)}, so no {_WHAT[part].removeprefix('a ')}. "
                f"Give the file with {_FLAGS[part]}."
            )
        found[part] = path
    return found, config


def _weights_names(repo: str) -> tuple[str, ...]:
    """Weights to look for, first the one that the repository's name promises (`…-q4`)."""
    return tuple(sorted(_WEIGHTS, key=lambda name: not repo.endswith("-" + name.split(".")[1])))
