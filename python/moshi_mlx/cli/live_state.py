"""What a live conversation shows of itself, kept apart from how it is shown."""

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ..config import FRAME_RATE
from ..sound import Samples

BUDGET_MS = 1000 / FRAME_RATE
"""A step may take as long as its frame: 80 ms."""

SILENCE_DB = -60.0
"""The lowest level that is shown."""

_REMEMBERED = round(60 * FRAME_RATE)  # steps: a minute


@dataclass
class AudioStatus:
    """What the sound engine says of itself. None where a side has no device."""

    microphone: str = ""
    speaker: str = ""
    lag_ms: float = 0.0
    """How late the newest frame was when it was read."""
    dropped: int = 0
    """Frames of input given up so far, to catch up."""
    underruns: int = 0
    """Times that the speaker had nothing to play."""
    echo_db: float | None = None
    """How much the echo canceller takes away; None where there is none, or nothing to say yet."""


@dataclass
class LiveState:
    """Everything that the screen shows; written by the step loop, read by the screen's thread."""

    model: str = ""
    words: str = ""
    user_db: float = SILENCE_DB
    moshi_db: float = SILENCE_DB
    audio: AudioStatus = field(default_factory=AudioStatus)
    muted: bool = False
    paused: bool = False
    notice: str = ""
    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    step_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @property
    def elapsed(self) -> float:
        """Seconds since the conversation began."""
        return time.monotonic() - self.started

    @property
    def median_ms(self) -> float:
        """Of the last minute's steps."""
        return float(np.median(list(self.step_ms))) if self.step_ms else 0.0

    @property
    def worst_ms(self) -> float:
        """Of the last minute's steps."""
        return max(list(self.step_ms), default=0.0)

    def step_took(self, milliseconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.step_ms.append(milliseconds)


def level_db(pcm: Samples) -> float:
    """Root mean square of float32 [samples] in decibels below full scale, not below SILENCE_DB."""
    power = float(np.mean(np.square(pcm, dtype=np.float64))) if pcm.size else 0.0
    return max(10 * np.log10(power), SILENCE_DB) if power > 0 else SILENCE_DB


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
