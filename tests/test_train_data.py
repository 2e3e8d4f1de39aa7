"""Rendering a script to a corpus: deterministic by seed, resumable, with what a microphone adds."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from train_corpus import NANO, make_corpus

from moshi_mlx.config import FRAME_SIZE, SAMPLE_RATE
from moshi_mlx.errors import CheckpointError, StorageError
from moshi_mlx.train.augment import add_noise, gain, microphone, noise, power, room, throat
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import ANSWERS, alike, known_answers, read_shard, write_answers
from moshi_mlx.train.data import main, prepare
from moshi_mlx.train.render import perform, plan
from moshi_mlx.train.script import Script

pytestmark = pytest.mark.skipif(
    not shutil.which("espeak-ng") or not (NANO / "codec").exists(), reason="needs espeak-ng and nano"
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config.load(make_corpus(tmp_path))
    shutil.rmtree(tmp_path / "corpus")
    data = dataclasses.replace(
        config.data,
        voice="espeak:en-us", voices=("espeak:en-us+f3",), held_out_voices=("espeak:en-gb",),
        renderings=1, follow_up_renderings=1, out_of_domain_renderings=1, backgrounds=0, shard=4,
    )  # fmt: skip
    return dataclasses.replace(config, data=data)


def test_a_corpus_that_was_cut_off_is_completed_with_the_same_utterances(config: Config):
    folder = prepare(config, limit=2)
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["00000.npz", "00001.npz"]
    before = list(read_shard(folder / "00001.npz"))
    first = (folder / "00000.npz").stat().st_mtime_ns
    (folder / "00001.npz").unlink()
    prepare(config, limit=2, jobs=2)
    assert (folder / "00000.npz").stat().st_mtime_ns == first, "a finished shard was rendered again"
    for old, new in zip(before, read_shard(folder / "00001.npz"), strict=True):
        assert (old.text, old.start, old.words) == (new.text, new.start, new.words)
        assert np.array_equal(old.codes, new.codes)


_POOL = """
import concurrent.futures, multiprocessing, os, time
from moshi_mlx.train.data import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(2, context, end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_no_process_that_renders_outlives_the_command(tmp_path: Path):
    (tmp_path / "pool.py").write_text(_POOL, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(tmp_path / "pool.py")], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        command.kill()
        try:
            # It has the command's output open as long as it lives.
            command.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the process waits for another task")


def written(folder: Path) -> Path:
    """A configuration's file that has all said by espeak-ng."""
    path = make_corpus(folder)
    shutil.rmtree(folder / "corpus")
    text = path.read_text(encoding="utf-8").replace("piper:none", "espeak:en-us").replace("flite:none", "espeak:en-us")
    path.write_text(text.replace("espeak:none", "espeak:en-gb"), encoding="utf-8")
    return path


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, speaking: str) -> None:
    """Puts an espeak-ng first in PATH that has the real one's voices, but this to do for an utterance."""
    folder.mkdir()
    script = f'#!/bin/sh\ncase "$1" in --voices*) exec {shutil.which("espeak-ng")} "$@";; esac\n{speaking}\n'
    (folder / "espeak-ng").write_text(script, encoding="utf-8")
    (folder / "espeak-ng").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_ctrl_c_ends_the_rendering_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interruptible() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, as these tests may be, ignore it

    busy = tmp_path / "busy"
    stand_in(tmp_path / "bin", monkeypatch, f'touch "{busy}"; while [ -e "{busy}" ]; do sleep 0.1; done')
    arguments = [sys.executable, "-m", "moshi_mlx.train.data", str(written(tmp_path)), "--jobs", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, text=True, start_new_session=True, preexec_fn=interruptible, **pipes) as command:
        try:
            while not busy.exists() and command.poll() is None:
                time.sleep(0.05)
            os.killpg(command.pid, signal.SIGINT)  # as a terminal sends it, to the processes that render as well
            # Those have the command's output open as long as they live.
            output, errors = command.communicate(timeout=20)
        finally:
            busy.unlink(missing_ok=True)
            command.kill()
    assert command.returncode == 130, errors
    assert "Stopped; the same command goes on" in output
    assert "Traceback" not in errors
    assert not list((tmp_path / "corpus").glob("*.npz"))


def test_ctrl_c_while_recoding_tells_that_the_corpus_is_between_two_codecs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moshi_mlx.train.data.recode", interrupted)
    assert main([str(written(tmp_path)), "--recode"]) == 130
    assert "codes are of both codecs until the same command" in capsys.readouterr().out


