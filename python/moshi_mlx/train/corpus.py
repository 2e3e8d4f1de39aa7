"""Utterances as codes on disk: shards that appear whole, in a folder that can be read while it grows."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..config import FRAME_RATE
from ..files import ResultFile


@dataclass(frozen=True)
class Utterance:
    """One rendering.

    Attributes:
        codes: int16 [K, F].
        group: `intents`, `follow_ups`, `out_of_domain`, `backchannels`, `backgrounds`, `echoes` or `answers`.
        name: the intent, or the answer's text.
        text: what is said.
        voice: who says it.
        split: `train`, `known` (a trained wording in a held-out voice) or `held_out` (both held out).
        start: when speech starts, in seconds from the first frame.
        end: when it ends.
        words: each word's start in seconds.
    """

    codes: np.ndarray
    group: str
    name: str
    text: str
    voice: str
    split: str
    start: float
    end: float
    words: tuple[tuple[str, float], ...]

    @property
    def first_frame(self) -> int:
        """The frame in which speech starts."""
        return int(self.start * FRAME_RATE + 1e-6)

    @property
    def end_frame(self) -> int:
        """The frame after the one in which speech ends."""
        return min(math.ceil(self.end * FRAME_RATE - 1e-6), int(self.codes.shape[1]))


def write_shard(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write utterances to one file.

    Raises:
        StorageError: disk full, no permission.
    """
    utterances = list(utterances)
    about = [{k: v for k, v in asdict(u).items() if k != "codes"} for u in utterances]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        codes=np.concatenate([u.codes.astype(np.int16) for u in utterances], axis=1),
        lengths=np.array([u.codes.shape[1] for u in utterances]),
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    )
    with ResultFile(path) as file:
        file.write(content.getvalue())


def read_shard(path: Path) -> Iterator[Utterance]:
    """The utterances of one file."""
    with np.load(path) as file:
        codes, ends = file["codes"], np.cumsum(file["lengths"])
        about = json.loads(file["about"].tobytes())
    for entry, end, length in zip(about, ends, np.diff(ends, prepend=0), strict=True):
        entry["words"] = tuple((word, float(time)) for word, time in entry["words"])
        yield Utterance(codes=codes[:, end - length : end], **entry)


def read_corpus(folder: Path) -> list[Utterance]:
    """All utterances written so far."""
    return [u for path in sorted(folder.glob("*.npz")) for u in read_shard(path)]
