"""Text tokens as readable text, one at a time, as the model speaks them."""

import os
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from .errors import CheckpointError

PADDING_TOKENS = (0, 3)
"""What the model says on its text stream while it speaks on, or is silent: they print nothing."""

_SPACE = "\u2581"  # sentencepiece's mark for the space before a word


class TextTokenizer:
    """A sentencepiece model that turns text into tokens and tokens into text.

    Args:
        source: the path of a `.model` file, or the bytes of one.

    Raises:
        CheckpointError: there is no such file, or it holds no sentencepiece model.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        if isinstance(source, bytes):
            proto, name = source, "the tokenizer"
        else:
            proto, name = _read(Path(source)), str(source)
        self.proto: bytes = proto
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(proto)
            self.size: int = self._model.GetPieceSize()
        except (RuntimeError, OSError) as error:
            raise _not_a_model(name) from error
        if self.size == 0:
            raise _not_a_model(name)

    def piece(self, token: int) -> str:
        """The text of one token, with its leading space where it starts a word; "" for padding and control.

        A byte token gives its character where it is ASCII and "" otherwise: `stream()` puts bytes together.
        """
        byte = self._byte(token)
        if byte is not None:
            return chr(byte) if byte < 0x80 else ""
        if self._is_silent(token):
            return ""
        return str(self._model.IdToPiece(token)).replace(_SPACE, " ")

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        return [int(token) for token in self._model.EncodeAsIds(text)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, as a stream would have given it piece by piece."""
        stream = self.stream()
        return "".join([stream.push(token) for token in tokens]) + stream.flush()

    def stream(self) -> "TextStream":
        """A reader of one stream of tokens, which holds back characters until all their bytes are there."""
        return TextStream(self)

    def _is_silent(self, token: int) -> bool:
        # The id above the vocabulary is the model's initial token; negative ones are "nothing here".
        if token in PADDING_TOKENS or not 0 <= token < self.size:
            return True
        return bool(self._model.IsControl(token) or self._model.IsUnknown(token))

    def _byte(self, token: int) -> int | None:
        if not 0 <= token < self.size or token in PADDING_TOKENS or not self._model.IsByte(token):
            return None
        return int(self._model.IdToPiece(token)[3:5], 16)  # "<0xE2>"


class TextStream:
    """A stream's tokens as text, as they come; `pending` holds the bytes of an unfinished character."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.pending = b""

    def push(self, token: int) -> str:
        """The text that `token` completes: "" for padding and for a byte in the middle of a character.

        Padding between the bytes of a character is passed over. A character that another piece cuts short
        comes out as U+FFFD before that piece, so that no text is lost behind it.
        """
        byte = self.tokenizer._byte(token)
        if byte is None:
            piece = self.tokenizer.piece(token)
            return self.flush() + piece if piece else ""
        self.pending += bytes([byte])
        text, self.pending = _complete(self.pending)
        return text

    def flush(self) -> str:
        """What is held back, as U+FFFD where it is no whole character; called at the end of a stream."""
        text, self.pending = self.pending.decode("utf-8", errors="replace"), b""
        return text

    def copy(self) -> "TextStream":
        """A stream that goes on from here by itself."""
        other = TextStream(self.tokenizer)
        other.pending = self.pending
        return other


def _complete(data: bytes) -> tuple[str, bytes]:
    """Split `data` into its readable start and the bytes of a last character that may still be completed."""
    try:
        return data.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start].decode("utf-8"), data[error.start :]
        # Never UTF-8, whatever follows: show it as such and go on with the bytes behind it.
        bad_end = error.end
        text, rest = _complete(data[bad_end:])
        return data[:bad_end].decode("utf-8", errors="replace") + text, rest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"Can't read the text tokenizer {path}: {reason}. Expected a sentencepiece model such as "
            "tokenizer_spm_32k_3.model; name it with --tokenizer."
        ) from error


def _not_a_model(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not a sentencepiece model. Expected a file such as tokenizer_spm_32k_3.model; "
        "a download cut short is one cause: delete the file and fetch it again."
    )
