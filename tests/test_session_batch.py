"""Sessions that step together give what each gives alone, whenever they come and go."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import counted_waits

import moshi_mlx
from moshi_mlx import FRAME_SIZE, Moshi, Session
from moshi_mlx.checkpoint import pieces
from moshi_mlx.errors import InputError
from moshi_mlx.lm.weights import build
from moshi_mlx.session import Frame
from moshi_mlx.session_batch import batch_key, ready_sessions, step_together, warm_up
from moshi_mlx.untrained import random_tensors

STEPS = 24


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return moshi_mlx.load("untrained")


def sound(seed: int, frames: int = STEPS) -> np.ndarray:
    """What one user says, another for each seed."""
    return (0.1 * np.random.default_rng(seed).standard_normal((frames, FRAME_SIZE))).astype(np.float32)


def alone(session: Session, pcm: np.ndarray) -> list[Frame]:
    return [session.step(frame) for frame in pcm]


def check(found: list[Frame], expected: list[Frame]) -> None:
    assert [frame.step for frame in found] == [frame.step for frame in expected]
    assert [frame.text for frame in found] == [frame.text for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens is None) == (other.tokens is None)
        if one.tokens is not None:
            np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.pcm, other.pcm, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"temp": 0, "temp_text": 0}, {"kv_bits": 8}])
def test_sessions_that_come_and_go_get_what_each_gets_alone(moshi: Moshi, settings: dict[str, int]) -> None:
    begins, rng = [0, 0, 5, 9], np.random.default_rng(3)
    sounds = [sound(row) for row in range(len(begins))]
    sessions = [moshi.session(seed=row, **settings) for row in range(len(begins))]
    found: list[list[Frame]] = [[] for _ in begins]
    sizes = set()
    for time in range(200):
        # Each has a frame ready at most times, but not at all.
        ready = [
            row for row, begin in enumerate(begins) if time >= begin and len(found[row]) < STEPS and rng.random() < 0.7
        ]
        together = [row for row in ready if batch_key(sessions[row]) is not None]
        if len(together) < 2:
            together = []
        for row in set(ready) - set(together):
            found[row].append(sessions[row].step(sounds[row][len(found[row])]))
        if together:
            sizes.add(len(together))
            frames = step_together([sessions[r] for r in together], [sounds[r][len(found[r])] for r in together])
            for row, frame in zip(together, frames, strict=True):
                found[row].append(frame)
    assert sizes == {2, 3, 4}, "the test doesn't test what it says"
    for row, frames in enumerate(found):
        check(frames, alone(moshi.session(seed=row, **settings), sounds[row]))


def test_an_old_session_and_a_young_one_step_together(moshi: Moshi) -> None:
    """One goes over the end of its ring meanwhile, the other is still at the ring's beginning."""
    context = moshi.lm.config.context
    begin = context - STEPS // 2
    old_sound, young_sound = sound(1), sound(2)
    old, young = moshi.session(seed=1), moshi.session(seed=2)
    alone(old, old_sound[:1])
    old._gen.state.kv.offset = begin  # the slots between are zeros, together as alone
    expected = alone(old.fork(), old_sound), alone(young.fork(), young_sound)
    found: tuple[list[Frame], list[Frame]] = ([], alone(young, young_sound[:1]))
    for step in range(1, STEPS):
        for frames, frame in zip(
            found, step_together([old, young], [old_sound[step - 1], young_sound[step]]), strict=True
        ):
            frames.append(frame)
    assert old.steps > context
    check(found[0], expected[0][:-1])
    check(found[1], expected[1])


