"""Teaching the encoder: it comes to find the undisturbed sound's codes, and all else in the codec stays."""

import dataclasses
import io
import random
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console
from train_corpus import NANO, in_folder, spoken_corpus

from moshi_mlx.errors import ConfigError
from moshi_mlx.mimi import Mimi
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import convolutions_of, read_corpus, read_features, read_shard
from moshi_mlx.train.data import recode
from moshi_mlx.train.encoder import EncoderTrainer
from moshi_mlx.train.export import export
from moshi_mlx.train.lm import Trainer
from moshi_mlx.train.progress import Progress

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus all of whose users are disturbed, and a language model that has seen a little of it."""
    config = spoken_corpus(tmp_path_factory.mktemp("spoken"))
    training = dataclasses.replace(config.encoder_training, batch=4, steps=6, rate=1e-3)
    config = dataclasses.replace(config, encoder_training=training)
    trainer = Trainer(config)
    trainer.run(None, steps=4)
    export(trainer, config.work / "model", averaged=False)
    return config


def taught(spoken: Config, folder: Path) -> EncoderTrainer:
    return EncoderTrainer(in_folder(spoken, folder), spoken.work / "model")


def test_features_hold_the_sound_before_it_was_disturbed(spoken: Config):
    path = spoken.work / "corpus" / "00001.npz"
    features = read_features(spoken.work / "features" / path.name, convolutions_of(spoken.codec))
    for u, found in zip(read_shard(path), features, strict=True):
        assert found.plain.shape == found.convolved.shape == (2 * u.codes.shape[1], 160)
    far = [np.abs(x.plain - x.convolved).mean() for x in features]
    assert np.mean(far) > 0.01, "the sounds are disturbed"
    answers = read_features(spoken.work / "features" / "00000.npz", convolutions_of(spoken.codec))
    assert all(np.array_equal(x.plain, x.convolved) for x in answers)


def test_teaching_lowers_the_losses_and_leaves_what_codes_mean(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    batch = trainer.batch(0)
    parts = []
    for _ in range(12):
        parts.append(trainer.update(batch)[0])
        trainer.step += 1
    assert parts[-1]["codes"] < 0.9 * parts[0]["codes"], [p["codes"] for p in parts]
    assert parts[-1]["loss"] < parts[0]["loss"]
    trainer.export(tmp_path / "taught")
    before, after = (mx.load(str(f / "model.safetensors")) for f in (NANO / "codec", tmp_path / "taught"))
    assert before.keys() == after.keys()
    changed = {n for n in before if not np.array_equal(np.array(before[n]), np.array(after[n]))}
    assert changed
    learned = ("encoder_transformer.", "downsample.", "quantizer.rvq_first.input_proj.")
    assert all(n.startswith(learned) for n in changed)
    codes = mx.random.randint(0, 512, (1, 8, 12), key=mx.random.key(1))
    a, b = (Mimi.load(f).decode(codes) for f in (NANO / "codec", tmp_path / "taught"))
    assert mx.array_equal(a, b), "the decoder says of a code what it said"


def test_at_first_an_undisturbed_sound_has_its_own_codes(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    talk = trainer._talk("train", "0")
    assert talk.sound is not None
    assert talk.sound.shape == (2 * talk.text.size, 160)
    answer = next(u for u in read_corpus(spoken.work / "corpus") if u.group == "answers")
    features = read_features(spoken.work / "features" / "00000.npz", convolutions_of(spoken.codec))[0]
    streams = mx.array(features.plain[None].astype(np.float32))
    found = trainer._choice({**trainer.fixed, **trainer.free}, trainer.shape, streams).argmax(axis=-1)
    assert np.mean(np.array(found[0]) == answer.codes[0]) > 0.95


@pytest.mark.parametrize("stretch", [(1.0, 1.0), (1.3, 1.3)])
def test_a_conversations_sound_lies_where_its_codes_do(spoken: Config, tmp_path: Path, stretch: tuple[float, float]):
    config = in_folder(spoken, tmp_path)
    config = dataclasses.replace(config, mix=dataclasses.replace(config.mix, stretch=stretch))
    trainer = EncoderTrainer(config, spoken.work / "model")
    codes: dict[bytes, set[int]] = {}
    for utterance in trainer._utterances():
        assert utterance.convolved is not None
        for frame in range(utterance.codes.shape[1]):
            for half in utterance.convolved[2 * frame : 2 * frame + 2]:
                codes.setdefault(half.tobytes(), set()).add(int(utterance.codes[0, frame]))
    for seed in range(8):
        talk = trainer._talk("train", str(seed))
        assert talk.sound is not None
        lie = [int(code) in codes[talk.sound[2 * frame].tobytes()] for frame, code in enumerate(talk.user[0])]
        # Where a frame is said twice, half a frame may be its neighbour's.
        assert np.mean(lie) > (0.999 if stretch == (1.0, 1.0) else 0.8), seed


def test_the_language_model_hears_the_same_by_vectors_as_by_codes(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    batch = trainer._stack([trainer._talk("train", str(i)) for i in range(2)], None)
    T = batch.text.shape[1]
    codes = batch.codes[:, -T:]
    by_vectors = trainer._answer(batch, (codes[:, :, None] == mx.arange(512)).astype(mx.float32))
    inputs = np.array(batch.inputs)
    inputs[:, trainer._ear, 1:] = np.array(codes)[:, :-1]
    _, by_codes = trainer.lm.forward_text(mx.array(inputs))
    assert np.abs(np.array(by_vectors - by_codes)).max() < 1e-4


def test_scores_are_shares_and_the_same_each_time(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    scores = trainer.evaluate()
    assert set(scores) == {"known codes", "known answers", "held_out codes", "held_out answers"}
    assert all(0 <= x <= 1 for x in scores.values())
    assert scores == trainer.evaluate()


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(spoken: Config, tmp_path: Path):
    def run(folder: Path, stop: int | None) -> dict[str, mx.array]:
        trainer = taught(spoken, folder)
        if stop:
            for step in range(stop):
                trainer.update(trainer.batch(step))
                trainer.step += 1
            trainer.save()
            trainer = EncoderTrainer(trainer.config, spoken.work / "model")
            assert trainer.resume()
        with Progress(folder, 6, Console(file=io.StringIO()), name="codec") as progress:
            trainer.run(progress)
        return trainer.free

    whole, parted = run(tmp_path / "a", None), run(tmp_path / "b", 3)
    for name, tensor in whole.items():
        assert np.allclose(np.array(tensor), np.array(parted[name]), atol=1e-5), name


def test_recoding_users_leaves_moshis_answers(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    for step in range(3):
        trainer.update(trainer.batch(step))
    trainer.export(tmp_path / "taught")
    config = dataclasses.replace(trainer.config, codec=tmp_path / "taught")
    before = read_corpus(config.work / "corpus")
    recode(config, answers=False)
    after = read_corpus(config.work / "corpus")
    same = {True: [], False: []}
    for old, new in zip(before, after, strict=True):
        same[old.group == "answers"].append(np.array_equal(old.codes, new.codes))
    assert all(same[True])
    assert not any(same[False][:20])


def test_without_backgrounds_it_says_what_to_do(spoken: Config, tmp_path: Path):
    trainer = taught(spoken, tmp_path)
    mixer = trainer.mixers["train"]
    mixer._backgrounds = []
    with pytest.raises(ConfigError, match="backgrounds"):
        trainer._stack([mixer.drill(random.Random(0))], None)


def test_features_of_an_older_version_are_refused_with_what_to_do(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    path = config.work / "features" / "00000.npz"
    with np.load(path) as file:
        older = {name: file[name] for name in file if name != "plain"}
    np.savez(path, **older)
    with pytest.raises(ConfigError, match="render the corpus anew"):
        EncoderTrainer(config, spoken.work / "model")


def test_the_command_needs_a_language_model(spoken: Config, capsys: pytest.CaptureFixture[str]):
    folder = str(spoken.script.parent / "train.yaml")
    assert main(["codec", folder, "--parts", "encoder"]) != 0
    assert "--lm" in capsys.readouterr().out
