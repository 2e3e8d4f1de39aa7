"""Training the encoder along with the language model: the same codes as the codec's, both learn, all else stays."""

import dataclasses
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from train_corpus import NANO, quietly, spoken_corpus

import moshi_mlx
from moshi_mlx.errors import ConfigError
from moshi_mlx.layers import can_compile
from moshi_mlx.mimi import Mimi
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.codewords import look_up, look_up_softly
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import ANSWERS, codec_tensors, read_shard
from moshi_mlx.train.data import recode
from moshi_mlx.train.export import export
from moshi_mlx.train.joint import JointTrainer
from moshi_mlx.train.loss import losses

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)

HEARD = 8
"""Codebooks of the user that these models hear."""


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus in espeak-ng's voices, with features."""
    config = spoken_corpus(tmp_path_factory.mktemp("spoken"), renderings=1, follow_up_renderings=1)
    mix = dataclasses.replace(config.mix, user_codebooks=HEARD, masked=0.1, fewer_codebooks=0.3)
    return dataclasses.replace(config, mix=mix)


def in_folder(spoken: Config, folder: Path, **train: object) -> Config:
    for part in ("corpus", "features"):
        shutil.copytree(spoken.work / part, folder / part)
    for name in ("tokenizer.model", "script.yaml"):
        shutil.copy(spoken.work / name, folder)
    return dataclasses.replace(spoken, work=folder, train=dataclasses.replace(spoken.train, **train))


def weights(trainer: JointTrainer) -> list[np.ndarray]:
    return [np.array(a) for _, a in tree_flatten(trainer.model.parameters())]


def test_before_any_step_the_model_hears_what_the_codec_encodes(spoken: Config):
    trainer = JointTrainer(spoken)
    said = next(u for u in trainer.mixers["train"]._said["intents", "name"])
    features = mx.array(trainer._features(said.codes[:1]))
    frames = features.shape[1]
    mimi = Mimi.load(spoken.codec, HEARD)
    convolved = features.reshape(1, 2 * frames, -1)
    latents, _ = mimi.refine_frame(convolved, mimi.encoder_state(1, frames))
    codes = np.array(mimi.quantize(latents))[0, :HEARD]
    assert np.mean(np.array(trainer.trainee.codes(features))[0] == codes) > 0.98
    heard, apart = trainer.trainee.hear(features, mx.ones((1, frames, HEARD)))
    tables = np.array(trainer.model.lm.audio_emb.weight)
    entries, first = trainer.lm_config.card + 1, trainer.lm_config.dep_q
    expected = sum(tables[(first + k) * entries + codes[k]] for k in range(HEARD))
    same = np.isclose(np.array(heard)[0], expected, atol=1e-5).all(axis=1)
    assert same.mean() > 0.9
    assert 0 < apart.item() < 1


def test_a_step_reads_the_frame_before_it_and_nothing_that_is_not_to_be_heard(spoken: Config):
    config = dataclasses.replace(spoken, train=dataclasses.replace(spoken.train, drills=0.0))
    trainer = JointTrainer(config)
    step = trainer.batch(0)
    talks = trainer.conversations(0)
    assert step.features.shape[:2] == (len(talks), config.mix.window)
    inputs, audible = np.array(step.batch.inputs), np.array(step.audible)
    starts = (inputs[:, -1] == trainer.lm_config.initial_token_id)[:, 0]
    assert (audible[starts, 0] == 0).all()
    assert (inputs[:, 9:, 1:] == -1).all()
    assert 0 < audible[:, 1:].mean() < 1, "some of it is to be missed"
    for talk, heard in zip(talks, np.array(step.features), strict=True):
        known = trainer._features(talk.user[:1])[0]
        # Varied or not, a stretch of the conversation is nearest to itself.
        apart = [np.abs(known[a : a + len(heard) - 1] - heard[1:]).mean() for a in range(len(known) - len(heard) + 2)]
        assert int(np.argmin(apart)) in (0, *talk.openings)


def test_the_gradients_reach_what_is_audible_alone(spoken: Config):
    trainer = JointTrainer(spoken)
    step = trainer.batch(0)

    def words(features: mx.array, audible: mx.array) -> mx.array:
        return losses(trainer.trainee, step.batch, trainer.trainee.hear(features, audible)[0])["words"]

    slope = mx.grad(words)
    assert (np.array(slope(step.features, mx.zeros_like(step.audible))) == 0).all()
    found = np.abs(np.array(slope(step.features, step.audible))).sum(axis=-1)
    assert (found > 0).mean() > 0.3


