"""Tokens become text: words with their spaces, nothing for padding, characters put together from bytes."""

import io
from pathlib import Path

import pytest
import sentencepiece

from moshi_mlx.errors import CheckpointError
from moshi_mlx.text import TextTokenizer

SENTENCES = [
    "hello there, how are you today?",
    "the weather is fine and the sky is blue",
    "who are you? I am a voice that listens and speaks",
    "good morning, good evening, good night",
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """Laid out as the published one: id 0 unknown, 1 and 2 control, 3 padding, pieces for single bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )
    return TextTokenizer(model.getvalue())


def test_a_sentence_comes_back_from_its_tokens(tokenizer: TextTokenizer) -> None:
    for sentence in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(sentence)).strip() == sentence


def test_a_piece_that_starts_a_word_brings_its_space(tokenizer: TextTokenizer) -> None:
    pieces = [tokenizer.piece(token) for token in tokenizer.encode("good morning")]
    assert "".join(pieces) == " good morning"


@pytest.mark.parametrize("token", [0, 1, 2, 3, -1, -2, 100_000])
def test_padding_control_and_foreign_tokens_print_nothing(tokenizer: TextTokenizer, token: int) -> None:
    assert tokenizer.piece(token) == ""
    assert tokenizer.stream().push(token) == ""
    assert tokenizer.piece(tokenizer.size) == ""


def test_a_character_in_bytes_appears_once_it_is_whole(tokenizer: TextTokenizer) -> None:
    stream = tokenizer.stream()
    tokens = [token for token in tokenizer.encode("€") if tokenizer.piece(token) != " "]
    shown = [stream.push(token) for token in tokens]
    assert shown == ["", "", "€"], f"tokens {tokens} showed {shown}"


def test_padding_between_the_bytes_of_a_character_is_passed_over(tokenizer: TextTokenizer) -> None:
    tokens = [token for token in tokenizer.encode("é") if tokenizer.piece(token) != " "]
    padded = [t for token in tokens for t in (token, 3, 0)]
    assert tokenizer.decode(padded) == "é"


def test_a_character_cut_short_is_marked_and_hides_nothing_behind_it(tokenizer: TextTokenizer) -> None:
    stream = tokenizer.stream()
    first, *_ = [token for token in tokenizer.encode("€") if tokenizer.piece(token) != " "]
    word = tokenizer.encode("good")
    text = "".join(stream.push(token) for token in [first, *word])
    assert text == "\ufffd good"
    stream.push(first)
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_that_are_never_utf8_do_not_hold_up_the_stream(tokenizer: TextTokenizer) -> None:
    stream = tokenizer.stream()
    byte_tokens = {tokenizer._byte(token): token for token in range(tokenizer.size)}
    shown = [stream.push(byte_tokens[byte]) for byte in (0xFF, 0xC3, 0xC3, 0xA9)]
    assert shown == ["\ufffd", "", "\ufffd", "é"]


def test_a_copied_stream_goes_its_own_way(tokenizer: TextTokenizer) -> None:
    first, *rest = [token for token in tokenizer.encode("é") if tokenizer.piece(token) != " "]
    stream = tokenizer.stream()
    stream.push(first)
    copy = stream.copy()
    assert [copy.push(token) for token in rest] == ["é"]
    assert stream.flush() == "\ufffd"


def test_a_missing_or_foreign_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no-such\.model"):
        TextTokenizer(tmp_path / "no-such.model")
    foreign = tmp_path / "foreign.model"
    foreign.write_bytes(b"RIFF this is something else")
    with pytest.raises(CheckpointError, match=r"foreign\.model is not a sentencepiece model"):
        TextTokenizer(foreign)
    empty = tmp_path / "empty.model"
    empty.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.model is not a sentencepiece model"):
        TextTokenizer(empty)


def test_a_tokenizer_is_read_from_a_file(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.proto)
    assert TextTokenizer(path).encode("hello") == tokenizer.encode("hello")
