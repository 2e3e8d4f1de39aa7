"""What was said and when: text pieces with their times."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ..config import FRAME_RATE
from ..files import ResultFile


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

    def to_json(self, **about: object) -> bytes:
        """JSON, UTF-8: `about`, then "text", then "pieces" with "time" and "text" each."""
        content = {**about, "text": self.text, "pieces": [asdict(piece) for piece in self.pieces]}
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()

    def keep(self, file: ResultFile | None, about: Mapping[str, object]) -> None:
        """Write it into `file`, where one is wanted, and close that.

        Raises:
            StorageError: it can't be written.
        """
        if file is not None:
            file.write(self.to_json(**about))
            file.commit()
