"""Training the language model: the loss is that of inference, it falls, a run resumes, the result converses."""

import dataclasses
import io
import json
import random
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from rich.console import Console
from train_corpus import NANO, altered_codec, little_room, make_corpus, quietly

import moshi_mlx
from moshi_mlx.errors import CheckpointError, ConfigError, StorageError
from moshi_mlx.layers import can_compile
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.config import Config
from moshi_mlx.train.conversation import END_OF_PADDING, PADDING
from moshi_mlx.train.corpus import codec_tensors, read_corpus, write_shard
from moshi_mlx.train.export import export
from moshi_mlx.train.heads import Head, mean_heads, read_heads, write_heads
from moshi_mlx.train.lm import Trainer
from moshi_mlx.train.loss import Batch, Drill, losses, make_batch, make_drill, total
from moshi_mlx.train.mean import mean
from moshi_mlx.train.progress import Progress
from moshi_mlx.train.script import Script
from moshi_mlx.train.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(not (NANO / "codec").exists(), reason="the package comes without nano")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def work_in(corpus: Path, folder: Path) -> Config:
    shutil.copytree(corpus, folder, dirs_exist_ok=True)
    return Config.load(folder / "train.yaml")


def test_the_training_loss_is_that_of_the_teacher_forced_model(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    talk = trainer.mixers["train"].draw(random.Random(1))
    frames = talk.text.size
    batch = make_batch([talk], trainer.lm_config, np.random.default_rng(0), frames, 0.5)
    parts = losses(trainer.model, batch)
    output = trainer.model.lm(mx.array(talk.codes[None]))
    text = nn.losses.cross_entropy(output.text_logits[0, 0], mx.array(talk.text))
    words = talk.text != 3
    assert np.allclose(parts["words"].item(), np.array(text)[words].mean(), rtol=1e-4)
    assert np.allclose(parts["padding"].item(), np.array(text)[~words].mean(), rtol=1e-4)
    semantic = nn.losses.cross_entropy(output.logits[0, 0], mx.array(talk.moshi[0]))
    assert np.allclose(parts["semantic"].item(), np.array(semantic)[talk.speaking].mean(), rtol=1e-4)


def test_what_is_wrong_in_a_conversation_is_not_learned(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    talk = trainer.mixers["train"].draw(random.Random(1))
    wrong = talk.speaking & (np.cumsum(talk.speaking) <= 6)
    talk = dataclasses.replace(talk, wrong=wrong)
    others = talk.text.copy()
    others[wrong] = (others[wrong] + 1) % 50
    batch = make_batch([talk], trainer.lm_config, np.random.default_rng(0), talk.text.size - int(wrong.sum()), 0.5)
    assert not set(np.flatnonzero(wrong)) & set(np.array(batch.rows).tolist())
    expected = losses(trainer.model, batch)
    found = losses(trainer.model, dataclasses.replace(batch, text=mx.array(others[None])))
    assert np.allclose(found["words"].item(), expected["words"].item(), rtol=1e-5)
    assert np.allclose(found["padding"].item(), expected["padding"].item(), rtol=1e-5)


def test_a_batch_of_fewer_frames_than_are_to_be_learned_gives_all_that_are_right(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    talk = trainer.mixers["train"].draw(random.Random(1))
    wrong = talk.speaking & (np.cumsum(talk.speaking) <= 6)
    talk = dataclasses.replace(talk, wrong=wrong)
    batch = make_batch([talk], trainer.lm_config, np.random.default_rng(0), 1000, 0.5)
    assert batch.rows.shape == talk.text.shape, "one shape, whatever is wrong"
    assert set(np.array(batch.rows).tolist()) == set(np.flatnonzero(~wrong).tolist())


@pytest.mark.parametrize("codebooks", [3, 8])
def test_every_acoustic_codebook_counts_the_same(codebooks: int):
    names = ("words", "padding", "heard", "asked", "onset", "acoustic", "silence")
    parts = {**dict.fromkeys(names, mx.array(0.0)), "semantic": mx.array(1.0)}
    assert total(parts, {}, codebooks).item() == pytest.approx(10 / (10 + codebooks - 1))


def test_where_an_answer_is_overdue_its_beginning_is_learned_but_silence_is_heard(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    config = trainer.lm_config
    talk = trainer.mixers["train"].draw(random.Random(1))
    overdue = np.zeros(talk.text.size, bool)
    overdue[np.flatnonzero(talk.text == PADDING)[[5, 6, 7]]] = True
    late = dataclasses.replace(talk, overdue=overdue, openings=[])
    frames = talk.text.size
    whole = make_batch([late], config, np.random.default_rng(0), frames, 0.5)
    part = make_batch([late], config, np.random.default_rng(0), frames // 2, 0.5, window=frames // 2)
    for batch in (whole, part, make_drill([late], config)):
        text, inputs = np.array(batch.text)[0], np.array(batch.inputs)[0, 0]
        learned = np.flatnonzero(overdue[: text.size])
        assert (text[learned] == END_OF_PADDING).all() and (inputs[1:][learned[:-1]] == PADDING).all()
        others = np.setdiff1d(np.arange(text.size), learned)
        assert (text[others] == talk.text[others]).all()


def test_training_lowers_every_loss_and_yields_a_model_that_loads_and_speaks(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=120)))
    log = quietly(trainer)
    for name in ("words", "padding", "semantic", "acoustic", "silence", "heard", "asked"):
        first, last = log[0][name], float(np.mean([entry[name] for entry in log[-6:]]))
        assert last < 0.95 * first, f"{name} went from {first} to {last}"
    assert (tmp_path / "loss.svg").read_text(encoding="utf-8").startswith("<svg")
    export(trainer, tmp_path / "model")
    moshi = moshi_mlx.load(tmp_path / "model")
    session = moshi.session(seed=0)
    frames = [session.step(np.zeros(1920, np.float32)) for _ in range(4)]
    assert all(np.isfinite(frame.pcm).all() for frame in frames)
    assert frames[-1].tokens is not None


def test_the_user_codebooks_that_were_never_trained_are_not_heard(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    export(trainer, tmp_path / "model", averaged=False)
    lm = moshi_mlx.load(tmp_path / "model").lm
    codes = trainer.mixers["train"].draw(random.Random(1)).codes[None]
    heard = codes.copy()
    heard[:, 10:] = np.random.default_rng(0).integers(0, 512, heard[:, 10:].shape)
    assert mx.allclose(lm(mx.array(codes)).text_logits, lm(mx.array(heard)).text_logits)
    heard[:, 9] = 11
    assert not mx.allclose(lm(mx.array(codes)).text_logits, lm(mx.array(heard)).text_logits)


def test_a_short_run_reaches_its_rate_and_its_average_is_what_it_learned(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6, warmup=200)))
    before = mx.array(trainer.model.lm.text_linear.weight)
    quietly(trainer, 2)
    assert trainer.optimizer.learning_rate.item() > 0.8 * config.train.rate
    quietly(trainer)
    apart, moved = (
        mx.abs(trainer.average["text_linear"]["weight"] - weight).max().item()
        for weight in (trainer.model.lm.text_linear.weight, before)
    )
    assert apart < 0.05 * moved


@pytest.mark.parametrize("exchanges", [0.0, 1.0])
def test_drills_teach_listening_and_which_answer_begins(corpus: Path, tmp_path: Path, exchanges: float):
    config = work_in(corpus, tmp_path)
    train = dataclasses.replace(config.train, drills=1.0, drill_batch=5, exchanges=exchanges)
    trainer = Trainer(dataclasses.replace(config, train=train))
    drill = trainer.batch(0)
    assert isinstance(drill, Drill)
    assert drill.text.shape == ((2, 90) if exchanges else (5, 52))
    count, frames = drill.text.shape
    rows = np.array(drill.rows).reshape(count, -1)
    assert (rows // frames == np.arange(count)[:, None]).all(), "some steps of each"
    # An onset begins with its first word, beside which nothing tells yet what will be said.
    assert np.array(drill.depth_onset).sum() > 0
    if not exchanges:
        assert np.array(drill.depth_onset).all()
        words = np.array(drill.text).reshape(-1)[rows[:, 0]]
        assert np.isin(words, [0, 3], invert=True).all()
    spoken = np.array(drill.depth_targets)[np.array(drill.depth_onset) > 0]
    assert len({tuple(row) for row in spoken}) > 1
    parts = [trainer._update(*drill.arrays())[0] for _ in range(12)]
    for name in ("drill", "onset"):
        assert parts[-1][name].item() < 0.9 * parts[0][name].item(), name


def test_where_a_run_starts_from_other_weights_the_heads_learn_first(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    export(Trainer(config), tmp_path / "model", averaged=False)
    (tmp_path / "model" / "heads.safetensors").unlink()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, heads=6, save=1))
    tuned = Trainer(config, init=tmp_path / "model")
    start = {name: mx.array(value) for name, value in tree_flatten(tuned.model.parameters())}

    def moved() -> set[str]:
        now = tree_flatten(tuned.model.parameters())
        return {name.split(".")[0] for name, value in now if not mx.array_equal(value, start[name])}

    quietly(tuned, 4)
    assert moved() == {"heard", "asked"}
    tuned = Trainer(config)
    assert tuned.resume() and tuned.heads == 6
    quietly(tuned, 6)
    assert moved() == {"heard", "asked"}
    quietly(tuned, 7)
    assert moved() == {"heard", "asked", "lm"}
    assert Trainer(config).heads == 0, "all of it is new: nothing would be lost"
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=8))
    assert Trainer(short, init=tmp_path / "model").heads == 2, "a short run trains the model, too"


