"""From the script to utterances: which text is said by whom, spoken, disturbed and encoded."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from .augment import add_noise, gain, microphone, noise, room, throat
from .config import DataConfig
from .corpus import Features, Utterance, alike
from .script import OUT_OF_DOMAIN, Script, normalize, pick
from .voices import Voice


@dataclass(frozen=True)
class Encoded:
    """What a codec makes of sounds [B, 1, samples].

    Attributes:
        codes: int [B, K, F].
        convolved: the encoder's convolutions' output at 25 Hz, [B, 2 F, C].
        latents: what the quantizer gets, [B, F, C].
    """

    codes: np.ndarray
    convolved: np.ndarray
    latents: np.ndarray


Encode = Callable[[np.ndarray], Encoded]
"""float32 [B, 1, samples] to what a codec makes of it."""

# Silence before and after the speech of Moshi's answers, which start on a frame's edge.
ANSWER_LEAD = 4
ANSWER_TAIL = 4
_BACKGROUND_SECONDS = 20
_TOGETHER = 16 * SAMPLE_RATE
"""Samples of sounds that are encoded together."""


@dataclass(frozen=True)
class Job:
    """One utterance to render; `number` seeds how it is disturbed, `said` all else that is random about it."""

    number: int
    said: int
    group: str
    name: str
    wording: str
    voice: str
    split: str


def plan(script: Script, config: DataConfig, seed: int) -> list[Job]:
    """All utterances of the corpus, Moshi's answers first, the rest in random order."""
    rng = random.Random(seed)
    drafts: list[tuple[str, str, str, str, str]] = []
    for group, intent in script.wordings():
        times = {
            "intents": config.renderings,
            "follow_ups": config.follow_up_renderings,
            OUT_OF_DOMAIN: config.out_of_domain_renderings,
        }[group]
        for wording in intent.learned:
            drafts += [(group, intent.name, wording, rng.choice(config.voices), "train") for _ in range(times)]
        for wording in rng.sample(intent.ask, min(2, len(intent.ask))):
            drafts.append((group, intent.name, wording, rng.choice(config.held_out_voices), "known"))
        for wording in intent.held_out:
            drafts.append((group, intent.name, wording, rng.choice(config.held_out_voices), "held_out"))
    for text in script.backchannels:
        drafts += [
            ("backchannels", text, text, rng.choice(config.voices), "train") for _ in range(config.follow_up_renderings)
        ]
    drafts += [("backgrounds", f"background {i}", "", "", "train") for i in range(config.backgrounds)]
    drafts += [("echoes", text, text, config.voice, "train") for text in script.answers]
    rng.shuffle(drafts)
    first = [("answers", text, text, config.voice, "train") for text in script.answers]
    jobs: list[Job] = []
    for draft in first + drafts:
        said = len(jobs)
        group, voice, split = draft[0], draft[3], draft[4]
        versions = config.versions.get(voice.split(":")[0], 1) if split == "train" and group != "answers" else 1
        jobs += [Job(said + version, said, *draft) for version in range(versions)]
    return jobs


@dataclass(frozen=True)
class Sound:
    """A rendered job before encoding; `words` hold each word's start in seconds."""

    job: Job
    text: str
    pcm: np.ndarray
    start: float
    end: float
    words: tuple[tuple[str, float], ...]


def estimate_words(text: str, start: float, end: float) -> tuple[tuple[str, float], ...]:
    """Word starts spread over [start, end] by the words' lengths in letters."""
    words = text.split()
    lengths = [len(normalize(word)) + 1.5 for word in words]
    edges = start + (end - start) * np.concatenate([[0], np.cumsum(lengths)]) / max(sum(lengths), 1e-9)
    return tuple((word, float(edge)) for word, edge in zip(words, edges, strict=False))


def perform(job: Job, script: Script, config: DataConfig, seed: int) -> Sound:
    """Speak a job's text and add what its seed says.

    Raises:
        SynthesisError: a synthesizer is missing or failed.
    """
    if job.group == "answers":
        return _answer(job, config)
    rng, draws = random.Random(f"{seed}/{job.said}"), np.random.default_rng([seed, job.number])
    if job.group == "backgrounds":
        return Sound(job, "", _background(draws), 0.0, 0.0, ())
    text = pick(job.wording, rng)
    if job.group == "echoes":
        pcm = gain(room(draws, _answer(job, config).pcm, draws.uniform(0.15, 0.5)), draws.uniform(-36, -18))
        return Sound(job, text, pcm + 0.0003 * noise(draws, len(pcm), 1.0), 0.0, len(pcm) / SAMPLE_RATE, ())
    if job.split == "train" and job.group in ("intents", OUT_OF_DOMAIN):
        text = framed(text, script, rng, config.openers)
    parts = _parts(text, rng, config.pauses)
    voice = Voice.parse(job.voice)
    say_seed = rng.random()
    lead = int(draws.uniform(0.2, 0.5) * SAMPLE_RATE)
    pieces, position = [np.zeros(lead, np.float32)], lead
    words: list[tuple[str, float]] = []
    for i, part in enumerate(parts):
        if i:
            pause = int(draws.uniform(0.45, 1.1) * SAMPLE_RATE)
            pieces.append(np.zeros(pause, np.float32))
            position += pause
        # The same seed for every part: one speaker at one rate.
        spoken = _said(voice, part, say_seed)
        words += estimate_words(part, position / SAMPLE_RATE, (position + len(spoken)) / SAMPLE_RATE)
        pieces.append(spoken)
        position += len(spoken)
    pcm = _frames(np.concatenate(pieces), 5)
    pcm = _disturb(pcm, draws, config)
    return Sound(job, text, pcm, lead / SAMPLE_RATE, position / SAMPLE_RATE, tuple(words))


