"""The live step loop between files: what is heard, said, kept and continued, and what the keys do."""

import errno
import io
import json
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moshi_mlx.cli.conversation import Conversation
from moshi_mlx.cli.live_ends import FileEar, FileMouth, Finished, LiveSound
from moshi_mlx.cli.live_screen import LiveScreen
from moshi_mlx.cli.live_state import AudioStatus, LiveState
from moshi_mlx.cli.options import begin
from moshi_mlx.cli.recording import Recording
from moshi_mlx.cli.trace import ROWS, Trace
from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.errors import CheckpointError, StorageError
from moshi_mlx.local import parser
from moshi_mlx.moshi import Moshi, load
from moshi_mlx.sound import WavWriter, load_sound


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME_SIZE)).astype(np.float32)


class Unhurried(LiveSound):
    """A file's frames as fast as they are asked for; `lost` frames go missing before the frame of that number."""

    def __init__(self, sound: np.ndarray, lost: dict[int, int] | None = None, mouth: FileMouth | None = None) -> None:
        super().__init__(None, mouth=mouth)
        self.frames = sound.reshape(-1, FRAME_SIZE)
        self.next = 0
        self.lost = lost or {}
        self.dropped = 0
        self.spoken: list[np.ndarray] = []

    def read(self, timeout: float) -> np.ndarray | None:
        if self.next == len(self.frames):
            raise Finished
        self.dropped += self.lost.get(self.next, 0)
        self.next += 1
        return self.frames[self.next - 1]

    def write(self, user: np.ndarray, moshi: np.ndarray) -> None:
        self.spoken.append(moshi)
        super().write(user, moshi)

    def status(self) -> AudioStatus:
        return AudioStatus(dropped=self.dropped)


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return load("untrained")


def plain_screen() -> LiveScreen:
    return LiveScreen(LiveState(), Console(file=io.StringIO()), io.StringIO())


def notices(screen: LiveScreen) -> str:
    return screen._console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def talk(conversation: Conversation, keys: dict[int, str] | None = None) -> None:
    """To the end of what is heard, with keys pressed before the turn of that number."""
    turn = 0
    while not conversation.quitting:
        conversation.press((keys or {}).get(turn, ""))
        try:
            conversation.turn()
        except Finished:
            break
        turn += 1


