"""Several sessions' steps as one computation, which reads the model's weights once for all of them.

Every session keeps its own state: products with weights are taken of all rows together, while attention, which shares
no weights, goes row by row over each session's own cache. So nothing is copied when sessions come and go, each stands
at a step of its own, and one that has been stepped with others is an ordinary session before and after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .config import FRAME_SIZE
from .errors import InputError
from .mimi.state import joined, parted
from .session import Frame, Session, Timings, _checked
from .step_graph import StepGraph, joined_inputs, joined_states, parted_states, queue

if TYPE_CHECKING:
    from .moshi import Moshi


def batch_key(session: Session) -> StepGraph | None:
    """What sessions must have in common to be stepped together; None for one that takes its next step alone.

    Alone go sessions with `profile`, and the first steps of a conversation, before it speaks.
    """
    config = session._moshi.lm.config
    speaks = bool(config.user_q and config.dep_q) and session.steps >= max(1, config.max_delay)
    return session._gen.graph if speaks and not session._profile else None


def step_together(sessions: Sequence[Session], sounds: Sequence[npt.ArrayLike]) -> list[Frame]:
    """Hear a frame and speak one in each of several sessions; what comes out is as from `Session.step`, up to rounding.

    Args:
        sessions: two or more different ones with the same `batch_key`.
        sounds: for each session, float32 [1920] in [-1, 1] at 24 kHz.

    Returns:
        A frame for each session; the time in `timings` is that of the common step.

    Raises:
        InputError: a sound has another shape or isn't finite, or the sessions don't go together; none has changed then.
    """
    started = time.perf_counter()
    graph = batch_key(sessions[0]) if sessions else None
    if graph is None or len({*map(id, sessions)}) < len(sessions) or any(batch_key(s) is not graph for s in sessions):
        raise InputError("These sessions can't be stepped together; expected different ones with the same batch_key.")
    if len(sounds) != len(sessions):
        raise InputError(f"There are {len(sounds)} sounds for {len(sessions)} sessions; expected one for each.")
    pcm = mx.array(np.stack([_checked(sound) for sound in sounds])[:, None])
    steps = [session.steps for session in sessions]
    window = graph.window(max(steps))
    frames = graph.compiled(("frames", len(sessions), window), lambda: _graph(sessions[0]._moshi, graph, window))
    packed, outputs, states = frames(pcm, [_row(session, window) for session in sessions])
    for session, (encoder, state, decoder) in zip(sessions, states, strict=True):
        session._encoder, session._decoder = encoder, decoder
        session._gen.advance(state)
    whole = queue({"packed": packed}, states)["packed"]
    for row, session in enumerate(sessions):
        session._gen.report({name: array[row : row + 1] for name, array in outputs.items()})
    values = np.array(whole)  # the step's one synchronisation
    timings = Timings((time.perf_counter() - started) * 1e3)
    return [session._unpack(own, timings, step) for session, own, step in zip(sessions, values, steps, strict=True)]


def ready_sessions(moshi: Moshi, size: int, **settings: Any) -> list[Session]:
    """`size` new sessions, taken to where they can be stepped together; `settings` as for `Moshi.session`."""
    sessions = [moshi.session(**{"seed": seed, **settings}) for seed in range(size)]
    silence = np.zeros(FRAME_SIZE, np.float32)
    for session in sessions:
        for _ in range(max(1, moshi.lm.config.max_delay)):
            session.step(silence)
    return sessions


def warm_up(moshi: Moshi, size: int, **settings: Any) -> None:
    """Build every graph that `size` sessions together will need, so that none is built while they run.

    Args:
        size: two or more; needs the memory of as many sessions.
        settings: as for `Moshi.session`.

    Raises:
        InputError: sessions of this model or with these settings can't be stepped together.
    """
    sessions = ready_sessions(moshi, size, **settings)
    sounds = [np.zeros(FRAME_SIZE, np.float32)] * size
    for window in sessions[0]._gen.graph.windows:
        sessions[0]._gen.state.kv.offset = window - 1
        step_together(sessions, sounds)
    # What a common step leaves is laid out differently: steps alone after it may need other kernels.
    for session in sessions:
        session.step(sounds[0])


def _row(session: Session, window: int) -> tuple[Any, ...]:
    gen = session._gen
    return gen.begin(window=window), session._encoder, gen.state.arrays(), session._decoder


def _graph(moshi: Moshi, graph: StepGraph, window: int) -> Callable[..., Any]:
    def frames(pcm: mx.array, rows: list[tuple[Any, ...]]) -> Any:
        inputs, encoders, states, decoders = zip(*rows, strict=True)
        codes, encoder = moshi.encode_graph(pcm, joined(list(encoders)), True)
        outputs, state = graph.step({**joined_inputs(inputs), "codes": codes}, joined_states(states), window)
        tokens = outputs["tokens"]
        sound, decoder = moshi.mimi.decode_frame(tokens[:, 1:, None], joined(list(decoders)))
        samples = mx.view(sound.astype(mx.float32).reshape(-1, FRAME_SIZE), mx.int32)
        packed = mx.concatenate([tokens, samples], axis=1)
        return packed, outputs, list(zip(parted(encoder), parted_states(state), parted(decoder), strict=True))

    return frames