def test_latents_are_pulled_as_by_a_mean_of_their_neighbours_embeddings():
    draws = np.random.default_rng(0)
    book, latents, table, back = (
        mx.array(draws.normal(size=s).astype(np.float32)) for s in ((6, 3), (1, 4, 3), (6, 2), (1, 4, 2))
    )
    codes, words = look_up(book, latents)
    distances = ((np.array(latents)[0, :, None] - np.array(book)) ** 2).sum(-1)
    assert np.array(codes)[0].tolist() == distances.argmin(1).tolist()
    same_codes, same_words, pull = look_up_softly(book, latents, table)
    assert np.array_equal(codes, same_codes) and np.array_equal(words, same_words)
    assert pull.shape == (1, 4, 2) and not np.array(pull).any()

    def mean(x: mx.array) -> mx.array:
        apart = (x[..., None, :] - book).square().sum(axis=-1)
        nearness = -0.5 * apart / (0.1 * mx.stop_gradient(apart.min(axis=-1).mean()))
        return mx.softmax(nearness, axis=-1) @ table

    wanted = mx.grad(lambda x: (mean(x) * back).sum())(latents)
    found = mx.grad(lambda x: (look_up_softly(book, x, table)[2] * back).sum())(latents)
    assert np.abs(np.array(wanted)).min() > 0
    assert np.allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_embeddings_learn_where_they_were_found(spoken: Config):
    trainer = JointTrainer(spoken)
    trainee, step = trainer.trainee, trainer.batch(0)
    features, audible = step.features, mx.ones_like(step.audible)
    codes = np.array(trainee.codes(features))
    weight = trainee.lm.audio_emb.weight

    def summed(weight: mx.array) -> mx.array:
        trainee.lm.audio_emb.weight = weight
        return trainee.hear(features, audible)[0].sum()

    moved = np.array(mx.grad(summed)(weight))
    trainee.lm.audio_emb.weight = weight
    entries, first = trainee.lm.config.card + 1, trainee.lm.config.dep_q
    counts = np.zeros(moved.shape)
    for k in range(codes.shape[1]):
        np.add.at(counts, (first + k) * entries + codes[:, k].reshape(-1), 1)
    assert counts.any() and np.array_equal(moved, counts)


