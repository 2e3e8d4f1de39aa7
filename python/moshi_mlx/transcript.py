"""What was said and when: text pieces with their times."""

import json
import os
from dataclasses import asdict, dataclass, field

from .config import FRAME_RATE
from .files import ResultFile


@dataclass(frozen=True)
class Piece:
    """A piece of text, with its leading space, and when it was spoken, in seconds from the conversation's start."""

    time: float
    text: str


@dataclass
class Transcript:
    """Moshi's words in the order in which they were spoken."""

    pieces: list[Piece] = field(default_factory=list)

    def add(self, step: int, text: str) -> None:
        """Note the text of step `step`, which lies at `step` frames of 80 ms; "" is left out."""
        if text:
            self.pieces.append(Piece(round(step / FRAME_RATE, 3), text))

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(piece.text for piece in self.pieces).strip()

    def write(self, path: str | os.PathLike[str], **about: object) -> None:
        """Write it as JSON, whole or not at all: `about`, then "text", then "pieces" with "time" and "text" each.

        Raises:
            StorageError: the file can't be written.
        """
        content = {**about, "text": self.text, "pieces": [asdict(piece) for piece in self.pieces]}
        with ResultFile(path) as file:
            file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
