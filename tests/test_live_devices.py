"""AudioIO on a real sound server: the virtual microphone and speaker of a private PulseAudio."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from sound_server import RATE, SoundServer, hurry, missing_program, sound_server

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        missing_program() is not None or not sys.platform.startswith("linux"),
        reason=f"{missing_program() or 'Linux'} is needed for a private sound server",
    ),
]

# Runs in a process of its own, whose environment names the private server: hands every frame read to the speaker.
LOOP = """
import json, sys, time
from moshi_mlx.audio_io import AudioIO
seconds = float(sys.argv[1])
events, came = [], []
with AudioIO(echo_cancel=False) as sound:
    print("ready", flush=True)
    for number in range(int(seconds * 12.5)):
        sound.write(sound.read(timeout=20.0))
        events += sound.events()
        came.append(time.monotonic() - 0.08 * number)
        if number == 0:
            start = sound.stats()
    late = 1000 * (max(came) - min(came))
    print(json.dumps({"stats": sound.stats(), "events": events, "start": start, "late_ms": late}))
"""

# The speaker's reserve before it has learned how late frames and callbacks can be, and what it plays at a time.
RESERVE_MS = 36
BLOCK_MS = 20
LONGEST_STALL_MS = 50
LATEST_MS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[SoundServer]:
    with sound_server() as running:
        yield running


class Loop:
    """The loop program, running."""

    def __init__(self, server: SoundServer, seconds: float, program: str = LOOP) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(seconds)],
            env=server.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=hurry,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line.strip() != "ready":
            raise AssertionError(f"the loop did not start: {line}{self.process.communicate()[1]}")

    def result(self) -> dict:
        import json

        out, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        return json.loads(out.splitlines()[-1])


def tone(seconds: float, hz: float = 400.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def sounding(samples: np.ndarray) -> np.ndarray:
    """Loudness in stretches of 10 ms."""
    stretches = samples[: len(samples) // 480 * 480].reshape(-1, 480)
    return np.sqrt((stretches**2).mean(axis=1))


def test_sound_goes_through_without_a_gap(server: SoundServer) -> None:
    seconds = 15.0
    for _ in range(2):
        with server.playing(tone(90.0)), server.recording() as recording:
            result = Loop(server, seconds).result()
        stats = result["stats"]
        loud = sounding(recording.samples[0])
        heard = np.flatnonzero(loud > 0.1)
        assert len(heard) > 0, f"nothing was played: {stats}"
        inside = loud[heard[0] + 2 : heard[-1] - 2]
        assert len(inside) > 100 * (seconds - 3), f"only {len(inside) / 100} s were played: {stats}"
        gaps = np.flatnonzero(inside < 0.05)
        # A server that was given several blocks when the stream began lets them pass before it asks again: no stall.
        stalled, begun = (
            max(s["input_callback_worst_gap_ms"], s["output_callback_worst_gap_ms"]) for s in (stats, result["start"])
        )
        late = result["late_ms"]
        if stalled > max(LONGEST_STALL_MS, begun):
            pytest.skip(f"the machine is too busy: the sound server stood still for {stalled:.0f} ms")
        if late > LATEST_MS:
            pytest.skip(f"the machine is too busy: frames came up to {late:.0f} ms late")
        # Each alone is within the reserve; a frame and a block that are late together may not be.
        together = late + max(0.0, stalled - BLOCK_MS)
        if not stats["output_underruns"] or together <= RESERVE_MS / 2:
            break
    assert stats["output_underruns"] == 0, f"underruns, frames up to {late:.1f} ms late: {stats}"
    assert len(gaps) == 0, f"silence at {gaps[:10] / 100} s: {stats}"
    assert stats["dropped_frames"] == 0 and stats["output_skipped_ms"] == 0, stats
    assert stats["input_overruns"] == 0 and stats["frames"] >= seconds * 12
    assert not result["events"]


def test_levels_latency_and_devices_are_reported(server: SoundServer) -> None:
    with server.playing(tone(60.0)):
        stats = Loop(server, 4.0).result()["stats"]
    # A sine of amplitude 0.3 has -13.5 dB.
    assert abs(stats["input_level_db"] + 13.5) < 2 and abs(stats["output_level_db"] + 13.5) < 2, stats
    assert stats["input_device"] and stats["output_device"] == "speaker" and stats["output_rate"] == RATE
    assert 0 < stats["write_to_speaker_ms"] < 400 and 0 < stats["capture_to_read_ms"] < 400, stats
    assert stats["input_callbacks"] > 50 and stats["output_callbacks"] > 50


def test_a_speaker_pulled_out_and_plugged_in_again_goes_on(server: SoundServer) -> None:
    with server.playing(tone(120.0)):
        loop = Loop(server, 16.0)
        time.sleep(2.0)
        server.remove_speaker()
        time.sleep(3.0)
        server.add_speaker()
        with server.recording() as recording:
            result = loop.result()
    kinds = [(event["side"], event["kind"]) for event in result["events"]]
    assert ("output", "lost") in kinds and ("output", "rebuilt") in kinds, result["events"]
    assert result["stats"]["output_device"] == "speaker", result
    assert result["stats"]["frames"] >= 16.0 * 12.5 - 1, "the microphone's side stood still meanwhile"
    loud = sounding(recording.samples[0])
    assert (loud > 0.1).sum() > 100, "nothing is played on the speaker that came back"


def test_a_new_default_speaker_is_changed_to(server: SoundServer) -> None:
    second = server.add_sink("second")
    try:
        with server.playing(tone(60.0)), server.recording("second.monitor") as recording:
            loop = Loop(server, 8.0)
            server.pactl("set-default-sink", "second")
            result = loop.result()
    finally:
        server.pactl("set-default-sink", "speaker")
        server.pactl("unload-module", second)
    assert result["stats"]["output_device"] == "second", result
    assert [(event["side"], event["kind"]) for event in result["events"]] == [("output", "lost"), ("output", "rebuilt")]
    assert (sounding(recording.samples[0]) > 0.1).sum() > 100, "nothing is played on the new speaker"


def test_two_conversations_at_once(server: SoundServer) -> None:
    with server.playing(tone(90.0)):
        loops = [Loop(server, 8.0), Loop(server, 8.0)]
        results = [loop.result() for loop in loops]
    for result in results:
        assert result["stats"]["frames"] >= 98 and not result["events"], result
        assert abs(result["stats"]["input_level_db"] + 13.5) < 2, result["stats"]


def test_a_device_by_a_part_of_its_name_and_errors_in_words(server: SoundServer) -> None:
    program = """