def test_both_learn_and_what_moshi_says_stays(spoken: Config, tmp_path: Path):
    trainer = JointTrainer(in_folder(spoken, tmp_path, steps=24, heads=0, drills=0.5, drill_batch=4))
    first = trainer.batch(0)
    before = losses(trainer.trainee, first.batch, trainer.trainee.hear(first.features, first.audible)[0])
    quietly(trainer)
    after = losses(trainer.trainee, first.batch, trainer.trainee.hear(first.features, first.audible)[0])
    assert after["words"].item() < 0.9 * before["words"].item()
    assert all(0 <= score <= 1 for score in trainer.evaluate(2).values())
    export(trainer, tmp_path / "model")
    ours, theirs = codec_tensors(tmp_path / "model" / "codec"), codec_tensors(spoken.codec)
    changed = {name for name in theirs if not mx.array_equal(ours[name], theirs[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder_transformer", "downsample", "quantizer"}
    assert not [name for name in changed if "_codebook" in name or "output_proj" in name]
    assert (tmp_path / "model" / "codec" / ANSWERS).read_bytes() == (spoken.codec / ANSWERS).read_bytes()
    # What was written gives the codes that the averaged encoder gives.
    said = next(u for u in trainer.mixers["train"]._said["intents", "name"])
    features = mx.array(trainer._features(said.codes[:1]))
    frames = features.shape[1]
    mimi = moshi_mlx.load(tmp_path / "model").mimi
    latents, _ = mimi.refine_frame(features.reshape(1, 2 * frames, -1), mimi.encoder_state(1, frames))
    trainer.trainee.encoder = trainer.encoder_average
    assert np.mean(np.array(mimi.quantize(latents))[0, :HEARD] == np.array(trainer.trainee.codes(features))[0]) > 0.9


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path, steps=6, save=3, heads=1, drills=0.5, drill_batch=4)
    whole = JointTrainer(config)
    quietly(whole)
    whole.path.unlink()
    quietly(JointTrainer(config), 3)
    resumed = JointTrainer(config)
    assert resumed.resume()
    assert resumed.step == 3
    quietly(resumed)
    for ours, theirs in zip(weights(resumed), weights(whole), strict=True):
        assert np.allclose(ours, theirs, atol=1e-4)
    for name, average in whole.encoder_average.items():
        assert np.allclose(average, resumed.encoder_average[name], atol=1e-4)


def test_a_run_with_the_encoder_goes_on_from_one_without_in_the_same_folder(spoken: Config, tmp_path: Path):
    in_folder(spoken, tmp_path)
    about = (spoken.work / "train.yaml").read_text(encoding="utf-8")
    (tmp_path / "train.yaml").write_text(about.replace("mix: {", f"mix: {{user_codebooks: {HEARD}, "), encoding="utf-8")
    command = ["lm", str(tmp_path / "train.yaml"), "--work", str(tmp_path), "--steps", "8"]
    # Of features, a run without the encoder knows nothing: it needs codes of all that is to be heard.
    recode(Config.load(tmp_path / "train.yaml", tmp_path))
    assert main(command) == 0
    assert main([*command, "--init", str(tmp_path / "model"), "--encoder"]) == 0
    assert {path.name for path in tmp_path.glob("run*")} == {"run.safetensors", "run-encoder.safetensors"}
    assert {path.name for path in tmp_path.glob("*log.jsonl")} == {"log.jsonl", "encoder-log.jsonl"}
    before, after = (codec_tensors(tmp_path / name / "codec") for name in ("model", "model-encoder"))
    assert any(not mx.array_equal(before[name], after[name]) for name in before)
    # Both moved from the same weights, so that there is a mean of both.
    both = [str(tmp_path / name) for name in ("model", "model-encoder")]
    assert main(["mean", *both, "--out", str(tmp_path / "mean")]) == 0
    for name, tensor in codec_tensors(tmp_path / "mean" / "codec").items():
        middle = (before[name].astype(mx.float32) + after[name].astype(mx.float32)) / 2
        assert np.allclose(tensor.astype(mx.float32), middle, rtol=1e-2, atol=1e-3), name
    model = moshi_mlx.load(tmp_path / "mean")
    assert model.session(seed=1).step(np.zeros(1920, np.float32)) is not None


def test_at_first_the_heads_alone_learn(spoken: Config, tmp_path: Path):
    trainer = JointTrainer(in_folder(spoken, tmp_path, steps=8, drill_batch=4))
    trainer.heads = 1
    trainer._update = trainer._compile()
    trainer._update(*trainer.batch(0).arrays())
    assert all((np.array(moved) == 0).all() for moved in trainer.trainee.encoder.values())
    trainer.step = 1
    trainer._update(*trainer.batch(1).arrays())
    assert any((np.array(moved) != 0).any() for moved in trainer.trainee.encoder.values())


def test_a_compiled_step_learns_the_same(spoken: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not can_compile():
        pytest.skip("no C++ compiler")
    config = in_folder(spoken, tmp_path, steps=4, heads=0)

    def found() -> list[float]:
        trainer = JointTrainer(config)
        return [trainer._update(*trainer.batch(step).arrays())[0]["words"].item() for step in range(3)]

    plain = found()
    built: list[object] = []
    build = mx.compile
    monkeypatch.setattr("moshi_mlx.train.compiling.WORTH_COMPILING", config.train.steps)
    monkeypatch.setattr(mx, "compile", lambda *a, **k: (built.append(a), build(*a, **k))[1])
    assert found() == pytest.approx(plain, rel=1e-3)
    assert built


def test_a_corpus_without_features_is_refused_with_what_to_do(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(ConfigError, match="features: true"):
        JointTrainer(config)


def test_a_corpus_without_backgrounds_is_refused_with_what_to_do(
    spoken: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = read_shard
    monkeypatch.setattr(
        "moshi_mlx.train.joint.read_shard",
        lambda path: [
            dataclasses.replace(u, group="echoes") if u.group == "backgrounds" else u for u in everything(path)
        ],
    )
    with pytest.raises(ConfigError, match=r"no stream so far .* render more shards .* 'backgrounds' under 'data' is 0"):
        JointTrainer(spoken)