def test_where_the_system_ends_a_process_that_renders_fewer_are_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stand_in(tmp_path / "bin", monkeypatch, "kill -9 $PPID")
    assert main([str(written(tmp_path))]) == 1
    assert "use fewer --jobs. The same command goes on" in capsys.readouterr().out


def test_a_codec_that_is_not_there_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(written(tmp_path)), "--codec", str(tmp_path / "nowhere")]) == CheckpointError.exit_code
    assert f"error: {tmp_path / 'nowhere'}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--jobs", "--shards"])
def test_there_are_no_fewer_jobs_and_shards_than_one(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train.yaml", option, "0"])
    assert f"argument {option}: 0 is not 1 or more" in capsys.readouterr().err


def test_answers_get_the_codes_that_came_with_the_codec(config: Config, tmp_path: Path):
    folder = prepare(config, limit=1) / "00000.npz"
    plain = list(read_shard(folder))
    codec = shutil.copytree(config.codec, tmp_path / "codec")
    known = dataclasses.replace(plain[0], codes=plain[0].codes[:, ::-1], words=())
    write_answers(codec, [known])
    folder.unlink()
    prepare(dataclasses.replace(config, codec=codec), limit=1)
    for before, after in zip(plain, read_shard(folder), strict=True):
        wanted = known if before.text == known.text else before
        assert np.array_equal(after.codes, wanted.codes) and after.words == wanted.words
    folder.unlink()
    slower = dataclasses.replace(config.data, rates={known.text: 0.8})
    prepare(dataclasses.replace(config, codec=codec, data=slower), limit=1)
    anew = next(u for u in read_shard(folder) if u.text == known.text)
    assert anew.end > known.end and anew.codes.shape[1] > known.codes.shape[1], "another take has codes of its own"
    (codec / ANSWERS).write_bytes((codec / ANSWERS).read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"answers\.npz is damaged"):
        known_answers(codec)


def test_answers_start_on_a_frames_edge_and_users_after_some_silence(config: Config):
    script = Script.load(config.script)
    jobs = plan(script, config.data, seed=0)
    answer = perform(jobs[0], script, config.data, seed=0)
    assert answer.job.group == "answers"
    assert answer.start * SAMPLE_RATE % FRAME_SIZE == 0
    asked = perform(next(j for j in jobs if j.group == "intents"), script, config.data, seed=0)
    assert 0.2 <= asked.start <= 0.5
    assert len(asked.pcm) % FRAME_SIZE == 0
    loud = np.flatnonzero(np.abs(asked.pcm) > 0.2 * np.abs(asked.pcm).max()) / SAMPLE_RATE
    assert asked.start <= loud[0] + 0.05 and loud[-1] <= asked.end + 0.8, "speech lies outside of what is noted"


def test_an_answer_is_spoken_as_slowly_as_asked(config: Config):
    script = Script.load(config.script)
    slow = dataclasses.replace(config.data, rates={script.answers[0]: 0.7})
    lengths = [[perform(j, script, data, 0).end for j in plan(script, data, 0)[:2]] for data in (config.data, slow)]
    assert lengths[1][0] - 0.32 == pytest.approx((lengths[0][0] - 0.32) / 0.7, rel=0.1)
    assert lengths[1][1] == lengths[0][1]


def test_held_out_wordings_are_spoken_by_held_out_voices_only(config: Config):
    for job in plan(Script.load(config.script), config.data, seed=0):
        if job.split == "held_out":
            assert job.voice in config.data.held_out_voices
        if job.split == "train" and job.group == "intents":
            assert job.voice in config.data.voices


def test_what_an_engine_says_is_disturbed_as_often_as_asked(config: Config):
    script = Script.load(config.script)
    once = plan(script, config.data, seed=0)
    twice = dataclasses.replace(config.data, versions={"espeak": 2, "flite": 9}, throats=0.0, noisy=1.0)
    jobs = plan(script, twice, seed=0)
    said = {job.said: job for job in jobs}
    assert len(said) == len(once), "as much is said as before"
    assert sorted({job.wording for job in jobs}) == sorted({job.wording for job in once})
    for number in said:
        versions = [job for job in jobs if job.said == number]
        trained = versions[0].split == "train" and versions[0].group not in ("answers", "backgrounds")
        assert len(versions) == (2 if trained and versions[0].voice.startswith("espeak") else 1)
    first = next(i for i, job in enumerate(jobs) if job.group == "intents" and job.split == "train")
    sounds = [perform(job, script, twice, seed=0) for job in jobs[first : first + 2]]
    assert sounds[0].job.said == sounds[1].job.said and sounds[0].text == sounds[1].text
    assert [w for w, _ in sounds[0].words] == [w for w, _ in sounds[1].words]
    assert abs((sounds[0].end - sounds[0].start) - (sounds[1].end - sounds[1].start)) < 1e-6, "said by one speaker"
    assert not np.array_equal(sounds[0].pcm[:5000], sounds[1].pcm[:5000])


def test_pauses_are_put_between_words_and_noted_in_their_times(config: Config):
    always = dataclasses.replace(config.data, pauses=1.0, noisy=0.0, rooms=0.0)
    script = Script.load(config.script)
    jobs = plan(script, always, seed=0)
    job = next(j for j in jobs if len(j.wording.split()) >= 4 and j.split == "train" and j.group == "intents")
    sound = perform(job, script, always, seed=0)
    starts = [time for _, time in sound.words]
    assert max(np.diff(starts)) > 0.45, f"no pause in {sound.words}"


def test_things_of_like_lengths_go_together_and_a_long_one_alone():
    lengths = [30, 500, 10, 31, 12, 120, 500]
    together = list(alike(lengths, 400))
    assert sorted(i for chosen in together for i in chosen) == list(range(7))
    assert all(len(chosen) * max(lengths[i] for i in chosen) <= 400 or len(chosen) == 1 for chosen in together)
    assert together[0] == [2, 4, 0, 3]
    assert together[-2:] == [[1], [6]]
    assert list(alike([], 400)) == []


def test_noise_has_the_asked_ratio_and_gain_the_asked_level():
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(SAMPLE_RATE) / 20).astype(np.float32)
    background = noise(rng, SAMPLE_RATE, 1.0)
    added = add_noise(tone, background, 10.0) - tone
    assert abs(10 * np.log10(power(tone) / np.mean(added**2)) - 10) < 0.1
    assert np.allclose(gain(tone, -6), tone * 10 ** (-6 / 20), atol=1e-6)
    assert np.abs(gain(tone, 40)).max() == 1.0


