"""How much echo does the canceller remove, and how much of the user's voice does it leave?

Speech through synthetic rooms (`echo_rooms.py`): ERLE where only the loudspeaker talks, near-end SI-SDR where both do,
medians over the rooms after 3 s. Beside it on the same signals: no treatment, and with MOSHI_PEERS set to the Python of
an environment that has them, WebRTC (aec-audio-processing, noise suppression off) and Speex (pyaec).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import Figure, environment_for, options, peers, report
from echo_rooms import RATE, Pcm, Scene, draw_room, draw_scene, recorded_voices, speech_voices

SETTLED = 3 * RATE
WINDOW = 480
OURS, WEBRTC = "moshi_mlx EchoCanceller", "WebRTC (aec-audio-processing)"
PEERS = {WEBRTC: "webrtc", "Speex (pyaec)": "speex"}
TARGET_ERLE_DB = 28.0
TARGET_ABOVE_WEBRTC_DB = 3.0


@dataclass(frozen=True)
class Result:
    """What one canceller did in each room, in dB."""

    name: str
    erle_db: list[float]
    si_sdr_db: list[float]


def main() -> None:
    parser = options(__doc__)
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
    chosen = parser.parse_args()
    if chosen.rooms < 1 or chosen.seconds < 6:
        parser.error("at least one room and 6 seconds are needed")
    recorded = chosen.voices == "recorded"
    voices = list((recorded_voices(chosen.recordings) if recorded else speech_voices()).values())
    if len(voices) < 2:
        parser.error(
            f"two voices are needed and {len(voices)} found: install espeak-ng, or two asterisk-core-sounds-*-g722"
        )
    rooms = [draw_room(chosen.seed + i) for i in range(chosen.rooms)]
    scenes = [draw_scene(room, voices, chosen.seconds) for room in rooms]
    results, notes = [untreated(scenes), ours(scenes)], []
    if python := peers():
        for name in PEERS:
            try:
                results.append(peer(name, python, scenes))
            except RuntimeError as error:
                notes.append(str(error))
    else:
        notes.append("MOSHI_PEERS isn't set: WebRTC and Speex weren't measured.")
    details = {"rooms": [asdict(room) for room in rooms], "results": [asdict(result) for result in results]}
    report(__doc__, chosen.json, figures(results), details, notes)


def figures(results: Sequence[Result]) -> list[Figure]:
    """Both of every canceller, over the rooms, and how far ours is above WebRTC's."""
    found = []
    for result in results:
        target = TARGET_ERLE_DB if result.name == OURS else None
        found.append(Figure.of(f"{result.name}: ERLE, single talk", "dB", result.erle_db, at_least=target))
        found.append(Figure.of(f"{result.name}: near-end SI-SDR, double talk", "dB", result.si_sdr_db))
    by_name = {result.name: float(np.median(result.si_sdr_db)) for result in results}
    if WEBRTC in by_name:
        gain = by_name[OURS] - by_name[WEBRTC]
        found.append(
            Figure.exact("near-end SI-SDR: median above WebRTC's", "dB", gain, at_least=TARGET_ABOVE_WEBRTC_DB)
        )
    return found


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
    return judge(OURS, scenes, outputs, EchoCanceller(RATE).delay)


def peer(name: str, python: str, scenes: list[Scene]) -> Result:
    """A canceller of another environment.

    Raises:
        RuntimeError: that doesn't have it.
    """
    with tempfile.TemporaryDirectory() as folder:
        signals = [x for s in scenes for x in (s.echo, s.played, s.echo + s.near, s.played)]
        np.save(f"{folder}/in.npy", np.stack(signals).astype(np.float32))
        worker = Path(__file__).with_name("echo_peer.py")
        command = [python, str(worker), PEERS[name], folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment_for(python))
        if done.returncode:
            raise RuntimeError(f"{name} wasn't measured: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
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


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"echo.py: {error}")
