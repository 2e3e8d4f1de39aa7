"""The text tokenizer: sentencepiece, trained on all that is said in the corpus.

How an answer begins, up to the word that tells it from all others, is a piece of its own. A model that writes word by
word chooses among the beginnings that several answers share before it chooses an answer, and what many share wins over
what is likelier than each of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import ResultFile
from .script import Script, expand

_USER_DEFINED = 4


def openings(answers: Sequence[str]) -> list[str]:
    """The fewest first words of each answer with which no other one begins; all of it where there are none."""
    split = [answer.split() for answer in answers]
    alone = (
        next((n for n in range(1, len(words)) if sum(other[:n] == words[:n] for other in split) == 1), len(words))
        for words in split
    )
    return [" ".join(words[:n]) for words, n in zip(split, alone, strict=True)]


def train_tokenizer(script: Script, size: int, path: Path) -> None:
    """Write a tokenizer of `size` pieces, with the published one's special ids: 3 pads, 0 ends the padding.

    Pieces for single bytes are among them, so that any text can be written. Answers' openings take the place of the
    rarest pieces that no answer is written with. An existing file is kept.

    Raises:
        ConfigError: the corpus is too small for so many pieces, or there are too few pieces for it.
    """
    import sentencepiece

    if path.exists():
        return
    questions = [text for _, i in script.wordings() for line in (*i.learned, *i.held_out) for text in expand(line)]
    # Answers count more: only they are ever written.
    sentences = questions + 20 * script.answers
    proto = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=proto,
            vocab_size=size,
            model_type="unigram",
            byte_fallback=True,
            # The script is plain text; the table for everything else is a quarter of a megabyte.
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"text_card {size}: {error}") from error
    with ResultFile(path) as file:
        file.write(_with_openings(proto.getvalue(), script.answers))


def _with_openings(proto: bytes, answers: Sequence[str]) -> bytes:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto.FromString(proto)  # type: ignore[attr-defined]
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    written = {token for answer in answers for word in answer.split() for token in processor.encode(word)}
    new = sorted({"\u2581" + text.replace(" ", "\u2581") for text in openings(answers)})
    known = {piece.piece: piece for piece in model.pieces}
    spared = [
        piece
        for token, piece in enumerate(model.pieces)
        if piece.type == piece.NORMAL and token not in written and len(piece.piece) > 1 and piece.piece not in new
    ]
    rarest = iter(sorted(spared, key=lambda piece: piece.score))
    for text in new:
        piece = known.get(text) or next(rarest, None)
        if piece is None:
            raise ConfigError(
                f"text_card {len(model.pieces)}: too few pieces to spare for the openings of {len(new)} answers. "
                "Make text_card larger, in 'data' and 'model'."
            )
        piece.piece, piece.score, piece.type = text, 0.0, _USER_DEFINED
    return bytes(model.SerializeToString())