def test_a_session_that_has_stepped_with_others_is_saved_forked_and_reset_like_any(
    moshi: Moshi, tmp_path: Path
) -> None:
    mine, others = sound(1), sound(2)
    expected = alone(moshi.session(seed=1), mine)
    session, other = moshi.session(seed=1), moshi.session(seed=2)
    found = alone(session, mine[:1])
    alone(other, others[:1])
    for step in range(1, 12):
        found.append(step_together([other, session], [others[step], mine[step]])[1])
    session.save(tmp_path / "talk.moshi")
    fork, resumed = session.fork(), moshi.resume(tmp_path / "talk.moshi")
    check(found + alone(session, mine[12:]), expected)
    # What is resumed and what is forked have caches of their own, and may go together.
    for step in range(12, STEPS):
        both = step_together([fork, resumed], [mine[step], mine[step]])
        for frame in both:
            check([frame], expected[step : step + 1])
    fork.reset()
    check(alone(fork, mine), expected)


def test_no_graph_is_built_while_sessions_come_and_go(moshi: Moshi) -> None:
    settings = {"top_k": 77}
    moshi.warm_up(**settings)
    for size in (2, 3):
        warm_up(moshi, size, **settings)
    sessions = [moshi.session(seed=row, **settings) for row in range(4)]
    graph = sessions[0]._gen.graph
    built = graph.traces
    assert len(graph.windows) > 1
    rng, silence = np.random.default_rng(0), np.zeros(FRAME_SIZE, np.float32)
    sessions[0].step(silence)
    sessions[0]._gen.state.kv.offset = graph.windows[0] - 20
    for step in range(150):
        if step % 20 == 19:
            sessions[rng.integers(1, 4)] = moshi.session(seed=step, **settings)
        ready = [sessions[row] for row in rng.permutation(4)[: rng.integers(1, 4)]]
        if len(ready) > 1 and all(batch_key(session) is graph for session in ready):
            step_together(ready, [silence] * len(ready))
        else:
            for session in ready:
                session.step(silence)
    assert sessions[0].steps > graph.windows[0]
    assert graph.traces == built


@pytest.mark.parametrize("compile", [True, False])
def test_a_step_together_moves_the_caches_on_in_place(moshi: Moshi, compile: bool) -> None:
    config = dataclasses.replace(moshi.lm.config, context=20_000)
    lm = build(config, random_tensors({name: piece.shape for name, piece in pieces(config).items()}, seed=3))
    sessions = ready_sessions(Moshi(lm, moshi.mimi, moshi.tokenizer), 3, compile=compile)
    sounds = [np.zeros(FRAME_SIZE, np.float32)] * 3
    for _ in range(3):
        step_together(sessions, sounds)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step_together(sessions, sounds)
    taken = mx.get_peak_memory() - before
    assert taken < sessions[0].nbytes / 2, f"a step took {taken} bytes, a session's cache has {sessions[0].nbytes}"


def test_a_step_together_waits_once(moshi: Moshi, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = ready_sessions(moshi, 2)
    sounds = [np.zeros(FRAME_SIZE, np.float32)] * 2
    step_together(sessions, sounds)
    waits = counted_waits(monkeypatch)
    step_together(sessions, sounds)
    assert waits == ["read"]


def test_what_does_not_go_together_is_refused_and_changes_nothing(moshi: Moshi) -> None:
    first, second = ready_sessions(moshi, 2)
    other = ready_sessions(moshi, 1, kv_bits=8)[0]
    pcm = sound(1)
    refused: list[tuple[list[Session], list[np.ndarray], str]] = [
        ([first, other], [pcm[0], pcm[1]], "can't be stepped together"),
        ([first, first], [pcm[0], pcm[1]], "can't be stepped together"),
        ([first, moshi.session(seed=1)], [pcm[0], pcm[1]], "can't be stepped together"),
        ([], [], "can't be stepped together"),
        ([first, second], [pcm[0]], "1 sounds for 2 sessions"),
        ([first, second], [pcm[0], pcm[1] * np.nan], "NaN"),
        ([first, second], [pcm[0], pcm[1][:-1]], "expected"),
    ]
    for sessions, sounds, message in refused:
        with pytest.raises(InputError, match=message):
            step_together(sessions, sounds)
    assert first.steps == second.steps == other.steps == 1
    assert batch_key(moshi.session(profile=True)) is None
    expected = alone(first.fork(), pcm)
    found = [step_together([first, second], [frame, frame])[0] for frame in pcm]
    check(found, expected)
