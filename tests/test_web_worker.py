"""The worker steps conversations together where it may, serves all alike, and lets none suffer for another."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from web_clients import PATIENCE, House

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.session import Frame, Session, Timings
from moshi_mlx.session_batch import ready_sessions, step_together
from moshi_mlx.web import batching
from moshi_mlx.web.batching import StepTimes, build, measure
from moshi_mlx.web.worker import Conversation, Worker

FRAMES = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 6, FRAME_SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.worker.stop()


class Talks:
    """Conversations whose frames are all there before the first is stepped; `answers` are in the order of stepping."""

    def __init__(self, worker: Worker, speakers: list[Any]):
        self.worker = worker
        self.conversations = [Conversation(speaker, max_lag=1e3) for speaker in speakers]
        self.answers: list[tuple[int, Frame]] = []
        self.errors: list[tuple[int, Exception]] = []
        self._arrived: queue.Queue[None] = queue.Queue()
        for index, conversation in enumerate(self.conversations):
            conversation.on_frame = self._noting(self.answers, index)
            conversation.on_error = self._noting(self.errors, index)

    def _noting(self, notes: list[Any], index: int) -> Callable[..., None]:
        def note(what: object, *more: object) -> None:
            notes.append((index, what))
            self._arrived.put(None)

        return note

    def run(self, sounds: list[list[np.ndarray]], answers: int) -> None:
        """Let each say its frames, all at once, and wait for so many answers and errors; then end."""
        gate = threading.Event()
        self.worker.call(gate.wait)
        for conversation, frames in zip(self.conversations, sounds, strict=True):
            self.worker.add(conversation)
            for frame in frames:
                self.worker.put(conversation, frame)
        gate.set()
        for _ in range(answers):
            self._arrived.get(timeout=PATIENCE)
        self.worker.call(lambda: None).result()  # the step that the last answer is from has ended
        for conversation in self.conversations:
            self.worker.remove(conversation)

    def of(self, index: int) -> list[Frame]:
        return [frame for talk, frame in self.answers if talk == index]


def sessions(house: House, count: int, **settings: Any) -> list[Session]:
    return house.worker.call(lambda: [house.model.session(seed=seed, **settings) for seed in range(count)]).result()


def alone(house: House, seed: int, sounds: np.ndarray) -> list[Frame]:
    def step() -> list[Frame]:
        session = house.model.session(seed=seed)
        return [session.step(frame) for frame in sounds]

    return house.worker.call(step).result()


def test_conversations_step_together_and_hear_what_they_hear_alone(house: House) -> None:
    before = house.worker.together
    talks = Talks(house.worker, sessions(house, 3))
    talks.run([list(frames) for frames in FRAMES], answers=18)
    # Each first step is taken alone; of three that are ready, two go together.
    assert house.worker.together - before >= 8
    for index, frames in enumerate(FRAMES):
        expected = alone(house, index, frames)
        found = talks.of(index)
        assert [frame.step for frame in found] == list(range(6))
        for one, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.pcm, other.pcm, atol=1e-4)
    counts = np.zeros(3, int)
    for index, _ in talks.answers:
        counts[index] += 1
        assert np.ptp(counts) <= 1, "one conversation was served more than another that waited, too"


def test_without_batches_they_take_turns(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.worker, "batch_sizes", ())
    before = house.worker.together
    talks = Talks(house.worker, sessions(house, 2))
    talks.run([list(FRAMES[0]), list(FRAMES[1])], answers=12)
    assert [index for index, _ in talks.answers] == [0, 1] * 6
    assert house.worker.together == before


class Loud:
    """A speaker that isn't a session of the model."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, pcm: np.ndarray) -> Frame:
        self.steps += 1
        return Frame(pcm, "", None, Timings(1.0), self.steps - 1)

    def note_dropped(self, frames: int) -> None:
        raise AssertionError("nothing was dropped")

    def reset(self, seed: int | None = None) -> None:
        self.steps = 0


