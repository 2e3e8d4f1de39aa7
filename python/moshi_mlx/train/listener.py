"""A language model as a listener, to whom the encoder of its codec learns to make itself understood.

The listener stays as it is. It hears a question in the codes that the encoder gives now, and what it would answer is
compared with what the script answers: its text stream, from the question's start to the answer's first words, and the
codes with which the answer's sound begins, which tell a word before its text does. The gradients go
through the choice of a codeword as if its embedding were the mean of all embeddings, weighted by how near their
codewords are (the straight-through estimator of Bengio et al. 2013 on a softmax of the distances).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint import resolve
from ..errors import ConfigError
from ..fast_math import cross_entropy
from ..generation import LMGen
from ..lm.model import ZERO_TOKEN
from ..text import PADDING_TOKENS, TextTokenizer
from .config import Config
from .conversation import Answer
from .corpus import Utterance
from .lm import akin, hears, unpacked
from .loss import Arrays, delayed
from .script import OUT_OF_DOMAIN, Script

_PADDING = PADDING_TOKENS[1]
_BEFORE = 14
"""Frames of silence before a question: right after its start a model may be less sure that it should answer."""
_BEHIND = 16
"""Frames after a question, in which the answer begins."""
_ANSWER = 32
"""Frames after a question in which its answer is waited for."""
_TOLD = 14
"""Letters of an answer that tell it from all others."""
_ONSET = 6
"""Frames at an answer's beginning of which the codes count."""
_TAIL = 2
"""Frames of an utterance after its speech that are heard."""
_NEARNESS = 0.1
"""Of a softmax over the codewords' squared distances, relative to their mean between latents and what they found."""


@dataclass(frozen=True)
class Hearing(Arrays):
    """What the listener hears of some lessons, and what it should answer; T frames each.

    Attributes:
        lessons: their numbers in the batch, int32 [L].
        inputs: int32 [L, 1 + n_q, T], delays applied; nothing of the user where a lesson is heard.
        sources: which frame of its lesson a step hears, int32 [L, T]; one beyond the last where none.
        text: int32 [L, T], what each step's text should be.
        counts: float32 [L], 0 for a lesson that calls for no answer.
        onsets: the frames in which answers begin, int32 [L, O].
        depth_inputs: the depth transformer's input in those frames, int32 [L, O, dep_q].
        depth_targets: what it should say in them, int32 [L, O, dep_q], -1 where nothing is to be said.
    """

    lessons: mx.array
    inputs: mx.array
    sources: mx.array
    text: mx.array
    counts: mx.array
    onsets: mx.array
    depth_inputs: mx.array
    depth_targets: mx.array


@dataclass(frozen=True)
class Reply:
    """What the listener would answer, as logits.

    Attributes:
        text: of the text stream, [L, T, text_card].
        audio: of the codes at the answers' beginnings, [L, O, dep_q, card].
    """

    text: mx.array
    audio: mx.array


