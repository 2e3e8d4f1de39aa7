"""One side of a paired measurement: a process that takes steps when asked to.

Run by `step.py` in this project's environment (`ours`) or in the peers' (`peers`), which has nothing of this project.
`lm` is a step of the language model from the user's codes to tokens on the host; `session` is the way from 1920
samples in to 1920 samples out. Reads a number of steps from every line of standard input, takes them, and answers with
their milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], None]

MAX_STEPS = 4000
"""Steps that the published generator can take in its life."""


def our_lm(weights: Path, compile: bool = True) -> Step:
    """A step of `LMGen`."""
    import numpy as np

    import moshi_mlx

    lm = moshi_mlx.LMModel.load(weights)
    gen = moshi_mlx.LMGen(lm, seed=0, compile=compile)
    codes = np.zeros((1, lm.config.user_q), np.int32)

    def step() -> None:
        tokens = gen.step(codes)
        if tokens is not None:
            np.array(tokens)

    return step


def our_session(folder: Path, compile: bool = True) -> Step:
    """A step of a session."""
    import moshi_mlx

    session = moshi_mlx.load(folder).session(seed=0, compile=compile)
    frame = _frame()[0, 0]
    return lambda: _check(session.step(frame).pcm.shape == (1920,))


def published_lm(weights: Path, dtype: Any = None) -> Step:
    """A step of `moshi_mlx`'s `LmGen`."""
    import mlx.core as mx

    generator, user_q = _published_generator(weights, dtype)
    codes = mx.zeros((1, user_q), mx.int32)

    def step() -> None:
        text = generator.step(codes)
        text[0].item()
        generator.last_audio_tokens()

    return step


def published_session(folder: Path) -> Step:
    """`rustymimi` before and after `moshi_mlx`'s `LmGen`, as its command line has them."""
    import mlx.core as mx
    import numpy as np
    import rustymimi

    config = json.loads((folder / "config.json").read_text())
    generator, user_q = _published_generator(folder / config["moshi_name"])
    codec = rustymimi.Tokenizer(str(folder / config["mimi_name"]), num_codebooks=user_q)
    frame = _frame()

    def step() -> None:
        codes = codec.encode_step(frame)
        text = generator.step(mx.array(codes)[:, :, 0].astype(mx.int32))
        text[0].item()
        audio = generator.last_audio_tokens()
        if audio is not None:
            sound = codec.decode_step(np.array(audio[:, :, None]).astype(np.uint32))
            _check(sound.shape == (1, 1, 1920))

    return step


def _published_generator(weights: Path, dtype: Any = None) -> tuple[Any, int]:
    """A generator of the published implementation, and how many codebooks it hears."""
    import mlx.core as mx
    import mlx.nn as nn

    from moshi_mlx import models, utils

    config = json.loads((weights.parent / "config.json").read_text())
    model = models.Lm(models.LmConfig.from_config_dict(config))
    if ".q" in weights.name:
        bits = int(weights.name.split(".q")[1].split(".")[0])
        stored = mx.load(str(weights))
        model.set_dtype(mx.bfloat16)

        def as_stored(path: str, module: Any) -> dict[str, int] | bool:
            # Groups of 64 don't divide every row of a narrow model; such rows have groups of 32.
            scales = stored.get(f"{path}.scales")
            return scales is not None and {"bits": bits, "group_size": module.weight.shape[1] // scales.shape[1]}

        nn.quantize(model, class_predicate=as_stored)
    model.load_weights(str(weights), strict=True)
    # Of its ways to run on CPU the fastest: its quantized kernels, too, are fastest with float32 activations there.
    model.set_dtype(dtype or mx.float32)
    model.warmup()
    sampler = utils.Sampler
    text, audio = sampler(temp=0.7, top_k=25), sampler(temp=0.8, top_k=250)
    return models.LmGen(model, MAX_STEPS, text, audio), config["n_q"] - config["dep_q"]


def _frame() -> Any:
    """A frame of noise [1, 1, 1920]: what a step costs doesn't depend on what is heard."""
    import numpy as np

    return 0.1 * np.random.default_rng(0).standard_normal((1, 1, 1920)).astype(np.float32)


def _check(fine: bool) -> None:
    if not fine:
        raise SystemExit("A step didn't make a frame of sound.")


def load_openblas() -> None:
    """As this project does, so that both sides have the same BLAS; on macOS MLX has Apple's."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "peers"])
    parser.add_argument("what", choices=["lm", "session"])
    parser.add_argument("model", type=Path, help="lm: weights file; session: folder")
    parser.add_argument("--no-compile", action="store_true", help="ours without mx.compile")
    options = parser.parse_args()
    load_openblas()
    if options.side == "ours":
        step = (our_lm if options.what == "lm" else our_session)(options.model, not options.no_compile)
    else:
        step = (published_lm if options.what == "lm" else published_session)(options.model)
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
