"""The text tokenizer: sentencepiece, trained on all that is said in the corpus."""

from __future__ import annotations

import io
from pathlib import Path

from ..errors import ConfigError
from ..files import ResultFile
from .script import Script, expand


def train_tokenizer(script: Script, size: int, path: Path) -> None:
    """Write a tokenizer of `size` pieces, with the published one's special ids: 3 pads, 0 ends the padding.

    Pieces for single bytes are among them, so that any text can be written. An existing file is kept.

    Raises:
        ConfigError: the corpus is too small for so many pieces.
    """
    import sentencepiece

    if path.exists():
        return
    questions = [text for _, i in script.wordings() for line in (*i.ask, *i.held_out) for text in expand(line)]
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
        file.write(proto.getvalue())