@functools.lru_cache(maxsize=4)
def _said(voice: Voice, text: str, seed: float) -> np.ndarray:
    """What is spoken, kept for the versions that follow."""
    return voice.say(text, random.Random(seed))


def _answer(job: Job, config: DataConfig) -> Sound:
    spoken = Voice.parse(config.voice).say(job.wording, rate=config.rates.get(job.wording, 1.0))
    start = ANSWER_LEAD / FRAME_RATE
    pcm = _frames(np.concatenate([np.zeros(ANSWER_LEAD * FRAME_SIZE, np.float32), spoken]), ANSWER_TAIL)
    end = start + len(spoken) / SAMPLE_RATE
    return Sound(job, job.wording, pcm, start, end, estimate_words(job.wording, start, end))


def framed(text: str, script: Script, rng: random.Random, share: float) -> str:
    """A question with an opener before it in a `share` of the draws, and a closer behind it in as many."""
    before = [rng.choice(script.openers)] if script.openers and rng.random() < share else []
    behind = [rng.choice(script.closers)] if script.closers and rng.random() < share else []
    longer = " ".join([*before, text, *behind])
    # A wording kept for evaluation must not come about by chance.
    return text if normalize(longer) in script.held_out else longer


def _parts(text: str, rng: random.Random, pauses: float) -> list[str]:
    words = text.split()
    if len(words) < 4 or rng.random() >= pauses:
        return [text]
    cut = rng.randint(2, len(words) - 2)
    return [" ".join(words[:cut]), " ".join(words[cut:])]


def _frames(pcm: np.ndarray, tail: int) -> np.ndarray:
    """Pad to whole frames and `tail` frames more."""
    length = (-(-len(pcm) // FRAME_SIZE) + tail) * FRAME_SIZE
    return np.pad(pcm, (0, length - len(pcm)))


def _disturb(pcm: np.ndarray, draws: np.random.Generator, config: DataConfig) -> np.ndarray:
    if config.throats and draws.random() < config.throats:
        pcm = throat(pcm, float(np.exp(draws.uniform(-0.2, 0.2))))
    if config.microphones and draws.random() < config.microphones:
        pcm = microphone(draws, pcm)
    if draws.random() < config.rooms:
        pcm = room(draws, pcm, draws.uniform(0.15, 0.7))
    if draws.random() < config.noisy:
        pcm = add_noise(pcm, noise(draws, len(pcm), draws.uniform(0, 2)), draws.uniform(5, 25))
    elif draws.random() < 0.5:
        pcm = pcm + np.float32(10 ** draws.uniform(-4.5, -3)) * noise(draws, len(pcm), 1.0)
    return gain(pcm, draws.uniform(-11, 7))


def _background(draws: np.random.Generator) -> np.ndarray:
    samples = _BACKGROUND_SECONDS * SAMPLE_RATE
    if draws.random() < 0.25:
        return np.zeros(samples, np.float32)
    return noise(draws, samples, draws.uniform(0, 2)) * np.float32(10 ** draws.uniform(-4.5, -1.3))


def encode(sounds: Sequence[Sound], codec: Encode) -> tuple[list[Utterance], list[Features]]:
    """Turn rendered sounds into codes and features, sounds of like lengths together; results in the order given."""
    codes: dict[int, np.ndarray] = {}
    features: dict[int, Features] = {}
    for chosen in alike([len(sound.pcm) for sound in sounds], _TOGETHER):
        longest = len(sounds[chosen[-1]].pcm)
        # The codec is causal: what is padded on the right changes nothing before it.
        pcm = np.stack([np.pad(sounds[i].pcm, (0, longest - len(sounds[i].pcm))) for i in chosen])
        encoded = codec(pcm[:, None])
        for row, i in enumerate(chosen):
            frames = len(sounds[i].pcm) // FRAME_SIZE
            codes[i] = encoded.codes[row, :, :frames]
            features[i] = encoded.convolved[row, : 2 * frames], encoded.latents[row, :frames]
    utterances = [
        Utterance(codes[i], s.job.group, s.job.name, s.text, s.job.voice, s.job.split, s.start, s.end, s.words)
        for i, s in enumerate(sounds)
    ]
    return utterances, [features[i] for i in range(len(sounds))]
