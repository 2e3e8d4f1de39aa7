"""One side of a paired measurement: a process that takes language model steps when asked to.

Run by `step.py` in this project's environment (`ours`) or in the peers' (`moshi_mlx`), which has nothing of this
project. Reads a number of steps from every line of standard input, takes them, and answers with their milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def ours(weights: Path, compile: bool) -> Callable[[], None]:
    import numpy as np

    import moshi_mlx
    from moshi_mlx.generation import LMGen

    assert moshi_mlx.BLAS or sys.platform == "darwin", "OpenBLAS isn't loaded"
    lm = moshi_mlx.LMModel.load(weights)
    gen = LMGen(lm, seed=0, compile=compile)
    codes = np.zeros((1, lm.config.user_q), np.int32)

    def step() -> None:
        tokens = gen.step(codes)
        if tokens is not None:
            np.array(tokens)

    return step


def published(weights: Path, compile: bool) -> Callable[[], None]:
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    import mlx.core as mx
    import mlx.nn as nn

    from moshi_mlx import models, utils

    config = json.loads((weights.parent / "config.json").read_text())
    model = models.Lm(models.LmConfig.from_config_dict(config))
    if ".q" in weights.name:
        bits = int(weights.name.split(".q")[1].split(".")[0])
        model.set_dtype(mx.bfloat16)
        nn.quantize(model, bits=bits, group_size=32 if bits == 4 else 64)
        # Its quantized kernels are fastest with float32 activations on CPU.
        model.load_weights(str(weights), strict=True)
        model.set_dtype(mx.float32)
    else:
        model.load_weights(str(weights), strict=True)
    model.warmup()
    sampler = utils.Sampler
    gen = models.LmGen(model, 4000, sampler(temp=0.7, top_k=25), sampler(temp=0.8, top_k=250))
    codes = mx.zeros((1, config["n_q"] - config["dep_q"]), mx.int32)

    def step() -> None:
        text = gen.step(codes)
        text[0].item()
        gen.last_audio_tokens()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "moshi_mlx"])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    step = (ours if args.side == "ours" else published)(args.weights, not args.no_compile)
    for _ in range(8):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            times.append((time.perf_counter() - started) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
