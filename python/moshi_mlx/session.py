"""Session: a conversation, 1920 samples in, 1920 samples and a piece of text out, 12.5 times a second."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map, tree_unflatten

from .checkpoint import TensorSpec, write_safetensors
from .checkpoint.writing import DTYPE_NAMES
from .config import FRAME_SIZE
from .errors import InputError
from .generation import LMGen
from .layers import arrays_of
from .step_graph import GenState, StepGraph, queue

if TYPE_CHECKING:
    from .moshi import Moshi

_FORMAT = "moshi-session-1"


@dataclass(frozen=True)
class Timings:
    """Milliseconds that a step took.

    The parts are NaN unless the session was made with `profile=True`: to time them, the step must wait after each.
    """

    total_ms: float
    encode_ms: float = math.nan
    lm_ms: float = math.nan
    decode_ms: float = math.nan


@dataclass(frozen=True)
class Frame:
    """What Moshi did in one step of 80 ms.

    Attributes:
        pcm: float32 [1920] in [-1, 1] at 24 kHz; zeros until the model's delay has passed.
        text: the piece of text spoken, "" for padding.
        tokens: int32 [1 + dep_q], text and audio tokens of this frame; None until the delay has passed.
        timings: how long the step took.
        step: number of the step; the frame begins `step * 0.08` s after the conversation.
    """

    pcm: npt.NDArray[np.float32]
    text: str
    tokens: npt.NDArray[np.int32] | None
    timings: Timings
    step: int


class Session:
    """One conversation with a model; made by `Moshi.session`. Sessions of one model don't see each other.

    Attributes:
        dropped: frames that were lost before the model saw them, as told by `note_dropped`.
    """

    def __init__(self, moshi: Moshi, seed: int | None, graph: StepGraph, profile: bool, conditions: Any = None):
        self._moshi = moshi
        self._profile = profile
        self._conditions = conditions
        self._gen = LMGen(moshi.lm, seed=seed, graph=graph, conditions=conditions)
        self._begin()

    def _begin(self) -> None:
        self._encoder = self._moshi.mimi.encoder_state(1)
        self._decoder = self._moshi.mimi.decoder_state(1)
        self._text = self._moshi.tokenizer.stream()
        self.dropped = 0

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._gen.state.offset

    @property
    def seed(self) -> int:
        """Seed of the sampling: the same seed and the same sound give the same conversation."""
        return self._gen.state.seed

    @property
    def settings(self) -> dict[str, Any]:
        """As `Moshi.session` and `warm_up` take them, without the seed; resumed, those that it was saved with."""
        graph = self._gen.graph
        return {
            "temp": graph.audio_sampling.temp,
            "top_k": graph.audio_sampling.top_k,
            "temp_text": graph.text_sampling.temp,
            "top_k_text": graph.text_sampling.top_k,
            "conditions": self._conditions,
            "kv_bits": graph.kv_bits,
            "profile": self._profile,
            "compile": graph.compile,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the language model's cache, which don't change and are nearly all that a session holds."""
        return self._gen.state.kv.nbytes

    def step(self, pcm: npt.ArrayLike) -> Frame:
        """Hear a frame and speak one.

        Args:
            pcm: float32 [1920] in [-1, 1] at 24 kHz: what the user said in these 80 ms.

        Raises:
            InputError: `pcm` has another shape or isn't finite.
        """
        started = time.perf_counter()
        sound = _checked(pcm)
        step = self.steps
        # Step 0 sees only initial tokens: its frame lies in the model's past, and the encoder starts with the next one.
        encode = step > 0
        decode = step >= self._moshi.lm.config.max_delay
        run = self._run_in_parts if self._profile else self._run
        packed, parts = run(mx.array(sound)[None, None], encode, decode)
        values = np.array(packed)  # the step's one synchronisation
        timings = Timings((time.perf_counter() - started) * 1e3, *parts)
        if not decode:
            return Frame(np.zeros(FRAME_SIZE, np.float32), "", None, timings, step)
        return self._unpack(values, timings, step)

    def _unpack(self, values: npt.NDArray[np.int32], timings: Timings, step: int) -> Frame:
        """The frame in `values` [1 + dep_q + 1920]: tokens, then the bits of the samples."""
        tokens = values[:-FRAME_SIZE]
        return Frame(values[-FRAME_SIZE:].view(np.float32), self._text.push(int(tokens[0])), tokens, timings, step)

    def _run(self, pcm: mx.array, encode: bool, decode: bool) -> tuple[mx.array, tuple[float, float, float]]:
        """The whole step as one graph, queued."""
        graph, moshi = self._gen.graph, self._moshi
        arrays = self._gen.begin()
        window = graph.window(self.steps)

        def make() -> Callable[..., Any]:
            def frame(pcm: mx.array, arrays: Any, encoder: Any, state: Any, decoder: Any) -> Any:
                codes, encoder = moshi.encode_graph(pcm, encoder, encode)
                outputs, state = graph.step({**arrays, "codes": codes}, state, window)
                packed, decoder = moshi.decode_graph(outputs["tokens"], decoder, decode)
                return packed, outputs, encoder, state, decoder

            return frame

        frame = graph.compiled(("frame", window, encode, decode), make)
        packed, outputs, encoder, state, decoder = frame(
            pcm, arrays, self._encoder, self._gen.state.arrays(), self._decoder
        )
        self._encoder, self._decoder = encoder, decoder
        self._gen.advance(state)
        queued = queue({"packed": packed}, (encoder, state, decoder))
        self._gen.report(outputs)
        return queued["packed"], (math.nan, math.nan, math.nan)

    def _run_in_parts(self, pcm: mx.array, encode: bool, decode: bool) -> tuple[mx.array, tuple[float, float, float]]:
        """The same step as three graphs, each waited for and timed."""
        graph, moshi = self._gen.graph, self._moshi
        times = [time.perf_counter()]

        def timed(*arrays: Any) -> None:
            mx.eval(arrays)
            times.append(time.perf_counter())

        encoder_graph = graph.compiled(("encode", encode), lambda: lambda p, s: moshi.encode_graph(p, s, encode))
        codes, self._encoder = encoder_graph(pcm, self._encoder)
        timed(codes, self._encoder)
        window = graph.window(self.steps)
        lm_graph = graph.compiled(("lm", window), lambda: lambda a, s: graph.step(a, s, window))
        outputs, state = lm_graph({**self._gen.begin(), "codes": codes}, self._gen.state.arrays())
        self._gen.advance(state)
        timed(outputs, state)
        self._gen.report(outputs)
        decoder_graph = graph.compiled(("decode", decode), lambda: lambda t, s: moshi.decode_graph(t, s, decode))
        packed, self._decoder = decoder_graph(outputs["tokens"], self._decoder)
        timed(packed, self._decoder)
        encode_ms, lm_ms, decode_ms = np.diff(times) * 1e3
        return packed, (float(encode_ms), float(lm_ms), float(decode_ms))

    def note_dropped(self, frames: int) -> None:
        """Tell the session that frames were lost before the model could hear them."""
        self.dropped += frames

    def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation, with the same seed unless another is given."""
        self._gen.state = self._gen.make_state(self.seed if seed is None else seed)
        self._begin()

    def fork(self, seed: int | None = None) -> Session:
        """A copy of the conversation that goes its own way, with the same seed unless another is given."""
        copy = Session(self._moshi, self.seed, self._gen.graph, self._profile, self._conditions)
        copy._gen.state = self._gen.state.copy()
        if seed is not None:
            copy._gen.state.seed = seed
        copy._encoder, copy._decoder = self._encoder, self._decoder
        copy._text = self._text.copy()
        copy.dropped = self.dropped
        return copy

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, from which `Moshi.resume` continues it with the same samples.

        Raises:
            StorageError: the file can't be written.
        """
        state = self._gen.state
        graph = self._gen.graph
        about = {
            "format": _FORMAT,
            "model": self._moshi.fingerprint,
            "offset": state.offset,
            "seed": state.seed,
            "dropped": self.dropped,
            "pending": list(self._text.pending),
            "audio": [graph.audio_sampling.temp, graph.audio_sampling.top_k],
            "kv_bits": graph.kv_bits,
            "compile": graph.compile,
            "text": [graph.text_sampling.temp, graph.text_sampling.top_k],
            "conditions": self._conditions,
        }
        arrays = {name: mx.contiguous(array) for name, array in self._arrays(state).items()}
        specs = {name: TensorSpec(tuple(array.shape), DTYPE_NAMES[array.dtype]) for name, array in arrays.items()}
        write_safetensors(path, specs, arrays.items(), {"moshi": json.dumps(about)})

    def _restore(self, arrays: dict[str, mx.array], about: dict[str, Any]) -> None:
        """Take over what `save` wrote; any of Python's errors for what it can't have written."""
        offset, seed, dropped, pending = (about[key] for key in ("offset", "seed", "dropped", "pending"))
        if not all(isinstance(number, int) for number in (offset, seed, dropped)) or not 0 <= offset < 1 << 31:
            raise ValueError(f"it is at step {offset!r} with seed {seed!r} and {dropped!r} frames dropped")
        state = self._gen.make_state(seed)
        state.kv.offset = offset
        kinds = [
            {name: (array.shape, array.dtype) for name, array in of.items()} for of in (self._arrays(state), arrays)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(f"its tensors aren't those of a conversation of {offset} steps")
        tree: Any = tree_unflatten(list(arrays.items()))
        for layer, kept in zip(state.kv.layers, tree["kv"], strict=True):
            for array, part in zip(layer, kept, strict=True):
                array[:, :, :, : part.shape[3]] = part
        state.line = tree["line"]
        mx.eval(state.arrays(), tree["encoder"], tree["decoder"])
        self._gen.state = state
        # In the order in which a new session has them: in the file's, the graphs would be built once more.
        self._encoder = tree_map(lambda new, kept: kept, self._encoder, tree["encoder"])
        self._decoder = tree_map(lambda new, kept: kept, self._decoder, tree["decoder"])
        self._text.pending = bytes(list(pending))
        self.dropped = dropped

    def _arrays(self, state: GenState) -> dict[str, mx.array]:
        """What a saved conversation at `state` holds, by name."""
        written = min(state.offset, state.kv.context)
        tree = {
            "kv": [[array[:, :, :, :written] for array in layer] for layer in state.kv.layers],
            "line": state.line,
            "encoder": self._encoder,
            "decoder": self._decoder,
        }
        return arrays_of(tree)


def _checked(pcm: npt.ArrayLike) -> npt.NDArray[np.float32]:
    if isinstance(pcm, np.ndarray) and not np.issubdtype(pcm.dtype, np.floating):
        raise InputError(f"pcm is {pcm.dtype}; expected floating point in [-1, 1] (divide 16-bit samples by 32768).")
    try:
        sound = np.ascontiguousarray(pcm, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"pcm can't be read as numbers ({error}); expected float32 [{FRAME_SIZE}].") from error
    if sound.shape != (FRAME_SIZE,):
        raise InputError(f"pcm has shape {sound.shape}; expected [{FRAME_SIZE}] samples, a frame of 80 ms at 24 kHz.")
    if not np.isfinite(sound).all():
        raise InputError("pcm holds NaN or infinity; expected samples in [-1, 1].")
    return sound
