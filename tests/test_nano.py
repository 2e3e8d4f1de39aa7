"""The small model inside the package, end to end: spoken questions in, the right words out."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from rich.console import Console

import moshi_mlx
from moshi_mlx.audio_io import read_sound, resample
from moshi_mlx.cli.options import add_model_options, load_model, model_name
from moshi_mlx.config import FRAME_SIZE, SAMPLE_RATE
from moshi_mlx.session_batch import batch_key, step_together

NANO = Path(moshi_mlx.__file__).parent / "nano"
SPOKEN = Path(__file__).parent / "data" / "spoken"

pytestmark = pytest.mark.skipif(not (NANO / "config.json").exists(), reason="the package comes without nano")


@pytest.fixture(scope="module")
def nano() -> moshi_mlx.Moshi:
    return moshi_mlx.load("nano")


def spoken(name: str) -> np.ndarray:
    """A question in a voice that nano never heard in training, in whole frames."""
    sound, rate = read_sound(str(SPOKEN / f"{name}.wav"))
    pcm = resample(np.ascontiguousarray(sound[0]), rate, SAMPLE_RATE)
    return np.pad(pcm, (0, -len(pcm) % FRAME_SIZE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 12.5) * FRAME_SIZE, np.float32)


def converse(session: moshi_mlx.Session, pcm: np.ndarray) -> tuple[str, np.ndarray]:
    """Moshi's words and sound while it hears `pcm`."""
    frames = [session.step(frame) for frame in pcm.reshape(-1, FRAME_SIZE)]
    return "".join(f.text for f in frames), np.concatenate([f.pcm for f in frames])


def level(pcm: np.ndarray) -> np.ndarray:
    """Root mean square of every frame."""
    return np.sqrt((pcm.reshape(-1, FRAME_SIZE) ** 2).mean(axis=1))


def test_nano_takes_at_most_25_megabytes_and_has_its_licences_beside_it():
    size = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    assert size <= 25e6, f"{size / 1e6:.1f} MB"
    readme = (NANO / "README.md").read_text(encoding="utf-8")
    for source in ("piper", "flite", "espeak-ng", "festival", "CC0", "python -m moshi_mlx.train"):
        assert source in readme, f"README.md says nothing of {source}"


def test_nano_keeps_silent_while_nobody_speaks(nano: moshi_mlx.Moshi):
    text, sound = converse(nano.session(seed=3), silence(8))
    assert text.strip() == "", f"nano said {text!r} to nobody"
    assert (level(sound) < 0.01).mean() > 0.99


@pytest.mark.parametrize("name, words", [("months", "twelve months"), ("hours", "twenty four hours")])
def test_a_spoken_question_is_answered_with_the_right_words(nano: moshi_mlx.Moshi, name: str, words: str):
    session = nano.session(seed=1)
    question = np.concatenate([silence(0.5), spoken(name)])
    before, _ = converse(session, question)
    answer, sound = converse(session, silence(3))
    assert before.strip() == "", f"nano said {before!r} into the question"
    assert words in answer, f"nano said {answer!r}"
    loud = np.flatnonzero(level(sound) > 0.01)
    assert len(loud) >= 4, "the answer can't be heard"
    assert loud[0] * 0.08 <= 0.8, f"the answer came after {loud[0] * 0.08:.2f} s"


def test_a_session_forked_in_the_middle_of_an_answer_continues_it(nano: moshi_mlx.Moshi):
    session = nano.session(seed=1)
    converse(session, np.concatenate([silence(0.5), spoken("months")]))
    first, _ = converse(session, silence(0.8))
    copy = session.fork()
    rest, sound = converse(session, silence(2))
    same, again = converse(copy, silence(2))
    assert (rest, first + rest) == (same, first + same)
    assert "twelve months" in first + same
    assert np.array_equal(sound, again)


def test_two_users_stepped_together_get_their_own_answers(nano: moshi_mlx.Moshi):
    one, other = nano.session(seed=1), nano.session(seed=1)
    months, hours = spoken("months"), spoken("hours")
    length = max(len(months), len(hours)) // FRAME_SIZE * FRAME_SIZE
    sounds = [np.concatenate([silence(0.5), np.pad(x, (0, length - len(x))), silence(3)]) for x in (months, hours)]
    texts = ["", ""]
    for pair in zip(*(s.reshape(-1, FRAME_SIZE) for s in sounds), strict=True):
        together = batch_key(one) is not None
        frames = step_together([one, other], pair) if together else [one.step(pair[0]), other.step(pair[1])]
        texts = [text + frame.text for text, frame in zip(texts, frames, strict=True)]
    assert together
    assert "twelve months" in texts[0] and "twenty four hours" in texts[1], texts


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    parser.add_argument("--seed", type=int)
    return parser.parse_args(arguments)


def test_without_a_named_model_a_command_takes_a_cached_published_one_else_nano(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_name(options()) == "nano"
    assert model_name(options("-q", "8")) == "kyutai/moshiko-mlx-q8"
    snapshot = tmp_path / "models--kyutai--moshiko-mlx-q8" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "model.q8.safetensors").write_bytes(b"weights")
    assert model_name(options()) == "nano", "a download that was cut off"
    for name in ("tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"):
        (snapshot / name).write_bytes(b"the rest")
    assert model_name(options()) == "kyutai/moshiko-mlx-q8"
    assert model_name(options("--model", "nano")) == "nano"


def test_taking_nano_unasked_says_so_and_how_to_get_the_large_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    load_model(options(), Console())
    said = " ".join(capsys.readouterr().out.split())
    assert "nano is the small model in the package" in said
    assert "-q 4" in said
