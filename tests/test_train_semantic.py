"""Teaching the semantic codebook: the phones' loss is right, teaching lowers it, all else in the codec stays."""

import dataclasses
import io
import itertools
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console
from train_corpus import NANO, altered_codec, spoken_corpus

from moshi_mlx.errors import ConfigError
from moshi_mlx.layers import can_compile
from moshi_mlx.mimi import Mimi
from moshi_mlx.mimi.quantizer import codebook
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import ANSWERS, PERTURBED, codec_tensors, known_answers, read_corpus, read_shard
from moshi_mlx.train.data import recode
from moshi_mlx.train.progress import Progress
from moshi_mlx.train.semantic import SemanticTrainer, ctc, encode, fit_codebooks, fit_to_voices, phones_of

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus in espeak-ng's voices, with features."""
    folder = tmp_path_factory.mktemp("spoken")
    config = spoken_corpus(folder, renderings=1, follow_up_renderings=1, out_of_domain_renderings=1)
    training = dataclasses.replace(config.semantic_training, batch=8, rate=1e-3, steps=6, own=0.0)
    return dataclasses.replace(config, semantic_training=training)


def in_folder(spoken: Config, folder: Path) -> Config:
    for part in ("corpus", "features"):
        shutil.copytree(spoken.work / part, folder / part)
    return dataclasses.replace(spoken, work=folder)


def likelihood(probabilities: np.ndarray, labels: list[int]) -> float:
    """Sum over all paths that collapse to the labels."""
    T, classes = probabilities.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=T):
        collapsed = [k for k, _ in itertools.groupby(path) if k]
        if collapsed == labels:
            total += math.prod(probabilities[t, k] for t, k in enumerate(path))
    return total


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2], []])
def test_the_phones_loss_sums_all_paths(labels: list[int]):
    logits = np.random.default_rng(3).normal(size=(1, 5, 3)).astype(np.float32)
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    # A neighbour with more labels must not matter.
    padded = np.array([labels + [0] * (4 - len(labels)), [1, 2, 1, 2]], np.int32)
    loss = ctc(mx.array(np.repeat(logits, 2, 0)), mx.array(padded), mx.array([len(labels), 4]))
    assert float(loss[0].item()) == pytest.approx(-math.log(likelihood(probabilities, labels)), rel=1e-4)


def test_the_phones_losss_gradient_is_its_slope():
    draws = np.random.default_rng(5)
    logits, labels = draws.normal(size=(1, 6, 4)).astype(np.float32), mx.array([[2, 3, 3]], dtype=mx.int32)

    def loss(x: mx.array) -> mx.array:
        return ctc(x, labels, mx.array([3])).sum()

    gradient = np.array(mx.grad(loss)(mx.array(logits)))
    for t, k in [(0, 0), (2, 3), (5, 2)]:
        step = np.zeros_like(logits)
        step[0, t, k] = 1e-2
        slope = float((loss(mx.array(logits + step)) - loss(mx.array(logits - step))).item()) / 2e-2
        assert gradient[0, t, k] == pytest.approx(slope, abs=1e-3)


def test_a_words_phones_have_no_stress_marks():
    phones = phones_of(["hello", "sixty"])
    assert len(phones["hello"]) == 4
    assert len(phones["sixty"]) == 6
    assert not set("".join(phones["sixty"])) & set("',")


def test_teaching_lowers_the_losses_and_leaves_convolutions_and_acoustic_codebooks(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(in_folder(spoken, tmp_path))
    batch = trainer.batch(0)
    parts = [trainer.update(batch)[0] for _ in range(12)]
    for name in ("phones", "asked"):
        assert parts[-1][name] < 0.9 * parts[0][name], f"{name}: {[p[name] for p in parts]}"
    trainer.export(tmp_path / "taught")
    before, after = (codec_tensors(f) for f in (NANO / "codec", tmp_path / "taught"))
    assert before.keys() == after.keys()
    changed = {n for n in before if not np.array_equal(np.array(before[n]), np.array(after[n]))}
    assert changed
    assert all(n.startswith(("encoder_transformer.", "downsample.", "quantizer.rvq_first.")) for n in changed)
    assert set(trainer.evaluate()) == {"known asked", "held_out asked"}
    Mimi.load(tmp_path / "taught")


def keeping(config: Config, **settings: object) -> Config:
    training = dataclasses.replace(config.semantic_training, keep=True, own=0.9, **settings)
    return dataclasses.replace(config, semantic_training=training)


def test_where_codebooks_are_kept_the_decoder_says_the_same_and_users_get_other_codes(spoken: Config, tmp_path: Path):
    config = keeping(in_folder(spoken, tmp_path))
    trainer = SemanticTrainer(config)
    batch = trainer.batch(0)
    parts = [trainer.update(batch)[0] for _ in range(8)]
    assert parts[-1]["phones"] < 0.9 * parts[0]["phones"]
    trainer.export(tmp_path / "taught")
    before, after = Mimi.load(NANO / "codec"), Mimi.load(tmp_path / "taught")
    codes = mx.random.randint(0, 512, (1, 8, 12), key=mx.random.key(1))
    assert np.array_equal(np.array(before.decode(codes)), np.array(after.decode(codes)))
    old = read_corpus(config.work / "corpus")
    kept = known_answers(tmp_path / "taught")
    assert kept and all(np.array_equal(kept[a.voice, a.text].codes, a.codes) for a in old if a.group == "answers")
    recode(dataclasses.replace(config, codec=tmp_path / "taught"))
    new = read_corpus(config.work / "corpus")
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(old, new, strict=True) if a.group == "answers")
    assert any(not np.array_equal(a.codes, b.codes) for a, b in zip(old, new, strict=True) if a.group == "intents")


