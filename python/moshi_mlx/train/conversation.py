"""Conversations of two channels of codes, made of rendered utterances while training.

A conversation is drawn turn by turn: a question, an answer a moment later, perhaps an interruption or a "mm-hm" in
between, a reference to the turn before, or silence.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ..config import FRAME_RATE
from ..lm.model import ZERO_TOKEN
from ..text import PADDING_TOKENS, TextTokenizer
from .config import MixConfig
from .corpus import Utterance
from .render import ANSWER_LEAD
from .script import OUT_OF_DOMAIN, Intent, Script

END_OF_PADDING, PADDING = PADDING_TOKENS

# A heard word is asked for this many frames after it began: what is being said must be heard before it is known.
HEARD_LAG = 3

# From the start of a word to that of the next, in seconds, where there may be a pause between them; frames from the
# word's start after which training insists on silence.
_LONG_WORD = 0.8
_WORD = 5

# Frames of a pause that is put into an utterance.
_PAUSES = (6, 14)

# Frames after an interruption on whose silence training insists.
_STOPPING = 3

# Frames before a drill's question.
_LEAD = (1, 32)

# Frames of an exchange before its last question.
_BEFORE = (36, 60)

# Frames of an answer's first sound that count as its onset.
ONSET = 3

# How much later than it should Moshi falls silent where it learns to do so late, in frames.
_LATE = (1, 8)

# How long Moshi goes on with sounds after an answer where it learns to fall silent then, in frames.
_OVERRUN = (2, 10)


@dataclass
class Conversation:
    """One training example of T frames.

    Attributes:
        text: Moshi's text stream, int32 [T].
        moshi: Moshi's codes, int32 [K, T].
        user: the user's, int32 [L, T]; -1 where not given to the model.
        heard: number of the user's word being heard, int32 [T], 0 for none.
        asked: number of the answer that the question calls for, int32 [T], from the question's end to the answer's
            first sound; 0 elsewhere.
        speaking: whether Moshi speaks, bool [T].
        stopping: the frames in which Moshi falls silent because the user interrupts, bool [T].
        minded: the frames in which it matters that Moshi goes on as it does, bool [T]: silent in the middle of what the
            user says, speaking through a "mm-hm".
        onsets: the first frames in which an answer sounds, bool [T]: before its words do, the codes there tell which
            answer it will be.
        overdue: the frames in which Moshi is still silent though it should have answered, bool [T]: that it begins is
            to be learned in each of them.
        wrong: frames that are as they should not be, bool [T]: Moshi still speaks though it should have fallen silent,
            or begins an answer to something else. What follows is to be learned, they themselves are not.
        turns: what was asked and when: (frame of the question's end, intent, expected answer).
        openings: frames in which both are silent and a question follows that needs nothing said before.
    """

    text: np.ndarray
    moshi: np.ndarray
    user: np.ndarray
    heard: np.ndarray
    asked: np.ndarray
    speaking: np.ndarray
    stopping: np.ndarray
    minded: np.ndarray
    onsets: np.ndarray
    overdue: np.ndarray
    wrong: np.ndarray
    turns: list[tuple[int, str, str]]
    openings: list[int]

    @property
    def codes(self) -> np.ndarray:
        """All streams as the model takes them, int32 [1 + K + L, T]."""
        return np.concatenate([self.text[None], self.moshi, self.user])

    @property
    def wanted(self) -> np.ndarray:
        """What is to be learned of Moshi's text stream where it isn't wrong, int32 [T]."""
        return np.where(self.overdue, END_OF_PADDING, self.text).astype(np.int32)


class Answer:
    """One of Moshi's answers: its first `codebooks` codes and where its text tokens stand."""

    def __init__(self, utterance: Utterance, tokenizer: TextTokenizer, codebooks: int):
        first = ANSWER_LEAD - 1
        self.codes = utterance.codes[:codebooks, first:].astype(np.int32)
        self.text = place_words(utterance, tokenizer, self.codes.shape[1], first)
        self.speech_end = utterance.end_frame - first

    @property
    def tokens(self) -> np.ndarray:
        """The frames that hold a word's token, int64 [n]."""
        return np.flatnonzero(is_word(self.text))


def is_word(text: np.ndarray) -> np.ndarray:
    """Where a text stream holds words' tokens, bool of its shape."""
    return np.isin(text, PADDING_TOKENS, invert=True)


def place_words(utterance: Utterance, tokenizer: TextTokenizer, frames: int, first: int) -> np.ndarray:
    """The text stream of an utterance: each word's tokens from the frame in which it starts, a mark before it.

    Words whose tokens need more frames than they last push the following ones back. First words that are one piece
    (`moshi_mlx.train.tokenizer`) come with the first of them.

    Returns:
        int32 [frames].
    """
    text = np.full(frames, PADDING, dtype=np.int32)
    position = 0
    for word, start in _together(utterance.words, tokenizer):
        tokens = tokenizer.encode(word)
        position = max(position, round(start * FRAME_RATE) - first)
        if 0 < position <= frames and text[position - 1] == PADDING:
            text[position - 1] = END_OF_PADDING
        for token in tokens:
            if position < frames:
                text[position] = token
            position += 1
    return text


def _together(words: Sequence[tuple[str, float]], tokenizer: TextTokenizer) -> list[tuple[str, float]]:
    """Words and when each starts, the first ones joined as far as they are one piece."""
    for count in range(len(words), 1, -1):
        opening = " ".join(word for word, _ in words[:count])
        if len(tokenizer.encode(opening)) == 1:
            return [(opening, words[0][1]), *words[count:]]
    return list(words)


class Mixer:
    """Draws conversations from a corpus.

    Args:
        script: what belongs to what.
        utterances: the corpus.
        tokenizer: of the text stream.
        config: how conversations go.
        split: of the user's utterances: `train`, `known` or `held_out`; only `train` is varied.
        neighbours: for every semantic code its nearest others in the codebook, int [bins, n], if codes are to be
            replaced by near ones.
        codebooks: how many Moshi speaks with.
    """

    def __init__(
        self,
        script: Script,
        utterances: Sequence[Utterance],
        tokenizer: TextTokenizer,
        config: MixConfig,
        split: str = "train",
        neighbours: np.ndarray | None = None,
        codebooks: int = 8,
    ):
        self.script = script
        self.config = config
        self.split = split
        self.neighbours = neighbours
        spoken = [u for u in utterances if u.group == "answers"]
        self.answers = {u.text: Answer(u, tokenizer, codebooks) for u in spoken}
        self.numbers = {text: number for number, text in enumerate(self.answers, 1)}
        self.known_from = known_from(self.answers)
        self.vocabulary = heard_vocabulary(script)
        self._said: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
        for u in utterances:
            if u.split == split or u.group in ("backchannels", "backgrounds", "echoes"):
                self._said[u.group, u.name].append(u)
        self._backgrounds = [u for (group, _), us in sorted(self._said.items()) if group == "backgrounds" for u in us]
        self._backchannels = [u for (group, _), us in sorted(self._said.items()) if group == "backchannels" for u in us]
        self._asked = [i for i in script.intents.values() if self._said["intents", i.name]]
        self._quiet = spoken[0].codes[:, -1:].astype(np.int32)
        self._silence = self._quiet[:codebooks, 0]

    @property
    def asks(self) -> bool:
        """Whether the corpus holds any question of this split."""
        return bool(self._asked)

    @property
    def silence(self) -> np.ndarray:
        """The codes of Moshi's silence, int32 [K]."""
        return self._silence

    def draw(self, rng: random.Random) -> Conversation:
        """A conversation of the configured length."""
        talk = self._begin(rng, self.config.frames, echo=rng.random() < self.config.echoes)
        position = rng.randint(1, 14)
        while position < self.config.frames - 12:
            position = talk.turn(position)
        return self._finish(talk.conversation, rng)

    def drill(self, rng: random.Random, frames: int = 52) -> Conversation:
        """A single question, most often soon after a stream's start, and the answer as far as there is room."""
        talk = self._begin(rng, frames, echo=False)
        talk.ask()
        return self._finish(talk.conversation, rng)

    def exchange(self, rng: random.Random, frames: int = 90) -> Conversation:
        """The end of a question and its answer, and the next question, most often one that refers back.

        Where that begins does not depend on when it ends, as in a drill.
        """
        talk = self._begin(rng, 2 * frames, echo=False)
        example, begin = talk.conversation, rng.randint(1, 6)
        following = begin
        while not example.turns:
            following = talk.turn(following)
        before = len(example.turns)
        while len(example.turns) == before:
            begin, following = following, talk.turn(following, refers=rng.random() < 0.75)
        return cut(self._finish(example, rng), min(max(0, begin - rng.randint(*_BEFORE)), frames), frames)

    def _begin(self, rng: random.Random, frames: int, echo: bool) -> _Talk:
        return _Talk(
            Conversation(
                text=np.full(frames, PADDING, np.int32),
                moshi=np.repeat(self._silence[:, None], frames, axis=1),
                user=self._background(rng, frames),
                heard=np.zeros(frames, np.int32),
                asked=np.zeros(frames, np.int32),
                speaking=np.zeros(frames, bool),
                stopping=np.zeros(frames, bool),
                minded=np.zeros(frames, bool),
                onsets=np.zeros(frames, bool),
                overdue=np.zeros(frames, bool),
                wrong=np.zeros(frames, bool),
                turns=[],
                openings=[],
            ),
            rng,
            self,
            echo=echo,
        )

    def _finish(self, example: Conversation, rng: random.Random) -> Conversation:
        K, frames = example.user.shape
        wrong = np.random.default_rng(rng.getrandbits(32))
        heard = example.user[: self.config.user_codebooks]
        if self.split == "train":
            if self.neighbours is not None:
                near = np.asarray(wrong.random(frames) < self.config.near_codes)
                rank = wrong.integers(0, self.neighbours.shape[1], int(near.sum()))
                example.user[0, near] = self.neighbours[example.user[0, near], rank]
            swap = wrong.random((K, frames)) < self.config.wrong_codes
            example.user[swap] = wrong.integers(0, 1 + int(self.answers_max()), int(swap.sum()))
            heard[missed(len(heard), frames, self.config, wrong)] = ZERO_TOKEN
        example.user[self.config.user_codebooks :] = ZERO_TOKEN
        return example

    def answers_max(self) -> int:
        """The highest code that occurs in Moshi's answers."""
        return max(int(a.codes.max()) for a in self.answers.values())

    def utterance(self, group: str, name: str, rng: random.Random) -> Utterance | None:
        """A rendering of something, None where the corpus has none."""
        found = self._said.get((group, name))
        return rng.choice(found) if found else None

    def question(
        self, rng: random.Random, last: Intent | None, answer: str | None, refers: bool = False
    ) -> tuple[Utterance, Intent, str]:
        """What the user says next (about the turn before if it `refers`), the intent of the answer, and the answer."""
        config, script = self.config, self.script
        if last is not None and answer is not None and (refers or rng.random() < config.follow_ups):
            kinds = ["again"]
            if last.yours:
                kinds += ["yours"] * 3
            if last.another:
                kinds += ["another"] * 3
            kind = rng.choice(kinds)
            said = self.utterance("follow_ups", kind, rng)
            if said is not None:
                if kind == "again":
                    return said, last, answer
                if kind == "yours":
                    intent = script.intents[str(last.yours)]
                    return said, intent, intent.answers[0]
                following = last.answers[(last.answers.index(answer) + 1) % len(last.answers)]
                return said, last, following
        if rng.random() < config.out_of_domain:
            said = self.utterance(OUT_OF_DOMAIN, OUT_OF_DOMAIN, rng)
            if said is not None:
                return said, script.out_of_domain, rng.choice(script.out_of_domain.answers)
        # Intents that something can refer back to come up more often.
        intent = rng.choice(self._asked)
        if not (intent.yours or intent.another) and rng.random() < 0.15:
            intent = rng.choice(self._asked)
        said = self.utterance("intents", intent.name, rng)
        assert said is not None
        return said, intent, rng.choice(intent.answers)

    def slip(self, rng: random.Random, answer: str) -> str:
        """What Moshi says where `answer` is called for: that, or now and then, in training, another one."""
        if self.split != "train" or rng.random() >= self.config.slips:
            return answer
        return rng.choice([text for text in self.answers if text != answer])

    def backchannel(self, rng: random.Random) -> Utterance | None:
        """A "mm-hm"."""
        return rng.choice(self._backchannels) if self._backchannels else None

    def _background(self, rng: random.Random, frames: int) -> np.ndarray:
        if not self._backgrounds:
            return np.repeat(self._quiet, frames, axis=1)
        codes = rng.choice(self._backgrounds).codes.astype(np.int32)
        # Beyond its start, which only a stream's first frames sound like, a background can begin anywhere.
        first = 0 if rng.random() < 0.5 else rng.randrange(codes.shape[1] // 2)
        repeated = np.concatenate([codes[:, first:], *[codes[:, 20:]] * (1 + frames // (codes.shape[1] - 20))], axis=1)
        return repeated[:, :frames].copy()


class _Talk:
    """A conversation being made, turn by turn."""

    def __init__(self, conversation: Conversation, rng: random.Random, mixer: Mixer, echo: bool):
        self.conversation = conversation
        self.background = conversation.user.copy()
        self.rng = rng
        self.mixer = mixer
        self.echo = echo
        self.last: Intent | None = None
        self.answer: str | None = None

    def ask(self) -> None:
        """A question, most often soon after the stream's start, and its answer."""
        rng = self.rng
        # When a question begins must not depend on how long it is or whether it has a pause: what is over soon would be
        # taken for a part otherwise.
        begin = _mostly_few(rng, *_LEAD)
        said, intent, answer = self.mixer.question(rng, None, None)
        end = self._hear(self._varied(said), begin)
        self.conversation.turns.append((end, intent.name, answer))
        self._speak(answer, self._answered(end, answer), None)

    def turn(self, position: int, refers: bool = False) -> int:
        """Put a question at `position` and all that follows from it; returns where the next turn may start.

        A question that `refers` is about the turn before.
        """
        rng, config = self.rng, self.mixer.config
        training = self.mixer.split == "train"
        if rng.random() < 0.05:
            backchannel = self.mixer.backchannel(rng)
            if backchannel is None:
                return position + rng.randint(10, 50)
            return self._hear(self._varied(backchannel), position) + 6
        opening: int | None = max(0, position - rng.randint(4, 8))
        interrupting = True
        while interrupting:
            said, intent, answer = self.mixer.question(rng, self.last, self.answer, refers)
            refers = False
            if opening is not None and said.group != "follow_ups":
                self.conversation.openings.append(opening)
            opening = None
            end = self._hear(self._varied(said), position)
            self.conversation.turns.append((end, intent.name, answer))
            start = self._answered(end, answer)
            given = self.mixer.slip(rng, answer)
            slipped = given != answer
            length = self.mixer.answers[given].speech_end
            self.last, self.answer = (None, None) if slipped else (intent, answer)
            interrupting = length > 14 and rng.random() < config.interruptions and start < self.background.shape[1]
            stop, late = None, 0
            if interrupting:
                position = start + rng.randint(5, length - 4)
                stop = position + rng.randint(*config.stop_gap)
                late = rng.randint(*_LATE) if rng.random() < config.late_stops and training else 0
            elif length > 12 and rng.random() < config.backchannels:
                backchannel = self.mixer.backchannel(rng)
                if backchannel is not None:
                    first = start + rng.randint(3, length - 6)
                    self._hear(self._varied(backchannel), first)
                    # Where Moshi would fall silent if it took this for an interruption.
                    earliest, latest = config.stop_gap
                    self.conversation.minded[first + earliest : first + latest + _STOPPING] = True
            self._speak(given, start, stop, late, slipped)
        if training and rng.random() < config.overruns:
            length += self._run_over(start + length)
        return start + length + _mostly_few(rng, *config.turn_gap)

    def _answered(self, end: int, answer: str) -> int:
        """Where the answer to a question that ended in frame `end` starts: in training now and then too late."""
        config, talk = self.mixer.config, self.conversation
        waits = self.rng.random() < config.late_answers and self.mixer.split == "train"
        start = end + self.rng.randint(*(config.late_gap if waits else config.answer_gap))
        # The frames in which Moshi misses the moment, from the mark before the first word on.
        talk.overdue[max(0, end + config.answer_gap[1] - 1) : max(0, start - 1)] = True
        talk.asked[max(0, end) : max(0, start + 1)] = self.mixer.numbers[answer]
        return start

    def _varied(self, said: Utterance) -> Utterance:
        """What is said, in training at another rate, and now and then with a pause before one of its words."""
        rng, config = self.rng, self.mixer.config
        if self.mixer.split != "train":
            return said
        said = stretched(said, rng.uniform(*config.stretch))
        # Two words before it, two behind it, as in what is rendered with a pause.
        if len(said.words) > 3 and not _waits(said) and rng.random() < config.pauses:
            frames = min(rng.randint(*_PAUSES), self.background.shape[1])
            first = rng.randint(0, self.background.shape[1] - frames)
            said = paused(said, rng.randint(2, len(said.words) - 2), self.background[:, first : first + frames])
        return said

    def _hear(self, said: Utterance, position: int) -> int:
        """The user speaks from `position` on; returns the frame in which they have ended."""
        talk = self.conversation
        lead = min(said.first_frame, self.rng.randint(1, 3))
        tail = self.rng.randint(1, 4)
        first = said.first_frame - lead
        codes = said.codes[:, first : said.end_frame + tail]
        begin = position - lead
        _put(talk.user, codes, begin)
        shift = position - said.first_frame
        for (word, start), following in zip(said.words, _ends(said), strict=True):
            number = self.mixer.vocabulary.get(word.lower(), 0)
            a, b = (shift + HEARD_LAG + int(t * FRAME_RATE) for t in (start, following))
            talk.heard[max(0, a) : max(0, b)] = number
            if following - start > _LONG_WORD and following != said.end:
                talk.minded[max(0, a - HEARD_LAG + _WORD) : max(0, b - HEARD_LAG)] = True
        return shift + said.end_frame

    def _speak(self, answer: str, start: int, stop: int | None, late: int = 0, slipped: bool = False) -> None:
        """Moshi speaks from `start` on (its first sound), until `stop` if interrupted, or that many frames too long.

        Where it `slipped` into this answer, the words are wrong up to where they leave no other answer.
        """
        talk, spoken = self.conversation, self.mixer.answers[answer]
        begin = start - 1
        length = spoken.codes.shape[1] if stop is None else min(stop + late - begin, spoken.codes.shape[1])
        talk.wrong[max(0, begin) : begin + length] = False
        if not slipped:
            talk.onsets[max(0, begin + 1) : begin + min(1 + ONSET, length)] = True
        if slipped:
            known = begin + min(self.mixer.known_from[answer], length)
            talk.wrong[max(0, begin + int(spoken.tokens[0])) : max(0, known)] = True
        if stop is not None:
            talk.wrong[stop : begin + min(length, spoken.speech_end + 1)] = True
        _put(talk.moshi, spoken.codes[:, :length], begin)
        _put(talk.text[None], spoken.text[None, :length], begin)
        talk.speaking[max(0, begin) : begin + min(length, spoken.speech_end + 1)] = True
        if length < spoken.speech_end:
            talk.stopping[begin + length : begin + length + _STOPPING] = True
        echo = self.mixer.utterance("echoes", answer, self.rng) if self.echo else None
        if echo is not None:
            first = ANSWER_LEAD - 1
            codes = echo.codes[:, first : first + length].astype(np.int32)
            # The user's own voice covers the echo: it is heard only where they are silent.
            quiet = talk.heard[max(0, begin) : begin + codes.shape[1]] == 0
            target = talk.user[:, max(0, begin) : begin + codes.shape[1]]
            target[:, quiet] = codes[:, : target.shape[1]][:, quiet]

    def _run_over(self, begin: int) -> int:
        """From `begin`, where an answer has ended, Moshi goes on with sounds of some other one; returns how long."""
        talk, rng = self.conversation, self.rng
        spoken = self.mixer.answers[rng.choice(list(self.mixer.answers))]
        frames = min(rng.randint(*_OVERRUN), spoken.speech_end)
        first = rng.randint(0, spoken.speech_end - frames)
        _put(talk.moshi, spoken.codes[:, first : first + frames], begin)
        end = begin + frames
        _put(talk.moshi, np.repeat(self.mixer.silence[:, None], _STOPPING, axis=1), end)
        talk.wrong[begin:end] = True
        talk.speaking[begin:end] = True
        talk.stopping[end : end + _STOPPING] = True
        return frames


def _mostly_few(rng: random.Random, least: int, most: int) -> int:
    """A number of frames: half of such are in the range's first eighth."""
    return least + int((most + 1 - least) * rng.random() ** 3)


def known_from(answers: Mapping[str, Answer]) -> dict[str, int]:
    """The frame of every answer from which on its words so far begin no other answer; its end if there is none."""
    spelled = {text: answer.text[answer.tokens].tolist() for text, answer in answers.items()}
    starts = Counter(tuple(tokens[:n]) for tokens in spelled.values() for n in range(len(tokens) + 1))
    result = {}
    for text, tokens in spelled.items():
        frames = [*answers[text].tokens.tolist(), int(answers[text].tokens[-1]) + 1]
        alone = [n for n in range(1, len(tokens) + 1) if starts[tuple(tokens[:n])] == 1]
        result[text] = frames[alone[0]] if alone else answers[text].speech_end
    return result


def missed(codebooks: int, frames: int, config: MixConfig, draws: np.random.Generator) -> np.ndarray:
    """What a model is not to hear this time of as many of the user's codebooks: bool [codebooks, frames]."""
    result = np.zeros((codebooks, frames), bool)
    if codebooks > 1 and config.fewer_codebooks and draws.random() < config.fewer_codebooks:
        result[int(draws.integers(1, codebooks)) :] = True
    if config.masked:
        # Every other stretch is of two frames.
        first = draws.random(frames) < config.masked / 1.5
        second = np.roll(first & (draws.random(frames) < 0.5), 1)
        result[:, first | second] = True
    return result


def _put(stream: np.ndarray, codes: np.ndarray, begin: int) -> None:
    """Write `codes` [K, n] into `stream` [K, T] from frame `begin`, as far as they fit."""
    first, last = max(0, begin), min(stream.shape[1], begin + codes.shape[1])
    if first < last:
        stream[:, first:last] = codes[:, first - begin : last - begin]


def cut(talk: Conversation, first: int, frames: int) -> Conversation:
    """The part of a conversation that starts in frame `first`."""
    part = slice(first, first + frames)
    streams = {f.name: getattr(talk, f.name)[..., part] for f in fields(talk) if f.name not in ("turns", "openings")}
    return Conversation(
        **streams,
        turns=[(end - first, intent, answer) for end, intent, answer in talk.turns if first <= end < first + frames],
        openings=[frame - first for frame in talk.openings if first <= frame < first + frames],
    )


def stretched(said: Utterance, rate: float) -> Utterance:
    """An utterance that takes `rate` times as long, frames doubled or dropped evenly."""
    frames = said.codes.shape[1]
    longer = round(frames * rate)
    if longer == frames:
        return said
    chosen = np.minimum((np.arange(longer) / rate).astype(int), frames - 1)
    words = tuple((word, start * rate) for word, start in said.words)
    return replace(said, codes=said.codes[:, chosen], start=said.start * rate, end=said.end * rate, words=words)


def paused(said: Utterance, word: int, quiet: np.ndarray) -> Utterance:
    """An utterance with a pause, the codes `quiet` [K, n], before the word of that number."""
    time, frames = said.words[word][1], quiet.shape[1]
    cut, longer = round(time * FRAME_RATE), frames / FRAME_RATE
    codes = np.concatenate([said.codes[:, :cut], quiet.astype(said.codes.dtype), said.codes[:, cut:]], axis=1)
    words = (*said.words[:word], *((text, start + longer) for text, start in said.words[word:]))
    return replace(said, codes=codes, end=said.end + longer, words=words)


def _ends(said: Utterance) -> list[float]:
    """When each word ends, or the next one starts."""
    return [*[start for _, start in said.words[1:]], said.end]


def _waits(said: Utterance) -> bool:
    """Whether there already is a pause between an utterance's words."""
    return any(b - a > _LONG_WORD and b != said.end for (_, a), b in zip(said.words, _ends(said), strict=True))


def nearest_codes(book: np.ndarray, count: int = 4) -> np.ndarray:
    """For every entry of a codebook [bins, width] the `count` entries nearest to it, int [bins, count]."""
    distances = ((book[:, None] - book[None]) ** 2).sum(-1)
    return np.argsort(distances, axis=1)[:, 1 : count + 1]


def heard_vocabulary(script: Script) -> dict[str, int]:
    """A number for every word that users of the script may say, from 1 on."""
    from .script import expand

    words: set[str] = set()
    for _, intent in script.wordings():
        for line in intent.learned:
            words.update(w.lower() for text in expand(line) for w in text.split())
    for text in (*script.backchannels, *script.openers, *script.closers):
        words.update(text.lower().split())
    return {word: number for number, word in enumerate(sorted(words), 1)}
