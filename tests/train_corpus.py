"""A small corpus made without synthesizers: every word has its own codes, the same in every rendering."""

import dataclasses
import io
import json
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
from rich.console import Console

import moshi_mlx
from moshi_mlx.train.config import Config
from moshi_mlx.train.corpus import Utterance, codec_tensors, write_shard
from moshi_mlx.train.data import prepare
from moshi_mlx.train.lm import Trainer
from moshi_mlx.train.progress import Progress
from moshi_mlx.train.render import ANSWER_LEAD, ANSWER_TAIL
from moshi_mlx.train.script import Script, expand
from moshi_mlx.train.tokenizer import train_tokenizer

NANO = Path(moshi_mlx.__file__).parent / "nano"

SCRIPT = """
intents:
  name:
    ask: |
      what is your name
      who are you
    held_out: tell me your name
    answers: ["My name is Moshi."]
    yours: name
  color:
    ask: |
      which color do you like
      what is your favorite color
    held_out: name your favorite color
    answers: ["I like a very deep red best of all."]
    yours: color
  number:
    ask: |
      name a number
      say a number
    held_out: give me a number
    answers: ["Twenty seven.", "Ninety one."]
    another: true
follow_ups:
  yours: {ask: and yours, held_out: and you}
  again: {ask: say that again, held_out: repeat that}
  another: {ask: another one, held_out: one more}
backchannels: ["mm-hm"]
out_of_domain:
  answers: ["I am a very small model."]
  ask: who wrote (Hamlet|this)
  held_out: who painted this
"""

CONFIG = f"""
script: script.yaml
codec: {NANO / "codec"}
work: .
data:
  voice: piper:none
  voices: [flite:none]
  held_out_voices: [espeak:none]
mix: {{frames: 120, window: 60}}
train: {{steps: 40, batch: 2, rate: 3.0e-3, warmup: 5, depth_frames: 24, evaluate: 1000, save: 20}}
model:
  dim: 64
  num_heads: 4
  num_layers: 2
  n_q: 16
  dep_q: 8
  card: 512
  text_card: 400
  delays: [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
  context: 60
  depformer_dim: 32
  depformer_num_heads: 4
  depformer_num_layers: 1
  depformer_dim_feedforward: 96
"""

FRAMES_PER_WORD = 4


def word_codes(word: str, draws: int = 0) -> np.ndarray:
    """A word's codes [8, 4], always the same."""
    generator = np.random.default_rng([zlib.crc32(word.lower().encode()), draws])
    return generator.integers(0, 512, (8, FRAMES_PER_WORD)).astype(np.int16)


def utterance(text: str, group: str, name: str, split: str, lead: int = 2, tail: int = 3) -> Utterance:
    """A text as codes, silence (code 7) around it."""
    words = text.split()
    silence = np.full((8, 1), 7, np.int16)
    codes = np.concatenate([*[silence] * lead, *(word_codes(w) for w in words), *[silence] * tail], axis=1)
    starts = [0.08 * (lead + FRAMES_PER_WORD * i) for i in range(len(words))]
    end = 0.08 * (lead + FRAMES_PER_WORD * len(words))
    return Utterance(codes, group, name, text, "nobody", split, starts[0], end, tuple(zip(words, starts, strict=True)))


def altered_codec(folder: Path, name: str, change: Callable[[mx.array], mx.array]) -> Path:
    """A copy of nano's codec, in `folder`, with one tensor changed."""
    shutil.copytree(NANO / "codec", folder)
    tensors = codec_tensors(NANO / "codec")
    mx.save_safetensors(str(folder / "model.safetensors"), {**tensors, name: change(tensors[name])})
    return folder


def spoken_corpus(folder: Path, **data: object) -> Config:
    """A corpus in espeak-ng's voices, with features; returns its configuration."""
    config = Config.load(make_corpus(folder))
    shutil.rmtree(folder / "corpus")
    voices = {"voice": "espeak:en-us", "voices": ("espeak:en-us+f3",), "held_out_voices": ("espeak:en-gb",)}
    settings = dataclasses.replace(config.data, **voices, backgrounds=1, shard=64, features=True, **data)
    config = dataclasses.replace(config, data=settings)
    prepare(config)
    return config


def make_corpus(folder: Path) -> Path:
    """Write script, configuration, tokenizer and corpus into a folder; returns the configuration's path."""
    (folder / "script.yaml").write_text(SCRIPT, encoding="utf-8")
    (folder / "train.yaml").write_text(CONFIG, encoding="utf-8")
    script = Script.load(folder / "script.yaml")
    train_tokenizer(script, 400, folder / "tokenizer.model")
    utterances = [utterance(a, "answers", a, "train", ANSWER_LEAD, ANSWER_TAIL) for a in script.answers]
    for group, intent in script.wordings():
        for split, lines in (("train", intent.ask), ("known", intent.ask), ("held_out", intent.held_out)):
            utterances += [utterance(t, group, intent.name, split) for line in lines for t in expand(line)]
    utterances += [utterance(t, "backchannels", t, "train") for t in script.backchannels]
    silence = np.full((8, 100), 7, np.int16)
    utterances.append(Utterance(silence, "backgrounds", "silence", "", "", "train", 0.0, 0.0, ()))
    (folder / "corpus").mkdir()
    write_shard(folder / "corpus" / "00000.npz", utterances)
    return folder / "train.yaml"


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file can become longer than `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def quietly(trainer: Trainer, steps: int | None = None) -> list[dict[str, float]]:
    """Run a training without a screen; returns what it logged, scores aside."""
    config = trainer.config
    with Progress(config.work, config.train.steps, Console(file=io.StringIO()), every=5) as progress:
        trainer.run(progress, steps)
    lines = (config.work / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "scores" not in entry]
