"""A model with more layers: it computes what it did, and they learn."""

import dataclasses
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from train_corpus import NANO, make_corpus, spoken_corpus

import moshi_mlx
from moshi_mlx.mimi import Mimi
from moshi_mlx.train.__main__ import main
from moshi_mlx.train.config import Config
from moshi_mlx.train.export import export
from moshi_mlx.train.growing import grown
from moshi_mlx.train.heads import read_heads
from moshi_mlx.train.joint import JointTrainer
from moshi_mlx.train.lm import Trainer

pytestmark = pytest.mark.skipif(not (NANO / "codec").exists(), reason="the package comes without nano")


def test_what_is_new_in_a_grown_model_lies_on_what_it_copies():
    weights = {"out_norm.weight": mx.zeros(1)}
    for i in range(4):
        for part in ("norm1", "self_attn.out_proj", "gating.linear_in", "gating.linear_out"):
            weights[f"transformer.layers.{i}.{part}.weight"] = mx.array([i + 1.0])
    assert grown(weights, "transformer.layers.", 4, 4) == weights

    def layers(wanted: int, part: str) -> list[float]:
        found = grown(weights, "transformer.layers.", 4, wanted)
        assert len(found) == 1 + 4 * wanted
        return [found[f"transformer.layers.{i}.{part}.weight"].item() for i in range(wanted)]

    assert layers(5, "norm1") == [1, 2, 3, 4, 4]
    assert layers(6, "gating.linear_in") == [1, 2, 2, 3, 4, 4]
    assert layers(6, "self_attn.out_proj") == layers(6, "gating.linear_out") == [1, 2, 0, 3, 4, 0]


def test_a_grown_model_starts_as_the_smaller_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_corpus(tmp_path)
    config = Config.load(tmp_path / "train.yaml")
    trainer = Trainer(config)
    layers = trainer.lm_config.num_layers
    before, after = tmp_path / "model", tmp_path / "grown"
    export(trainer, before, averaged=False)
    coded = Mimi.load(before / "codec")
    deeper = coded.config.layers_of("encoder_transformer") + 3
    assert main(["grow", str(before), "--layers", str(layers + 1), "--encoder-layers", str(deeper), "--out",
                 str(after)]) == 0  # fmt: skip
    assert "num_layers" in capsys.readouterr().out

    small, large = (moshi_mlx.load(folder) for folder in (before, after))
    assert large.lm.config == dataclasses.replace(small.lm.config, num_layers=layers + 1)
    draws = np.random.default_rng(0)
    codes = mx.array(draws.integers(0, small.lm.config.card, (2, 1 + small.lm.config.n_q, 12)))
    codes[:, 0] %= small.lm.config.text_card
    wanted, _ = small.lm.forward_text(codes)
    assert mx.allclose(large.lm.forward_text(codes)[0], wanted, atol=1e-3 * mx.abs(wanted).max().item())

    hears = Mimi.load(after / "codec")
    assert hears.config == dataclasses.replace(coded.config, encoder_layers=deeper)
    pcm = mx.array(draws.normal(scale=0.1, size=(1, 1, 24000)).astype(np.float32))
    assert mx.array_equal(hears.encode(pcm), coded.encode(pcm))
    assert mx.array_equal(hears.decode(coded.encode(pcm)), coded.decode(coded.encode(pcm)))

    heads = [read_heads(folder) for folder in (before, after)]
    assert heads[0].keys() == heads[1].keys() == {"heard", "asked"}
    assert all(mx.array_equal(heads[0][name].weight, heads[1][name].weight) for name in heads[0])

    # What nothing is said of stays, also where it is written over itself.
    assert main(["grow", str(after), "--out", str(after)]) == 0
    assert moshi_mlx.load(after).lm.config == large.lm.config
    assert Mimi.load(after / "codec").config == hears.config


@pytest.mark.parametrize("option", ["--layers", "--encoder-layers"])
def test_a_model_does_not_shrink(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["grow", str(NANO), option, "1", "--out", str(tmp_path / "grown")]) == 3
    assert "already; 1 are fewer" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "grown").exists()


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_new_layers_of_the_encoder_learn_at_once(tmp_path: Path):
    config = spoken_corpus(tmp_path, renderings=1, follow_up_renderings=1)
    export(JointTrainer(config), tmp_path / "model")
    has = Mimi.load(tmp_path / "model" / "codec").config.layers_of("encoder_transformer")
    assert main(["grow", str(tmp_path / "model"), "--encoder-layers", str(has + 1), "--out", str(tmp_path / "m")]) == 0
    config = dataclasses.replace(config, codec=tmp_path / "m" / "codec")
    trainer = JointTrainer(config, tmp_path / "m")
    for step in range(3):
        trainer._update(*trainer.batch(step).arrays())
    trained = trainer.trainee.moved(trainer.trainee.encoder)
    new, old = (f"encoder_transformer.transformer.layers.{i}.linear2.weight" for i in (has, 0))
    before = trainer.trainee._before
    assert not np.array(before[new]).any()
    steps = [np.abs(np.array(trained[name] - before[name])).mean() for name in (new, old)]
    assert steps[0] > 2 * steps[1] > 0, "of what adds nothing yet, whole ones"
    export(trainer, tmp_path / "out", averaged=False)
    assert Mimi.load(tmp_path / "out" / "codec").config.encoder_layers == has + 1
    moshi_mlx.load(tmp_path / "out")