from moshi_mlx import errors
from moshi_mlx.audio_io import AudioIO, list_devices
print("ready", flush=True)
devices = list_devices()
assert any(d["input"] and d["input"]["default"] for d in devices), devices
assert any(d["output"] and d["output"]["default"] for d in devices), devices
with AudioIO(input=False, output="spea") as sound:
    assert sound.stats()["output_device"] == "speaker"
    try:
        sound.read()
    except errors.InputError as error:
        assert "input is False" in str(error)
try:
    AudioIO(input="no such thing")
except errors.DeviceError as error:
    assert "no microphone is called" in str(error) and "there are: " in str(error), error
else:
    raise AssertionError("it was opened")
print("{}")
"""
    assert Loop(server, 0.0, program).result() == {}


def test_a_file_for_the_speaker_is_played_at_its_own_pace(server: SoundServer) -> None:
    program = """
import time, numpy as np
from moshi_mlx.audio_io import AudioIO
print("ready", flush=True)
sound = (0.3 * np.sin(2 * np.pi * 400 * np.arange(1920 * 50) / 24000)).astype(np.float32)
with AudioIO(input=False) as speaker:
    for frame in sound.reshape(50, 1920):
        speaker.write(frame, timeout=10.0)
    time.sleep(0.5)
    assert speaker.stats()["output_skipped_ms"] == 0, speaker.stats()
print("{}")
"""
    with server.recording() as recording:
        Loop(server, 0.0, program).result()
    loud = sounding(recording.samples[0])
    seconds = (loud > 0.1).sum() / 100
    assert 3.8 < seconds < 4.3, f"4 s of sound lasted {seconds} s"


@pytest.mark.parametrize("sample_format", ["s24-32le", "s24le"])
def test_devices_of_24_bits_neither_wrap_around_nor_lose_the_sign(server: SoundServer, sample_format: str) -> None:
    program = """
import json, numpy as np
from moshi_mlx.audio_io import AudioIO
print("ready", flush=True)
too_loud = (1.3 * np.sin(2 * np.pi * 300 * np.arange(1920) / 24000)).astype(np.float32)
with AudioIO(input=False, output="FORMAT_sink") as sound:
    for _ in range(30):
        sound.write(too_loud, timeout=10.0)
with AudioIO(input="FORMAT_source", output=False) as sound:
    heard = np.concatenate([sound.read(timeout=20.0) for _ in range(12)])