def recorded(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32767.0


def test_the_conversation_is_what_a_session_gives_frame_by_frame(moshi: Moshi, tmp_path: Path) -> None:
    heard = noise(12)
    session = moshi.session(seed=3)
    expected = [session.step(frame) for frame in heard.reshape(-1, FRAME_SIZE)]
    sound = Unhurried(heard)
    with Recording(tmp_path / "talk.wav") as recording:
        conversation = Conversation(moshi.session(seed=3), sound, plain_screen(), recording)
        talk(conversation)
    assert np.array_equal(np.concatenate(sound.spoken), np.concatenate([frame.pcm for frame in expected]))
    assert conversation.transcript.text == "".join(frame.text for frame in expected).strip()
    both = recorded(tmp_path / "talk.wav")
    assert np.abs(both[:, 0] - heard).max() < 1e-4
    assert np.abs(both[:, 1] - np.concatenate(sound.spoken).clip(-1, 1)).max() < 1e-4


def test_muted_moshi_hears_silence(moshi: Moshi, tmp_path: Path) -> None:
    with Recording(tmp_path / "talk.wav") as recording:
        talk(Conversation(moshi.session(seed=3), Unhurried(noise(9)), plain_screen(), recording), {3: "m", 6: "m"})
    heard = recorded(tmp_path / "talk.wav")[:, 0].reshape(9, FRAME_SIZE)
    assert [bool(frame.any()) for frame in heard] == [True] * 3 + [False] * 3 + [True] * 3


def test_a_pause_takes_no_step_and_says_nothing(moshi: Moshi) -> None:
    sound = Unhurried(noise(12))
    conversation = Conversation(moshi.session(seed=3), sound, plain_screen())
    talk(conversation, {4: "p", 8: "p"})
    assert conversation.steps == 8
    assert len(sound.spoken) == 12
    assert [frame.any() for frame in sound.spoken[4:8]] == [False] * 4
    session = moshi.session(seed=3)
    frames = noise(12).reshape(-1, FRAME_SIZE)
    expected = [session.step(frame).pcm for frame in [*frames[:4], *frames[8:]]]
    assert np.array_equal(sound.spoken[:4] + sound.spoken[8:], expected)


def test_files_stand_still_in_a_pause(moshi: Moshi, tmp_path: Path) -> None:
    with WavWriter(tmp_path / "said.wav", 2) as writer:
        sound = LiveSound(None, FileEar(noise(5), tail=0), FileMouth(writer))
        conversation = Conversation(moshi.session(seed=3), sound, plain_screen())
        talk(conversation, {2: "p", 5: "p"})
    session = moshi.session(seed=3)
    expected = [session.step(frame).pcm for frame in noise(5).reshape(-1, FRAME_SIZE)]
    both = recorded(tmp_path / "said.wav")
    assert np.abs(both[:, 0] - noise(5)).max() < 1e-4
    assert np.abs(both[:, 1] - np.concatenate(expected).clip(-1, 1)).max() < 1e-4


def test_a_saved_conversation_continues(moshi: Moshi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    screen = plain_screen()
    sound = Unhurried(noise(10))
    talk(Conversation(moshi.session(seed=3), sound, screen), {5: "s"})
    (saved,) = tmp_path.glob("*.safetensors")
    assert f"--resume {saved.name}" in notices(screen)
    session = moshi.resume(saved)
    continued = [session.step(frame).pcm for frame in noise(10).reshape(-1, FRAME_SIZE)[5:]]
    assert np.array_equal(continued, sound.spoken[5:])


def test_a_resumed_conversation_is_made_ready_with_its_own_settings(moshi: Moshi, tmp_path: Path) -> None:
    session = moshi.session(seed=3, temp=0.5, top_k=20, kv_bits=8)
    session.step(noise(1))
    session.save(tmp_path / "talk")
    another = load("untrained")
    console = Console(file=io.StringIO())
    with pytest.raises(CheckpointError, match="no saved conversation"):
        begin(another, parser().parse_args(["--resume", str(tmp_path / "none")]), console, profile=False)
    assert not another._graphs, "time was spent before the file was looked for"
    resumed = begin(another, parser().parse_args(["--resume", str(tmp_path / "talk")]), console, profile=False)
    assert resumed.settings == session.settings
    built = resumed._gen.graph.traces
    resumed.step(noise(1))
    assert resumed._gen.graph.traces == built, "a graph was built while the conversation went on"


def test_quit_ends_it(moshi: Moshi) -> None:
    conversation = Conversation(moshi.session(seed=3), Unhurried(noise(10)), plain_screen())
    talk(conversation, {4: "xq"})
    assert conversation.quitting
    assert conversation.steps == 5


def test_dropped_frames_are_told_to_the_session_and_keep_times_true(moshi: Moshi, tmp_path: Path) -> None:
    screen = plain_screen()
    session = moshi.session(seed=3)
    with WavWriter(tmp_path / "said.wav", 2) as writer, Recording(tmp_path / "talk.wav") as recording:
        sound = Unhurried(noise(10), lost={6: 25}, mouth=FileMouth(writer))
        conversation = Conversation(session, sound, screen, recording)
        talk(conversation)
    assert session.dropped == 25
    assert "25 frames (2.0 s)" in notices(screen)
    both = recorded(tmp_path / "talk.wav").reshape(-1, FRAME_SIZE, 2)
    assert len(both) == 35
    assert not both[6:31].any()
    assert both[5, :, 0].any()
    assert both[31, :, 0].any()
    assert np.array_equal(recorded(tmp_path / "said.wav").reshape(-1, FRAME_SIZE, 2), both)
    times = [piece.time for piece in conversation.transcript.pieces]
    assert not [time for time in times if 0.08 * 6 - 1e-6 < time < 0.08 * 31 - 1e-6]
    assert max(times) > 0.08 * 31 - 1e-6


def test_a_recording_whose_disk_fills_up_ends_and_the_conversation_goes_on(moshi: Moshi, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    screen = plain_screen()
    with Recording(tmp_path / "talk.wav") as recording, full.open("wb", buffering=0) as nowhere:
        recording._file, kept = nowhere, recording._file
        conversation = Conversation(moshi.session(seed=3), Unhurried(noise(6)), screen, recording)
        talk(conversation)
        recording._file = kept
    assert conversation.steps == 6
    assert notices(screen).count("The recording ends here.") == 1
    assert "disk is full" in " ".join(notices(screen).split())


def test_a_trace_shows_every_step_in_every_row(moshi: Moshi, tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace:
        talk(Conversation(moshi.session(seed=3, profile=True), Unhurried(noise(5)), plain_screen(), trace=trace))
    events = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event["ph"] == "X"]
    assert {row: [e["args"]["step"] for e in events if e["name"] == row] for row in ROWS} == {
        row: list(range(5)) for row in ROWS
    }
    for step in range(5):
        spans = [event for event in events if event["args"]["step"] == step]
        ends = [event["ts"] + event["dur"] for event in spans]
        begins = [event["ts"] for event in spans]
        assert begins == sorted(begins)
        assert all(begin >= end - 2 for begin, end in zip(begins[1:], ends[:-1], strict=True)), (begins, ends)


def test_a_file_in_the_microphones_place_is_heard_whole_and_then_ends(tmp_path: Path) -> None:
    sound = noise(3)[: -FRAME_SIZE // 2]
    ear = FileEar(sound, tail=0.16)
    heard = []
    with pytest.raises(Finished):
        while True:
            frame = ear.read(1.0)
            assert frame is not None
            heard.append(frame)
    assert len(heard) == 3 + 2
    assert np.array_equal(np.concatenate(heard)[: len(sound)], sound)
    assert not np.concatenate(heard)[len(sound) :].any()


def test_any_silence_may_follow_a_file() -> None:
    ear = FileEar(noise(1), tail=1e300)
    for _ in range(2):
        frame = ear.read(1.0)
    assert frame is not None
    assert not frame.any()


def test_a_file_gives_nothing_before_its_time() -> None:
    ear = FileEar(noise(2), tail=0)
    assert ear.read(0.0) is None
    assert ear.read(0.001) is None
    frame = ear.read(10.0)
    assert frame is not None
    assert np.array_equal(frame, noise(2)[:FRAME_SIZE])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_in_the_speakers_place_keeps_what_was_said(channels: int, tmp_path: Path) -> None:
    user, moshi = noise(1, seed=1), noise(1, seed=2)
    with WavWriter(tmp_path / "said.wav", channels) as writer:
        LiveSound(None, mouth=FileMouth(writer)).write(user, moshi)
    expected = moshi if channels == 1 else (user + moshi) / 2  # a stereo file is read as the mean of its channels
    assert np.abs(load_sound(tmp_path / "said.wav") - expected).max() < 1e-4


def test_a_file_in_the_speakers_place_whose_disk_fills_up_ends_and_the_conversation_goes_on(
    moshi: Moshi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = plain_screen()
    with WavWriter(tmp_path / "said.wav", 1) as writer:
        sound = Unhurried(noise(8), mouth=FileMouth(writer))
        conversation = Conversation(moshi.session(seed=3), sound, screen)
        write = writer.write

        def full(pcm: np.ndarray) -> None:
            if writer.samples == 3 * FRAME_SIZE:
                raise StorageError("Can't write said.wav: the disk is full.")
            write(pcm)

        monkeypatch.setattr(writer, "write", full)
        talk(conversation)
    assert conversation.steps == 8
    assert notices(screen).count("disk is full") == 1
    assert np.abs(load_sound(tmp_path / "said.wav") - np.concatenate(sound.spoken[:3]).clip(-1, 1)).max() < 1e-4


def test_a_trace_whose_disk_fills_up_ends_and_the_conversation_goes_on(moshi: Moshi, tmp_path: Path) -> None:
    path, most = tmp_path / "trace.json", 2000

    class Full(io.FileIO):
        """Takes so many bytes in all, and a part of the last write."""

        def write(self, data: Any) -> int:
            if self.tell() >= most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(memoryview(data)[: most - self.tell()])

    screen = plain_screen()
    with Trace(path) as trace:
        trace._file.close()
        trace._file = Full(path, "r+")
        trace._file.seek(trace._size)
        conversation = Conversation(moshi.session(seed=3, profile=True), Unhurried(noise(6)), screen, trace=trace)
        talk(conversation)
    assert conversation.steps == 6
    assert notices(screen).count("The trace ends here.") == 1
    assert "disk is full" in " ".join(notices(screen).split())
    assert len(json.loads(path.read_text() + "]")) > 5
