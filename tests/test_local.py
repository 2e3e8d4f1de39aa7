"""The command on sound files, run as a user runs it: what it writes, and how it ends when something is wrong."""

import fcntl
import json
import math
import os
import pty
import shutil
import signal
import subprocess
import termios
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, command_line

from moshi_mlx.cli.interrupt import StopRequest
from moshi_mlx.local import main
from moshi_mlx.sound import load_sound, write_wav

FRAME = 1920


def read(path: object) -> np.ndarray:
    """int16 [samples, channels] of a WAV file at 24 kHz, by Python's own reader."""
    with wave.open(path if isinstance(path, BytesIO) else str(path), "rb") as file:
        assert (file.getframerate(), file.getsampwidth()) == (24_000, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())


def frames_of(question: Path) -> int:
    return math.ceil(len(load_sound(question)) / FRAME)


def said(result: "subprocess.CompletedProcess[bytes]") -> str:
    return result.stderr.decode()


def wait_until(happened, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_a_question_is_answered_for_as_long_as_it_takes_to_hear_it(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    result = moshi_local("--input", question, "--output", tmp_path / "answer.wav", "--seed", 1)
    assert result.returncode == 0, said(result)
    answer = read(tmp_path / "answer.wav")
    delay = len(answer) // FRAME - frames_of(question)
    assert len(answer) % FRAME == 0
    assert 0 < delay <= 2, f"{delay} frames longer than the question"
    assert not answer[: delay * FRAME].any()
    assert answer[delay * FRAME :].any()
    assert os.listdir(tmp_path) == ["answer.wav"]


def test_the_summary_tells_steps_times_and_memory(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    summary = said(moshi_local("--input", question, "--output", tmp_path / "answer.wav", "--steps", 10))
    for what in (
        "untrained",
        "Moshi's first word is at",
        "10 steps",
        "real-time factor",
        "encode",
        "language model",
        "decode",
        "95%",
        "memory",
    ):
        assert what in summary, f"no {what!r} in:\n{summary}"
    assert "nan" not in summary


def test_same_seed_same_answer_other_seed_other_answer(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    for name, seed in [("one", 1), ("again", 1), ("other", 2)]:
        arguments = ("--input", question, "--output", tmp_path / name, "--seed", seed, "--steps", 12)
        assert moshi_local(*arguments).returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_stereo_has_the_user_left_and_moshi_right_at_the_same_time(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    common = ("--input", question, "--seed", 3)
    assert moshi_local(*common, "--output", tmp_path / "mono.wav").returncode == 0
    assert moshi_local(*common, "--output", tmp_path / "both.wav", "--stereo").returncode == 0
    both = read(tmp_path / "both.wav")
    heard = np.rint(load_sound(question).clip(-1, 1) * 32767).astype(int)
    assert np.array_equal(both[: len(heard), 0], heard)
    assert not both[len(heard) :, 0].any()
    assert np.array_equal(both[:, 1], read(tmp_path / "mono.wav")[:, 0])


def test_tail_adds_silence_to_answer_in_and_steps_limits_all(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    lengths = {}
    for name, extra in [("plain", []), ("tail", ["--tail", "0.96"]), ("steps", ["--tail", "60", "--steps", "7"])]:
        assert moshi_local("--input", question, "--output", tmp_path / name, *extra).returncode == 0
        lengths[name] = len(read(tmp_path / name)) // FRAME
    assert lengths["tail"] == lengths["plain"] + 12
    assert lengths["steps"] == 7


def test_the_transcript_has_the_words_that_were_printed_with_their_times(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    result = moshi_local(
        *("--input", question, "--output", tmp_path / "answer.wav", "--transcript", tmp_path / "said.json", "--seed", 5)
    )
    assert result.returncode == 0, said(result)
    transcript = json.loads((tmp_path / "said.json").read_text())
    assert result.stdout.decode().strip() == transcript["text"]
    assert transcript["text"] == "".join(piece["text"] for piece in transcript["pieces"]).strip()
    assert transcript["pieces"], "the untrained model says something at every step"
    times = [piece["time"] for piece in transcript["pieces"]]
    assert times == sorted(times)
    assert all(math.isclose(time / 0.08, round(time / 0.08), abs_tol=1e-6) for time in times)
    assert times[-1] < transcript["seconds"] == pytest.approx(len(read(tmp_path / "answer.wav")) / 24_000)


def test_pipes_carry_the_same_sound_as_files(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    assert moshi_local("--input", question, "--output", tmp_path / "answer.wav", "--seed", 1).returncode == 0
    piped = moshi_local("--input", "-", "--output", "-", "--seed", 1, input=question.read_bytes())
    assert piped.returncode == 0, said(piped)
    assert piped.stdout == (tmp_path / "answer.wav").read_bytes()


def test_words_do_not_mix_with_sound_on_one_pipe(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    piped = moshi_local("--input", question, "--output", "-", "--transcript", tmp_path / "t.json", "--seed", 1)
    assert json.loads((tmp_path / "t.json").read_text())["text"] in said(piped)
    assert len(read(BytesIO(piped.stdout))) * 2 + 44 == len(piped.stdout)
    piped = moshi_local("--input", question, "--output", tmp_path / "a.wav", "--save", "-", "--steps", 3)
    (tmp_path / "saved.safetensors").write_bytes(piped.stdout)
    again = moshi_local("--input", question, "--output", tmp_path / "b.wav", "--resume", tmp_path / "saved.safetensors")
    assert again.returncode == 0, said(again)


def test_ctrl_c_writes_what_there_is(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", np.zeros(24_000 * 600))
    arguments = ("--input", tmp_path / "long.wav", "--output", tmp_path / "a.wav", "--transcript", tmp_path / "t.json")
    process = subprocess.Popen(command_line(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: any(part.stat().st_size > 44 + 20 * FRAME * 2 for part in tmp_path.glob(".a.wav.*")))
    assert not (tmp_path / "a.wav").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert "Interrupted" in errors.decode()
    assert "Traceback" not in errors.decode()
    answer = read(tmp_path / "a.wav")
    assert 20 * FRAME <= len(answer) < 24_000 * 600
    assert json.loads((tmp_path / "t.json").read_text())["seconds"] == pytest.approx(len(answer) / 24_000)
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "long.wav", "t.json"]


def test_ctrl_c_while_loading_leaves_nothing(tmp_path: Path, question: Path) -> None:
    arguments = ("--input", question, "--output", tmp_path / "a.wav", "--tail", 3600)
    process = subprocess.Popen(command_line(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: bool(os.listdir(tmp_path)))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert "Traceback" not in errors.decode()
    assert os.listdir(tmp_path) in ([], ["a.wav"])  # the second where the first steps were quicker than the signal


def test_a_terminal_that_closes_ends_the_run_as_ctrl_c_does(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", np.zeros(24_000 * 600))
    results = ("--output", "a.wav", "--transcript", "t.json", "--save", "talk")
    ours, theirs = pty.openpty()

    def at_a_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup

    process = subprocess.Popen(
        command_line("--input", "long.wav", *results), cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=at_a_terminal,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def some_is_written() -> bool:
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)
        return any(part.stat().st_size > 44 + 20 * FRAME * 2 for part in tmp_path.glob(".a.wav.*"))

    wait_until(some_is_written)
    os.close(ours)
    assert process.wait(120) == 130
    assert len(read(tmp_path / "a.wav")) >= 20 * FRAME
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "long.wav", "t.json", "talk"]


def test_a_hang_up_that_comes_twice_still_lets_the_work_be_finished_and_nohup_lets_it_go_on() -> None:
    before = signal.signal(signal.SIGHUP, lambda number, frame: None)
    try:
        with StopRequest() as stop:
            stop.begin()
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def one_error(result: "subprocess.CompletedProcess[bytes]", code: int, *words: str) -> None:
    """The run ended with `code` and one line of error that has all `words`."""
    assert result.returncode == code, said(result)
    assert "Traceback" not in said(result)
    errors = [line for line in said(result).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said(result)
    for word in words:
        assert word in errors[0], f"no {word!r} in {errors[0]!r}"


def test_no_such_file_is_one_line(moshi_local: Command, tmp_path: Path) -> None:
    one_error(moshi_local("--input", tmp_path / "none.wav", "--output", tmp_path / "a.wav"), 5, "none.wav")
    assert os.listdir(tmp_path) == []


def test_what_is_no_sound_is_one_line(moshi_local: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no sound at all\n" * 50)
    one_error(moshi_local("--input", tmp_path / "notes.txt", "--output", tmp_path / "a.wav"), 5, "notes.txt")
    (tmp_path / "empty.wav").touch()
    one_error(moshi_local("--input", tmp_path / "empty.wav", "--output", tmp_path / "a.wav"), 5, "empty")
    one_error(moshi_local("--input", "-", "--output", tmp_path / "a.wav", input=b""), 5, "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty.wav", "notes.txt"]


def test_what_is_cut_off_is_one_line_with_what_hears_the_rest(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut off.wav"
    cut.write_bytes(question.read_bytes()[:30_000])
    result = moshi_local("--input", cut, "--output", tmp_path / "a.wav")
    one_error(result, 5, "is cut off", f"--input - --output FILE < '{cut}'")
    heard = moshi_local("--input", "-", "--output", tmp_path / "a.wav", "--steps", 2, input=cut.read_bytes())
    assert heard.returncode == 0, said(heard)


def test_an_output_that_cant_be_is_one_line_before_anything_is_loaded(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    result = moshi_local("--input", question, "--output", tmp_path / "nowhere" / "a.wav")
    one_error(result, 6, "nowhere")
    assert "Loading" not in said(result)
    one_error(moshi_local("--input", question, "--output", tmp_path), 6, "folder")
    result = moshi_local("--input", question, "--output", tmp_path / "a.wav", "--save", tmp_path / "nowhere" / "talk")
    one_error(result, 6, "nowhere")
    assert "Loading" not in said(result) and os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_device_is_one_line(moshi_local: Command, question: Path) -> None:
    one_error(moshi_local("--input", question, "--output", "/dev/full"), 6, "full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("lost", ["--transcript", "--save"])
def test_a_result_that_cant_be_written_takes_no_other_along(
    moshi_local: Command, question: Path, tmp_path: Path, lost: str
) -> None:
    places = {"--output": tmp_path / "a.wav", "--transcript": tmp_path / "t.json", "--save": tmp_path / "talk"}
    places[lost] = Path("/dev/full")
    arguments = [part for option in places.items() for part in option]
    one_error(moshi_local("--input", question, *arguments, "--steps", 5), 6, "full")
    assert len(read(tmp_path / "a.wav")) == 5 * FRAME
    if lost == "--save":
        assert json.loads((tmp_path / "t.json").read_text())["seconds"] == pytest.approx(0.4)
    else:
        assert (tmp_path / "talk").stat().st_size > 0


def test_a_conversation_can_be_saved_to_a_pipe(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = ("--input", question, "--output", tmp_path / "a.wav", "--steps", 5, "--seed", 1, "--save")
    with ThreadPoolExecutor() as pool:
        received = pool.submit((tmp_path / "pipe").read_bytes)
        assert moshi_local(*arguments, tmp_path / "pipe").returncode == 0
    assert moshi_local(*arguments, tmp_path / "talk").returncode == 0
    assert received.result() == (tmp_path / "talk").read_bytes()


def test_what_was_recorded_before_stays_until_a_conversation_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("moshi_mlx.cli.live_run.try_devices", lambda devices: None)
    monkeypatch.chdir(tmp_path)
    for option, place in (("--record", "talk.wav"), ("--trace", "trace.json")):
        Path(place).write_bytes(b"from before")
        assert main(["--model", "no such model", option, place]) == 3
        assert main(["--model", "untrained", "--resume", "none", option, place]) == 3
        assert Path(place).read_bytes() == b"from before"
        capfd.readouterr()
        assert main(["--model", "untrained", option, "nowhere/x"]) == 6
        assert "Loading" not in capfd.readouterr().err
    assert sorted(os.listdir()) == ["talk.wav", "trace.json"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small disk can only be mounted by root")
def test_a_disk_that_fills_up_is_one_line_and_keeps_what_was_there(
    moshi_local: Command, question: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        (disk / "a.wav").write_bytes(b"from before")
        result = moshi_local("--input", question, "--output", disk / "a.wav", "--tail", 5)
        one_error(result, 6, "disk is full")
        assert os.listdir(disk) == ["a.wav"]
        assert (disk / "a.wav").read_bytes() == b"from before"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_bad_checkpoint_is_one_line(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    output = ("--input", question, "--output", tmp_path / "a.wav")
    one_error(moshi_local(*output, model=str(tmp_path / "no-such-folder")), 3, "no-such-folder")
    folder = tmp_path / "model"
    folder.mkdir()
    one_error(moshi_local(*output, model=str(folder)), 3, "model")
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 this is none")
    (folder / "tokenizer.safetensors").write_bytes(b"nor this")
    (folder / "tokenizer.model").write_bytes(b"nor this")
    one_error(moshi_local(*output, model=str(folder)), 3, "model.safetensors")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("without", ["HF_HUB_OFFLINE", "network"])
def test_without_network_one_line_says_what_to_do(
    moshi_local: Command, question: Path, tmp_path: Path, without: str
) -> None:
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    env["HF_HUB_OFFLINE"] = "1" if without == "HF_HUB_OFFLINE" else "0"
    result = moshi_local("-q", 4, "--input", question, "--output", tmp_path / "a.wav", model=None, env=env)
    one_error(result, 4, "kyutai/moshiko-mlx-q4", "connect")
    assert not (tmp_path / "a.wav").exists()


def test_options_that_contradict_are_one_line(moshi_local: Command, question: Path, tmp_path: Path) -> None:
    output = ("--input", question, "--output", tmp_path / "a.wav")
    one_error(moshi_local(*output, "--hf-repo", "kyutai/moshiko-mlx-q4"), 2, "--hf-repo")
    one_error(moshi_local("--input", question, "--output", "-", "--transcript", "-"), 2, "standard output")
    one_error(moshi_local("--input", question, "--output", "-", "--save", "-"), 2, "--output and --save")
    for same in (tmp_path / "a.wav", tmp_path / "." / "b" / ".." / "a.wav"):
        one_error(moshi_local(*output, "--transcript", same), 2, "--output and --transcript", "a file of its own")
    (tmp_path / "link").symlink_to(tmp_path / "a.wav")
    one_error(moshi_local(*output, "--save", tmp_path / "link"), 2, "--output and --save")
    (tmp_path / "link").unlink()
    one_error(moshi_local(*output, "--input-device", "x"), 2, "--input-device")
    for kept in ("--record", "--trace"):
        one_error(moshi_local(*output, kept, tmp_path / "x"), 2, kept, "live")
    for without in (output[:2], output[2:], ["--no-echo-cancel"]):
        one_error(moshi_local(*without, "--noise-suppression"), 2, "--noise-suppression", "leave it out")
    for wrong in ("-q 7", "--temp -1", "--temp nan", "--top-k 1.5", "--steps 0", "--tail x", "--max-lag 60001"):
        result = moshi_local(*output, *wrong.split())
        assert result.returncode == 2
        assert "Traceback" not in said(result)
        assert wrong.split()[0] in said(result)
    assert os.listdir(tmp_path) == []


def test_a_reader_that_goes_away_ends_the_run(question: Path) -> None:
    arguments = ("--input", question, "--output", "-", "--tail", 600)
    process = subprocess.Popen(command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(44)
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(120) == 6
    assert "the program that read it has ended" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("columns", [20, 100])
def test_a_terminal_shows_progress_and_then_keeps_the_words(question: Path, tmp_path: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    transcript = tmp_path / "t.json"
    arguments = ("--input", question, "--output", tmp_path / "a.wav", "--transcript", transcript, "--seed", 1)
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"}
    process = subprocess.Popen(command_line(*arguments), stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody holds the other end
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert process.wait(120) == 0, shown.decode(errors="replace")
    text = shown.decode(errors="replace")
    assert "\x1b[" in text
    if columns == 100:
        assert "real-time factor" in text
    assert json.loads(transcript.read_text())["text"] in text.replace("\r\n", "\n")


def test_a_saved_conversation_goes_on_as_if_it_had_never_stopped(moshi_local: Command, tmp_path: Path) -> None:
    sound = (0.3 * np.random.default_rng(1).standard_normal(FRAME * 40)).astype(np.float32).clip(-1, 1)
    write_wav(tmp_path / "whole.wav", sound)
    write_wav(tmp_path / "first.wav", sound[: FRAME * 20])
    write_wav(tmp_path / "second.wav", sound[FRAME * 20 :])
    saved = tmp_path / "talk.safetensors"

    def answer(name: str, steps: int, *more: object) -> np.ndarray:
        arguments = ("--input", tmp_path / f"{name}.wav", "--output", tmp_path / f"{name}-answer.wav", "--steps", steps)
        result = moshi_local(*arguments, "--seed", 4, *more)
        assert result.returncode == 0, said(result)
        return read(tmp_path / f"{name}-answer.wav")

    whole = answer("whole", 40)
    first = answer("first", 20, "--save", saved)
    second = answer("second", 20, "--resume", saved)
    assert np.array_equal(np.concatenate([first, second]), whole)
