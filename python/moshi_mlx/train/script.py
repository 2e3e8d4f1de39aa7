"""The script file: what users ask, in which words, and what Moshi answers."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import ConfigError

OUT_OF_DOMAIN = "out_of_domain"
FOLLOW_UPS = ("yours", "again", "another")

_CHOICE = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Intent:
    """Something a user may want, and what Moshi says to it.

    Attributes:
        name: as in the file.
        ask: wordings to train on; `(a|b)` stands for either, `[a|b]` for either or nothing.
        held_out: wordings kept for evaluation.
        answers: said word for word.
        yours: the intent that "and yours?" stands for after this one.
        another: whether "another one" gives the next answer.
        more: further wordings to train on, which evaluations ask apart.
    """

    name: str
    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...] = ()
    yours: str | None = None
    another: bool = False
    more: tuple[str, ...] = ()

    @property
    def learned(self) -> tuple[str, ...]:
        """All wordings to train on."""
        return self.ask + self.more


@dataclass(frozen=True)
class Script:
    """All that a model is trained to talk about.

    Attributes:
        intents: by name.
        follow_ups: what refers to the turn before, by name.
        out_of_domain: what Moshi doesn't know.
        backchannels: what a listener says.
        openers: words that may stand before any question.
        closers: words that may stand after one.
    """

    intents: Mapping[str, Intent]
    follow_ups: Mapping[str, Intent]
    out_of_domain: Intent
    backchannels: tuple[str, ...]
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()

    @property
    def answers(self) -> list[str]:
        """Every answer once, in the file's order."""
        lines = [a for i in (*self.intents.values(), self.out_of_domain) for a in i.answers]
        return list(dict.fromkeys(lines))

    @functools.cached_property
    def held_out(self) -> frozenset[str]:
        """Every text kept for evaluation, normalized."""
        return frozenset(normalize(t) for _, i in self.wordings() for line in i.held_out for t in expand(line))

    def wordings(self) -> list[tuple[str, Intent]]:
        """All intents with the group they stand in: `intents`, `follow_ups` or `out_of_domain`."""
        return [
            *(("intents", i) for i in self.intents.values()),
            *(("follow_ups", i) for i in self.follow_ups.values()),
            (OUT_OF_DOMAIN, self.out_of_domain),
        ]

    @classmethod
    def load(cls, path: str | Path) -> Script:
        """Read a script file.

        Raises:
            ConfigError: unreadable, something is no text that should be one, or an intent lacks wordings or answers, or
                points to one that isn't there.
        """
        import yaml

        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} can't be read as YAML: {error}") from error
        try:
            intents = {name: _intent(name, entry) for name, entry in data["intents"].items()}
            follow_ups = {name: _intent(name, data["follow_ups"][name]) for name in FOLLOW_UPS}
            unknown = _intent(OUT_OF_DOMAIN, data[OUT_OF_DOMAIN])
            backchannels = _texts(data, "backchannels")
            openers, closers = (_texts({key: [], **data}, key) for key in ("openers", "closers"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no script: {error!r}. See moshi_mlx/nano/script.yaml for one.") from error
        for intent in (*intents.values(), *follow_ups.values(), unknown):
            if not intent.ask:
                raise ConfigError(f"{path}: '{intent.name}' has no wordings under 'ask'.")
        for intent in (*intents.values(), unknown):
            if not intent.answers:
                raise ConfigError(f"{path}: '{intent.name}' has no answers.")
            if intent.yours is not None and intent.yours not in intents:
                raise ConfigError(f"{path}: 'yours: {intent.yours}' of '{intent.name}' names no intent.")
        return cls(intents, follow_ups, unknown, backchannels, openers, closers)


def _texts(entry: Mapping[str, Any], key: str, owner: str = "the script") -> tuple[str, ...]:
    texts = entry[key]
    if not isinstance(texts, list):
        raise TypeError(f"'{key}' of {owner} is {texts!r} instead of a list")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"'{key}' of {owner} holds {text!r}, which is no text: put it in quotes")
    return tuple(texts)


def _intent(name: str, entry: Mapping[str, Any]) -> Intent:
    def lines(key: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in entry[key].splitlines() if line.strip())

    return Intent(
        name,
        lines("ask"),
        lines("held_out"),
        _texts({"answers": [], **entry}, "answers", f"'{name}'"),
        entry.get("yours"),
        bool(entry.get("another", False)),
        lines("more") if "more" in entry else (),
    )


def expand(wording: str) -> list[str]:
    """Every text that a wording stands for."""
    parts: list[list[str]] = []
    position = 0
    for match in _CHOICE.finditer(wording):
        parts.append([wording[position : match.start()]])
        required, optional = match.groups()
        parts.append(required.split("|") if required is not None else [*optional.split("|"), ""])
        position = match.end()
    parts.append([wording[position:]])
    return [" ".join("".join(choice).split()) for choice in product(*parts)]


def pick(wording: str, rng: random.Random) -> str:
    """One of the texts that a wording stands for."""
    return rng.choice(expand(wording))


def normalize(text: str) -> str:
    """Lower case words without punctuation, as compared by the evaluations."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("-", " ")).split())
