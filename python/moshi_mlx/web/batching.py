"""Which sizes of batch pay on this machine, measured when the server starts.

Where several conversations have a frame ready, one common step reads the weights once for all of them. Its time by that
of as many steps in turns, medians of paired runs on 2 busy x86-64 cores, one BLAS thread, float32, codec and all:

| model | 2 | 4 | 8 |
| --- | --- | --- | --- |
| `untrained` | 0.53 | 0.47 | 0.33 |
| `nano` | 0.77 | 0.53 | 0.43 |
| 512 wide, codec of full size | 0.56 | 0.47 | |

`benchmarks/serve.py` measures the first two.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FRAME_SIZE
from ..session_batch import ready_sessions, step_together, warm_up
from .worker import FRAME_SECONDS, largest

if TYPE_CHECKING:
    from ..moshi import Moshi
    from ..session import Session

SIZES = (2, 3, 4, 6, 8)
"""The batches that are tried. Each needs graphs of its own, built before anyone converses."""

_USED = 0.85
"""How much of the time conversations may take, so that the rest of the machine has some."""

_MEMORY = 0.25
"""How much of the machine's memory conversations may take where nobody said how many there may be."""

_ROUNDS = 4


@dataclass(frozen=True)
class StepTimes:
    """How long steps take.

    Attributes:
        seconds: of a step, by the number of conversations in it: 1, and those of `SIZES` that pay.
    """

    seconds: dict[int, float]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batches to step together."""
        return tuple(size for size in self.seconds if size > 1)

    def of(self, conversations: int) -> float:
        """Seconds for a frame of each of so many conversations, in batches as the worker makes them."""
        total = 0.0
        while conversations:
            size = largest(self.sizes, conversations)
            total += self.seconds[size]
            conversations -= size
        return total

    def held(self, most: int) -> int:
        """How many conversations keep up with their clients, 1 to `most`."""
        keep_up = itertools.takewhile(lambda n: self.of(n) <= _USED * FRAME_SECONDS, range(1, most + 1))
        return max(keep_up, default=1)

    def __str__(self) -> str:
        steps = [f"{self.seconds[1] * 1e3:.0f} of {FRAME_SECONDS * 1e3:.0f} ms"]
        steps += [f"{size} together {self.seconds[size] * 1e3:.0f}" for size in self.sizes]
        return f"A step takes {', '.join(steps)}."


def measure(moshi: Moshi, most: int, **settings: Any) -> StepTimes:
    """Build what a conversation needs, and time steps of up to `most`.

    A size is kept where the common step takes less time than the smaller ones that it replaces. None is tried that is
    far too slow to keep up.

    Args:
        settings: as for `Moshi.session`.
    """
    moshi.warm_up(**settings)
    alone = ready_sessions(moshi, 1, **settings)
    _time(alone, ())
    seconds = {1: statistics.median(_time(alone, ()) for _ in range(15))}
    times = StepTimes(seconds)
    config = moshi.lm.config
    for size in SIZES if config.user_q and config.dep_q else ():
        if size > most or times.of(size - 1) > 2 * FRAME_SECONDS:
            break
        sessions = ready_sessions(moshi, size, **settings)
        turns, together = [], []
        for turn in range(_ROUNDS + 1):
            pair = _time(sessions, times.sizes), _time(sessions, (size,))
            if turn:  # the first builds the graphs
                turns.append(pair[0])
                together.append(pair[1])
        # The quickest of each is compared: what else runs on the machine only adds to it.
        if min(together) < min(turns):
            seconds[size] = statistics.median(together)
    return times


def build(moshi: Moshi, sizes: Sequence[int], **settings: Any) -> None:
    """Build what batches of these sizes need, so that no conversation waits for it."""
    for size in sizes:
        warm_up(moshi, size, **settings)


def most_in_memory(moshi: Moshi, **settings: Any) -> int:
    """How many conversations' caches fit into a quarter of the machine's memory, at least 1."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(_MEMORY * memory / moshi.session(**{"seed": 0, **settings}).nbytes))


def _time(sessions: Sequence[Session], sizes: Sequence[int]) -> float:
    """Seconds for a frame of each session, in batches as the worker makes them."""
    silence = np.zeros(FRAME_SIZE, np.float32)
    started = time.perf_counter()
    while sessions:
        size = largest(sizes, len(sessions))
        if size == 1:
            sessions[0].step(silence)
        else:
            step_together(sessions[:size], [silence] * size)
        sessions = sessions[size:]
    return time.perf_counter() - started