def test_a_room_rings_on_after_the_sound():
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[100] = 0.5
    wet = room(np.random.default_rng(0), click, 0.4)
    assert np.abs(wet[100 + 4800 : 100 + 7200]).max() > 1e-4
    assert np.abs(wet).max() == pytest.approx(0.5, rel=1e-3)


def test_a_microphone_colours_smoothly_and_keeps_the_level():
    sound = np.zeros(4800, np.float32)
    sound[2400] = 0.5
    coloured = microphone(np.random.default_rng(3), sound)
    assert np.isclose(np.abs(coloured).max(), 0.5, atol=1e-4)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(coloured)) + 1e-9)
    # 5 Hz between two bins: neighbours differ little, far ones do.
    assert np.abs(np.diff(decibels)).max() < 3
    assert np.ptp(decibels) > 5


def test_a_throat_moves_formants_and_keeps_pitch_timing_and_level():
    # A buzz of 125 Hz through a resonance at 1500 Hz, then silence.
    time = np.arange(round(0.8 * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = 125 * np.arange(1, 90)
    weights = 1 / (1 + ((harmonics - 1500) / 200) ** 2)
    sound = (weights[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(0)
    sound = np.pad(0.1 * sound, (0, SAMPLE_RATE // 4)).astype(np.float32)
    assert np.allclose(throat(sound, 1.0), sound, atol=1e-5)

    def middle(x: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(x)) ** 2
        return float((power * np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE)).sum() / power.sum())

    for factor in (0.85, 1.2):
        other = throat(sound, factor)
        assert other.dtype == np.float32
        assert len(other) == len(sound)
        assert np.isclose(np.abs(other).max(), np.abs(sound).max(), rtol=1e-4)
        assert abs(middle(other) / middle(sound) / factor - 1) < 0.08, "formants move"
        power = np.abs(np.fft.rfft(other[: len(time)])) ** 2
        assert power[::100].sum() > 0.9 * power.sum(), "harmonics stay, each the hundredth bin"
        assert np.abs(other[-SAMPLE_RATE // 8 :]).max() < 1e-3, "silence stays silent"


def test_the_command_reports_a_bad_configuration_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "train.yaml"
    path.write_text("script: [", encoding="utf-8")
    assert main([str(path)]) != 0
    assert "can't be read as YAML" in capsys.readouterr().out


def test_a_work_folder_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = make_corpus(tmp_path)
    assert main([str(path), "--work", str(path / "work")]) == StorageError.exit_code
    assert f"Can't write {path / 'work'}" in "".join(capsys.readouterr())
