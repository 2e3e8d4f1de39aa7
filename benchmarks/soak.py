"""Does a conversation of an hour stay as fast, and as small in memory, as one of a few minutes?

Takes 45,000 steps of a small random model (1 M weights, codec and all; its window of 250 steps fills after 20 s). Once
the window is full a copy of the conversation is kept; at the end the copy, as old as it was then, and the conversation,
an hour old, take steps in turns: other work on the machine meets both, so their ratio tells age from noise. All are
medians, which a machine that pauses or is busy for a while doesn't move.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moshi_mlx

import mlx.core as mx  # isort: skip
import numpy as np
from common import Figure, options, ratios, report, resident_bytes
from plots import add_plot_option, new_axes, save
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moshi_mlx.config import FRAME_SIZE

LAST = 1000
"""Steps at the end, and right after the window filled, whose medians are compared."""

FLAT = 1.05
"""What may be at the end by what was right after the window filled."""

_SAMPLE_EVERY = 50
_TURN = 50


@dataclass
class Conversation:
    """What was seen of it.

    Attributes:
        ms, cpu_ms: of every step, by the clock and of all CPUs together.
        memory: now and then (step, resident bytes, bytes that MLX holds).
        young: a copy of the session from right after its window filled.
    """

    young: moshi_mlx.Session
    ms: array[float] = field(default_factory=lambda: array("d"))
    cpu_ms: array[float] = field(default_factory=lambda: array("d"))
    memory: list[tuple[int, int, int]] = field(default_factory=list)


def run(session: moshi_mlx.Session, steps: int, advance: Callable[[int], None]) -> Conversation:
    """Take the steps; `advance` is told now and then how many were taken since it was last told."""
    context = session._moshi.lm.config.context
    seen = Conversation(session)
    noise = 0.1 * np.random.default_rng(0).standard_normal((64, FRAME_SIZE)).astype(np.float32)
    for step in range(steps):
        started, cpu = time.perf_counter(), time.process_time()
        session.step(noise[step % 64])
        seen.ms.append((time.perf_counter() - started) * 1e3)
        seen.cpu_ms.append((time.process_time() - cpu) * 1e3)
        if step == context:
            seen.young = session.fork()
        if step % _SAMPLE_EVERY == 0:
            seen.memory.append((step, resident_bytes(), mx.get_active_memory()))
            advance(_SAMPLE_EVERY)
    return seen


def age_ratios(old: moshi_mlx.Session, young: moshi_mlx.Session, steps: int) -> list[float]:
    """The old conversation's step time by the young one's, turn by turn."""
    times: dict[str, list[list[float]]] = {"old": [], "young": []}
    silence = np.zeros(FRAME_SIZE, np.float32)
    for turn in range(max(2, steps // _TURN)):
        # Who is first alternates, so that what a turn leaves in the processor's caches meets both.
        pair = [("old", old), ("young", young)]
        for name, session in pair if turn % 2 else pair[::-1]:
            found = []
            for _ in range(_TURN):
                started = time.perf_counter()
                session.step(silence)
                found.append((time.perf_counter() - started) * 1e3)
            times[name].append(found)
    return ratios(times["old"], times["young"])


def _by(late: Sequence[float], early: Sequence[float]) -> float:
    return statistics.median(late) / statistics.median(early)


def plot(times: Sequence[float], memory: Sequence[tuple[int, int, int]], path: Path) -> None:
    """Step time and memory over the conversation."""
    figure, (upper, lower) = new_axes(
        f"{len(times) * 0.08 / 60:.0f} minutes of conversation", "minutes", "step, ms", rows=2
    )
    block = max(1, len(times) // 300)
    blocks = [np.quantile(times[i : i + block], [0.05, 0.5, 0.95]) for i in range(0, len(times) - block + 1, block)]
    minutes = np.arange(len(blocks)) * block * 0.08 / 60
    low, median, high = np.array(blocks).T
    upper.fill_between(minutes, low, high, alpha=0.25, label="5-95%")
    upper.plot(minutes, median, label="median")
    upper.set_ylim(0, 2 * float(np.quantile(high, 0.9)))
    upper.legend()
    steps, resident, active = np.array(memory).T
    lower.plot(steps * 0.08 / 60, resident / 1e6, label="process")
    lower.plot(steps * 0.08 / 60, active / 1e6, label="held by MLX")
    lower.set_ylim(0)
    lower.set_ylabel("MB")
    lower.legend()
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=45_000, help="%(default)s: an hour")
    add_plot_option(parser, "time and memory over the conversation")
    chosen = parser.parse_args(arguments)
    moshi = moshi_mlx.load("untrained")
    context = moshi.lm.config.context
    last = min(LAST, chosen.steps // 4)
    if chosen.steps < context + 2 * last:
        parser.error(f"--steps must be at least {2 * (context + 1)}: the window takes {context} steps to fill.")
    moshi.warm_up()
    session = moshi.session(seed=0)
    with _progress() as bar:
        task = bar.add_task("Conversing", total=chosen.steps)
        seen = run(session, chosen.steps, lambda steps: bar.advance(task, steps))
        bar.update(task, description="Old and young in turns")
        in_turns = age_ratios(session, seen.young, last)
    early, late = slice(context, context + last), slice(-last, None)
    memory = seen.memory
    filled = next(entry for entry in memory if entry[0] > context)
    figures = [
        Figure.of("step, right after the window filled", "ms", seen.ms[early]),
        Figure.of("step, at the end", "ms", seen.ms[late]),
        Figure.exact("ratio of the two medians", "x", _by(seen.ms[late], seen.ms[early]), FLAT),
        Figure.exact("the same, of processor time", "x", _by(seen.cpu_ms[late], seen.cpu_ms[early]), FLAT),
        Figure.of("old by young, in turns", "x", in_turns, FLAT),
        Figure.exact("memory of the process, at the end by when filled", "x", memory[-1][1] / filled[1], FLAT),
        Figure.exact("memory that MLX holds, the same", "x", memory[-1][2] / filled[2], FLAT),
    ]
    verdict = verdict_on(figures)
    details: dict[str, Any] = {
        "steps": chosen.steps,
        "verdict": verdict,
        "median_ms_by_thousandth": [
            statistics.median(part) for part in np.array_split(np.array(seen.ms), min(1000, chosen.steps // 10))
        ],
        "memory": memory,
    }
    if chosen.plot:
        plot(seen.ms, memory, chosen.plot)
    report(__doc__, chosen.json, figures, details, [verdict])


def verdict_on(figures: Sequence[Figure]) -> str:
    """What the five ratios say."""
    clock, processor, paired, *memory = [figure for figure in figures if figure.at_most is not None]
    within = f"within {FLAT - 1:.0%}"
    if _near(clock):
        time = f"the last steps are {within} of those right after the window filled"
    elif clock.reached:
        time = (
            f"the last steps are not {within} of those right after the window filled but faster, {clock.median:.3f} by "
            f"the clock; old by young in turns, where other work meets both, is {paired.median:.3f}, "
        )
        time += f"{within}: the difference is the machine's, not age's" if _near(paired) else "not within it either"
    elif paired.reached or processor.reached:
        time = "the last steps are slower by the clock, for other work on the machine: not slower for their age"
    else:
        time = "the last steps are slower than those right after the window filled"
    return f"Time: {time}. Memory: {'flat' if all(figure.reached for figure in memory) else 'grows'}."


def _near(ratio: Figure) -> bool:
    """Whether a ratio is flat either way: neither slower nor faster."""
    return 2 - FLAT <= ratio.median <= FLAT


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Drawn rarely, as drawing takes time from the steps.
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=1)


if __name__ == "__main__":
    main()
