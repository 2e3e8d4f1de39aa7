"""A live conversation's files and its screen, at any size of the terminal."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.screen import Screen

from moshi_mlx.cli.keys import Keys
from moshi_mlx.cli.live_screen import LiveScreen, LiveView
from moshi_mlx.cli.live_state import SILENCE_DB, AudioStatus, LiveState, clock, level_db
from moshi_mlx.cli.recording import Recording
from moshi_mlx.cli.trace import ROWS, Trace
from moshi_mlx.errors import StorageError


def talkative() -> LiveState:
    state = LiveState(model="nano", words=" one two three four" * 200 + " the end", user_db=-20.0, moshi_db=-35.0)
    state.audio = AudioStatus("Built-in Microphone", "Loudspeaker", lag_ms=12, dropped=3, underruns=1, echo_db=31)
    for _ in range(10):
        state.step_took(41.0)
    state.step_took(95.0)
    return state


def drawn(state: LiveState, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Screen(LiveView(state)), end="")
    return capture.get().split("\n")


@pytest.mark.parametrize("width", [8, 14, 30, 80, 250])
@pytest.mark.parametrize("height", [2, 6, 10, 24, 80])
def test_the_screen_fills_the_terminal_and_never_more(width: int, height: int) -> None:
    lines = drawn(talkative(), width, height)
    assert len(lines) == height
    assert {len(line) for line in lines} == {width}


def test_the_last_words_and_all_figures_are_on_the_screen() -> None:
    text = "\n".join(drawn(talkative(), 80, 24))
    for what in (
        *("the end", "listening", "step 41 of 80 ms", "worst 95", "lag 12 ms", "dropped 3", "underruns 1"),
        *("echo -31 dB", "Built-in Microphone", "Loudspeaker", "mute", "pause", "save", "quit", "-20 dB", "-35 dB"),
    ):
        assert what in text, f"no {what!r} on\n{text}"


def test_a_low_screen_keeps_the_newest_words() -> None:
    assert "the end" in "\n".join(drawn(talkative(), 40, 4))


def test_without_a_terminal_there_are_plain_lines() -> None:
    state, words, lines = LiveState(model="nano"), io.StringIO(), io.StringIO()
    with LiveScreen(state, Console(file=lines, width=200), words) as screen:
        screen.words(" Hello")
        screen.notice("The microphone is gone.")
        state.started -= 11
        screen.tick()
        screen.words(" you")
    assert words.getvalue() == " Hello you\n"
    assert lines.getvalue().splitlines()[0] == "The microphone is gone."
    assert "step 0 of 80 ms" in lines.getvalue()
    assert "\x1b" not in words.getvalue() + lines.getvalue()


def test_levels_are_decibels_below_full_scale() -> None:
    assert level_db(np.ones(1920, np.float32)) == pytest.approx(0)
    assert level_db(np.full(1920, 0.1, np.float32)) == pytest.approx(-20, abs=1e-3)
    assert level_db(np.zeros(1920, np.float32)) == SILENCE_DB
    assert [clock(0), clock(61), clock(3661)] == ["0:00", "1:01", "1:01:01"]


def test_keys_come_one_by_one_and_the_terminal_is_left_as_it_was() -> None:
    ours, theirs = pty.openpty()
    code = (
        "import sys, time; from moshi_mlx.cli.keys import Keys\n"
        "with Keys() as keys:\n"
        "    print('ready', flush=True); got = ''\n"
        "    while 'q' not in got: got += keys.pressed(); time.sleep(0.01)\n"
        "print('got', got, flush=True)"
    )
    before = subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.write(ours, b"m\x1aPq")
    assert process.stdout.readline() == b"got m\x1apq\n", "Ctrl-Z is a key as others are"
    process.stdout.close()
    assert process.wait(30) == 0
    assert subprocess.run(["stty", "-g"], stdin=theirs, capture_output=True, check=True).stdout == before
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_goes_away_gives_no_keys_and_no_error() -> None:
    ours, theirs = pty.openpty()
    code = (
        "import time; from moshi_mlx.cli.keys import Keys\n"
        "with Keys() as keys:\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(50): assert keys.pressed() == ''; time.sleep(0.01)\n"
        "print('done', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.close(ours)
    assert process.stdout.readline() == b"done\n"
    process.stdout.close()
    assert process.wait(30) == 0


def test_keys_are_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with Keys() as keys:
            assert keys.pressed() == ""


def test_lost_frames_are_silence_in_a_recording(tmp_path: Path) -> None:
    with Recording(tmp_path / "talk.wav") as recording:
        recording.skip(260)
        assert recording.samples == 260 * 1920
    with wave.open(str(tmp_path / "talk.wav")) as file:
        assert file.getnframes() == 260 * 1920
        assert not any(file.readframes(260 * 1920))


def test_a_recording_killed_at_any_time_opens_and_has_all_but_the_last_block(tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    code = (
        "import sys, numpy as np; from moshi_mlx.cli.recording import Recording\n"
        "recording = Recording(sys.argv[1]); n = 0\n"
        "while True:\n"
        "    recording.write(np.full(1920, 0.25, np.float32), np.full(1920, -0.5, np.float32)); n += 1\n"
        "    print(n, flush=True)\n"
    )
    for blocks in (1, 7, 40):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        reported = 0
        while reported < blocks:
            reported = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        reported = int((process.stdout.read().split() or [reported])[-1])
        process.stdout.close()
        process.wait(30)
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getframerate()) == (2, 24_000)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        assert len(samples) >= (reported - 1) * 1920, f"{reported} blocks written, {len(samples)} samples found"
        assert (samples == [round(0.25 * 32767), round(-0.5 * 32767)]).all()


def test_a_trace_has_a_row_for_each_part_and_opens_when_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Trace(path) as trace:
        start = time.perf_counter()
        for row in ROWS:
            trace.add(row, start, start + 0.010, step=4)
        trace.mark("the speaker is gone")
        cut_off = path.read_text()
    events = json.loads(path.read_text())
    assert json.loads(cut_off + "]") == events
    rows = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert list(rows) == list(ROWS)
    assert len(set(rows.values())) == len(ROWS)
    spans = [event for event in events if event["ph"] == "X"]
    assert [span["tid"] for span in spans] == list(rows.values())
    assert all(span["dur"] == 10_000 and span["ts"] >= 0 and span["args"] == {"step": 4} for span in spans)
    assert [event["name"] for event in events if event["ph"] == "i"] == ["the speaker is gone"]


@pytest.mark.parametrize("kind", [Recording, Trace])
def test_a_file_that_cant_be_made_is_named(kind: type, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"):
        kind(tmp_path / "nowhere" / "file")
