"""The training loss: text, semantic and acoustic tokens, with the delays and masks of inference.

Source: "Moshi", section 4.4 (semantic tokens weigh more than acoustic ones, padding less than words); the words
heard from the user, and which answer they call for, are auxiliary targets of this package, whose heads are not part of
the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import LMConfig
from ..fast_math import cross_entropy
from ..lm import LMModel
from .config import DEFAULT_WEIGHTS
from .conversation import END_OF_PADDING, ONSET, PADDING, Conversation, cut, is_word


class Arrays:
    """What a step learns from."""

    def arrays(self) -> list[mx.array]:
        """All fields in order, for a compiled function."""
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch(Arrays):
    """Conversations as the model is trained on them; R frames are those of the depth transformer.

    Attributes:
        inputs: int32 [B, 1 + n_q, T], delays applied: what each step reads.
        text: int32 [B, T], what each step's text should be.
        rows: int32 [R], the depth transformer's steps in the flattened batch.
        depth_inputs: int32 [R, dep_q], the text token and all but the last audio token of those steps.
        depth_targets: int32 [R, dep_q], -1 where nothing is to be learned.
        depth_speech: float32 [R], 1 where Moshi speaks or stops.
        depth_onset: float32 [R], 1 where an answer begins to sound.
        heard: int32 [B, T], number of the user's word.
        asked: int32 [B, T], number of the answer called for.
        minded: float32 [B, T], 1 where it matters as much as words what Moshi does: it falls silent because of an
            interruption, waits in a pause, speaks on.
        learned: float32 [B, T], 0 where what Moshi does is not to be learned.
    """

    inputs: mx.array
    text: mx.array
    rows: mx.array
    depth_inputs: mx.array
    depth_targets: mx.array
    depth_speech: mx.array
    depth_onset: mx.array
    heard: mx.array
    asked: mx.array
    minded: mx.array
    learned: mx.array


def delayed(codes: np.ndarray, config: LMConfig) -> np.ndarray:
    """Streams [B, 1 + n_q or more, T] as a step reads them, and one more step: int32 [B, 1 + n_q, T + 1].

    Stream k is moved right by its delay and all by one step, the gap filled with the initial tokens, as in
    `LMModel.__call__`. What a model doesn't hear of the user's codebooks is left out.
    """
    B, _, T = codes.shape
    K = 1 + config.n_q
    result = np.empty((B, K, T + 1), np.int32)
    for k, delay in enumerate(config.delays):
        initial = config.initial_token_id if k else config.text_initial_token_id
        result[:, k, : delay + 1] = initial
        result[:, k, delay + 1 :] = codes[:, k, : T - delay]
    return result


def make_batch(
    conversations: Sequence[Conversation],
    config: LMConfig,
    draws: np.random.Generator,
    depth_frames: int,
    silent_share: float,
    window: int | None = None,
) -> Batch:
    """Stack conversations, or a window of each, and choose the frames on which the depth transformer is trained.

    There are `depth_frames` of those, or as many as the batch has; where some of these are wrong, others stand twice.
    """
    streams = delayed(np.stack([c.codes for c in conversations]), config)
    if window is not None and window < streams.shape[2] - 1:
        first = [_opening(c, window, draws) for c in conversations]
        conversations = [cut(c, a, window) for c, a in zip(conversations, first, strict=True)]
        # What is read is what the delays brought there, from before the window, too.
        streams = np.stack([x[:, a : a + window + 1] for x, a in zip(streams, first, strict=True)])
    speaking = np.stack([c.speaking for c in conversations])
    stopping = np.stack([c.stopping for c in conversations])
    minded = np.stack([c.minded for c in conversations])
    onsets = np.stack([c.onsets for c in conversations])
    wrong = np.stack([c.wrong for c in conversations])
    depth_frames = min(depth_frames, speaking.size)
    stops = np.flatnonzero((stopping & ~speaking) | (minded & speaking & ~wrong))
    stops = draws.permutation(stops)[: depth_frames // 4]
    begun = np.setdiff1d(np.flatnonzero(onsets & speaking & ~wrong), stops)
    begun = draws.permutation(begun)[: depth_frames // 4]
    chosen = np.concatenate([stops, begun])
    loud, silent = (np.setdiff1d(np.flatnonzero(x), chosen) for x in (speaking & ~wrong, ~speaking))
    others = depth_frames - len(chosen)
    quiet = min(len(silent), max(round(others * silent_share), others - len(loud)))
    rows = np.concatenate(
        [
            chosen,
            draws.choice(loud, min(len(loud), others - quiet), replace=False),
            draws.choice(silent, quiet, replace=False),
        ]
    )
    # Batches of one shape: a compiled step needs no other.
    rows = np.resize(rows, depth_frames)
    counted = (speaking | stopping).reshape(-1)
    depth_inputs, depth_targets = _depth(streams, rows, config)
    return Batch(
        inputs=mx.array(streams[:, :, :-1]),
        text=mx.array(np.stack([c.wanted for c in conversations])),
        rows=mx.array(rows.astype(np.int32)),
        depth_inputs=depth_inputs,
        depth_targets=depth_targets,
        depth_speech=mx.array(counted[rows].astype(np.float32)),
        depth_onset=mx.array(np.isin(rows, begun).astype(np.float32)),
        heard=mx.array(np.stack([c.heard for c in conversations])),
        asked=mx.array(np.stack([c.asked for c in conversations])),
        minded=mx.array((stopping | minded).astype(np.float32)),
        learned=mx.array((~wrong).astype(np.float32)),
    )


def _depth(streams: np.ndarray, rows: np.ndarray, config: LMConfig) -> tuple[mx.array, mx.array]:
    """What the depth transformer gets and should say in some steps of delayed streams [B, 1 + n_q, T + 1]."""
    said = streams[:, : 1 + config.dep_q, 1:].swapaxes(1, 2).reshape(-1, 1 + config.dep_q)[rows]
    targets = said[:, 1:].copy()
    targets[targets == config.initial_token_id] = -1
    return mx.array(said[:, : config.dep_q]), mx.array(targets)


def _opening(conversation: Conversation, window: int, draws: np.random.Generator) -> int:
    # A long conversation's beginning is out of the model's sight: half of the windows start in the middle.
    later = [a for a in conversation.openings if 0 < a <= conversation.text.size - window]
    return int(draws.choice(later)) if later and draws.random() < 0.5 else 0


class Trainee(nn.Module):
    """The language model and the auxiliary heads: which word the user is saying, which answer is called for."""

    def __init__(self, config: LMConfig, vocabulary: int, answers: int):
        super().__init__()
        self.lm = LMModel(config)
        self.heard = nn.Linear(config.dim, vocabulary + 1, bias=False)
        self.asked = nn.Linear(config.dim, answers + 1, bias=False)


@dataclass(frozen=True)
class Drill(Arrays):
    """Questions as the temporal transformer is trained on them; fields as in `Batch`.

    The depth transformer's steps are those of the last answer's onset alone, `depth_onset` 0 where there is none.
    """

    inputs: mx.array
    text: mx.array
    rows: mx.array
    depth_inputs: mx.array
    depth_targets: mx.array
    depth_onset: mx.array
    heard: mx.array
    asked: mx.array
    minded: mx.array
    learned: mx.array


def make_drill(questions: Sequence[Conversation], config: LMConfig) -> Drill:
    """Stack drills of equal length."""
    codes = np.stack([c.codes for c in questions])
    heard, asked = np.stack([c.heard for c in questions]), np.stack([c.asked for c in questions])
    minded = np.stack([c.stopping | c.minded for c in questions]).astype(np.float32)
    learned = np.stack([~c.wrong for c in questions]).astype(np.float32)
    onsets = np.stack([c.onsets & c.speaking & ~c.wrong for c in questions])
    streams = delayed(codes, config)
    # As many steps of each, so that all drills are of one shape.
    rows = np.concatenate([np.argsort(o, kind="stable")[-ONSET:] + i * o.size for i, o in enumerate(onsets)])
    depth_inputs, depth_targets = _depth(streams, rows, config)
    return Drill(
        inputs=mx.array(streams[:, :, :-1]),
        text=mx.array(np.stack([c.wanted for c in questions])),
        rows=mx.array(rows.astype(np.int32)),
        depth_inputs=depth_inputs,
        depth_targets=depth_targets,
        depth_onset=mx.array(onsets.reshape(-1)[rows].astype(np.float32)),
        heard=mx.array(heard),
        asked=mx.array(asked),
        minded=mx.array(minded),
        learned=mx.array(learned),
    )


def batch_of(arrays: Sequence[mx.array]) -> Batch | Drill:
    """The batch, or drill, that has these arrays."""
    return (Batch if len(arrays) == len(fields(Batch)) else Drill)(*arrays)


def loss_name(batch: Batch | Drill) -> str:
    """What a run calls the loss of a batch or drill, whose sizes don't compare."""
    return "loss" if isinstance(batch, Batch) else "drill"


