"""The command by microphone and speaker, against a real sound server whose devices are virtual."""

import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
from conftest import command_line
from sound_server import SoundServer, hurry, missing_program
from sound_server import sound_server as running_server

from moshi_mlx.audio_io import Resampler
from moshi_mlx.cli.conversation import Conversation
from moshi_mlx.cli.live_ends import LiveSound
from moshi_mlx.cli.live_screen import LiveScreen
from moshi_mlx.moshi import load
from moshi_mlx.sound import load_sound, to_int16

pytestmark = pytest.mark.alone

LONGEST_STALL_MS = 35  # twice the usual of the sound server; rings hold little more
FRAME = 1920
RATE = 24_000
ROOM_RATE = 44_100


class Devices:
    """A virtual room: what is played into `room` comes out of the microphone, what `speaker` plays can be heard."""

    def __init__(self, server: SoundServer, name: str) -> None:
        self.env = {**os.environ, **server.env}
        self.microphone, self.speaker, self.room = f"{name}_mic", f"{name}_speaker", f"{name}_room"
        self._modules = {
            "speaker": self._load("module-null-sink", f"sink_name={self.speaker}", "rate=48000"),
            "room": self._load("module-null-sink", f"sink_name={self.room}", f"rate={ROOM_RATE}", "channels=1"),
        }
        self._modules["mic"] = self._load(
            "module-remap-source", f"source_name={self.microphone}", f"master={self.room}.monitor"
        )

    def _load(self, *module: str) -> str:
        return self._pactl("load-module", *module)

    def _pactl(self, *arguments: str) -> str:
        return subprocess.run(
            ["pactl", *arguments], env=self.env, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    @property
    def options(self) -> tuple[str, ...]:
        """What makes the command use them."""
        return ("--input-device", self.microphone, "--output-device", self.speaker)

    def say(self, path: Path) -> None:
        """Speak a sound file into the room, to its end, by a player that may stand still for a while.

        At the room's own rate: where the server resamples a stream with that much in reserve, it slips by some samples.
        """
        resampler = Resampler(RATE, ROOM_RATE)
        sound = np.concatenate([resampler.process(load_sound(path)), resampler.flush()])
        command = ["pacat", "--playback", f"--device={self.room}", f"--rate={ROOM_RATE}", "--format=s16le"]
        subprocess.run(
            [*command, "--channels=1", "--latency-msec=2000"],
            env=self.env, input=to_int16(sound), check=True, timeout=60, preexec_fn=hurry,
        )  # fmt: skip

    @contextmanager
    def listening(self) -> Iterator[Callable[[], np.ndarray]]:
        """Hears the speaker; what is given tells what was heard so far, in [-1, 1] at 24 kHz."""
        command = ["parec", f"--device={self.speaker}.monitor", "--rate=24000", "--channels=1", "--format=s16le"]
        with tempfile.TemporaryFile() as file:
            process = subprocess.Popen(
                [*command, "--latency-msec=20", "--raw"], env=self.env, stdout=file, preexec_fn=hurry
            )

            def so_far() -> np.ndarray:
                size = os.fstat(file.fileno()).st_size // 2 * 2
                return np.frombuffer(os.pread(file.fileno(), size, 0), "<i2") / 32768.0

            try:
                time.sleep(0.3)  # until parec is connected
                yield so_far
            finally:
                process.terminate()
                process.wait(30)

    def remove(self) -> None:
        for module in reversed(list(self._modules.values())):
            subprocess.run(["pactl", "unload-module", module], env=self.env, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def sound_server() -> Iterator[SoundServer]:
    if program := missing_program():
        pytest.skip(f"no {program} on this system: make build installs it on Debian")
    with running_server() as server:
        yield server


@pytest.fixture
def devices(sound_server: SoundServer, request: pytest.FixtureRequest) -> Iterator[Devices]:
    made = Devices(sound_server, f"t{abs(hash(request.node.name)) % 10**6}")
    yield made
    made.remove()


class Plugged(Devices):
    """The server's own microphone and speaker, which it uses by default."""

    def __init__(self, server: SoundServer) -> None:
        self.env, self.speaker, self._modules = server.env, "speaker", {}

    @property
    def options(self) -> tuple[str, ...]:
        return ()


class Talk:
    """The command, conversing by `devices` until it is told to stop."""

    def __init__(self, devices: Devices, *arguments: object) -> None:
        self.process = subprocess.Popen(
            command_line(*devices.options, *arguments),
            env=devices.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=hurry,
        )

    def stop(self) -> tuple[str, str]:
        """Ctrl-C; what it wrote to its outputs."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> tuple[str, str]:
        words, lines = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, lines
        assert "Traceback" not in lines
        return words, lines

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def recorded_seconds(path: Path) -> float:
    try:
        with wave.open(str(path)) as file:
            return file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error):
        return 0.0


def recording(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """User and Moshi, in [-1, 1]."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, RATE)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2) / 32767.0
    return both[:, 0], both[:, 1]


def find(part: np.ndarray, whole: np.ndarray) -> tuple[int, float]:
    """Where `part` lies in `whole`, in samples, and how alike they are there, from 0 to 1.

    Compared below 3 kHz, since a shift by a part of a sample, as every resampling gives, changes the noise above.
    """
    low = np.hanning(18) / np.hanning(18).sum()
    part, whole = np.convolve(part, low, "same"), np.convolve(whole, low, "same")
    size = 1 << (len(whole) + len(part)).bit_length()
    product = np.fft.irfft(np.fft.rfft(whole, size) * np.conj(np.fft.rfft(part, size)), size)
    correlation = product[: len(whole) - len(part) + 1]
    energy = np.concatenate([[0.0], np.cumsum(whole**2)])
    local = np.sqrt(np.maximum(energy[len(part) :] - energy[: -len(part)], 1e-12))
    alike = correlation / (local * np.linalg.norm(part))
    at = int(np.argmax(alike))
    return at, float(alike[at])


def likeness(heard: np.ndarray, whole: np.ndarray) -> float:
    """How alike the most alike quarter second of `heard` is to some part of `whole`."""
    begin = int(np.flatnonzero(np.abs(heard) > 2 / 32768)[0])
    quarters = range(begin, len(heard) - RATE // 4, RATE // 4)
    return max(find(heard[at : at + RATE // 4], whole)[1] for at in quarters)


def longest_silence(sound: np.ndarray) -> float:
    """Seconds of the longest run of (nearly) zeros between the first and the last sound."""
    loud = np.flatnonzero(np.abs(sound) > 2 / 32768)
    return float(np.diff(loud).max() / RATE) if len(loud) > 1 else math.inf


def skip_if_stalled(stats: dict[str, float], lines: str) -> None:
    """No program keeps sound whole on a machine that lets the sound server or the program itself wait."""
    waited = figure(lines, "worst") - figure(lines, "step")
    if waited > LONGEST_STALL_MS:
        pytest.skip(f"the machine is too busy: a step took {waited:.0f} ms more than usual")
    stalled = max(stats["input_callback_worst_gap_ms"], stats["output_callback_worst_gap_ms"])
    if stalled > LONGEST_STALL_MS:
        pytest.skip(f"the machine is too busy: the sound server stood still for {stalled:.0f} ms")


def figure(lines: str, name: str) -> int:
    """A count in the closing summary."""
    return int(lines.rsplit(f" {name} ", 1)[1].split()[0])


def test_a_minutes_talk_is_continuous_and_in_time(devices: Devices, question: Path, tmp_path: Path) -> None:
    talk_wav, said_json = tmp_path / "talk.wav", tmp_path / "said.json"
    with (
        devices.listening() as heard_so_far,
        Talk(devices, "--no-echo-cancel", "--record", talk_wav, "--transcript", said_json, "--seed", 1) as talk,
    ):
        wait_until(lambda: recorded_seconds(talk_wav) > 2, "two seconds recorded")
        for _ in range(3):
            devices.say(question)
        wait_until(lambda: recorded_seconds(talk_wav) > 60, "a minute recorded", 120)
        words, lines = talk.stop()
        heard = heard_so_far()
    user, moshi = recording(talk_wav)
    transcript = json.loads(said_json.read_text())
    skip_if_stalled(transcript["sound"], lines)

    # What was said into the room came in by the microphone, three times.
    spoken = load_sound(question)
    places = []
    rest = user.copy()
    for _ in range(3):
        at, alike = find(spoken, rest)
        assert alike > 0.9, f"the question is found with a likeness of {alike}"
        places.append(at)
        rest[at : at + len(spoken)] = 0
    assert min(np.diff(sorted(places))) > len(spoken)

    # What Moshi said came out of the speaker, without a gap, at the times at which it was said.
    assert figure(lines, "underruns") == 0, f"{lines}\n{transcript['sound']}"
    assert figure(lines, "dropped") == 0, lines
    sound = heard[np.flatnonzero(np.abs(heard) > 2 / 32768)[0] :]
    while_talking = sound[: round(59.5 * RATE)]
    assert longest_silence(while_talking) < 0.005
    offsets = []
    eighth = RATE // 8
    for second in range(1, 59, 6):
        # By the eighth: while the speaker's reserve fills, the sound lags more and more.
        for begin in range(second * RATE, (second + 1) * RATE, eighth):
            at, alike = find(moshi[begin : begin + eighth], sound)
            assert alike > 0.9, f"second {begin / RATE} is found with a likeness of {alike}"
            offsets.append((at - begin) / RATE)
    assert np.ptp(offsets) < 0.04, f"speaker against record, in seconds: {offsets}"

    assert transcript["text"] == words.strip()
    assert transcript["pieces"][-1]["time"] == pytest.approx(len(moshi) / RATE, abs=0.5)


def test_the_speaker_taken_away_and_brought_back_interrupts_nothing_else(
    sound_server: SoundServer, tmp_path: Path
) -> None:
    talk_wav = tmp_path / "talk.wav"
    with Talk(Plugged(sound_server), "--record", talk_wav) as talk:
        wait_until(lambda: recorded_seconds(talk_wav) > 2, "two seconds recorded")
        sound_server.remove_speaker()
        gone_at = recorded_seconds(talk_wav)
        wait_until(lambda: recorded_seconds(talk_wav) > gone_at + 3, "three seconds without a speaker")
        sound_server.add_speaker()
        with Plugged(sound_server).listening() as heard_so_far:
            wait_until(lambda: np.count_nonzero(heard_so_far()) > 2 * RATE, "sound from the speaker again")
            back = heard_so_far()
            time.sleep(0.5)
            talk.stop()
    _, moshi = recording(talk_wav)
    assert likeness(back, moshi) > 0.9, "what is heard again is not what is said"


def test_two_conversations_at_once_do_not_hear_each_other(
    devices: Devices, sound_server: SoundServer, tmp_path: Path
) -> None:
    others = Devices(sound_server, "other")
    paths = tmp_path / "one.wav", tmp_path / "two.wav"
    try:
        with (
            devices.listening() as first_heard,
            others.listening() as second_heard,
            Talk(devices, "--record", paths[0], "--seed", 1) as first,
            Talk(others, "--record", paths[1], "--seed", 2) as second,
        ):
            for path in paths:
                wait_until(lambda path=path: recorded_seconds(path) > 6, "six seconds recorded")  # type: ignore[misc]
            first.stop()
            second.stop()
            heard = first_heard(), second_heard()
    finally:
        others.remove()
    for path, own, other in zip(paths, heard, reversed(heard), strict=True):
        _, moshi = recording(path)
        assert likeness(own, moshi) > 0.9
        assert likeness(other, moshi) < 0.6


def test_killed_while_recording_it_loses_less_than_a_second(devices: Devices, tmp_path: Path) -> None:
    talk_wav = tmp_path / "talk.wav"
    with Talk(devices, "--record", talk_wav) as talk:
        wait_until(lambda: recorded_seconds(talk_wav) > 3.3, "some seconds recorded")
        before = recorded_seconds(talk_wav)
        talk.process.kill()
        talk.process.wait(30)
    user, moshi = recording(talk_wav)
    assert len(user) / RATE >= before
    assert (talk_wav.stat().st_size - 44) / 4 / RATE - len(user) / RATE < 1.0
    assert np.count_nonzero(moshi[2 * FRAME :]) > 0.9 * len(moshi[2 * FRAME :])


@pytest.fixture
def device_env(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> Devices:
    """The devices, for this process too."""
    for name, value in devices.env.items():
        monkeypatch.setenv(name, value)
    return devices


def test_after_a_stall_of_two_seconds_it_is_in_time_again_at_once(device_env: Devices, tmp_path: Path) -> None:
    from rich.console import Console

    from moshi_mlx.audio_io import AudioIO
    from moshi_mlx.cli.live_state import LiveState

    moshi = load("untrained")
    moshi.warm_up()
    state = LiveState()
    with (
        open(os.devnull, "w") as nowhere,
        LiveSound(AudioIO(input=device_env.microphone, output=device_env.speaker, max_lag_ms=400)) as sound,
    ):
        conversation = Conversation(moshi.session(seed=1), sound, LiveScreen(state, Console(file=nowhere), nowhere))
        while conversation.steps < 25:
            conversation.turn()
        assert conversation.session.dropped == 0
        time.sleep(2.0)
        lags = []
        while conversation.steps < 50:
            conversation.turn()
            lags.append(state.audio.lag_ms)
    dropped = conversation.session.dropped
    assert 18 <= dropped <= 26, f"{dropped} frames dropped in a stall of 25"
    assert max(lags[2:]) <= 2 * 80, f"lag after the stall, in ms: {lags}"


def test_a_file_is_heard_in_the_microphones_place(devices: Devices, question: Path, tmp_path: Path) -> None:
    talk_wav = tmp_path / "talk.wav"
    with devices.listening() as heard_so_far:
        arguments = ("--input", question, "--tail", 1, "--output-device", devices.speaker, "--record", talk_wav)
        subprocess.run(command_line(*arguments), env=devices.env, check=True, capture_output=True, timeout=120)
        heard = heard_so_far()
    user, moshi = recording(talk_wav)
    assert find(load_sound(question), user)[1] > 0.99
    assert likeness(heard, moshi) > 0.9


def test_a_live_conversation_is_saved_at_its_end_where_that_can_be(devices: Devices, tmp_path: Path) -> None:
    saved = tmp_path / "talk.safetensors"
    save = command_line(*devices.options, "--steps", 5, "--save", saved)
    done = subprocess.run(save, env=devices.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and str(saved) in done.stderr, done.stderr
    go_on = command_line(*devices.options, "--steps", 5, "--resume", saved)
    subprocess.run(go_on, env=devices.env, check=True, capture_output=True, timeout=60)

    nowhere = command_line(*devices.options, "--save", tmp_path / "nowhere" / "x")
    refused = subprocess.run(nowhere, env=devices.env, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 6 and "no folder" in refused.stderr, refused.stderr
    assert "Loading" not in refused.stderr


def test_a_file_takes_the_answer_in_the_speakers_place(devices: Devices, question: Path, tmp_path: Path) -> None:
    output = tmp_path / "both.wav"
    arguments = ("--input-device", devices.microphone, "--output", output, "--stereo")
    with subprocess.Popen(command_line(*arguments), env=devices.env, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(part.stat().st_size > 44 for part in tmp_path.glob(".both*")), "the first frame written")
        devices.say(question)
        process.send_signal(signal.SIGINT)
        _, lines = process.communicate(timeout=60)
        assert process.returncode == 0, lines
    user, moshi = recording(output)
    assert find(load_sound(question)[:RATE], user)[1] > 0.5
    assert np.count_nonzero(moshi)


def test_the_screen_obeys_keys_and_survives_resizing(devices: Devices, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**devices.env, "TERM": "xterm-256color"}
    env.pop("COLUMNS", None)
    env.pop("LINES", None)
    process = subprocess.Popen(
        command_line(*devices.options, "--seed", 1), env=env, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def see(what: str) -> None:
        def seen() -> bool:
            try:
                shown.extend(os.read(ours, 1 << 16))
            except BlockingIOError:
                pass
            except OSError:
                return what.encode() in shown
            return what.encode() in shown

        wait_until(seen, f"{what!r} on the screen")
        shown.clear()

    try:
        see("listening")
        os.write(ours, b"m")
        see("muted")
        os.write(ours, b"m")
        see("listening")
        for rows, columns in ((10, 30), (4, 12), (40, 160)):
            ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            process.send_signal(signal.SIGWINCH)
            time.sleep(0.3)
        see("underruns")
        os.write(ours, b"p")
        see("paused")
        os.write(ours, b"p")
        see("listening")
        os.write(ours, b"s")
        see("--resume")
        os.write(ours, b"q")
        see("memory:")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_devices_are_listed(devices: Devices) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.local", "--list-devices"],
        env={**devices.env, "COLUMNS": "200"}, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "Hz" in listed
    assert devices.speaker in listed
    assert devices.microphone in listed


def test_a_device_that_is_not_there_is_one_line_before_anything_is_loaded(devices: Devices) -> None:
    for option in ("--input-device", "--output-device"):
        result = subprocess.run(
            command_line(option, "no such device"), env=devices.env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 7, result.stderr
        assert [line for line in result.stderr.splitlines() if line] == [result.stderr.strip()]
        assert "no such device" in result.stderr
        assert "Traceback" not in result.stderr


def test_without_any_sound_device_one_line_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "PULSE_SERVER": f"unix:{tmp_path}/none", "PULSE_RUNTIME_PATH": str(tmp_path)}
    result = subprocess.run(command_line(), env=env, capture_output=True, text=True, timeout=60)
    if result.returncode == 0:
        pytest.skip("this machine has a sound card")
    assert result.returncode == 7, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert ".;" not in result.stderr
