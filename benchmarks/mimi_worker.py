"""One codec of a paired measurement: a process that encodes and decodes frames when asked to.

Run by `mimi.py` in this project's environment (`ours`) or in the peers' (the others), which has nothing of it.
Reads a number of frames from every line of standard input and answers with the milliseconds of encoding and of decoding
each, in turns. Every frame starts and ends as an array on the host, as a session's does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""Encode float32 [1, 1, 1920] to codes [1, 8, 1], and decode those."""

CODEBOOKS = 8
_WARM_UP = 8


def ours(weights: Path) -> Codec:
    """This project's `Mimi`."""
    import numpy as np

    from moshi_mlx import Mimi

    mimi = Mimi.load(weights, CODEBOOKS)
    state = mimi.make_state()
    return (
        lambda pcm: np.array(mimi.encode_step(pcm, state)),
        lambda codes: np.array(mimi.decode_step(codes, state)),
    )


def rustymimi(weights: Path) -> Codec:
    """The published Rust codec."""
    import numpy as np
    import rustymimi

    codec = rustymimi.Tokenizer(str(weights), num_codebooks=CODEBOOKS)
    return codec.encode_step, lambda codes: codec.decode_step(np.ascontiguousarray(codes).astype(np.uint32))


def moshi_mlx(weights: Path) -> Codec:
    """The published MLX codec."""
    from moshi_mlx.models import mimi

    return _mlx_port(mimi, weights)


def mlx_audio(weights: Path) -> Codec:
    """The codec of mlx-audio."""
    from mlx_audio.codec.models.mimi import mimi

    return _mlx_port(mimi, weights)


def _mlx_port(module: Any, weights: Path) -> Codec:
    # moshi_mlx and mlx-audio have the same interface; state is in the model.
    import mlx.core as mx
    import numpy as np

    model = module.Mimi(module.mimi_202407(CODEBOOKS))
    _load_published(model, weights)
    model.warmup()
    model.reset_all() if hasattr(model, "reset_all") else model.reset_state()
    return (
        lambda pcm: np.array(model.encode_step(mx.array(pcm))),
        lambda codes: np.array(model.decode_step(mx.array(codes))),
    )


def _load_published(model: Any, weights: Path) -> None:
    # The file has 32 codebooks, a model of 8 wants no others.
    import tempfile

    import mlx.core as mx

    tensors = mx.load(str(weights))
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if "rvq_rest.vq.layers." not in name or int(name.split(".")[4]) < CODEBOOKS - 1
    }
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/mimi.safetensors"
        mx.save_safetensors(path, kept)
        model.load_pytorch_weights(path, strict=True)
        mx.eval(model.parameters())


CODECS = {"ours": ours, "rustymimi": rustymimi, "moshi_mlx": moshi_mlx, "mlx-audio": mlx_audio}


def load_openblas() -> None:
    """As this project does, so that all sides have the same BLAS; on macOS MLX has Apple's."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=CODECS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("sound", type=Path, help="float32 [1, 1, 1920 * frames] as .npy")
    options = parser.parse_args()
    load_openblas()
    import numpy as np

    encode, decode = CODECS[options.side](options.weights)
    pcm = np.load(options.sound)
    frames = [np.ascontiguousarray(x) for x in np.split(pcm, pcm.shape[2] // 1920, axis=2)]
    done = 0

    def take(steps: int) -> list[float]:
        nonlocal done
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            codes = encode(frames[done % len(frames)])
            encoded = time.perf_counter()
            sound = decode(codes)
            decoded = time.perf_counter()
            if codes.shape != (1, CODEBOOKS, 1) or sound.shape != (1, 1, 1920):
                raise SystemExit(f"{options.side} made codes {codes.shape} and sound {sound.shape} of a frame.")
            times += [1e3 * (encoded - started), 1e3 * (decoded - encoded)]
            done += 1
        return times

    take(_WARM_UP)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(take(int(line))), flush=True)


if __name__ == "__main__":
    main()
