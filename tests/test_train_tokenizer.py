"""The text tokenizer: any text can be written with it, and how each answer begins is one piece."""

from dataclasses import replace
from pathlib import Path

import pytest
from train_corpus import make_corpus

from moshi_mlx.errors import ConfigError
from moshi_mlx.text import TextTokenizer
from moshi_mlx.train.config import Config
from moshi_mlx.train.script import Intent, Script
from moshi_mlx.train.tokenizer import openings, train_tokenizer


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script.load(Config.load(make_corpus(tmp_path_factory.mktemp("corpus"))).script)


def test_an_opening_is_as_long_as_it_must_be():
    answers = ["I never sleep.", "I never eat.", "Yes.", "I am here.", "I am", "Yes, of course."]
    assert openings(answers) == ["I never sleep.", "I never eat.", "Yes.", "I am here.", "I am", "Yes,"]


def test_every_opening_is_a_piece_and_any_text_can_be_written(script: Script, tmp_path: Path):
    train_tokenizer(script, 400, tmp_path / "tokenizer.model")
    tokenizer = TextTokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.size <= 400
    assert (tmp_path / "tokenizer.model").stat().st_size < 50_000, "nothing but the pieces is shipped"
    for opening in openings(script.answers):
        (token,) = tokenizer.encode(opening)
        assert tokenizer.piece(token) == " " + opening
    for text in [*script.answers, "Zwölf Boxkämpfer jagen Viktor, quer!"]:
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text


def test_more_answers_than_pieces_to_spare_are_refused(script: Script, tmp_path: Path):
    intents = {f"{n}": Intent(f"{n}", (f"say {n}",), (), (f"Say number {n} now.",)) for n in range(200)}
    crowded = replace(script, intents=intents)
    with pytest.raises(ConfigError, match="too few pieces to spare"):
        train_tokenizer(crowded, 330, tmp_path / "tokenizer.model")