def test_where_codebooks_move_no_earlier_codes_of_answers_are_passed_on(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(in_folder(spoken, tmp_path))
    (tmp_path / "taught").mkdir()
    shutil.copy(NANO / "codec" / ANSWERS, tmp_path / "taught")
    trainer.export(tmp_path / "taught")
    assert not known_answers(tmp_path / "taught")


def test_at_first_the_teachers_alone_learn(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(keeping(in_folder(spoken, tmp_path), listening=2))

    def changed() -> set[str]:
        before = dict(trainer.free)
        trainer.update(trainer.batch(trainer.step))
        trainer.step += 1
        return {name for name in before if not np.array_equal(np.array(before[name]), np.array(trainer.free[name]))}

    for _ in range(2):
        assert {name.split(".")[0] for name in changed()} == {"teacher"}
    assert {name.split(".")[0] for name in changed()} == {"teacher", "encoder_transformer", "downsample", "quantizer"}


def test_a_long_run_is_compiled_and_learns_the_same(spoken: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Short lessons: what is compiled grows with their length.
    config = keeping(in_folder(spoken, tmp_path), frames=32)
    if not can_compile():
        pytest.skip("no C++ compiler")

    def losses() -> list[float]:
        trainer = SemanticTrainer(config)
        return [trainer.update(trainer.batch(step))[0]["loss"] for step in range(4)]

    built: list[object] = []
    build = mx.compile
    plain = losses()
    monkeypatch.setattr("moshi_mlx.train.compiling.WORTH_COMPILING", config.semantic_training.steps)
    monkeypatch.setattr(mx, "compile", lambda *a, **k: (built.append(a), build(*a, **k))[1])
    assert losses() == pytest.approx(plain, rel=1e-3)
    assert built


def test_lessons_of_a_step_come_in_few_shapes(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(in_folder(spoken, tmp_path))
    shapes = {tuple(a.shape for a in trainer.batch(step).arrays()) for step in range(24)}
    assert 1 < len(shapes) <= 3


def test_before_any_step_the_pass_gives_the_codecs_own_codes(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(in_folder(spoken, tmp_path))
    utterances = read_corpus(spoken.work / "corpus")
    lesson = trainer.lessons["own"][0]
    for tensors in (trainer.start, {**trainer.fixed, **trainer.free}):
        coded = encode(tensors, trainer.shape, mx.array(lesson.convolved[None].astype(np.float32)))
        assert np.mean(np.array(coded.codes[0]) == utterances[0].codes[0]) > 0.95


def test_lessons_stand_in_streams_with_something_before_most_of_them(spoken: Config, tmp_path: Path):
    trainer = SemanticTrainer(in_folder(spoken, tmp_path))
    lessons = trainer.lessons["train"][:20]
    batch = trainer._stack(trainer.lessons["own"][:2], lessons, np.random.default_rng(0))
    frames = np.array(batch.streams).reshape(-1, 2, batch.streams.shape[2])
    places, length = np.array(batch.places), trainer.config.semantic_training.stream
    used = set()
    for row, lesson in zip(places, [*trainer.lessons["own"][:2], *lessons], strict=True):
        n = len(lesson.latents)
        assert np.array_equal(frames[row[:n]].reshape(2 * n, -1), lesson.convolved.astype(np.float32))
        assert row[0] // length == row[-1] // length, "a lesson lies within one stream"
        assert not used & set(row.tolist()), "no two lessons lie on each other"
        used |= set(row.tolist())
    assert [row[0] % length for row in places[:2]] == [0, 0], "Moshi's answers open their streams"
    assert np.mean(places[2:, 0] % length > 0) > 0.6


def test_acoustic_codebooks_are_fitted_to_moshis_voice(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    training = dataclasses.replace(config.semantic_training, own=0.9)
    trainer = SemanticTrainer(dataclasses.replace(config, semantic_training=training))
    rest = trainer._rest(trainer.lessons["own"], np.random.default_rng(0))

    def left(codec: Path) -> float:
        tensors = mx.load(str(codec / "model.safetensors"))
        single = {n: t.astype(mx.float32) for n, t in tensors.items() if "._codebook." in n}
        sounds = np.array(tensors["quantizer.rvq_rest.output_proj.weight"]).any(axis=(0, 2))
        remains = whole = rest[:, sounds]
        for k in range(7):
            book = np.array(codebook(single, "rvq_rest", k))[:, sounds]
            remains = remains - book[(remains @ book.T - 0.5 * (book**2).sum(1)).argmax(1)]
        return float((remains**2).sum() / ((whole - whole.mean(0)) ** 2).sum())

    trainer.export(tmp_path / "fitted")
    assert left(tmp_path / "fitted") < 0.5 * left(NANO / "codec")
    Mimi.load(tmp_path / "fitted")


def test_codebooks_that_only_hear_are_fitted_to_the_users():
    draws = np.random.default_rng(0)
    own, heard = (draws.normal(size=(2000, 4)).astype(np.float32) for _ in range(2))
    # The decoder gets two of the four dimensions; a user's voice varies most in the others.
    heard[:, 2:] *= 4
    sounds = np.array([True, True, False, False])
    start = [draws.normal(size=(16, 4)).astype(np.float32) for _ in range(4)]
    books = fit_to_voices(own, heard, 0.9, start, 2, sounds, draws)

    def left(latents: np.ndarray, count: int) -> np.ndarray:
        for book in books[:count]:
            latents = latents - book[((latents[:, None] - book[None]) ** 2).sum(-1).argmin(1)]
        return (latents**2).mean(0)

    assert not any(book[:, 2:].any() for book in books[:2]), "what makes no sound costs no sound"
    assert (left(own, 2)[:2] < 0.1).all()
    assert left(heard, 4).sum() < 0.2 * left(heard, 2).sum()


def test_each_fitted_codebook_holds_what_the_ones_before_left():
    draws = np.random.default_rng(0)
    coarse, fine = 10 * draws.normal(size=(4, 3)), draws.normal(size=(4, 3))
    latents = (coarse[:, None] + fine[None]).reshape(-1, 3).repeat(8, 0).astype(np.float32)
    # Half of what they start as is far from all: nothing is nearest to it.
    start = [np.concatenate([coarse[:2], 1e3 + fine[:2]])] + [np.concatenate([fine[:2], 1e3 + fine[:2]])] * 5
    books = fit_codebooks(latents, np.ones(len(latents)), start, draws)
    errors, remains = [], latents
    for book in books:
        remains = remains - book[((remains[:, None] - book[None]) ** 2).sum(-1).argmin(1)]
        errors.append(float((remains**2).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * float(((latents - latents.mean(0)) ** 2).sum())
    again = fit_codebooks(latents, np.ones(len(latents)), books, draws)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(again[:2], books[:2], strict=True)), "entries moved"


def test_added_layers_change_nothing_for_the_decoder_and_the_new_context_is_kept(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    before = Mimi.load(NANO / "codec")
    layers = before.config.num_layers + 1
    training = dataclasses.replace(config.semantic_training, layers=layers, context=80)
    SemanticTrainer(dataclasses.replace(config, semantic_training=training)).export(tmp_path / "deeper")
    deeper = Mimi.load(tmp_path / "deeper")
    assert (deeper.config.num_layers, deeper.config.context) == (layers, 80)
    codes = mx.random.randint(0, 512, (1, 8, 12), key=mx.random.key(1))
    assert np.abs(np.array(before.decode(codes)) - np.array(deeper.decode(codes))).max() < 1e-4


def test_recoding_with_the_same_codec_leaves_answers_and_hears_users_amid_a_stream(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    before = read_corpus(config.work / "corpus")
    recode(config)
    after = read_corpus(config.work / "corpus")
    for old, new in zip(before, after, strict=True):
        assert (old.text, old.words, old.codes.shape) == (new.text, new.words, new.codes.shape)
        if old.group in ("answers", "backgrounds"):
            assert np.mean(old.codes == new.codes) > 0.9
    asked = [np.mean(a.codes == b.codes) for a, b in zip(before, after, strict=True) if a.group == "intents"]
    assert min(asked) < 0.9, "what was heard before changes what is heard"


def test_recoding_often_gives_further_versions_of_what_users_say(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    often = dataclasses.replace(config, data=dataclasses.replace(config.data, recodings=3))
    recode(often)
    folder = config.work / "corpus"
    plain, same = 0, []
    for path in sorted(folder.glob("*.npz")):
        said = [u for u in read_shard(path) if u.split == "train" and u.text and u.group not in ("answers", "echoes")]
        plain += len(list(read_shard(path)))
        for version in (1, 2) if said else ():
            further = list(read_shard(folder / PERTURBED / f"{path.stem}-{version}.npz"))
            assert [(u.text, u.voice, u.words) for u in further] == [(u.text, u.voice, u.words) for u in said]
            same += [np.mean(v.codes[0] == u.codes[0]) for u, v in zip(said, further, strict=True)]
    assert len(read_corpus(folder)) == plain + len(same) > plain
    assert 0.3 < np.mean(same) < 0.98, "disturbed, and still what was said"
    recode(config)
    assert len(read_corpus(folder)) == plain, "versions of other codes are not left behind"


def test_recoding_keeps_what_the_quantizer_now_gets(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    trainer = SemanticTrainer(config)
    for step in range(2):
        trainer.update(trainer.batch(step))
    trainer.export(tmp_path / "taught")
    recode(dataclasses.replace(config, codec=tmp_path / "taught"))
    again = SemanticTrainer(dataclasses.replace(config, codec=tmp_path / "taught"))
    lesson = again.lessons["own"][0]
    coded = encode(again.start, again.shape, mx.array(lesson.convolved[None].astype(np.float32)))
    rest, _ = again._as_it_was(mx.array(lesson.latents[None].astype(np.float32)))
    assert np.abs(np.array(coded.rest - rest)).max() < 0.05 * np.abs(np.array(rest)).max()


def test_recoding_with_a_taught_codec_gives_what_that_codec_hears(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    trainer = SemanticTrainer(config)
    for step in range(2):
        trainer.update(trainer.batch(step))
    trainer.export(tmp_path / "taught")
    recode(dataclasses.replace(config, codec=tmp_path / "taught"))
    lesson = trainer.lessons["own"][0]
    tensors = {**trainer.fixed, **trainer.free}
    coded = encode(tensors, trainer.shape, mx.array(lesson.convolved[None].astype(np.float32)))
    found = read_corpus(config.work / "corpus")[0].codes[0]
    assert np.mean(np.array(coded.codes[0]) == found) > 0.9


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(spoken: Config, tmp_path: Path):
    def run(folder: Path, stop: int | None) -> dict[str, mx.array]:
        config = in_folder(spoken, folder)
        trainer = SemanticTrainer(config)
        if stop:
            for step in range(stop):
                trainer.update(trainer.batch(step))
                trainer.step += 1
            trainer.save()
            trainer = SemanticTrainer(config)
            assert trainer.resume()
        with Progress(folder, 6, Console(file=io.StringIO()), name="codec") as progress:
            trainer.run(progress)
        return trainer.free

    whole, parted = run(tmp_path / "a", None), run(tmp_path / "b", 3)
    for name, tensor in whole.items():
        assert np.allclose(np.array(tensor), np.array(parted[name]), atol=1e-5), name


def test_a_corpus_without_features_is_refused_with_what_to_do(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(ConfigError, match="features: true"):
        SemanticTrainer(config)
    with pytest.raises(ConfigError, match="features: true"):
        recode(config)


def test_a_corpus_of_which_some_files_lack_features_is_left_as_it_was(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    (tmp_path / "features" / "00001.npz").unlink()
    before = [path.read_bytes() for path in sorted((tmp_path / "corpus").iterdir())]
    with pytest.raises(ConfigError, match="features: true"):
        recode(config)
    assert [path.read_bytes() for path in sorted((tmp_path / "corpus").iterdir())] == before


def test_features_of_a_codec_with_other_convolutions_are_refused(spoken: Config, tmp_path: Path):
    config = in_folder(spoken, tmp_path)
    codec = altered_codec(tmp_path / "other", "encoder.model.0.conv.conv.weight", lambda tensor: 2 * tensor)
    other = dataclasses.replace(config, codec=codec)
    with pytest.raises(ConfigError, match="other convolutions"):
        recode(other)
    with pytest.raises(ConfigError, match="other convolutions"):
        SemanticTrainer(other)