def losses(model: Trainee, batch: Batch | Drill, heard: mx.array | None = None) -> dict[str, mx.array]:
    """Mean cross-entropies of a batch or a drill, with `heard` [B, T, D] added to the temporal transformer's input.

    `words`, `padding`, `heard`, `asked`, and of an onset's frames, all codes together, `onset`; besides, of a batch,
    `semantic`, `acoustic` and `silence`.
    """
    hidden, text_logits = model.lm.forward_text(batch.inputs, condition=heard)
    text = cross_entropy(text_logits, batch.text)
    words = mx.maximum((batch.text != PADDING).astype(mx.float32), batch.minded)
    calling = (batch.asked > 0).astype(mx.float32)
    some = (batch.heard > 0).astype(mx.float32) * 0.9 + 0.1
    states = hidden.reshape(-1, hidden.shape[-1])[batch.rows]
    logits = model.lm.depformer(states, batch.depth_inputs)
    wanted = batch.depth_targets
    given = (wanted >= 0).astype(mx.float32)
    audio = cross_entropy(logits, mx.maximum(wanted, 0)) * given
    parts = {
        "words": _mean(text, words * batch.learned),
        "padding": _mean(text, (1 - words) * batch.learned),
        "heard": _mean(cross_entropy(model.heard(hidden), batch.heard), some),
        "asked": _mean(cross_entropy(model.asked(hidden), batch.asked), calling),
        "onset": _mean(audio.sum(axis=1), batch.depth_onset),
    }
    if isinstance(batch, Drill):
        return parts
    speech = given * batch.depth_speech[:, None]
    return {
        **parts,
        "semantic": _mean(audio[:, 0], speech[:, 0]),
        "acoustic": _mean(audio[:, 1:], speech[:, 1:]),
        "silence": _mean(audio, given - speech),
    }


