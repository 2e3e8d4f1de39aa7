"""How long sound takes from the microphone through the program to the speaker, with no model in between.

    python benchmarks/audio_latency.py [--json] [--seconds 12] [--rounds 3]

A private PulseAudio server (Debian's `pulseaudio`, started and stopped here) has a microphone and a speaker that are
two halves of one sink, so that one recording holds both, aligned to the sample. Noise goes into the microphone; this
engine's AudioIO, or `sounddevice` driven as the published CLI drives it (two streams at 24 kHz in blocks of 1920, a
queue between them), hands every frame that it reads straight to the speaker; the lag of the two channels is the delay.
`sounddevice` runs where MOSHI_PEERS names a Python that has it. Rounds of the two alternate.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from sound_server import SoundServer, hurry, missing_program, sound_server

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


def measure(server: SoundServer, python: str, program: str, seconds: float, *options: str) -> dict[str, object]:
    """Run one program between microphone and speaker; the delay is the median over windows."""
    sound = noise(server.rate, seconds + 2)
    with server.recording("cable.monitor", channels=2) as recording:
        run = subprocess.Popen(
            [python, "-c", program, str(seconds), *options],
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
    result: dict[str, object] = {"delay_ms": statistics.median(clear), "windows": len(clear)}
    figures = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    for name in ("output_underruns", "output_skipped_ms", "capture_to_read_with_frame_ms", "write_to_speaker_ms"):
        if name in figures:
            result[name] = float(figures[name])
    return result


def main() -> None:
    """Measure both in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    missing = missing_program()
    if missing:
        raise SystemExit(f"{missing} is not installed; on Debian: apt-get install pulseaudio pulseaudio-utils")
    peer = os.environ.get("MOSHI_PEERS")
    runs: dict[str, list[dict[str, object]]] = {}
    with sound_server() as server:
        server.add_cable()
        for _ in range(arguments.rounds):
            runs.setdefault("AudioIO", []).append(measure(server, sys.executable, OWN, arguments.seconds))
            with_echo = measure(server, sys.executable, OWN, arguments.seconds, "echo")
            runs.setdefault("AudioIO with echo cancellation", []).append(with_echo)
            if peer:
                runs.setdefault("sounddevice", []).append(measure(server, peer, PEER, arguments.seconds))
    medians = {name: statistics.median(float(str(r["delay_ms"])) for r in rows) for name, rows in runs.items()}
    result: dict[str, object] = {"delay_ms": medians, "rounds": runs}
    if peer:
        result["ratio"] = medians["AudioIO"] / medians["sounddevice"]
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, delay in medians.items():
        print(f"{name:32} {delay:7.1f} ms microphone to speaker (a frame of 80 ms included)")
    if peer:
        print(f"{'ratio':32} {result['ratio']:7.2f} (at most 0.5 wanted)")
    else:
        print("sounddevice was not measured: set MOSHI_PEERS to a Python that has it")


if __name__ == "__main__":
    main()
