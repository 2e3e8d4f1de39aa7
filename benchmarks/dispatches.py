"""How many operations does a step of the language model launch, and how often does the host wait for one?

On a GPU every operation costs some microseconds whatever its size, and every wait leaves the GPU idle. Both can be
counted on any machine: a step's graph is built as it is on Metal (32 layers, depth transformer 6 x 8, 4 bits; narrow,
as width doesn't matter) and its nodes are counted before it runs, here and, with MOSHI_PEERS set, in `moshi_mlx`. A
node may be several launches there: a partition of the logits is a sort on Metal, for now (see `README.md`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

STEADY = 8
"""Steps before the one that is counted: the delays have passed, all was compiled."""

LIMIT = 1008
"""Operations that a step may take at the 7B's depth: 0.75 of 1,344, counted in `moshi_mlx` 0.3.0 from outside."""


# What runs in a process of its own, in either environment.


def ours(weights: Path) -> dict[str, Any]:
    """A step of `LMGen`; and how often a whole session's step waits."""
    import numpy as np
    from graph_nodes import kernels_of_metal, watch

    import moshi_mlx

    moshi = moshi_mlx.load("untrained")
    silence = np.zeros(1920, np.float32)
    with kernels_of_metal(), not_on_cpu():
        lm = moshi_mlx.LMModel.load(weights)
        gen = moshi_mlx.LMGen(lm, seed=0)
        codes = np.zeros((1, lm.config.user_q), np.int32)
        for _ in range(STEADY):
            gen.step(codes)
        with watch() as seen:
            np.array(gen.step(codes))
    session = moshi_mlx.Moshi(lm, moshi.mimi, moshi.tokenizer).session(seed=0)
    for _ in range(STEADY):
        session.step(silence)
    with watch() as session_seen:
        session.step(silence)
    return {
        "nodes": dict(seen.nodes),
        "synchronisations": seen.synchronisations,
        "session_synchronisations": session_seen.synchronisations,
    }


@contextmanager
def not_on_cpu() -> Iterator[None]:
    """Inside, the package makes the choices that it makes on Metal."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("moshi_mlx") and hasattr(module, "on_cpu"):
                stack.enter_context(mock.patch.object(module, "on_cpu", lambda: False))
        yield


def published(weights: Path) -> dict[str, Any]:
    """A step of the published `LmGen`."""
    import mlx.core as mx
    from graph_nodes import kernels_of_metal, watch
    from step_worker import load_openblas, published_lm

    load_openblas()
    with kernels_of_metal():
        step = published_lm(weights, mx.bfloat16)
        for _ in range(STEADY):
            step()
        with watch() as seen:
            step()
    return {"nodes": dict(seen.nodes), "synchronisations": seen.synchronisations}


SIDES = {"ours": ours, "moshi_mlx": published}


def main() -> None:
    from common import NO_PEERS, Figure, answer_of, options, peers, report
    from models import make_lm, shape

    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=32, help="of the temporal transformer (%(default)s)")
    chosen = parser.parse_args()
    pythons = {"ours": sys.executable, **({"moshi_mlx": peer} if (peer := peers()) else {})}
    with tempfile.TemporaryDirectory() as folder:
        weights = make_lm(Path(folder), shape(128, chosen.layers, 2, (128, 6, 8), 128, 256), bits=4)
        counts = {s: answer_of([python, __file__, "--count", s, str(weights)]) for s, python in pythons.items()}
    total = {side: sum(counted["nodes"].values()) for side, counted in counts.items()}
    figures = [Figure.exact("operations a step", "", total["ours"], LIMIT if chosen.layers == 32 else None)]
    if "moshi_mlx" in total:
        figures.append(Figure.exact("  moshi_mlx", "", total["moshi_mlx"]))
        figures.append(Figure.exact("  ratio", "x", total["ours"] / total["moshi_mlx"], 0.75))
    figures.append(Figure.exact("waits of the host a step", "", counts["ours"]["synchronisations"], 1))
    if "moshi_mlx" in counts:
        figures.append(Figure.exact("  moshi_mlx", "", counts["moshi_mlx"]["synchronisations"]))
    figures.append(Figure.exact("waits of the host a session step", "", counts["ours"]["session_synchronisations"], 1))
    report(__doc__, chosen.json, figures, counts, [by_kind(counts)] if peers() else [by_kind(counts), NO_PEERS])


def by_kind(counts: dict[str, Any]) -> str:
    """The operations by kind, most frequent first."""
    lines = []
    for side, counted in counts.items():
        kinds = ", ".join(f"{kind} {number}" for kind, number in Counter(counted["nodes"]).most_common())
        lines.append(f"{side}: {kinds}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        print(json.dumps(SIDES[sys.argv[2]](Path(sys.argv[3]))))
    else:
        main()