def test_sessions_of_another_kind_take_turns(house: House) -> None:
    before = house.worker.together
    speakers = [*sessions(house, 1), *sessions(house, 1, kv_bits=8), Loud()]
    talks = Talks(house.worker, speakers)
    talks.run([list(frames) for frames in FRAMES], answers=18)
    assert [index for index, _ in talks.answers] == [0, 1, 2] * 6
    assert house.worker.together == before


def test_a_frame_that_is_refused_ends_its_own_conversation_only(house: House) -> None:
    talks = Talks(house.worker, sessions(house, 2))
    bad = [*FRAMES[0][:3], FRAMES[0][3] * np.nan, *FRAMES[0][4:]]
    talks.run([bad, list(FRAMES[1])], answers=3 + 1 + 6)
    assert [(index, type(error).__name__) for index, error in talks.errors] == [(0, "InputError")]
    assert len(talks.of(0)) == 3
    for one, other in zip(talks.of(1)[1:], alone(house, 1, FRAMES[1])[1:], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_step_that_fails_ends_the_conversations_in_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> list[Frame]:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("moshi_mlx.web.worker.step_together", broken)
    talks = Talks(house.worker, sessions(house, 2))
    talks.run([list(FRAMES[0]), list(FRAMES[1])], answers=2 + 2)
    assert sorted(index for index, _ in talks.errors) == [0, 1]
    monkeypatch.undo()
    others = Talks(house.worker, sessions(house, 2))
    others.run([list(FRAMES[0]), list(FRAMES[1])], answers=12)
    assert len(others.answers) == 12


def test_conversations_that_keep_up_are_counted_from_the_times() -> None:
    times = StepTimes({1: 0.04, 2: 0.05, 3: 0.06, 6: 0.066})
    assert times.sizes == (2, 3, 6)
    assert [times.of(count) for count in range(1, 8)] == pytest.approx([0.04, 0.05, 0.06, 0.1, 0.11, 0.066, 0.106])
    assert times.held(8) == 3, "four would take too long, though six together would not"
    assert times.held(2) == 2
    assert StepTimes({1: 1.0}).held(8) == 1
    assert str(times) == "A step takes 40 of 80 ms, 2 together 50, 3 together 60, 6 together 66."


@pytest.mark.parametrize(
    ("table", "most", "kept"),
    [
        ({1: 0.01, 2: 0.015, 3: 0.02, 4: 0.022, 6: 0.03, 8: 0.04}, 8, (2, 3, 4, 6, 8)),
        ({1: 0.01, 2: 0.015, 3: 0.02, 4: 0.022, 6: 0.03, 8: 0.04}, 3, (2, 3)),
        ({1: 0.01, 2: 0.015, 3: 0.03, 4: 0.02, 6: 0.05, 8: 0.05}, 8, (2, 4)),
        ({1: 0.01, 2: 0.021, 3: 0.031}, 3, ()),
        ({1: 0.2, 2: 0.1}, 8, ()),
    ],
)
def test_batches_that_pay_are_found(
    house: House, monkeypatch: pytest.MonkeyPatch, table: dict[int, float], most: int, kept: tuple[int, ...]
) -> None:
    def seconds(sessions: list[Session], sizes: tuple[int, ...]) -> float:
        parts = StepTimes({1: table[1]} | {size: table[size] for size in sizes})
        return parts.of(len(sessions))

    monkeypatch.setattr(batching, "_time", seconds)
    times = house.worker.call(lambda: measure(house.model, most)).result()
    assert times.sizes == kept
    assert times.seconds == {size: pytest.approx(table[size]) for size in (1, *kept)}


def test_all_that_is_stepped_together_is_built_before(house: House) -> None:
    settings = {"top_k": 55}

    def traces() -> list[int]:
        house.model.warm_up(**settings)
        graph = house.model.session(**settings)._gen.graph
        alone = graph.traces
        build(house.model, (2, 3), **settings)
        built = graph.traces
        for size in (2, 3):
            sessions = ready_sessions(house.model, size, **settings)
            for window in graph.windows:
                sessions[-1]._gen.state.kv.offset = window - 1
                step_together(sessions, list(FRAMES[:size, 0]))
        return [len(graph.windows), alone, built, graph.traces]

    windows, alone, built, after = house.worker.call(traces).result()
    assert built == alone + 2 * windows
    assert after == built
