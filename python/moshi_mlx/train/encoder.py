"""Teaching the encoder to hear better: `python -m moshi_mlx.train codec CONFIG --parts encoder --lm FOLDER`.

Codebooks, convolutions and decoder stay as they are, and with them what every code means: a language model that was
trained with the codec stays valid. There are two teachers. One is the codec as it was, given the same sound before a
throat, a microphone, a room or noise changed it: that sound's codes are to be found in the changed one, too (as with
HuBERT's targets in ContentVec, Qian et al. 2022, section 3.2). The other one is the language model: what is found must
lead it to the right answer, whoever asks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import LMConfig, MimiConfig
from ..errors import ConfigError
from ..fast_math import cross_entropy
from ..lm.model import ZERO_TOKEN
from ..mimi.quantizer import codebook
from ..text import PADDING_TOKENS, TextTokenizer
from .codec import CodecRun, Tensors
from .config import Config
from .conversation import PADDING, Conversation, Mixer, cut, is_word
from .corpus import Utterance, convolutions_of, read_features, read_shard, shards_with_features
from .lm import unsharpened
from .loss import delayed
from .script import Script
from .semantic import encode

_LEARNS = ("encoder_transformer.", "downsample.", "quantizer.rvq_first.input_proj.")
_BEFORE = 36
"""Frames of a stream that only the encoder hears, before those that the language model hears, too."""
_HEARD = 44
_WARMTH = 0.25
"""Of the choice among codewords, as a share of how far sounds are from theirs at first."""
_ANSWERED = 24


@dataclass(frozen=True)
class Lessons:
    """Questions at the end of streams.

    Attributes:
        streams: what the convolutions made of them, [B, 2 F, C].
        codes: semantic codes of the same undisturbed, int32 [B, F].
        weights: how much each frame counts, [B, F].
        inputs: what the language model reads at the last T frames, delays applied, the user's semantic codes left out,
            int32 [B, 1 + n_q, T].
        text: int32 [B, T], what it should say.
        words: 1 where that is something, [B, T].
    """

    streams: mx.array
    codes: mx.array
    weights: mx.array
    inputs: mx.array
    text: mx.array
    words: mx.array


class EncoderTrainer(CodecRun[Lessons, None]):
    """One run of teaching the encoder.

    Args:
        config: the run.
        lm: folder of a language model that was trained with the codec.

    Raises:
        CheckpointError: no codec or no language model there.
        ConfigError: no corpus, or one without the convolutions' output.
    """

    def __init__(self, config: Config, lm: Path):
        super().__init__(config, config.encoder_training, "encoder")
        self.lm_config = LMConfig.from_dict(config.model)
        self.lm = unsharpened(lm, self.lm_config, config.train.sharpness)
        tokenizer = TextTokenizer(config.work / "tokenizer.model")
        self.start = {**self.fixed, **self.free}
        self.book = codebook(self.start, "rvq_first", 0)
        utterances = self._utterances()
        mix = replace(config.mix, near_codes=0.0, wrong_codes=0.0, user_codebooks=1)
        script = Script.load(config.script)
        self.mixers = {
            split: Mixer(script, utterances, tokenizer, mix, split) for split in ("train", "known", "held_out")
        }
        sample = np.concatenate([u.convolved for u in utterances[::17] if u.convolved is not None])
        self.spread = sample.astype(np.float32).std(axis=0)

    def _utterances(self) -> list[Utterance]:
        """The corpus, its semantic codes those of the undisturbed sounds."""
        shards, convolutions = shards_with_features(self.config.work), convolutions_of(self.config.codec)
        result, distances = [], []
        for path, beside in shards:
            utterances, features = list(read_shard(path)), read_features(beside, convolutions)
            order = sorted(range(len(features)), key=lambda i: len(features[i].plain))
            for first in range(0, len(order), 32):
                chosen = order[first : first + 32]
                steps = len(features[chosen[-1]].plain)
                x = np.stack([np.pad(features[i].plain, ((0, steps - len(features[i].plain)), (0, 0))) for i in chosen])
                found = encode(self.start, self.shape, mx.array(x.astype(np.float32)))
                distances.append(float(np.array((found.semantic - found.words).square().sum(axis=-1).mean())))
                for i, row in zip(chosen, np.array(found.codes), strict=True):
                    codes = utterances[i].codes.copy()
                    codes[0] = row[: codes.shape[1]]
                    utterances[i] = replace(utterances[i], codes=codes, convolved=features[i].convolved)
            result += utterances
        self.warmth = _WARMTH * float(np.mean(distances))
        return result

    def learns(self, name: str) -> bool:
        """Whether a tensor of the codec is trained."""
        return name.startswith(_LEARNS)

    def batch(self, step: int) -> Lessons:
        """The lessons of a step, always the same for a step."""
        seed = f"{self.config.train.seed}/{step}/{self.processes.rank}"
        draws = np.random.default_rng([self.config.train.seed, step, self.processes.rank])
        talks = [self._talk("train", f"{seed}/{i}") for i in range(self.settings.batch)]
        return self._stack(talks, draws)

    def _talk(self, split: str, seed: str) -> Conversation:
        return self.mixers[split].drill(random.Random(seed), _BEFORE + _HEARD, after=_ANSWERED)

    def _stack(self, talks: Sequence[Conversation], draws: np.random.Generator | None) -> Lessons:
        streams = []
        for talk in talks:
            if talk.sound is None:
                raise ConfigError("The corpus has no backgrounds: set 'backgrounds' under 'data' and make it anew.")
            x = talk.sound.astype(np.float32)
            if draws is not None:
                x = x + self.spread * draws.normal(0, draws.uniform(0, 0.15), x.shape[1])
                x = x + self.spread * draws.normal(0, draws.uniform(0, 0.2), x.shape)
            streams.append(x)
        heard = [cut(talk, _BEFORE, _HEARD) for talk in talks]
        codes = np.stack([talk.codes for talk in heard])
        codes[:, self._ear] = ZERO_TOKEN
        text = codes[:, 0]
        weights = np.stack([np.where(talk.heard > 0, 1.0, 0.3) for talk in talks])
        return Lessons(
            mx.array(np.stack(streams).astype(np.float32)),
            mx.array(np.stack([talk.user[0] for talk in talks])),
            mx.array(weights.astype(np.float32)),
            mx.array(delayed(codes, self.lm_config)[:, :, :-1]),
            mx.array(text),
            mx.array((text != PADDING).astype(np.float32)),
        )

    @property
    def _ear(self) -> int:
        """The stream of the user's semantic codes."""
        return 1 + self.lm_config.dep_q

    def losses(self, free: Tensors, batch: Lessons) -> tuple[mx.array, None, dict[str, mx.array]]:
        """How far the codes are from the undisturbed sound's, and the language model's losses on what it hears."""
        logits = self._choice({**self.fixed, **free}, self.shape, batch.streams)
        codes = (cross_entropy(logits, batch.codes) * batch.weights).sum() / batch.weights.sum()
        chosen = mx.softmax(logits[:, _BEFORE:], axis=-1)
        # What is heard is the likeliest codeword, what is learned from is the choice.
        hard = (mx.argmax(chosen, axis=-1)[:, :, None] == mx.arange(self.shape.bins)).astype(mx.float32)
        text = cross_entropy(self._answer(batch, chosen + mx.stop_gradient(hard - chosen)), batch.text)
        words = (text * batch.words).sum() / mx.maximum(batch.words.sum(), 1)
        padding = (text * (1 - batch.words)).sum() / (1 - batch.words).sum()
        # Their gradients are then about as large.
        return 0.25 * codes + 2 * words + padding, None, {"codes": codes, "words": words, "padding": padding}

    def _choice(self, tensors: Tensors, shape: MimiConfig, streams: mx.array) -> mx.array:
        """Logits [B, F, bins] of the semantic codewords."""
        semantic = encode(tensors, shape, streams).semantic
        return (2 * semantic @ self.book.T - self.book.square().sum(axis=1)) / self.warmth

    def _answer(self, batch: Lessons, chosen: mx.array) -> mx.array:
        """The language model's text logits [B, T, text_card], the user's semantic codes `chosen` [B, T, bins]."""
        config, lm = self.lm_config, self.lm
        first = config.dep_q * (config.card + 1)
        vectors = chosen @ lm.audio_emb.weight[first : first + self.shape.bins]
        late = 1 + config.delays[self._ear]
        x = lm.embed(batch.inputs) + mx.pad(vectors[:, :-late], [(0, 0), (late, 0), (0, 0)])
        logits: mx.array = lm.text_linear(lm.out_norm(lm.transformer(x, None)))
        return logits

    def move_codebooks(self, passed: None, batch: Lessons) -> None:
        """They stay."""

    def evaluate(self) -> dict[str, float]:
        """For held-out voices: the share of frames with the undisturbed sound's codes, and of answers begun right."""
        result: dict[str, float] = {}
        for split in ("known", "held_out"):
            same: list[bool] = []
            right: list[bool] = []
            for first in range(0, 160, 32):
                talks = [self._talk(split, f"{split}/{i}") for i in range(first, first + 32)]
                batch = self._stack(talks, None)
                logits = self._choice({**self.fixed, **self.free}, self.shape, batch.streams)
                codes = mx.argmax(logits, axis=-1)
                spoken = np.stack([talk.heard > 0 for talk in talks])
                same += (np.array(codes) == np.array(batch.codes))[spoken].tolist()
                hard = (codes[:, _BEFORE:, None] == mx.arange(self.shape.bins)).astype(mx.float32)
                found = np.array(self._answer(batch, hard))
                found[..., list(PADDING_TOKENS)] = -np.inf
                text = np.array(batch.text)
                for row, wanted in zip(found, text, strict=True):
                    words = np.flatnonzero(is_word(wanted))[:4]
                    right.append(bool((row[words].argmax(axis=-1) == wanted[words]).all()))
            result |= {f"{split} codes": float(np.mean(same)), f"{split} answers": float(np.mean(right))}
        return result