def test_a_run_goes_on_with_the_heads_of_the_run_before(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    before = Trainer(config)
    learned = {name: before.model[name].weight + 1 for name in ("heard", "asked")}
    before.model.update({name: {"weight": weight} for name, weight in learned.items()})
    export(before, tmp_path / "model", averaged=False)
    after = Trainer(config, init=tmp_path / "model")
    assert after.heads == 0
    for name, weight in learned.items():
        assert mx.allclose(after.model[name].weight, weight, atol=2e-3), name


def test_heads_are_found_by_what_they_tell(tmp_path: Path):
    weight = mx.arange(8.0).reshape(4, 2)
    write_heads(tmp_path, {"heard": Head(weight, ("a", "b", "c"))})
    head = read_heads(tmp_path)["heard"]
    assert mx.array_equal(head.of(["c", "a"]), weight[mx.array([0, 3, 1])])
    assert head.of(["a", "d"]) is None
    other = {"heard": Head(weight[mx.array([0, 2, 1, 3])] + 4, ("b", "a", "c"))}
    assert mx.array_equal(mean_heads([{"heard": head}, other], [0.75, 0.25])["heard"].weight, weight + 1)
    assert mean_heads([{"heard": head}, {}], [0.5, 0.5]) == {}
    write_heads(tmp_path, {})
    assert read_heads(tmp_path) == {}
    (tmp_path / "heads.safetensors").mkdir()
    with pytest.raises(StorageError, match="Can't write"):
        write_heads(tmp_path, {})


def test_a_run_of_a_version_without_steps_for_heads_alone_goes_on(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    quietly(Trainer(config), 2)
    state = mx.load(str(tmp_path / "run.safetensors"))
    del state["heads"]
    mx.save_safetensors(str(tmp_path / "run.safetensors"), state)
    resumed = Trainer(config)
    assert resumed.resume() and resumed.step == 2 and resumed.heads == 0
    quietly(resumed, 3)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(corpus: Path, tmp_path: Path):
    whole = Trainer(work_in(corpus, tmp_path / "whole"))
    quietly(whole, 30)
    quietly(Trainer(work_in(corpus, tmp_path / "parts")), 20)
    resumed = Trainer(Config.load(tmp_path / "parts" / "train.yaml"))
    assert resumed.resume() and resumed.step == 20
    quietly(resumed, 30)
    left, right = whole.model.lm.text_linear.weight, resumed.model.lm.text_linear.weight
    assert mx.allclose(left, right, atol=1e-5), f"weights differ by {mx.abs(left - right).max().item()}"


def test_a_full_disk_is_told_and_what_was_saved_before_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(config)

    def scores() -> dict[str, float]:
        with little_room(0):
            progress.scores(trainer.step, {})
        return {}

    with Progress(tmp_path, 2, Console(file=io.StringIO()), every=1) as progress:
        with little_room(1000), pytest.raises(StorageError, match=r"Can't write .*run\.safetensors"):
            trainer.save()
        assert not list(tmp_path.glob("*part*"))
        monkeypatch.setattr(trainer, "evaluate", scores)
        with pytest.raises(StorageError, match=r"Can't write .*log\.jsonl"):
            trainer.run(progress, 1)
        with little_room((tmp_path / "log.jsonl").stat().st_size + 9), pytest.raises(StorageError, match="log"):
            progress.step(2, {"loss": 1.0}, 1.0)
    resumed = Trainer(config)
    assert resumed.resume() and resumed.step == 1
    with Progress(tmp_path, 2, Console(file=io.StringIO()), every=1) as progress:
        resumed.run(progress, 2)
    assert "step 0 to 1" in (tmp_path / "loss.svg").read_text(encoding="utf-8"), "all but the line that was cut off"


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler, so MLX can't fuse")
def test_a_long_run_is_compiled_and_learns_the_same(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = work_in(corpus, tmp_path / "plain")
    drilled = dataclasses.replace(config.train, drills=0.5, drill_batch=2)
    config = dataclasses.replace(config, train=drilled)
    plain = Trainer(config)
    assert {type(plain.batch(step)) for step in range(6)} == {Batch, Drill}
    quietly(plain, 6)
    monkeypatch.setattr("moshi_mlx.train.compiling.WORTH_COMPILING", drilled.steps)
    fused = Trainer(dataclasses.replace(work_in(corpus, tmp_path / "fused"), train=drilled))
    assert type(fused._update) is not type(plain._update), "one of them is compiled"
    quietly(fused, 6)
    before = Trainer(plain.config).model.lm.text_linear.weight
    apart = mx.abs(plain.model.lm.text_linear.weight - fused.model.lm.text_linear.weight).max().item()
    moved = mx.abs(plain.model.lm.text_linear.weight - before).max().item()
    assert apart < 0.02 * moved, f"weights moved by {moved} and differ by {apart}"


def test_fine_tuning_starts_from_a_checkpoint(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(config)
    export(trainer, tmp_path / "model", averaged=False)
    tuned = Trainer(config, init=tmp_path / "model")
    assert mx.allclose(tuned.model.lm.text_linear.weight, trainer.model.lm.text_linear.weight, atol=1e-3)
    other = dataclasses.replace(config, model={**config.model, "dim": 32})
    with pytest.raises(ConfigError, match="another shape"):
        Trainer(other, init=tmp_path / "model")


def test_a_model_that_hears_less_starts_as_the_one_that_it_comes_from(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(config)
    small = trainer.lm_config
    export(trainer, tmp_path / "model", averaged=False)
    # All it hears of the user is the first codebook, as training has it.
    n_q = small.dep_q + 1
    deaf = {**config.model, "n_q": n_q, "delays": list(small.delays[: n_q + 1])}
    tuned = Trainer(dataclasses.replace(config, model=deaf), init=tmp_path / "model")
    codes = np.random.default_rng(0).integers(0, small.card, (2, 1 + small.n_q, 12))
    codes[:, 0] %= small.text_card
    codes[:, 1 + n_q :] = -1
    wanted, _ = trainer.model.lm.forward_text(mx.array(codes))
    found, _ = tuned.model.lm.forward_text(mx.array(codes[:, : 1 + n_q]))
    assert mx.allclose(found, wanted, atol=2e-3 * mx.abs(wanted).max().item())
    parts = [tuned._update(*tuned.batch(0).arrays()) for _ in range(2)]
    assert all(np.isfinite(norm.item()) for _, norm in parts)
    with pytest.raises(ConfigError, match="train grow` gives a model more layers"):
        Trainer(dataclasses.replace(config, model={**config.model, "num_layers": 3}), init=tmp_path / "model")


def test_weights_that_write_with_other_tokens_are_refused_with_what_to_do(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    export(Trainer(config), tmp_path / "model")
    (tmp_path / "tokenizer.model").unlink()
    train_tokenizer(Script.load(config.script), 320, tmp_path / "tokenizer.model")
    with pytest.raises(ConfigError, match=r"copy .*model/tokenizer\.model there"):
        Trainer(config, init=tmp_path / "model")


def test_the_mean_of_models_lies_between_them(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, run in enumerate(("one", "two")):
        config = work_in(corpus, tmp_path / run)
        seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        export(Trainer(seeded), tmp_path / run / "model", averaged=False)
    one, two = (str(tmp_path / run / "model") for run in ("one", "two"))
    assert main(["mean", one, one, one, two, "--out", str(tmp_path / "mean")]) == 0
    assert "model in" in capsys.readouterr().out
    weights = [mx.load(f"{folder}/model.safetensors") for folder in (one, two, str(tmp_path / "mean"))]
    assert weights[0].keys() == weights[2].keys()
    for name, x in weights[2].items():
        assert mx.allclose(x, 0.75 * weights[0][name] + 0.25 * weights[1][name], atol=2e-3), name
    assert sum(not mx.allclose(x, weights[0][name], atol=2e-3) for name, x in weights[2].items()) > 5
    heads = [read_heads(Path(folder))["heard"].weight for folder in (one, two, str(tmp_path / "mean"))]
    assert mx.allclose(heads[2], 0.75 * heads[0] + 0.25 * heads[1], atol=2e-3)
    moshi_mlx.load(tmp_path / "mean")


def test_a_model_can_be_written_over_what_it_is_made_of(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    export(Trainer(config), tmp_path)
    export(Trainer(dataclasses.replace(config, codec=tmp_path / "codec"), init=tmp_path), tmp_path)
    mean([tmp_path, tmp_path], tmp_path)
    moshi_mlx.load(tmp_path)


def test_models_that_differ_in_more_than_weights_have_no_mean(corpus: Path, tmp_path: Path):
    export(Trainer(work_in(corpus, tmp_path)), tmp_path / "model")
    expected = {"config.json": "another shape", "tokenizer.model": "other tokens", "codec": "another codec"}
    for part, said in expected.items():
        other = tmp_path / "others" / part
        shutil.copytree(tmp_path / "model", other)
        if part == "config.json":
            about = json.loads((other / part).read_text(encoding="utf-8"))
            (other / part).write_text(json.dumps({**about, "dim": 32}), encoding="utf-8")
        elif part == "tokenizer.model":
            shutil.copyfile(NANO / part, other / part)
        else:
            tensors = mx.load(str(other / part / "model.safetensors"))
            tensors["quantizer.rvq_first.output_proj.weight"] += 0.1
            mx.save_safetensors(str(other / part / "model.safetensors"), tensors)
        with pytest.raises(ConfigError, match=said):
            mean([tmp_path / "model", other], tmp_path / "mean")


def test_fine_tuning_starts_as_soft_as_the_checkpoint_was_trained(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, sharpness=6.0))
    trainer = Trainer(config)
    export(trainer, tmp_path / "model", averaged=False)
    tuned = Trainer(config, init=tmp_path / "model").model.lm
    assert mx.allclose(tuned.text_linear.weight, trainer.model.lm.text_linear.weight, atol=1e-3)
    ours, theirs = (m.depformer.slices[3].linear_out.weight for m in (trainer.model.lm, tuned))
    assert mx.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("k, layer", [(0, "first.vq.layers.0"), (3, "rest.vq.layers.2")])
def test_what_a_checkpoint_knew_of_another_codecs_codes_is_forgotten(corpus: Path, tmp_path: Path, k: int, layer: str):
    config = work_in(corpus, tmp_path)
    trainer = Trainer(config)
    for part in trainer.model.lm.depformer.slices:
        part.linear_out.weight = 2 * part.linear_out.weight
    export(trainer, tmp_path / "model", averaged=False)
    tensors = codec_tensors(NANO / "codec")
    book = f"quantizer.rvq_{layer}._codebook"
    others = {f"{book}.{part}": tensors[f"{book}.{part}"][::-1] for part in ("embedding_sum", "cluster_usage")}
    shutil.copytree(NANO / "codec", tmp_path / "taught")
    mx.save_safetensors(str(tmp_path / "taught" / "model.safetensors"), {**tensors, **others})
    taught = Trainer(dataclasses.replace(config, codec=tmp_path / "taught"), init=tmp_path / "model")
    rows, count = config.model["card"] + 1, config.model["dep_q"]
    before, after = (t.model.lm.audio_emb.weight.reshape(-1, rows, config.model["dim"]) for t in (trainer, taught))
    kept = [bool(mx.allclose(a, b, atol=1e-3)) for a, b in zip(before, after, strict=True)]
    # Of the user only the semantic codebook is heard: the rest is exported as silence.
    assert kept[: count + 1] == [i not in (k, count + k) for i in range(count + 1)]
    outputs = [[t.model.lm.depformer.slices[i].linear_out.weight for i in range(count)] for t in (trainer, taught)]
    assert [bool(mx.allclose(a, b, atol=1e-3)) for a, b in zip(*outputs, strict=True)] == [i != k for i in range(count)]


def shortened(config: Config, *groups: str) -> Config:
    """Only what of these groups is there to train on."""
    path = config.work / "corpus" / "00000.npz"
    write_shard(path, [u for u in read_corpus(path.parent) if u.split == "train" and u.group in groups])
    return config


def test_a_corpus_too_short_for_held_out_questions_is_trained_on_without_scores(corpus: Path, tmp_path: Path):
    trainer = Trainer(shortened(work_in(corpus, tmp_path), "answers", "intents"))
    quietly(trainer, 2)
    assert trainer.evaluate() == {}
    export(trainer, tmp_path / "model")
    moshi_mlx.load(tmp_path / "model")


def test_a_corpus_without_questions_is_refused_with_what_to_do(corpus: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no question yet: render more"):
        Trainer(shortened(work_in(corpus, tmp_path), "answers"))


def test_a_run_of_another_model_is_not_resumed(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    Trainer(config).save()
    other = dataclasses.replace(config, model={**config.model, "dim": 32})
    with pytest.raises(CheckpointError, match="another model"):
        Trainer(other).resume()


def test_a_damaged_run_is_told_with_what_to_do(corpus: Path, tmp_path: Path):
    trainer = Trainer(work_in(corpus, tmp_path))
    trainer.save()
    trainer.path.write_bytes(trainer.path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"run\.safetensors .* Delete it to begin"):
        trainer.resume()


def test_more_codebooks_than_the_codec_has_are_refused(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    larger = {**config.model, "n_q": 48, "delays": [0] * 49}
    for changed in ({"model": larger}, {"mix": dataclasses.replace(config.mix, user_codebooks=40)}):
        with pytest.raises(ConfigError, match=r"codec has \d+ codebooks; 40 are"):
            Trainer(dataclasses.replace(config, **changed))


def test_a_run_with_another_codec_is_not_resumed(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    Trainer(config).save()
    name = "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"
    codec = altered_codec(tmp_path / "other", name, lambda tensor: tensor + 1)
    with pytest.raises(CheckpointError, match="began with another codec"):
        Trainer(dataclasses.replace(config, codec=codec)).resume()
    with pytest.raises(CheckpointError, match="no such file"):
        Trainer(dataclasses.replace(config, codec=tmp_path / "none"))


def test_a_corpus_without_one_of_the_scripts_answers_is_refused_by_its_text(corpus: Path, tmp_path: Path):
    config = work_in(corpus, tmp_path)
    script = tmp_path / "script.yaml"
    script.write_text(script.read_text(encoding="utf-8").replace("My name is Moshi.", "I am Moshi."), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"lacks Moshi's answer 'I am Moshi\.'"):
        Trainer(dataclasses.replace(config, script=script))


def test_the_command_trains_and_says_where_the_model_is(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = work_in(corpus, tmp_path)
    export(Trainer(config), tmp_path / "first", averaged=False)
    command = ["lm", str(tmp_path / "train.yaml"), "--steps", "6", "--rate", "1e-9", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "model in" in capsys.readouterr().out
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (tmp_path / "first", tmp_path / "out"))
    assert all(mx.allclose(tensor, before[name], atol=1e-3) for name, tensor in after.items()), (
        "slower than it can tell"
    )
    for number, why in {"0": "above 0", "-1": "above 0", "inf": "above 0", "much": "invalid number"}.items():
        with pytest.raises(SystemExit):
            main(["lm", str(tmp_path / "train.yaml"), "--rate", number])
        assert why in capsys.readouterr().err


def test_training_without_a_corpus_says_what_to_run(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work_in(corpus, tmp_path)
    shutil.rmtree(tmp_path / "corpus")
    assert main(["lm", str(tmp_path / "train.yaml")]) == ConfigError.exit_code
    assert "moshi_mlx.train.data" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["labels", "rows", "cut"])
def test_damaged_heads_are_refused_with_what_to_do(tmp_path: Path, damage: str):
    labels = {"labels": "a", "rows": '["a"]', "cut": '["a", "b", "c"]'}[damage]
    path = tmp_path / "heads.safetensors"
    mx.save_safetensors(str(path), {"heard": mx.zeros((4, 2))}, {"heard": labels})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="Delete it"):
        read_heads(tmp_path)
