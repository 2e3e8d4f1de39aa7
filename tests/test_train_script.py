"""The script file that nano was trained on, and what makes a script."""

import dataclasses
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from train_corpus import CONFIG, SCRIPT

import moshi_mlx
from moshi_mlx.errors import ConfigError
from moshi_mlx.train.config import Config
from moshi_mlx.train.render import framed, plan
from moshi_mlx.train.script import Script, expand, normalize
from moshi_mlx.train.voices import Voice

pytest.importorskip("yaml", reason="the train extra isn't installed")

NANO = Path(moshi_mlx.__file__).parent / "nano"


@pytest.fixture(scope="module")
def script() -> Script:
    return Script.load(NANO / "script.yaml")


def test_the_script_has_enough_intents_wordings_and_short_answers(script: Script):
    assert len(script.intents) >= 120
    for intent in script.intents.values():
        assert len(intent.ask) >= 8, f"{intent.name} has {len(intent.ask)} wordings"
        assert len(intent.held_out) >= 2, f"{intent.name} has {len(intent.held_out)} held-out wordings"
        assert 1 <= len(intent.answers) <= 3, f"{intent.name} has {len(intent.answers)} answers"


def test_no_answer_belongs_to_two_intents(script: Script):
    seen: dict[str, str] = {}
    for intent in (*script.intents.values(), script.out_of_domain):
        for answer in intent.answers:
            words = normalize(answer)
            assert words not in seen, f"{answer!r} is said by {intent.name} and {seen[words]}"
            seen[words] = intent.name


def test_held_out_wordings_are_never_trained_on(script: Script):
    trained = {normalize(text) for _, i in script.wordings() for line in i.learned for text in expand(line)}
    for _, intent in script.wordings():
        held_out = {normalize(text) for line in intent.held_out for text in expand(line)}
        assert not held_out & trained, f"{intent.name}: {sorted(held_out & trained)}"


def test_openers_and_closers_make_no_held_out_wording(script: Script):
    assert "oh hello" in script.held_out
    oh = dataclasses.replace(script, openers=("oh",), closers=())
    assert framed("hello", oh, random.Random(0), 1.0) == "hello"
    assert framed("hello Moshi", oh, random.Random(0), 1.0) == "oh hello Moshi"


def test_no_wording_asks_for_two_things(script: Script):
    owner: dict[str, str] = {}
    for _, intent in script.wordings():
        for text in {normalize(t) for line in (*intent.learned, *intent.held_out) for t in expand(line)}:
            assert owner.setdefault(text, intent.name) == intent.name, f"{text!r}: {intent.name} and {owner[text]}"


def test_choices_and_options_expand_to_every_text():
    assert expand("(good|fine) day [to you]") == ["good day to you", "good day", "fine day to you", "fine day"]
    assert expand("plain words") == ["plain words"]


