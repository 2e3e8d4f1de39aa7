"""A session hears and speaks frame by frame; forked, saved and resumed it goes on as if nothing had happened."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import counted_waits

import moshi_mlx
from moshi_mlx import FRAME_SIZE, Moshi, Session
from moshi_mlx.errors import CheckpointError, InputError, StorageError


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return moshi_mlx.load("untrained")


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((40, FRAME_SIZE))).astype(np.float32)


def talk(session: Session, sound: np.ndarray) -> tuple[np.ndarray, str]:
    frames = [session.step(pcm) for pcm in sound]
    return np.concatenate([frame.pcm for frame in frames]), "".join(frame.text for frame in frames)


def test_a_session_speaks_after_its_delay(moshi: Moshi, sound: np.ndarray) -> None:
    session = moshi.session(seed=1)
    frames = [session.step(pcm) for pcm in sound]
    assert [frame.step for frame in frames] == list(range(40)) and session.steps == 40
    assert frames[0].tokens is None and not frames[0].pcm.any()
    for frame in frames[1:]:
        assert frame.pcm.shape == (FRAME_SIZE,) and frame.pcm.dtype == np.float32
        assert frame.tokens is not None and frame.tokens.shape == (9,)
        assert np.abs(frame.pcm).max() > 0 and math.isnan(frame.timings.lm_ms)


def test_the_sound_is_what_the_codec_decodes_from_the_tokens(moshi: Moshi, sound: np.ndarray) -> None:
    frames = [moshi.session(seed=1).step(sound[0])]
    session = moshi.session(seed=1)
    frames = [session.step(pcm) for pcm in sound]
    codes = np.stack([frame.tokens[1:] for frame in frames if frame.tokens is not None], axis=-1)[None]
    decoded = np.array(moshi.mimi.decode(codes))[0, 0]
    np.testing.assert_allclose(np.concatenate([frame.pcm for frame in frames[1:]]), decoded, atol=1e-4)


def test_the_user_frame_of_a_step_changes_that_step(moshi: Moshi, sound: np.ndarray) -> None:
    """Step 0's frame lies in the model's past; any later one is heard by the step that it is given to."""

    def heard(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        session, seen = moshi.session(seed=1), []
        session._gen.on_text_logits = lambda x: seen.append(np.array(x))
        talk(session, sound)
        # The codec's stream begins with the frame of step 1.
        codes = np.array(moshi.mimi.encode(sound[1:].reshape(1, 1, -1)))
        return np.concatenate(seen), codes[0, 0]

    logits, codes = heard(sound[:12])
    for at in (0, 1, 7):
        for seed in range(50):
            changed = sound[:12].copy()
            changed[at] = np.random.default_rng(seed).uniform(-1, 1, FRAME_SIZE)
            other_logits, other_codes = heard(changed)
            if at == 0 or other_codes[at - 1] != codes[at - 1]:
                break
        differs = np.abs(logits - other_logits).max(axis=1) > 0
        assert (int(differs.argmax()) if differs.any() else None) == (at or None)


def test_seeds_repeat(moshi: Moshi, sound: np.ndarray) -> None:
    first, again, other = (talk(moshi.session(seed=seed), sound) for seed in (1, 1, 2))
    assert first[1] == again[1] and (first[0] == again[0]).all()
    assert (first[0] != other[0]).any()


def test_profiled_and_uncompiled_sessions_give_the_same_samples(moshi: Moshi, sound: np.ndarray) -> None:
    expected, _ = talk(moshi.session(seed=1), sound)
    profiled = moshi.session(seed=1, profile=True)
    np.testing.assert_allclose(talk(profiled, sound)[0], expected, atol=1e-5)
    timings = profiled.step(sound[0]).timings
    assert 0 < timings.encode_ms + timings.lm_ms + timings.decode_ms <= timings.total_ms
    np.testing.assert_allclose(talk(moshi.session(seed=1, compile=False), sound)[0], expected, atol=1e-5)


def test_interleaved_sessions_do_not_hear_each_other(moshi: Moshi, sound: np.ndarray) -> None:
    expected, _ = talk(moshi.session(seed=1), sound)
    first, second = moshi.session(seed=1), moshi.session(seed=2)
    heard = []
    for pcm in sound:
        heard.append(first.step(pcm).pcm)
        second.step(pcm[::-1])
    np.testing.assert_array_equal(np.concatenate(heard), expected)


def test_a_fork_goes_its_own_way(moshi: Moshi, sound: np.ndarray) -> None:
    session = moshi.session(seed=1)
    talk(session, sound[:20])
    same, other = session.fork(), session.fork(seed=9)
    talk(other, sound[20:30])
    expected, _ = talk(session, sound[20:])
    np.testing.assert_array_equal(talk(same, sound[20:])[0], expected)
    assert other.steps == 30 and session.steps == 40


@pytest.mark.parametrize(("at", "settings"), [(1, {}), (20, {}), (20, {"kv_bits": 8}), (20, {"compile": False})])
def test_a_saved_session_goes_on_with_the_same_samples(
    moshi: Moshi, sound: np.ndarray, tmp_path: Path, at: int, settings: dict[str, object]
) -> None:
    session = moshi.session(seed=1, temp=0.5, top_k=20, **settings)
    talk(session, sound[:at])
    session.note_dropped(3)
    session.save(tmp_path / "talk.moshi")
    expected = talk(session, sound[at:])
    resumed = moshi_mlx.load("untrained").resume(tmp_path / "talk.moshi")
    assert resumed.steps == at and resumed.dropped == 3
    pcm, text = talk(resumed, sound[at:])
    np.testing.assert_array_equal(pcm, expected[0])
    assert text == expected[1]
    assert [path.name for path in tmp_path.iterdir()] == ["talk.moshi"]


def test_a_session_is_saved_to_a_device_or_through_a_link_without_replacing_either(
    moshi: Moshi, sound: np.ndarray, tmp_path: Path
) -> None:
    session = moshi.session(seed=1)
    talk(session, sound[:5])
    (tmp_path / "link").symlink_to(tmp_path / "talk.moshi")
    session.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and moshi.resume(tmp_path / "talk.moshi").steps == 5
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        received = pool.submit((tmp_path / "pipe").read_bytes)
        session.save(tmp_path / "pipe")
        assert received.result() == (tmp_path / "talk.moshi").read_bytes()
    assert (tmp_path / "pipe").is_fifo()


def test_reset_begins_anew(moshi: Moshi, sound: np.ndarray) -> None:
    session = moshi.session(seed=1)
    expected = talk(session, sound)
    session.reset()
    assert session.steps == 0
    np.testing.assert_array_equal(talk(session, sound)[0], expected[0])


def test_a_session_outlives_its_window_three_times(moshi: Moshi, sound: np.ndarray) -> None:
    moshi.warm_up(seed=1)
    session = moshi.session(seed=1)
    graphs = session._gen.graph.traces
    steps = 3 * moshi.lm.config.context
    sizes = set()
    for step in range(steps):
        frame = session.step(sound[step % 40])
        assert np.isfinite(frame.pcm).all()
        sizes.add(session._gen.state.kv.nbytes + session._gen.state.line.nbytes)
    assert len(sizes) == 1, "the session's memory grew"
    assert session._gen.graph.traces == graphs, "a graph was built while the session ran"


def test_a_step_waits_once(moshi: Moshi, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    session = moshi.session(seed=1)
    talk(session, sound[:5])
    waits = counted_waits(monkeypatch)
    session.step(sound[5])
    assert waits == ["read"]


def test_bad_input_is_refused_and_the_session_goes_on(moshi: Moshi, sound: np.ndarray, tmp_path: Path) -> None:
    session = moshi.session(seed=1)
    for bad, message in (
        (np.zeros(1919), "expected"),
        (np.zeros((1, 1920)), "expected"),
        (sound[0] * np.nan, "NaN"),
        (np.zeros(1920, np.int16), "floating point"),
        ("sound", "as numbers"),
    ):
        with pytest.raises(InputError, match=message):
            session.step(bad)
    assert session.steps == 0
    np.testing.assert_array_equal(talk(session, sound)[0], talk(moshi.session(seed=1), sound)[0])
    with pytest.raises(StorageError, match="there is no folder"):
        session.save(tmp_path / "no such folder" / "talk.moshi")
    with pytest.raises(StorageError, match="it is a folder"):
        session.save(tmp_path)
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="no saved conversation"):
        moshi.resume(tmp_path / "noise")
    session.save(tmp_path / "talk.moshi")
    with pytest.raises(CheckpointError, match="another model"):
        moshi_mlx.load("untrained", seed=5).resume(tmp_path / "talk.moshi")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": None}, "with seed None"),
        ({"offset": "x"}, "at step 'x'"),
        ({"offset": 10**6}, "aren't those of a conversation of 1000000 steps"),
        ({"pending": 10**12}, "not iterable"),
        ({"kv_bits": 3}, "expected 8, 4"),
        ({"audio": ["a", 1]}, "'str'"),
        ({"conditions": {"mood": "good"}}, "takes no conditions"),
        ("seed", "'seed'"),
        ("line", "aren't those of a conversation"),
    ],
)
def test_a_damaged_conversation_is_refused(
    moshi: Moshi, tmp_path: Path, changed: dict[str, object] | str, said: str
) -> None:
    session = moshi.session(seed=1)
    session.step(np.zeros(1920, np.float32))
    session.save(tmp_path / "talk.moshi")
    arrays, metadata = mx.load(str(tmp_path / "talk.moshi"), format="safetensors", return_metadata=True)
    about = json.loads(metadata["moshi"])
    if isinstance(changed, dict):
        about |= changed
    else:
        about.pop(changed, None)
        arrays.pop(changed, None)
    mx.save_safetensors(str(tmp_path / "other"), arrays, {"moshi": json.dumps(about)})
    with pytest.raises(CheckpointError, match=said):
        moshi.resume(tmp_path / "other.safetensors")


def test_any_whole_number_is_a_seed() -> None:
    assert moshi_mlx.load("untrained", seed=-1).fingerprint != moshi_mlx.load("untrained", seed=0).fingerprint
