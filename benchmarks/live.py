"""Does a live conversation of half an hour stay in time, whole and small?

The real command converses by the microphone and speaker of a private PulseAudio server (Debian's `pulseaudio`, started
and stopped here); every half minute somebody says something into the microphone. Meanwhile its memory is read from
outside; at the end it says itself what was late, lost or dropped. The memory of the last tenth is compared with that
of the second tenth, once everything has been used.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, options, report
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from sound_server import RATE, SoundServer, hurry, missing_program, sound_server

from moshi_mlx.audio_io import resample
from moshi_mlx.sound import load_sound

FLAT = 1.02
"""What memory may be at the end by what it was at the beginning."""

_SAMPLE_SECONDS = 5.0
_SPEAK_SECONDS = 30.0


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def converse(
    server: SoundServer, model: str, spoken: np.ndarray, seconds: float, advance: Callable[[float], None]
) -> tuple[list[int], dict[str, Any], str]:
    """Let the command converse for a while; its memory, what it says of the sound, and the lines that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.json"
        command = [sys.executable, "-m", "moshi_mlx.local", "--model", model, "--transcript", str(said)]
        process = subprocess.Popen(
            command, env=server.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, preexec_fn=hurry,
        )  # fmt: skip
        memory: list[int] = []
        begun = time.monotonic()
        spoke = -_SPEAK_SECONDS
        player = None
        while (now := time.monotonic() - begun) < seconds:
            if process.poll() is not None:
                raise SystemExit(f"the command ended:\n{process.communicate()[1]}")
            if now - spoke >= _SPEAK_SECONDS:
                if player is not None:
                    player.wait()
                player, spoke = server.play(spoken), now
            memory.append(resident(process.pid))
            advance(now)
            time.sleep(_SAMPLE_SECONDS)
        process.send_signal(signal.SIGINT)
        lines = process.communicate(timeout=120)[1]
        if process.returncode:
            raise SystemExit(f"the command failed:\n{lines}")
        if player is not None:
            player.terminate()
            player.wait()
        return memory, json.loads(said.read_text()), lines


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="%(default)s")
    parser.add_argument("--model", default="nano", help="%(default)s")
    parser.add_argument("--question", type=Path, help="sound file that is said; else espeak-ng speaks")
    chosen = parser.parse_args()
    if missing := missing_program():
        raise SystemExit(f"{missing} is not installed; on Debian: apt-get install pulseaudio pulseaudio-utils")
    with tempfile.TemporaryDirectory() as folder:
        question = chosen.question or Path(folder) / "question.wav"
        if chosen.question is None:
            subprocess.run(["espeak-ng", "-w", str(question), "what is your name"], check=True)
        spoken = resample(load_sound(question), 24_000, RATE)
    seconds = 60 * chosen.minutes
    with sound_server() as server, Progress() as progress:
        task = progress.add_task("conversing", total=seconds)
        memory, said, lines = converse(
            server, chosen.model, spoken, seconds, lambda now: progress.update(task, completed=now)
        )
    sound = said["sound"]
    tenth = max(1, len(memory) // 10)
    early, late = statistics.median(memory[tenth : 2 * tenth]), statistics.median(memory[-tenth:])
    figures = [
        Figure.exact("frames heard", "", sound["frames"]),
        Figure.exact("memory early", "MB", early / 1e6),
        Figure.exact("memory late", "MB", late / 1e6),
        Figure.exact("memory late by early", "x", late / early, at_most=FLAT),
        *(
            Figure.exact(name.replace("_", " "), "", sound[name], at_most=0)
            for name in ("input_xruns", "output_xruns", "input_overruns", "output_underruns", "dropped_frames")
        ),
        *(
            Figure.exact(name.replace("_", " ").removesuffix(" ms"), "ms", sound[name])
            for name in ("input_callback_worst_gap_ms", "output_callback_worst_gap_ms", "lag_ms")
        ),
        Figure.exact("output drift", "ppm", sound["output_drift_ppm"]),
    ]
    last = [line for line in lines.splitlines() if line.strip()][-3:]
    report(__doc__, chosen.json, figures, {"sound": sound, "memory": memory, "lines": lines.splitlines()}, last)


if __name__ == "__main__":
    main()
