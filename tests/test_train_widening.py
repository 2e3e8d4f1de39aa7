"""Further codebooks for what users say: existing codes and their sound stay, what was lost is heard."""

import dataclasses
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from train_corpus import NANO, altered_codec, spoken_corpus

import moshi_mlx
from moshi_mlx.errors import CheckpointError, ConfigError
from moshi_mlx.mimi import Mimi
from moshi_mlx.mimi.weights import locate
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import known_answers, read_corpus
from moshi_mlx.train.data import recode
from moshi_mlx.train.export import export
from moshi_mlx.train.lm import Trainer, akin
from moshi_mlx.train.semantic import fit_codebooks, nearest
from moshi_mlx.train.widening import widen

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus in espeak-ng's voices, with features, and its configuration for a codec of ten codebooks."""
    folder = tmp_path_factory.mktemp("spoken")
    config = spoken_corpus(folder, renderings=6, follow_up_renderings=6, out_of_domain_renderings=6)
    hearing = dataclasses.replace(config.hearing, codebooks=2, width=16, frames=3000)
    return dataclasses.replace(config, hearing=hearing)


def test_existing_codes_stay_and_further_ones_tell_more(spoken: Config, tmp_path: Path) -> None:
    shares = widen(spoken, tmp_path / "wide")
    assert len(shares) == 2 and shares[1] < shares[0] < 0.9, shares
    have = locate(spoken.codec)[1].n_q
    before, after = Mimi.load(spoken.codec, num_codebooks=have), Mimi.load(tmp_path / "wide", num_codebooks=have + 2)
    pcm = np.random.default_rng(0).normal(0, 0.1, (1, 1, 24000)).astype(np.float32)
    old, new = np.array(before.encode(pcm)), np.array(after.encode(pcm))
    assert new.shape[1] == have + 2
    # Half precision moves a code now and then.
    assert np.mean(old == new[:, :have]) > 0.98
    assert mx.allclose(before.decode(old), after.decode(old), atol=2e-3)
    assert len(np.unique(new[:, have])) > 3
    assert set(known_answers(tmp_path / "wide")) == set(known_answers(spoken.codec))
    assert akin(spoken.codec, tmp_path / "wide") == have * [True]


def test_a_corpus_and_a_model_go_on_with_the_wider_codec(spoken: Config, tmp_path: Path) -> None:
    for part in ("corpus", "features"):
        shutil.copytree(spoken.work / part, tmp_path / part)
    shutil.copy(spoken.work / "tokenizer.model", tmp_path)
    narrow = dataclasses.replace(spoken, work=tmp_path)
    old = Trainer(narrow)
    export(old, tmp_path / "old", averaged=False)
    widen(narrow, tmp_path / "wide")
    n_q = 18
    shape = {**spoken.model, "n_q": n_q, "delays": [*old.lm_config.delays[:10], *[0] * (n_q - 9)]}
    mix = dataclasses.replace(spoken.mix, user_codebooks=10)
    wide = dataclasses.replace(narrow, codec=tmp_path / "wide", model=shape, mix=mix)
    with pytest.raises(ConfigError, match="codes of 8 codebooks, 10 are to be heard"):
        Trainer(wide)
    recode(wide)
    assert {u.codes.shape[0] for u in read_corpus(tmp_path / "corpus")} == {10}
    new = Trainer(wide, init=tmp_path / "old")
    conversation = new.conversations(0)[0]
    assert conversation.codes.shape[0] == 1 + 8 + 10 and (conversation.user[8:] >= 0).all()
    rows = 9 * (old.lm_config.card + 1)
    ours, theirs = (trainer.model.lm.audio_emb.weight for trainer in (new, old))
    assert mx.allclose(ours[:rows], theirs[:rows], atol=1e-3) and mx.all(mx.any(ours != 0, axis=1)[rows:])
    for step in range(2):
        parts, norm = new._update(*new.batch(step).arrays())
        assert np.isfinite(norm.item())
    export(new, tmp_path / "new")
    session = moshi_mlx.load(tmp_path / "new").session(seed=0)
    assert session.step(np.zeros(1920, np.float32)).pcm.shape == (1920,)
    # What was learned of a codebook that is another now is forgotten, also of one that only the user has.
    tensors, book = mx.load(str(wide.codec / "model.safetensors")), "quantizer.rvq_rest.vq.layers.8._codebook"
    tensors |= {f"{book}.{part}": tensors[f"{book}.{part}"][::-1] for part in ("embedding_sum", "cluster_usage")}
    shutil.copytree(wide.codec, tmp_path / "other")
    mx.save_safetensors(str(tmp_path / "other" / "model.safetensors"), tensors)
    again = Trainer(dataclasses.replace(wide, codec=tmp_path / "other"), init=tmp_path / "new")
    ours, theirs = (
        trainer.model.lm.audio_emb.weight.reshape(n_q, -1, ours.shape[1])
        for trainer in (again, Trainer(wide, init=tmp_path / "new"))
    )
    assert [bool(mx.array_equal(a, b)) for a, b in zip(ours, theirs, strict=True)] == 17 * [True] + [False]


def test_features_of_another_codec_are_refused_with_what_to_do(spoken: Config, tmp_path: Path) -> None:
    codec = altered_codec(tmp_path / "taught", "quantizer.rvq_first.input_proj.weight", lambda tensor: -tensor)
    with pytest.raises(ConfigError, match="--recode"):
        widen(dataclasses.replace(spoken, codec=codec), tmp_path / "wide")


def test_too_little_speech_is_refused(spoken: Config, tmp_path: Path) -> None:
    much = dataclasses.replace(spoken, hearing=dataclasses.replace(spoken.hearing, frames=10_000_000))
    with pytest.raises(ConfigError, match="render more"):
        widen(much, tmp_path / "wide")


def test_codewords_lie_in_the_middle_of_what_they_stand_for() -> None:
    draws = np.random.default_rng(0)
    centres = draws.normal(0, 10, (16, 3)).astype(np.float32)
    x = np.repeat(centres, 50, axis=0) + draws.normal(0, 0.1, (800, 3)).astype(np.float32)
    (book,) = fit_codebooks(x, np.ones(len(x)), [x[::12][:64]], draws)
    assert np.sqrt(((x - book[nearest(x, book)]) ** 2).sum(axis=1).mean()) < 0.5


def test_a_folder_without_a_codec_is_refused(spoken: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no codec folder"):
        widen(dataclasses.replace(spoken, codec=tmp_path), tmp_path / "wide")
