"""Utterances as codes on disk: shards that appear whole, in a folder that can be read while it grows."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint import read_header
from ..config import FRAME_RATE
from ..config_values import read_config
from ..errors import CheckpointError, ConfigError
from ..files import ResultFile
from ..mimi.quantizer import codebook
from ..mimi.weights import locate, read_weights


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

    @property
    def teaches_hearing(self) -> bool:
        """Whether a user says it, to be trained on."""
        return self.split == "train" and self.group not in ("answers", "backgrounds", "echoes")


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


_ANEW = (
    "Delete it in corpus and features, and make it anew: `python -m moshi_mlx.train.data`, then with --recode if the "
    "corpus was recoded."
)


@contextmanager
def _undamaged(path: Path, remedy: str) -> Iterator[None]:
    """Turn what goes wrong with a file of arrays into a CheckpointError that ends with what helps."""
    try:
        yield
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged ({error}). {remedy}") from error


def read_shard(path: Path, remedy: str = _ANEW) -> Iterator[Utterance]:
    """The utterances of one file.

    Raises:
        CheckpointError: the file is damaged; the message ends with the `remedy`.
    """
    with _undamaged(path, remedy):
        with np.load(path) as file:
            codes, ends = file["codes"], np.cumsum(file["lengths"])
            about = json.loads(file["about"].tobytes())
        for entry, end, length in zip(about, ends, np.diff(ends, prepend=0), strict=True):
            entry["words"] = tuple((word, float(time)) for word, time in entry["words"])
            yield Utterance(codes=codes[:, end - length : end], **entry)


PERTURBED = "perturbed"
"""In a corpus' folder, one of such files that hold further versions of what users say."""


def read_corpus(folder: Path) -> list[Utterance]:
    """All utterances written so far.

    Raises:
        CheckpointError: a file is damaged.
    """
    return [u for path in shards(folder) for u in read_shard(path)]


def shards(folder: Path) -> list[Path]:
    """The files of a corpus that there are so far, those with perturbed versions among them."""
    return [*sorted(folder.glob("*.npz")), *sorted((folder / PERTURBED).glob("*.npz"))]


ANSWERS = "answers.npz"
"""Beside a codec's weights, a file like a corpus': Moshi's answers in the codes that language models say them with."""

_SAME_TAKE = 0.02
"""Seconds by which the ends of one answer, rendered twice, may differ."""


def known_answers(codec: Path) -> dict[tuple[str, str], Utterance]:
    """Moshi's answers as language models of a codec say them, by voice and text; none where it brings none.

    An encoder that was taught further gives a sound other codes than the ones that the models learned with it.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = codec / ANSWERS
    if not path.exists():
        return {}
    return {(u.voice, u.text): u for u in read_shard(path, "Take it from where the codec is from.")}


def same_take(known: Mapping[tuple[str, str], Utterance], voice: str, text: str, end: float) -> Utterance | None:
    """The known answer that was spoken as one that ends at `end` seconds; none where that is spoken at another rate."""
    found = known.get((voice, text))
    return found if found and abs(found.end - end) < _SAME_TAKE else None


def said_as_known(utterance: Utterance, known: Utterance | None) -> Utterance:
    """An answer in the codes of a known take, if there is one; codebooks that the take has no codes of stay."""
    if known is None:
        return utterance
    more, frames = utterance.codes[len(known.codes) :], known.codes.shape[1]
    more = np.pad(more[:, :frames], ((0, 0), (0, max(0, frames - more.shape[1]))), mode="edge")
    return replace(known, codes=np.concatenate([known.codes, more.astype(known.codes.dtype)]))


def write_answers(folder: Path, answers: Iterable[Utterance]) -> None:
    """Put Moshi's answers beside a codec's weights, in place of those that were there.

    Raises:
        StorageError: disk full, no permission.
    """
    answers = list(answers)
    if answers:
        write_shard(folder / ANSWERS, answers)
    else:
        (folder / ANSWERS).unlink(missing_ok=True)


Features = tuple[np.ndarray, np.ndarray]
"""Of one utterance: what the codec's convolutions [2 F, C] and its encoder [F, C] made of it."""


def alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of things of like lengths that are no longer than `most` together, each padded to the longest."""
    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if chosen and (len(chosen) + 1) * lengths[i] > most:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


def codec_shape(codec: Path) -> dict[str, Any]:
    """What the `config.json` of a codec's folder says.

    Raises:
        CheckpointError: there is none.
        ConfigError: it is damaged.
    """
    path = codec / "config.json"
    if not path.exists():
        raise CheckpointError(f"{codec} is no codec folder: no config.json. Name one as 'codec'.")
    return read_config(path)


def codec_tensors(codec: Path) -> dict[str, mx.array]:
    """The tensors of a codec's folder.

    Raises:
        CheckpointError: no codec there, or a damaged one.
    """
    path, config = locate(codec)
    return read_weights(path, config)


def codebooks(tensors: Mapping[str, mx.array]) -> list[np.ndarray]:
    """A codec's codebooks, the semantic one first, float32 [bins, width] each."""
    single = {name: tensor.astype(mx.float32) for name, tensor in tensors.items() if "._codebook." in name}
    rest = sum(name.endswith("._codebook.embedding_sum") for name in single) - 1
    books = [codebook(single, "rvq_first", 0), *(codebook(single, "rvq_rest", k) for k in range(rest))]
    return [np.array(book) for book in books]


CODES_FROM = ("encoder.", "encoder_transformer.", "downsample.", "quantizer.")
"""How the names of a codec's tensors begin that its codes depend on."""


def fingerprint(tensors: Mapping[str, mx.array], *parts: str) -> str:
    """What tells a codec's tensors, or those whose names begin so, from others; the same in half precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name.startswith(parts or ("",)):
            digest.update(np.array(tensor.astype(mx.float16)).tobytes())
    return digest.hexdigest()


def convolutions_of(codec: Path) -> str:
    """A fingerprint of a codec's encoder convolutions, which features depend on.

    Raises:
        CheckpointError: no codec there, or a damaged one.
    """
    return fingerprint(codec_tensors(codec), "encoder.")


def write_features(path: Path, features: Iterable[Features], convolutions: str) -> None:
    """Write the features of a shard's utterances, in their order.

    Args:
        path: of the file.
        features: of each utterance.
        convolutions: the codec's, from `convolutions_of`.

    Raises:
        StorageError: disk full, no permission.
    """
    convolved, latents = zip(*features, strict=True)
    content = io.BytesIO()
    np.savez(
        content,
        convolved=np.concatenate(convolved).astype(np.float16),
        latents=np.concatenate(latents).astype(np.float16),
        lengths=np.array([len(x) for x in latents]),
        convolutions=np.array(convolutions),
    )
    with ResultFile(path) as file:
        file.write(content.getvalue())


def read_features(path: Path, convolutions: str) -> list[Features]:
    """The features of a shard's utterances, in their order.

    Raises:
        CheckpointError: the file is damaged.
        ConfigError: they were other convolutions.
    """
    with _undamaged(path, _ANEW), np.load(path) as file:
        convolved, latents, ends = file["convolved"], file["latents"], np.cumsum(file["lengths"])
        if str(file["convolutions"]) != convolutions:
            raise ConfigError(f"{path} was made with a codec of other convolutions: render the corpus with this one.")
    starts = ends - np.diff(ends, prepend=0)
    return [(convolved[2 * a : 2 * b], latents[a:b]) for a, b in zip(starts, ends, strict=True)]


def shards_with_features(work: Path) -> list[tuple[Path, Path]]:
    """A work folder's shards, each with the file of its features.

    Raises:
        ConfigError: there are none, or some lack features.
    """
    shards = [(path, work / "features" / path.name) for path in sorted((work / "corpus").glob("*.npz"))]
    if not shards:
        raise ConfigError(f"{work}/corpus is empty: run `python -m moshi_mlx.train.data` first.")
    if lacking := [path for path, features in shards if not features.exists()]:
        raise ConfigError(
            f"{len(lacking)} of {len(shards)} files of {work}/corpus have no features: make it anew with "
            "'features: true' under 'data'."
        )
    return shards


def write_run(path: Path, tensors: dict[str, mx.array], codec: str) -> None:
    """Write what a run needs to go on, in place of what was there.

    Args:
        path: of the run's file.
        tensors: by name; "codec" is none of them.
        codec: fingerprint of the codec that the run began with.

    Raises:
        StorageError: disk full, no permission.
    """
    content = io.BytesIO()
    mx.save_safetensors(content, {**tensors, "codec": mx.array(np.frombuffer(codec.encode(), np.uint8))})
    with ResultFile(path) as file:
        file.write(content.getvalue())


def read_run(path: Path, codec: str) -> dict[str, mx.array]:
    """The tensors of a run's file, which must go on with the codec of this fingerprint; earlier versions' tell none.

    Raises:
        CheckpointError: it is damaged, or began with another codec.
    """
    try:
        read_header(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no whole safetensors file. Delete it to begin the run anew.") from error
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    if "codec" in tensors and np.array(tensors["codec"]).tobytes().decode() != codec:
        raise CheckpointError(
            f"{path} began with another codec. Name that one as --codec, choose another work folder, or remove the "
            "file to begin anew."
        )
    return tensors