class Listener:
    """A language model that hears and isn't trained.

    Args:
        folder: the model, a checkpoint in the published layout.
        config: the run; its codec is the model's.
        utterances: the corpus, with Moshi's answers.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the model is of another codec, or the corpus lacks answers.
    """

    def __init__(self, folder: str | Path, config: Config, utterances: Sequence[Utterance]):
        files = resolve(str(folder), parts=["lm", "mimi", "tokenizer"])
        self.model = unpacked(files)
        self.config, self.mix = self.model.config, config.mix
        self.sharpness = config.train.sharpness
        codec = files.need("mimi")
        if not akin(codec, config.codec)[0]:
            raise ConfigError(f"The listener {folder} knows other codes than those of {config.codec}.")
        self.tokenizer = TextTokenizer(files.need("tokenizer"))
        script = Script.load(config.script)
        spoken = [u for u in utterances if u.group == "answers"]
        self.answers = {u.text: Answer(u, self.tokenizer, self.config.dep_q) for u in spoken}
        self.called = {("intents", intent.name): intent.answers for intent in script.intents.values()}
        self.called[OUT_OF_DOMAIN, OUT_OF_DOMAIN] = script.out_of_domain.answers
        lacking = {text for texts in self.called.values() for text in texts} - self.answers.keys()
        if lacking:
            raise ConfigError(f"The corpus lacks Moshi's answer {min(lacking)!r}: render its first file.")
        backgrounds = [u.codes[0, 20:].astype(np.int32) for u in utterances if u.group == "backgrounds"]
        self.silence = next(iter(self.answers.values())).codes[:, -1].astype(np.int32)
        self.backgrounds = backgrounds or [self.silence[:1]]
        entries = self.config.card + 1
        first = self.config.dep_q * entries
        tables = self.model.audio_emb.weight
        if any(hears(tables, k, entries) for k in range(self.config.dep_q + 1, self.config.n_q)):
            raise ConfigError(
                f"{folder} hears more of the user than the semantic codes, which are taught: name another."
            )
        # A copy: a compiled step may refer to nothing that is still to be computed.
        self.embeddings = mx.array(tables[first : first + entries - 1])
        mx.eval(self.model.parameters(), self.embeddings)

    def answers_to(self, utterance: Utterance) -> tuple[str, ...]:
        """What may be answered to an utterance; nothing where that depends on what was said before."""
        return self.called.get((utterance.group, utterance.name), ())

    def hearing(
        self, lessons: Sequence[tuple[int, int, int, Sequence[str]]], frames: int, rng: random.Random
    ) -> Hearing:
        """Put lessons between silence and answers.

        Args:
            lessons: of each its number in the batch, its frames, the frame after its speech, and its answers.
            frames: the most that a lesson of this batch can have.
            rng: chooses answers, and when they begin.
        """
        dialogues = [self._dialogue(length, end, answers, frames, rng) for _, length, end, answers in lessons]
        codes, sources, begins = (np.stack(x) for x in zip(*dialogues, strict=True))
        streams = delayed(codes, self.config)
        onsets = np.minimum(begins[:, None] + np.arange(_ONSET), codes.shape[2] - 1)
        said = streams[np.arange(len(codes))[:, None], : 1 + self.config.dep_q, 1 + onsets]
        # A step reads what was in the frame before.
        before = np.concatenate([np.full((len(lessons), 1), frames), sources[:, :-1]], axis=1)
        return Hearing(
            mx.array(np.array([number for number, _, _, _ in lessons], np.int32)),
            mx.array(streams[:, :, :-1]),
            mx.array(before.astype(np.int32)),
            mx.array(codes[:, 0]),
            mx.array(np.array([bool(answers) for _, _, _, answers in lessons], np.float32)),
            mx.array(onsets.astype(np.int32)),
            mx.array(said[:, :, :-1]),
            mx.array(np.where(said[:, :, 1:] == self.config.initial_token_id, ZERO_TOKEN, said[:, :, 1:])),
        )

    def _dialogue(
        self, length: int, end: int, answers: Sequence[str], frames: int, rng: random.Random
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """All streams [1 + n_q, T] of a question and its answer's start, which frame of the lesson is heard when, and
        the frame in which the answer begins.
        """
        begin = 0
        total = _BEFORE + frames + _BEHIND
        codes = np.full((1 + self.config.n_q, total), ZERO_TOKEN, np.int32)
        codes[0], codes[1 : 1 + self.config.dep_q] = _PADDING, self.silence[:, None]
        background = rng.choice(self.backgrounds)
        user, sources = codes[1 + self.config.dep_q], np.full(total, frames)
        user[:] = np.resize(background[rng.randrange(len(background)) :], total)
        heard = slice(_BEFORE, _BEFORE + min(length, end + _TAIL))
        user[heard], sources[heard] = ZERO_TOKEN, np.arange(heard.stop - heard.start)
        if answers:
            answer = self.answers[rng.choice(answers)]
            begin = _BEFORE + end + rng.randint(*self.mix.answer_gap) - 1
            spoken = min(total - begin, answer.codes.shape[1])
            codes[0, begin : begin + spoken] = answer.text[:spoken]
            codes[1 : 1 + self.config.dep_q, begin : begin + spoken] = answer.codes[:, :spoken]
        return codes, sources, begin

    def reply(self, hearing: Hearing, latents: mx.array, codes: mx.array, book: mx.array) -> Reply:
        """What the listener would answer.

        Args:
            hearing: of L lessons of F frames at most.
            latents: what was looked up in the codebook, [L, F, width].
            codes: what was found, int32 [L, F].
            book: the codebook, [bins, width].
        """
        likeness = latents @ book.T - 0.5 * book.square().sum(axis=1)
        apart = (latents - book[codes]).square().sum(axis=-1).mean()
        near = mx.softmax(likeness / mx.stop_gradient(_NEARNESS * apart), axis=-1) @ self.embeddings
        words = near + mx.stop_gradient(self.embeddings[codes] - near)
        words = mx.pad(words, [(0, 0), (0, 1), (0, 0)])
        x = self.model.embed(hearing.inputs) + mx.take_along_axis(words, hearing.sources[:, :, None], axis=1)
        hidden = self.model.out_norm(self.model.transformer(x, None))
        states = mx.take_along_axis(hidden, hearing.onsets[:, :, None], axis=1)
        L, onset, width = states.shape
        audio = self.model.depformer(states.reshape(-1, width), hearing.depth_inputs.reshape(L * onset, -1))
        return Reply(self.model.text_linear(hidden), audio.reshape(L, onset, *audio.shape[1:]))

    def losses(self, hearing: Hearing, reply: Reply) -> dict[str, mx.array]:
        """Mean cross-entropies of an answer's beginning (`answered`) and of a frame of padding (`waited`)."""
        # The model was exported sharper than it was trained.
        text = cross_entropy(reply.text / self.sharpness, hearing.text)
        audio = cross_entropy(reply.audio / self.sharpness, mx.maximum(hearing.depth_targets, 0))
        audio = (audio * (hearing.depth_targets >= 0)).mean(axis=2)
        counts = hearing.counts[:, None]
        words = (hearing.text != _PADDING).astype(mx.float32) * counts
        padding = (hearing.text == _PADDING).astype(mx.float32) * counts
        return {
            "answered": ((text * words).sum() + (audio * counts).sum()) / mx.maximum(counts.sum(), 1),
            "waited": (text * padding).sum() / mx.maximum(padding.sum(), 1),
        }

    def understands(self, lessons: Sequence[tuple[np.ndarray, Sequence[str]]], seed: int) -> list[bool]:
        """Whether each question gets one of its answers, as in a conversation, at the default temperatures.

        Args:
            lessons: the semantic codes of each, int [F], and its answers.
            seed: of the sampling, and of what is heard before and after.
        """
        rng = random.Random(seed)
        frames = _BEFORE + max(len(codes) for codes, _ in lessons) + _ANSWER
        user = np.full((len(lessons), frames, self.config.n_q - self.config.dep_q), ZERO_TOKEN, np.int32)
        for row, (codes, _) in zip(user, lessons, strict=True):
            background = rng.choice(self.backgrounds)
            row[:, 0] = np.resize(background[rng.randrange(len(background)) :], frames)
            row[_BEFORE : _BEFORE + len(codes), 0] = codes
        generator = LMGen(self.model, batch_size=len(lessons), seed=seed, compile=False)
        said: list[list[int]] = [[] for _ in lessons]
        for frame in range(frames):
            step = generator.step_result(mx.array(user[:, frame]))
            for tokens, token in zip(said, np.array(step.text_token).tolist(), strict=True):
                tokens.append(token)
        texts = [self.tokenizer.decode([t for t in tokens if t not in PADDING_TOKENS]).strip() for tokens in said]
        # A long answer is still being given at the end.
        return [
            any(answer.startswith(text) and len(text) >= min(len(answer), _TOLD) for answer in answers)
            for text, (_, answers) in zip(texts, lessons, strict=True)
        ]
