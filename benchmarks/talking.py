"""A user made of recordings: talks to a `Session` frame by frame and writes down what happens when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moshi_mlx.config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from moshi_mlx.session import Session
from moshi_mlx.train.script import normalize

LOUD = 0.01
"""Root mean square above which a frame of Moshi's counts as speech."""

FRAME = 1 / FRAME_RATE


@dataclass
class Record:
    """A conversation so far, in frames of 80 ms.

    Attributes:
        heard: what the user said, float32 [1920] each.
        spoken: what Moshi said.
        texts: Moshi's piece of text of each frame.
    """

    heard: list[np.ndarray] = field(default_factory=list)
    spoken: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Frames so far."""
        return len(self.spoken)

    def loud(self) -> np.ndarray:
        """Frames in which Moshi is to be heard, bool [frames]."""
        return np.array([float(np.sqrt(np.mean(x**2))) > LOUD for x in self.spoken], dtype=bool)

    def text(self, first: int = 0, last: int | None = None) -> str:
        """Moshi's words of a stretch of frames."""
        return "".join(self.texts[first:last]).strip()


@dataclass(frozen=True)
class Reply:
    """What came after a question.

    Attributes:
        text: Moshi's words.
        delay: seconds from the question's end to the first sound of the answer, None without one.
        early: whether Moshi spoke before the question had ended.
        first, last: frames of the reply.
        pcm: its sound.
    """

    text: str
    delay: float | None
    early: bool
    first: int
    last: int
    pcm: np.ndarray


class Talk:
    """One conversation with a session.

    Args:
        session: a fresh one.
        background: added to everything the user sends, repeated.
    """

    def __init__(self, session: Session, background: np.ndarray | None = None):
        self.session = session
        self.record = Record()
        self._background = background
        self._position = 0

    def hear(self, pcm: np.ndarray) -> None:
        """Send sound, frame by frame; the last frame is filled with silence."""
        padded = np.pad(pcm, (0, -len(pcm) % FRAME_SIZE)).astype(np.float32)
        for frame in padded.reshape(-1, FRAME_SIZE):
            if self._background is not None:
                at = self._position % (len(self._background) - FRAME_SIZE)
                frame = frame + self._background[at : at + FRAME_SIZE]
            self._position += FRAME_SIZE
            out = self.session.step(frame)
            self.record.heard.append(frame)
            self.record.spoken.append(out.pcm)
            self.record.texts.append(out.text)
            self.record.milliseconds.append(out.timings.total_ms)

    def silence(self, seconds: float) -> None:
        """Send silence."""
        self.hear(np.zeros(round(seconds * FRAME_RATE) * FRAME_SIZE, np.float32))

    def wait_for_speech(self, seconds: float = 2.5) -> bool:
        """Listen until Moshi speaks; returns whether it did."""
        for _ in range(round(seconds * FRAME_RATE)):
            self.silence(FRAME)
            if self.record.loud()[-1]:
                return True
        return False

    def wait_for_silence(self, pause: float = 0.64, seconds: float = 12.0) -> None:
        """Listen until Moshi has been silent for `pause`."""
        quiet = round(pause * FRAME_RATE)
        for _ in range(round(seconds * FRAME_RATE)):
            self.silence(FRAME)
            if not self.record.loud()[-quiet:].any():
                return

    def ask(self, pcm: np.ndarray) -> Reply:
        """Ask and listen to the whole answer."""
        first = self.record.frames
        self.hear(pcm)
        end = first * FRAME + len(pcm) / SAMPLE_RATE
        asked = self.record.frames
        spoke_early = bool(self.record.loud()[first + 1 : asked].any())
        if spoke_early or self.wait_for_speech():
            self.wait_for_silence()
        return self.reply(first, asked, end, spoke_early)

    def reply(self, first: int, asked: int, end: float, early: bool = False) -> Reply:
        """The reply to a question asked from frame `first` to frame `asked`, ended at `end` seconds."""
        record = self.record
        loud = record.loud()
        sounds = np.flatnonzero(loud[first if early else asked :])
        start = (first if early else asked) + int(sounds[0]) if len(sounds) else None
        # Text comes up to the acoustic delay before its sound.
        pcm = np.concatenate(record.spoken[max(asked - 1, 0) :]) if record.frames > asked else np.zeros(0, np.float32)
        # A step needs a whole frame of the user's: what it gives is heard while the next one is spoken.
        delay = None if start is None else max((start + 1) * FRAME - end, 0.0)
        return Reply(record.text(first if early else max(first, asked - 1)), delay, early, first, record.frames, pcm)


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Words to insert, delete or replace to make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def closest_answer(text: str, answers: Sequence[str]) -> str | None:
    """The answer that a reply is nearest to by words, None if it is near to none."""
    words = normalize(text).split()
    scored = [(edit_distance(words, normalize(a).split()) / max(len(normalize(a).split()), 1), a) for a in answers]
    distance, answer = min(scored)
    return answer if words and distance <= 0.5 else None


# fmt: off
_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
# fmt: on
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SOUNDS_ALIKE = {"moshe": "moshi", "mochi": "moshi", "melchi": "moshi", "colour": "color", "favourite": "favorite"}


def spell(number: int) -> str:
    """A number below 1000 in words."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (" " + _UNITS[number % 10] if number % 10 else "")
    rest = number % 100
    return f"{_UNITS[number // 100]} hundred" + (f" and {spell(rest)}" if rest else "")


def comparable(text: str) -> list[str]:
    """Words as both a transcript and a script would write them: numbers spelled out, one spelling of names."""
    words: list[str] = []
    for word in normalize(text.replace("+", " plus ")).split():
        words += spell(int(word)).split() if word.isdigit() and int(word) < 1000 else [_SOUNDS_ALIKE.get(word, word)]
    return words
