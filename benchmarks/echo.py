"""How much echo does the canceller remove, and how much of the user's voice does it leave?

Speech through synthetic rooms (`echo_rooms.py`): ERLE where only the loudspeaker talks, near-end SI-SDR where both do,
medians over the rooms after 3 s. Beside it on the same signals: no treatment, and with MOSHI_PEERS set to the Python of
an environment that has them, WebRTC (aec-audio-processing, noise suppression off) and Speex (pyaec).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from echo_rooms import RATE, Pcm, Scene, draw_room, draw_scene, recorded_voices, speech_voices
from rich.console import Console
from rich.table import Table

SETTLED = 3 * RATE
WINDOW = 480
PEERS = {"WebRTC (aec-audio-processing)": "webrtc", "Speex (pyaec)": "speex"}
TARGET_ERLE_DB = 28.0
TARGET_ABOVE_WEBRTC_DB = 3.0


@dataclass(frozen=True)
class Result:
    """What one canceller did in each room: dB."""

    name: str
    erle_db: list[float]
    si_sdr_db: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=8, help="number of rooms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first room (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each scene (default: %(default)s)")
    parser.add_argument(
        "--voices",
        choices=("synthesized", "recorded"),
        default="synthesized",
        help="espeak-ng and flite, or people from Debian's asterisk-core-sounds-*-g722 (two packages or more)",
    )
    parser.add_argument("--recordings", default="/usr/share/asterisk/sounds", help="where the recordings are")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE (- for standard output)")
    options = parser.parse_args()
    if options.rooms < 1 or options.seconds < 6:
        parser.error("at least one room and 6 seconds are needed")
    recorded = options.voices == "recorded"
    voices = list((recorded_voices(options.recordings) if recorded else speech_voices()).values())
    if len(voices) < 2:
        parser.error(
            f"two voices are needed and {len(voices)} found: install espeak-ng, or two asterisk-core-sounds-*-g722"
        )
    rooms = [draw_room(options.seed + i) for i in range(options.rooms)]
    scenes = [draw_scene(room, voices, options.seconds) for room in rooms]
    console = Console(stderr=options.json == "-")
    peers = os.environ.get("MOSHI_PEERS")
    if not peers:
        console.print("MOSHI_PEERS is not set: WebRTC and Speex are not measured.")
    results = [untreated(scenes), ours(scenes)] + (
        [r for p in PEERS if (r := peer(p, peers, scenes, console))] if peers else []
    )
    show(results, console)
    if options.json:
        figures = {
            "rooms": [asdict(room) for room in rooms],
            "results": [asdict(r) | medians(r) for r in results],
        }
        text = json.dumps(figures, indent=1)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")


def untreated(scenes: list[Scene]) -> Result:
    return judge("untreated", scenes, [(scene.echo, scene.echo + scene.near) for scene in scenes], delay=0)


def ours(scenes: list[Scene]) -> Result:
    """The canceller of this project, fed as the live loop feeds it: 80 ms at a time."""
    from moshi_mlx.audio_io import EchoCanceller

    def cancel(mic: Pcm, played: Pcm) -> Pcm:
        canceller = EchoCanceller(RATE)
        pieces = zip(
            np.split(mic, range(1920, mic.size, 1920)),
            np.split(played, range(1920, mic.size, 1920)),
            strict=True,
        )
        return np.concatenate([canceller.process(m.astype(np.float32), p.astype(np.float32)) for m, p in pieces])

    outputs = [(cancel(s.echo, s.played), cancel(s.echo + s.near, s.played)) for s in scenes]
    return judge("moshi_mlx EchoCanceller", scenes, outputs, EchoCanceller(RATE).delay)


def peer(name: str, python: str, scenes: list[Scene], console: Console) -> Result | None:
    """A canceller of another environment; None, and a word about it, where that doesn't have it."""
    with tempfile.TemporaryDirectory() as folder:
        signals = [x for s in scenes for x in (s.echo, s.played, s.echo + s.near, s.played)]
        np.save(f"{folder}/in.npy", np.stack(signals).astype(np.float32))
        worker = Path(__file__).with_name("echo_peer.py")
        done = subprocess.run([python, worker, PEERS[name], folder], capture_output=True, text=True, check=False)
        if done.returncode:
            console.print(f"{name} is not measured: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
            return None
        outputs = np.load(f"{folder}/out.npy").astype(float)
    pairs = list(zip(outputs[::2], outputs[1::2], strict=True))
    return judge(name, scenes, pairs, delay=None)


def judge(name: str, scenes: list[Scene], outputs: list[tuple[Pcm, Pcm]], delay: int | None) -> Result:
    """Both figures in each room. Without a stated delay, the one that suits the output best is taken (up to 40 ms)."""
    erle, si_sdr = [], []
    for scene, (single, double) in zip(scenes, outputs, strict=True):
        late = delay or 0
        heard, left = scene.echo[SETTLED : scene.echo.size - late], single[SETTLED + late :]
        erle.append(10 * float(np.log10(np.sum(heard**2) / (np.sum(left**2) + 1e-12))))
        lags = range(960) if delay is None else (delay,)
        where = both_talk(scene)
        si_sdr.append(max(si_sdr_db(scene.near, double, where, lag) for lag in lags))
    return Result(name, erle, si_sdr)


def both_talk(scene: Scene) -> Pcm:
    """Indices of the samples, after 3 s, in whose 20 ms both voices are within 30 dB of their loudness."""
    active = np.repeat(loud(scene.echo) & loud(scene.near), WINDOW)
    active[:SETTLED] = False
    where = np.flatnonzero(active)
    return where[where < scene.echo.size - 1000]


def loud(x: Pcm) -> Pcm:
    energy = np.sum(x[: x.size // WINDOW * WINDOW].reshape(-1, WINDOW) ** 2, axis=1)
    return energy > 1e-3 * np.mean(energy[energy > 1e-4 * energy.max()])


def si_sdr_db(near: Pcm, output: Pcm, where: Pcm, lag: int) -> float:
    """Scale-invariant signal-to-distortion ratio of the near talker in an output that is `lag` samples late."""
    where = where[where + lag < output.size]
    wanted, found = near[where], output[where + lag]
    target = (wanted @ found) ** 2 / (wanted @ wanted)
    return 10 * float(np.log10(target / (found @ found - target + 1e-12)))


def medians(result: Result) -> dict[str, float]:
    return {
        "median_erle_db": float(np.median(result.erle_db)),
        "median_si_sdr_db": float(np.median(result.si_sdr_db)),
    }


def show(results: list[Result], console: Console) -> None:
    table = Table(title="Echo: medians over the rooms (lowest), dB, after 3 s")
    table.add_column("canceller")
    table.add_column("ERLE, single talk", justify="right")
    table.add_column("near-end SI-SDR, double talk", justify="right")
    for result in results:
        cells = [f"{np.median(x):.1f} ({min(x):.1f})" for x in (result.erle_db, result.si_sdr_db)]
        table.add_row(result.name, *cells)
    console.print(table)
    ours = medians(results[1])
    met = ours["median_erle_db"] >= TARGET_ERLE_DB
    console.print(f"ERLE of at least {TARGET_ERLE_DB:.0f} dB: {'met' if met else 'missed'}")
    for result in results:
        if result.name.startswith("WebRTC"):
            gain = ours["median_si_sdr_db"] - medians(result)["median_si_sdr_db"]
            met = gain >= TARGET_ABOVE_WEBRTC_DB
            console.print(
                f"{TARGET_ABOVE_WEBRTC_DB:.0f} dB above WebRTC: {'met' if met else 'missed'} ({gain:+.1f} dB)"
            )


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"echo.py: {error}")
