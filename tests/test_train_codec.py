"""Training the codec: its pass is that of inference, the loss falls, a run resumes, the result is a codec."""

import dataclasses
import io
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console
from train_corpus import NANO, altered_codec, little_room, make_corpus

from moshi_mlx.errors import CheckpointError, StorageError
from moshi_mlx.mimi import Mimi
from moshi_mlx.train.codec import CodecTrainer, pass_through
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import Utterance, known_answers, write_answers
from moshi_mlx.train.mel import mel_distance, mel_spectrogram
from moshi_mlx.train.progress import Progress

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)


def config_in(folder: Path, **settings: object) -> Config:
    config = Config.load(make_corpus(folder))
    data = dataclasses.replace(config.data, voice="espeak:en-us", voices=("espeak:en-us+f3",))
    training = dataclasses.replace(config.codec_training, batch=2, frames=4, rate=1e-3, **settings)
    return dataclasses.replace(config, data=data, codec_training=training)


def quietly(trainer: CodecTrainer) -> None:
    steps = trainer.settings.steps
    with Progress(trainer.config.work, steps, Console(file=io.StringIO()), every=1, name="codec") as progress:
        trainer.run(progress)


def test_the_pass_is_that_of_encoding_and_decoding(tmp_path: Path):
    trainer = CodecTrainer(config_in(tmp_path))
    pcm = mx.array(trainer.batch(0).pcm)
    coded = pass_through({**trainer.fixed, **trainer.free}, trainer.shape, pcm, 8)
    mimi = Mimi.load(NANO / "codec")
    codes = mimi.encode(pcm[:, None])
    found = np.stack([np.array(c).reshape(2, -1) for c in coded.codes], axis=1)
    # Further codebooks, for what users say, aren't decoded.
    assert np.mean(found[:, :8] == np.array(codes)) > 0.99
    expected = np.array(mimi.decode(codes))[:, 0]
    assert np.abs(np.array(coded.pcm) - expected).max() < 1e-3


@pytest.mark.parametrize("parts", ["decoder", "all"])
def test_training_lowers_the_loss_on_a_damaged_codec(tmp_path: Path, parts: str):
    trainer = CodecTrainer(config_in(tmp_path, steps=8, save=100, parts=parts))
    name = "decoder.model.14.conv.conv.weight"
    trainer.free[name] = 0.5 * trainer.free[name]
    batch = trainer.batch(0)
    losses = [trainer.update(batch)[0]["loss"] for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0], f"the loss went {losses}"


def test_moshis_crops_have_the_codes_that_they_have_within_their_answer(tmp_path: Path):
    trainer = CodecTrainer(config_in(tmp_path, own=1.0))
    mimi = Mimi.load(NANO / "codec")
    answers = {job.number: trainer._sound(job).pcm for job in trainer.own}
    codes = {number: np.array(mimi.encode(pcm[None, None]))[0] for number, pcm in answers.items()}
    late = 0
    for step in range(6):
        crops = trainer.batch(step)
        for pcm, found in zip(np.array(crops.pcm), np.array(crops.codes), strict=True):
            number, start = next(
                (number, start)
                for number, whole in answers.items()
                for start in range(0, len(whole) - len(pcm) + 1, 1920)
                if np.array_equal(whole[start : start + len(pcm)], pcm)
            )
            first = start // 1920
            assert np.mean(found == codes[number][:, first : first + found.shape[1]]) > 0.97
            late += first > 0
    assert late


def test_the_decoder_learns_from_the_codes_that_came_with_the_codec(tmp_path: Path):
    config = config_in(tmp_path, own=1.0)
    codec = shutil.copytree(NANO / "codec", tmp_path / "codec")
    plain = CodecTrainer(config)
    job = plain.own[0]
    codes, end = np.full((8, 40), 3, np.int16), plain._sound(job).end
    write_answers(codec, [Utterance(codes, "answers", job.name, job.name, job.voice, "train", 0.32, end, ())])
    trainer = CodecTrainer(dataclasses.replace(config, codec=codec))
    trainer.own = [job]
    assert (np.array(trainer.batch(0).codes) == 3).mean() > 0.9
    trainer.export(tmp_path / "out")
    assert np.array_equal(known_answers(tmp_path / "out")[job.voice, job.name].codes, codes)


def test_training_the_decoder_leaves_the_codes_as_they_were(tmp_path: Path):
    trainer = CodecTrainer(config_in(tmp_path, steps=2))
    quietly(trainer)
    trainer.export(tmp_path / "trained")
    pcm = trainer.batch(9).pcm[:, None]
    before, after = Mimi.load(NANO / "codec"), Mimi.load(tmp_path / "trained")
    codes = before.encode(pcm)
    assert mx.array_equal(codes, after.encode(pcm))
    assert not mx.allclose(before.decode(codes), after.decode(codes), atol=1e-4)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path):
    whole = CodecTrainer(config_in(tmp_path, steps=2, save=1, parts="all"))
    quietly(whole)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    config = config_in(stopped, steps=2, save=1, parts="all")
    halfway = CodecTrainer(config)
    halfway.update(halfway.batch(0))
    halfway.step += 1
    halfway.save()
    resumed = CodecTrainer(config)
    assert resumed.resume() and resumed.step == 1
    quietly(resumed)
    for name, tensor in whole.free.items():
        assert mx.allclose(tensor, resumed.free[name], atol=1e-5), name


def test_a_run_that_cannot_be_saved_or_resumed_is_told_with_its_file(tmp_path: Path):
    trainer = CodecTrainer(config_in(tmp_path, steps=1))
    with little_room(1000), pytest.raises(StorageError, match=r"Can't write .*codec-decoder\.safetensors"):
        trainer.save()
    assert not list(tmp_path.glob("*part*"))
    trainer.save()
    trainer.path.write_bytes(trainer.path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"codec-decoder\.safetensors .* Delete it to begin"):
        trainer.resume()


def test_a_run_of_another_codec_is_not_resumed(tmp_path: Path):
    config = config_in(tmp_path, steps=1)
    CodecTrainer(config).save()
    codec = altered_codec(tmp_path / "other", "decoder.model.0.conv.conv.bias", lambda tensor: tensor + 1)
    with pytest.raises(CheckpointError, match="began with another codec"):
        CodecTrainer(dataclasses.replace(config, codec=codec)).resume()


def test_a_tone_lies_in_its_mel_band_and_equal_sounds_are_at_no_distance():
    time = np.arange(24000) / 24000
    tone = mx.array(0.5 * np.sin(2 * np.pi * 1000 * time, dtype=np.float32)[None])
    bands = np.array(mel_spectrogram(tone, 1024, 80)).mean(axis=(0, 1))
    mel = 2595 * np.log10(1 + np.array([1000, 12000]) / 700)
    assert abs(int(bands.argmax()) - round(81 * mel[0] / mel[1]) + 1) <= 1
    assert mel_distance(tone, tone).item() == 0
    assert mel_distance(tone, 0.5 * tone).item() > 0.1
