"""How long does sound take from the microphone through the program to the speaker, with no model in between?

A private PulseAudio server (Debian's `pulseaudio`, started and stopped here) has a microphone and a speaker that are
two halves of one sink, so that one recording holds both, aligned to the sample. Noise goes into the microphone; this
engine's AudioIO, or `sounddevice` driven as the published CLI drives it (two streams at 24 kHz in blocks of 1920, a
queue between them), hands every frame that it reads straight to the speaker; the lag of the two channels is the delay.
A frame of 80 ms is part of it. `sounddevice` runs where MOSHI_PEERS names a Python that has it. Rounds of the two
alternate.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, can_import, options, peers, report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from sound_server import SoundServer, hurry, missing_program, sound_server

PEER_NAME = "sounddevice"

OWN = """
import sys, time
from moshi_mlx.audio_io import AudioIO
with AudioIO(echo_cancel="echo" in sys.argv) as sound:
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        sound.write(sound.read(timeout=5.0))
    for name, value in sound.stats().items():
        print(f"{name}={value}")
"""

PEER = """
import queue, sys, time
import sounddevice
waiting = queue.Queue()
def heard(data, frames, when, status):
    waiting.put_nowait(data[:, 0].copy())
def wanted(data, frames, when, status):
    try:
        data[:, 0] = waiting.get(block=False)
    except queue.Empty:
        data.fill(0)
form = dict(samplerate=24000, channels=1, blocksize=1920)
with sounddevice.InputStream(callback=heard, **form), sounddevice.OutputStream(callback=wanted, **form):
    time.sleep(float(sys.argv[1]))
"""


def noise(rate: int, seconds: float) -> np.ndarray:
    """Bursts of noise below 8 kHz, float32 [samples]."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(int(rate * seconds)))
    spectrum[int(8000 * seconds) :] = 0
    sound = np.fft.irfft(spectrum)
    return (0.2 * sound / sound.std()).astype(np.float32)


def delay_ms(played: np.ndarray, heard: np.ndarray, rate: int) -> tuple[float, float]:
    """Where in `heard`, which starts with it and is longer, `played` recurs; and how far that stands out."""
    size = len(heard) + len(played)
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size))
    correlation = np.abs(np.fft.irfft(spectrum))[: len(heard) - len(played)]
    peak = int(correlation.argmax())
    rest = np.delete(correlation, range(max(0, peak - 50), min(len(correlation), peak + 50))).max()
    return 1000 * peak / rate, float(correlation[peak] / rest)


def measure(server: SoundServer, python: str, program: str, seconds: float, *arguments: str) -> dict[str, Any]:
    """Run one program between microphone and speaker; the delay is the median over windows."""
    sound = noise(server.rate, seconds + 2)
    with server.recording("cable.monitor", channels=2) as recording:
        run = subprocess.Popen(
            [python, "-c", program, str(seconds), *arguments],
            env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hurry,
        )  # fmt: skip
        time.sleep(1.0)
        player = server.play(sound, "cable_into_mic")
        out, errors = run.communicate(timeout=seconds + 30)
        player.send_signal(signal.SIGTERM)
        player.wait()
    if run.returncode:
        raise SystemExit(f"{python} failed:\n{errors}")
    played, heard = recording.samples
    # Half a second, looked for in the second after it: an underrun spoils few windows.
    window, reach = server.rate // 2, server.rate
    length = int(seconds * server.rate)
    starts = range(length // 3, min(length, len(heard)) - window - reach, window)
    delays = [delay_ms(played[s : s + window], heard[s : s + window + reach], server.rate) for s in starts]
    clear = [delay for delay, clarity in delays if clarity > 2]
    if not clear:
        raise SystemExit(f"no window of the recording correlates: {delays}")
    result: dict[str, Any] = {"delay_ms": statistics.median(clear), "windows": len(clear)}
    figures = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    for name in ("output_underruns", "output_skipped_ms", "capture_to_read_with_frame_ms", "write_to_speaker_ms"):
        if name in figures:
            result[name] = float(figures[name])
    return result


def figures(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """The delays of each program's rounds, and of ours by the peer's."""
    delays = {name: [run["delay_ms"] for run in rounds] for name, rounds in runs.items()}
    found = [Figure.of(name, "ms", values) for name, values in delays.items()]
    if PEER_NAME in delays:
        ratios = [ours / theirs for ours, theirs in zip(delays["AudioIO"], delays[PEER_NAME], strict=True)]
        found.append(Figure.of(f"AudioIO / {PEER_NAME}", "x", ratios, at_most=0.5))
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each program (%(default)s)")
    chosen = parser.parse_args()
    if missing := missing_program():
        raise SystemExit(f"{missing} is not installed; on Debian: apt-get install pulseaudio pulseaudio-utils")
    programs = {"AudioIO": (sys.executable, OWN), "AudioIO with echo cancellation": (sys.executable, OWN, "echo")}
    python = peers()
    if with_peer := python is not None and can_import(python, PEER_NAME):
        programs[PEER_NAME] = (python, PEER)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    with sound_server() as server:
        server.add_cable()
        for _ in range(chosen.rounds):
            for name, (python, program, *arguments) in programs.items():
                runs[name].append(measure(server, python, program, chosen.seconds, *arguments))
    notes = [] if with_peer else [f"{PEER_NAME} wasn't measured: MOSHI_PEERS names no Python that has it."]
    report(__doc__, chosen.json, figures(runs), runs, notes)


if __name__ == "__main__":
    main()