print(json.dumps([float(heard.min()), float(heard.max())]))
""".replace("FORMAT", sample_format)
    sink, into_source, source = (f"{sample_format}_{end}" for end in ("sink", "into_source", "source"))
    for name in (sink, into_source):
        server.add_sink(name, sample_format=sample_format)
    description = f"source_properties=device.description={source}"
    server.load("module-remap-source", f"source_name={source}", f"master={into_source}.monitor", description)
    with server.playing(tone(60.0), into_source), server.recording(f"{sink}.monitor") as recording:
        low, high = Loop(server, 0.0, program).result()
    assert -0.35 < low < -0.25 and 0.25 < high < 0.35, f"a sine of amplitude 0.3 was heard from {low} to {high}"
    played = recording.samples[0]
    assert played.max() > 0.99, f"the loudest of a sine of amplitude 1.3 was {played.max()}"
    # From full scale to silence at most, where the stream ends: a sample that wraps around jumps by two.
    assert np.abs(np.diff(played)).max() < 1.1


def test_a_sound_server_that_hangs_does_not_keep_anybody_waiting() -> None:
    program = """
import sys, threading, time
from moshi_mlx.audio_io import AudioIO
sound, forgotten = AudioIO(echo_cancel=False), AudioIO(input=False)
sound.read(timeout=20.0)
print("ready", flush=True)
sys.stdin.readline()
# The devices are looked at every second: now somebody waits for the server.
for _ in range(20):
    sound.read(timeout=20.0)
start = time.monotonic()
sound.close()
print(time.monotonic() - start)
passed = []
def pass_time():
    while True:
        passed.append(0)
        time.sleep(0.01)
threading.Thread(target=pass_time, daemon=True).start()
before = len(passed)
del forgotten
print(len(passed) - before)
"""
    with sound_server() as server:
        loop = Loop(server, 0.0, program)
        server.process.send_signal(signal.SIGSTOP)
        try:
            out, errors = loop.process.communicate("\n", timeout=60)
        finally:
            server.process.send_signal(signal.SIGCONT)
            loop.process.kill()
    assert loop.process.returncode == 0 and not errors, errors
    seconds, passed = out.split()
    assert float(seconds) < 10, f"closing took {seconds} s"
    assert int(passed) > 5, "Python's other threads stood still while an AudioIO that nobody closed was"


def test_a_forked_process_ends_without_a_word(server: SoundServer) -> None:
    program = """
import os, sys
from moshi_mlx.audio_io import AudioIO
print("ready", flush=True)
statuses = []
for ends in (lambda sound: sound.close(), lambda sound: None):
    with AudioIO(input=False) as sound:
        child = os.fork()
        if child == 0:
            ends(sound)
            sys.exit(0)
        statuses.append(os.waitpid(child, 0)[1])
print(statuses)
"""
    loop = Loop(server, 0.0, program)
    out, errors = loop.process.communicate(timeout=60)
    # Python itself warns of forking with threads.
    errors = "\n".join(line for line in errors.splitlines() if "fork()" not in line)
    assert out.split("\n")[0] == "[0, 0]" and not errors, out + errors


def test_opening_and_closing_leaves_nothing_behind(server: SoundServer) -> None:
    program = """
import json, os, time
from moshi_mlx.audio_io import AudioIO, list_devices
print("ready", flush=True)
def used():
    return [len(os.listdir(f"/proc/self/{kind}")) for kind in ("task", "fd")]
def settled():
    AudioIO().close()
    list_devices()
    least = used()
    for _ in range(20):
        time.sleep(0.1)
        least = min(least, used())
    return least
before = settled()
for _ in range(10):
    AudioIO(input=False).close()
    AudioIO(output=False).close()
    list_devices()
print(json.dumps([before, settled()]))
"""
    with server.playing(tone(60.0)):
        (threads, files), (threads_after, files_after) = Loop(server, 0.0, program).result()
    # One stream's connection (a thread, three files) may be slow to end.
    assert threads_after <= threads + 1 and files_after <= files + 3, f"{threads_after} threads, {files_after} files"


def test_without_a_sound_server_the_error_says_what_to_do(tmp_path: os.PathLike[str]) -> None:
    program = """
from moshi_mlx import errors
from moshi_mlx.audio_io import AudioIO
try:
    AudioIO()
except errors.DeviceError as error:
    print(error)
"""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PULSE_SERVER": "unix:/nowhere"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    if not done.stdout and not done.stderr:
        pytest.skip("this machine has a sound card")
    assert "microphone" in done.stdout or "can't be opened" in done.stdout, done.stdout + done.stderr
