"""Further codebooks for a codec, fitted to what users say: `python -m moshi_mlx.train codec CONFIG --parts hearing`.

The acoustic codebooks are fitted to Moshi's voice, and their projection keeps what that sounds like. Further ones
quantize what is left of users' latents: their width grows by the directions in which most was lost. Existing codes stay
what they were, also as sound.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint import write_half
from ..errors import ConfigError
from ..files import make_folder, write_json
from .config import Config
from .corpus import (
    codebooks,
    codec_shape,
    codec_tensors,
    convolutions_of,
    known_answers,
    read_features,
    read_shard,
    shards_with_features,
    write_answers,
)
from .semantic import fit_codebooks, nearest, remainder

_REST = "quantizer.rvq_rest"


def widen(config: Config, out: Path) -> list[float]:
    """Write a codec with further codebooks.

    Args:
        config: the run; its corpus has features, with this codec's latents.
        out: the codec's folder, made if missing.

    Returns:
        What is left of what the existing codebooks lose, after each further one: shares of its variance.

    Raises:
        CheckpointError: no codec there, or a damaged one.
        ConfigError: no corpus, one without features, or with those of another codec.
        StorageError: disk full, no permission.
    """
    about, tensors = codec_shape(config.codec), codec_tensors(config.codec)
    (first, *known), wanted = codebooks(tensors), config.hearing
    draws = np.random.default_rng(config.train.seed)
    latents, codes = _latents(config, draws)
    project = np.array(tensors[f"{_REST}.input_proj.weight"].astype(mx.float32))[:, :, 0]
    semantic = np.array(tensors["quantizer.rvq_first.input_proj.weight"].astype(mx.float32))[:, :, 0]
    if np.mean(nearest(latents @ semantic.T, first) == codes) < 0.9:
        raise ConfigError(
            f"{config.work}/features are of another codec: run `python -m moshi_mlx.train.data --recode` with this one."
        )
    seen = latents @ project.T
    # What of a latent can't be told from what the codebooks see of it, and the directions in which most of that lies.
    predict = np.linalg.lstsq(np.c_[seen, np.ones(len(seen), np.float32)], latents, rcond=None)[0][:-1].T
    unseen = np.eye(latents.shape[1], dtype=np.float32) - predict @ project
    lost = latents @ unseen.T
    _, directions = np.linalg.eigh(np.cov((lost - lost.mean(axis=0)).T))
    added = np.asarray(directions[:, ::-1][:, : wanted.width].T @ unseen, np.float32)
    left = np.c_[remainder(seen, known), latents @ added.T]
    whole, books, shares = float(left.var(axis=0).sum()), [], []
    for _ in range(wanted.codebooks):
        start = left[draws.choice(len(left), len(first), replace=len(left) < len(first))]
        (book,) = fit_codebooks(left, np.ones(len(left)), [start], draws)
        left = remainder(left, [book])
        books.append(book)
        shares.append(float(left.var(axis=0).sum()) / whole)
    _write(config, out, _widened(tensors, added, books, len(known)), about)
    return shares


def _latents(config: Config, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some of the latents of what users say, float32 [frames, dimension], and their semantic codes."""
    convolutions, found, codes = convolutions_of(config.codec), [], []
    for path, beside in shards_with_features(config.work):
        for u, (_, latents) in zip(read_shard(path), read_features(beside, convolutions), strict=True):
            if u.teaches_hearing:
                found.append(latents[u.first_frame : u.end_frame])
                codes.append(u.codes[0, u.first_frame : u.end_frame])
    frames = np.concatenate(found).astype(np.float32) if found else np.zeros((0, 1), np.float32)
    if len(frames) < config.hearing.frames // 100:
        raise ConfigError(f"{config.work}/corpus holds {len(frames)} frames of users' speech: render more of it.")
    some = draws.choice(len(frames), min(len(frames), config.hearing.frames), replace=False)
    return frames[some], np.concatenate(codes)[some]


def _widened(
    tensors: dict[str, mx.array], added: np.ndarray, books: list[np.ndarray], first: int
) -> dict[str, mx.array]:
    """A codec's tensors with rows `added` to the acoustic codebooks' projection, and further books from `first` on."""
    width, result = len(added), dict(tensors)
    for half in ("rvq_first", "rvq_rest"):
        rows, columns = f"quantizer.{half}.input_proj.weight", f"quantizer.{half}.output_proj.weight"
        more = mx.array(added)[:, :, None] if half == "rvq_rest" else mx.zeros((width, *tensors[rows].shape[1:]))
        result[rows] = mx.concatenate([tensors[rows].astype(mx.float32), more])
        result[columns] = mx.pad(tensors[columns].astype(mx.float32), [(0, 0), (0, width), (0, 0)])
    for name, tensor in tensors.items():
        if name.endswith("._codebook.embedding_sum"):
            result[name] = mx.pad(tensor, [(0, 0), (0, width)])
    for i, book in enumerate(books, first):
        name = f"{_REST}.vq.layers.{i}._codebook"
        result[f"{name}.embedding_sum"] = mx.array(book)
        result[f"{name}.cluster_usage"] = mx.ones(len(book))
    return result


def _write(config: Config, out: Path, tensors: dict[str, mx.array], about: dict[str, object]) -> None:
    quantizer = dict(about["quantizer"])  # type: ignore[call-overload]
    quantizer["dimension"] += config.hearing.width
    quantizer["n_q"] += config.hearing.codebooks
    make_folder(out)
    write_half(out / "model.safetensors", tensors)
    write_json(out / "config.json", {**about, "quantizer": quantizer})
    write_answers(out, known_answers(config.codec).values())
