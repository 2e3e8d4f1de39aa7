"""Codecs of random weights in the published layout, for measurements and comparisons that training doesn't change."""

from __future__ import annotations

from pathlib import Path

import moshi_mlx  # noqa: F401  (puts OpenBLAS under MLX)

import mlx.core as mx  # isort: skip
import numpy as np

from moshi_mlx.config import FRAME_SIZE, MimiConfig
from moshi_mlx.mimi import Mimi, expected_tensors

_PROBE_FRAMES = 24
_LAYER_SCALE = 0.3


def speechlike(frames: int, seed: int = 0) -> np.ndarray:
    """Sound [1, 1, 1920 * frames] with harmonics, syllables and noise, so that latents differ from frame to frame."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames * FRAME_SIZE) / 24_000
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * t) + 15 * np.sin(2 * np.pi * 2.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 24_000
    voiced = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t) + 0.4, 0, 1)
    pcm = 0.15 * syllables * voiced + 0.03 * rng.standard_normal(t.size)
    return pcm.astype(np.float32)[None, None]


def make_mimi(path: str | Path, seed: int = 0, config: MimiConfig | None = None) -> Path:
    """Write a random codec of the published (or another) shape whose codebooks are on the scale of its latents.

    Every layer keeps its input's scale, so that no part of the computation vanishes; codewords are drawn with the mean
    and spread of what they quantize, so that ties are rare and all codes are used.
    """
    config = config or MimiConfig.published()
    rng = np.random.default_rng(seed)
    tensors = {name: mx.array(_draw(rng, name, shape)) for name, shape in expected_tensors(config).items()}
    _fit_codebooks(rng, tensors, config)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), tensors)
    return path


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith(("norm1.weight", "norm2.weight")):
        return 1 + 0.1 * noise
    if name.endswith(".scale"):
        return _LAYER_SCALE * (1 + 0.1 * noise)
    if name.endswith("cluster_usage"):
        return 1 + np.abs(noise)
    if name.endswith("_initialized"):
        return np.ones(shape, dtype=np.float32)
    if len(shape) == 1:
        return 0.05 * noise
    fan_in = 2 * shape[0] if "convtr" in name else int(np.prod(shape[1:]))
    if name.startswith("upsample"):
        fan_in = 2
    if name == "encoder.model.0.conv.conv.weight":
        fan_in *= 0.05  # sound is quieter than what follows
    return noise * np.float32(fan_in**-0.5)


def _fit_codebooks(rng: np.random.Generator, tensors: dict[str, mx.array], config: MimiConfig) -> None:
    mimi = Mimi(tensors, config, num_codebooks=1)
    latents, _ = mimi.latent_frame(mx.array(speechlike(_PROBE_FRAMES)), mimi.encoder_state(1, _PROBE_FRAMES))
    for half, layers in (("rvq_first", 1), ("rvq_rest", config.n_q - 1)):
        name = f"quantizer.{half}"
        residual = np.array(latents[0] @ tensors[f"{name}.input_proj.weight"][:, :, 0].T)
        for i in range(layers):
            noise = rng.standard_normal((config.bins, config.codebook_dim), dtype=np.float32)
            words = residual.mean(axis=0) + noise * residual.std(axis=0)
            distances = ((residual[:, None] - words[None]) ** 2).sum(axis=2)
            residual = residual - words[distances.argmin(axis=1)]
            book = f"{name}.vq.layers.{i}._codebook"
            usage = np.array(tensors[f"{book}.cluster_usage"])
            tensors[f"{book}.embedding_sum"] = mx.array(words * usage[:, None])