def edited(folder: Path, name: str, before: str, after: str) -> Path:
    """A copy of one of nano's files with something in it replaced."""
    text = (NANO / name).read_text(encoding="utf-8")
    assert before in text
    (folder / name).write_text(text.replace(before, after), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("[]", "'stop' has no answers"),
        ("Okay.", "instead of a list"),
        ("[Yes]", "True, which is no text"),
    ],
)
def test_an_intent_without_answers_or_with_what_is_none_is_refused(tmp_path: Path, answers: str, said: str):
    with pytest.raises(ConfigError, match=said):
        Script.load(edited(tmp_path, "script.yaml", 'answers: ["Okay."]\n', f"answers: {answers}\n"))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("backchannels: [yes]", "'backchannels' of the script holds True, which is no text"),
        ("openers: [so, 3]", "'openers' of the script holds 3, which is no text"),
        ("closers: please", "'closers' of the script is 'please' instead of a list"),
        ("openers:", "'openers' of the script is None instead of a list"),
    ],
)
def test_what_is_said_beside_questions_is_a_list_of_texts(tmp_path: Path, written: str, said: str):
    path = tmp_path / "script.yaml"
    path.write_text(SCRIPT + written, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        Script.load(path)


@pytest.mark.parametrize("load", [Script.load, Config.load])
def test_a_file_in_other_letters_than_utf_8_is_refused(tmp_path: Path, load: Callable[[Path], object]):
    path = tmp_path / "file.yaml"
    path.write_bytes("data: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"file\.yaml can't be read"):
        load(path)


def test_other_authors_wordings_are_learned_and_kept_apart(script: Script):
    hello = script.intents["hello"]
    assert hello.more and not set(hello.more) & set(hello.ask)
    assert set(hello.learned) == {*hello.more, *hello.ask}
    config = Config.load(NANO / "train.yaml").data
    planned = {job.wording for job in plan(script, config, seed=0) if job.name == "hello" and job.split == "train"}
    assert planned == set(hello.learned)


def test_a_file_that_is_no_script_is_refused(tmp_path: Path):
    path = tmp_path / "script.yaml"
    path.write_text("intents: {hello: {ask: hi}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="no script"):
        Script.load(path)


@pytest.mark.parametrize(("engine", "command"), [("espeak", "espeak-ng"), ("flite", "flite")])
def test_nanos_held_out_voices_sound_like_none_that_it_learns_from(engine: str, command: str):
    data = Config.load(NANO / "train.yaml").data
    assert set(data.held_out_voices).isdisjoint(data.voices)
    if not shutil.which(command):
        pytest.skip(f"needs {command}")

    def said(names: Sequence[str]) -> set[bytes]:
        voices = [Voice.parse(name) for name in set(names) if name.startswith(f"{engine}:")]
        return {voice.say("what is your name", random.Random(0)).tobytes() for voice in voices}

    assert said(data.held_out_voices) and said(data.held_out_voices).isdisjoint(said(data.voices))


def test_nanos_configuration_is_readable_and_a_typing_mistake_is_named(tmp_path: Path):
    Config.load(NANO / "train.yaml")
    with pytest.raises(ConfigError, match="unknown bacth"):
        Config.load(edited(tmp_path, "train.yaml", "batch:", "bacth:"))


def test_a_voice_with_a_number_is_as_many_times_as_frequent(tmp_path: Path):
    path = edited(tmp_path, "train.yaml", "flite:slt: 5", "flite:slt: 2")
    assert Config.load(NANO / "train.yaml").data.voices.count("flite:slt") == 5
    voices = Config.load(path).data.voices
    assert voices.count("flite:slt") == 2 and voices.count("flite:rms") == 5 and voices.count("espeak:en-us") == 1
    with pytest.raises(ConfigError, match=r"train\.yaml for a configuration"):
        Config.load(edited(tmp_path, "train.yaml", "flite:slt: 5", "flite:slt: often"))


def test_an_intent_that_nothing_asks_for_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "script.yaml"
    path.write_text(SCRIPT.replace("ask: and yours,", "ask: '',"), encoding="utf-8")
    with pytest.raises(ConfigError, match="'yours' has no wordings"):
        Script.load(path)


def test_a_number_that_yaml_takes_for_a_text_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="'rate: 5e-4' is no number"):
        Config.load(edited(tmp_path, "train.yaml", "rate: 5.0e-4", "rate: 5e-4"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("held_out_voices: [espeak:none]", "held_out_voices: []", r"'held_out_voices: \(\)' is no list of one or more"),
        ("voices: [flite:none]", "voices: flite:none", "'voices: flite:none' is no list"),
        ("voice: piper:none", "voice: 3", "'voice: 3' is no text"),
        ("frames: 120", "answer_gap: [4]", "is no list of 2"),
        ("mix: {frames: 120, window: 60}", "mix: [frames]", "where names and their values should"),
        ("steps: 40", "weights: {text: 1e-1}", "'text: 1e-1' is no number"),
        ("steps: 40", "weights: {sematic: 3}", "unknown sematic .known: .* semantic, "),
        ("steps: 40", "weights: 3", "'weights: 3' is no table"),
        ("train: ", "codec_training: {parts: decodr}\ntrain: ", "'parts: decodr' is none of decoder, all"),
        ("dep_q: 8", "", "'model' has no whole numbers"),
        ("model:", "model: null\nhearing:", "'model' has no whole numbers"),
        ("model:", "trian: {}\nmodel:", r"unknown trian .known: .* semantic_training, train, work"),
        ("save: 20", "save: 0", "'save: 0' is less than one"),
        ("evaluate: 1000", "evaluate: 0", "'evaluate: 0' is less than one"),
    ],
)
def test_what_a_configuration_cannot_say_is_named(tmp_path: Path, before: str, after: str, said: str):
    path = tmp_path / "train.yaml"
    assert before in CONFIG
    path.write_text(CONFIG.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        Config.load(path)