def total(
    parts: Mapping[str, mx.array], weights: Mapping[str, float], codebooks: int, share_of_words: float = 0.2
) -> mx.array:
    """The weighted loss.

    Args:
        parts: from `losses`.
        weights: by name, in place of `DEFAULT_WEIGHTS`.
        codebooks: that Moshi speaks with; all but the first one are acoustic.
        share_of_words: of the text stream's frames, by which the two text losses are balanced.
    """
    w = {**DEFAULT_WEIGHTS, **weights}
    text_words, text_padding = w["text"] * share_of_words, w["text_padding"] * (1 - share_of_words)
    text = (text_words * parts["words"] + text_padding * parts["padding"]) / (text_words + text_padding)
    loss = text + w["heard"] * parts["heard"] + w["asked"] * parts["asked"] + w["onset"] * parts["onset"]
    if "semantic" not in parts:
        return loss
    semantic, acoustic = w["semantic"], (codebooks - 1) * w["acoustic"]
    audio = (semantic * parts["semantic"] + acoustic * parts["acoustic"]) / (semantic + acoustic)
    return loss + audio + w["silence"] * parts["silence"]


def _mean(values: mx.array, weights: mx.array) -> mx.array:
    return (values * weights).sum() / mx.maximum(weights.sum(), 1)


@dataclass(frozen=True)
class Score:
    """Teacher-forced accuracy on held-out conversations.

    Attributes:
        answers: share of answers whose first word is the likeliest, padding aside.
        words: share of all of Moshi's text tokens that are.
        starts: share of answers' first frames where an end of padding is likelier than padding.
    """

    answers: float
    words: float
    starts: float


def score(model: LMModel, conversations: Sequence[Conversation]) -> Score:
    """Measure a model on conversations, one at a time to hold little memory."""
    first_right = first_total = right = all_words = started = starts = 0
    for conversation in conversations:
        inputs = delayed(conversation.codes[None], model.config)[:, :, :-1]
        _, logits = model.forward_text(mx.array(inputs))
        found = np.array(logits[0])
        text = conversation.text
        word = is_word(text)
        likeliest = np.where(word, _without_padding(found).argmax(-1), -1)
        right += int((likeliest == text)[word].sum())
        all_words += int(word.sum())
        for end, _, _ in conversation.turns:
            following = np.flatnonzero(word[end : end + 12])
            if not len(following):
                continue
            frame = end + following[0]
            first_total += 1
            first_right += int(likeliest[frame] == text[frame])
            marks = np.flatnonzero(text[end:frame] == END_OF_PADDING)
            if len(marks):
                starts += 1
                at = found[end + marks[0]]
                started += int(at[END_OF_PADDING] > at[PADDING])
    return Score(first_right / max(first_total, 1), right / max(all_words, 1), started / max(starts, 1))


def _without_padding(logits: np.ndarray) -> np.ndarray:
    logits = logits.copy()
    logits[:, [END_OF_PADDING, PADDING]] = -np.inf
    return logits
