"""Mimi, whole sounds at a time and frame by frame. Source: "Moshi", section 3.3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ..arrays import ArrayLike
from ..config import FRAME_SIZE, MimiConfig
from ..errors import InputError
from ..layers import compiled
from . import seanet
from .conv import Conv, Upsample
from .inputs import check_codes, check_pcm
from .quantizer import SplitQuantizer
from .state import MimiState, Tree
from .transformer import State, Transformer
from .weights import locate, read_weights

_CHUNK_FRAMES = 16


class Mimi:
    """A codec of 12.5 frames a second: 1920 samples of 24 kHz sound to `num_codebooks` codes and back.

    It holds weights alone; what a stream remembers is in its `MimiState`, so any number of streams share one Mimi.

    Args:
        tensors: weights under the published names, all of one floating-point type.
        config: the codec's shape.
        num_codebooks: codebooks to use, 1 to `config.n_q`; 8 are what Moshi speaks.
    """

    frame_size = FRAME_SIZE

    def __init__(self, tensors: dict[str, mx.array], config: MimiConfig, num_codebooks: int = 8):
        if not 1 <= num_codebooks <= config.n_q:
            raise InputError(f"num_codebooks is {num_codebooks}; this codec has 1 to {config.n_q}.")
        self.config = config
        self.num_codebooks = num_codebooks
        self._encoder = seanet.encoder(tensors, config)
        self._encoder_transformer = Transformer(tensors, "encoder_transformer", config)
        self._downsample = Conv(tensors["downsample.conv.conv.conv.weight"], None, rows=1, stride=2)
        self._quantizer = SplitQuantizer(tensors, num_codebooks)
        self._upsample = Upsample(tensors["upsample.convtr.convtr.convtr.weight"])
        self._decoder_transformer = Transformer(tensors, "decoder_transformer", config)
        self._decoder = seanet.decoder(tensors, config)
        self.dtype = self._quantizer.books.dtype
        mx.eval(list(_arrays(self)))
        self._encode = compiled(self.encode_frame)
        self._stages = compiled(self._stage_frame)
        self._decode = compiled(self.decode_frame)

    @classmethod
    def load(cls, where: str | Path, num_codebooks: int = 8, dtype: mx.Dtype = mx.float32) -> Mimi:
        """Load a codec.

        Args:
            where: a published codec file, or a folder with `config.json` and `model.safetensors`.
            num_codebooks: codebooks to use.
            dtype: in which to compute; below float32, codes differ from the published ones.

        Raises:
            CheckpointError: the files are missing, damaged or of another model.
            InputError: the codec has fewer codebooks.
        """
        path, config = locate(where)
        tensors = {name: tensor.astype(dtype) for name, tensor in read_weights(path, config).items()}
        return cls(tensors, config, num_codebooks)

    # The functional core: pure, of fixed shapes, without host synchronization.

    def encoder_state(self, B: int, frames: int = 1) -> Tree:
        """An encoder's state before the first sample, for `frames` frames a call."""
        return {
            "tails": self._encoder.state(B),
            "transformer": self._encoder_transformer.state(B, 2 * frames),
            "downsample": self._downsample.state(B),
        }

    def encode_frame(self, pcm: mx.array, state: Tree) -> tuple[mx.array, Tree]:
        """Continue `state` with `pcm` [B, 1, 1920 * frames], giving codes int32 [B, K, frames] and the next state."""
        latents, state = self.latent_frame(pcm, state)
        return self.quantize(latents), state

    def latent_frame(self, pcm: mx.array, state: Tree) -> tuple[mx.array, Tree]:
        """As `encode_frame`, giving what the quantizer gets: [B, frames, dimension]."""
        _, latents, state = self._latents(pcm, state)
        return latents, state

    def _latents(self, pcm: mx.array, state: Tree) -> tuple[mx.array, mx.array, Tree]:
        convolved, tails = self._encoder(pcm.swapaxes(1, 2), state["tails"])
        latents, state = self.refine_frame(convolved, state)
        return convolved, latents, {**state, "tails": tails}

    def _stage_frame(self, pcm: mx.array, state: Tree) -> tuple[mx.array, mx.array, mx.array, Tree]:
        convolved, latents, state = self._latents(pcm, state)
        return self.quantize(latents), convolved, latents, state

    def refine_frame(self, x: mx.array, state: Tree) -> tuple[mx.array, Tree]:
        """What follows the convolutions: from their output to [B, frames, dimension], and the next state."""
        first = _at_start(state["transformer"])
        x, transformer = self._encoder_transformer(x, state["transformer"])
        # Published: this convolution alone is padded with its first input instead of silence.
        tail = mx.where(first, x[:, :1], state["downsample"])
        x, tail = self._downsample(x, tail)
        return x, {**state, "transformer": transformer, "downsample": tail}

    def quantize(self, latents: mx.array) -> mx.array:
        """Codes int32 [B, K, frames] of `latents` [B, frames, dimension]."""
        return self._quantizer.encode(latents)

    def decoder_state(self, B: int, frames: int = 1) -> Tree:
        """A decoder's state before the first code, for `frames` frames a call."""
        return {
            "upsample": self._upsample.state(B),
            "transformer": self._decoder_transformer.state(B, 2 * frames),
            "tails": self._decoder.state(B),
        }

    def decode_frame(self, codes: mx.array, state: Tree) -> tuple[mx.array, Tree]:
        """Continue `state` with `codes` [B, K, frames], giving pcm [B, 1, 1920 * frames] and the next state."""
        x, upsample = self._upsample(self._quantizer.decode(codes), state["upsample"])
        x, transformer = self._decoder_transformer(x, state["transformer"])
        x, tails = self._decoder(x, state["tails"])
        return x.swapaxes(1, 2), {"upsample": upsample, "transformer": transformer, "tails": tails}

    # Streaming.

    def make_state(self, batch_size: int = 1) -> MimiState:
        """The state of `batch_size` streams before their first frame."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        return MimiState(batch_size, self.encoder_state(batch_size), self.decoder_state(batch_size))

    def encode_step(self, pcm: ArrayLike, state: MimiState) -> mx.array:
        """Codes of the stream's next frame (or frames).

        Args:
            pcm: float [B, 1, 1920], or a multiple of 1920 samples, in [-1, 1] at 24 kHz.
            state: moved on by as many frames.

        Returns:
            int32 [B, K, frames], not yet evaluated.

        Raises:
            InputError: another shape; a stream can't be padded.
        """
        x = check_pcm(pcm, self.dtype, state.batch_size)
        if x.shape[2] % FRAME_SIZE or not x.shape[2]:
            raise InputError(
                f"pcm has {x.shape[2]} samples; a stream takes whole frames of {FRAME_SIZE}. "
                "Collect samples until a frame is full, or encode the whole sound with encode()."
            )
        codes = []
        for frame in mx.split(x, x.shape[2] // FRAME_SIZE, axis=2):
            code, state.encoder = self._encode(frame, state.encoder)
            codes.append(code)
        return codes[0] if len(codes) == 1 else mx.concatenate(codes, axis=2)

    def decode_step(self, codes: ArrayLike, state: MimiState) -> mx.array:
        """Sound of the stream's next frame (or frames).

        Args:
            codes: integers [B, K, 1], or more frames; K up to `num_codebooks`.
            state: moved on by as many frames.

        Returns:
            float [B, 1, 1920 * frames], not yet evaluated.

        Raises:
            InputError: another shape or type, or (in a NumPy array) codes outside the codebook.
        """
        x = check_codes(codes, self.num_codebooks, self.config.bins, state.batch_size)
        pcm = []
        for frame in mx.split(x, x.shape[2], axis=2):
            sound, state.decoder = self._decode(frame, state.decoder)
            pcm.append(sound)
        return pcm[0] if len(pcm) == 1 else mx.concatenate(pcm, axis=2)

    # Whole sounds: the same, in longer strides, so that memory doesn't grow with the sound.

    def encode(self, pcm: ArrayLike) -> mx.array:
        """Codes of a whole sound.

        Args:
            pcm: float [B, 1, T] in [-1, 1] at 24 kHz; padded with silence on the right to whole frames.

        Returns:
            int32 [B, K, F], F = T / 1920 rounded up.

        Raises:
            InputError: another shape or type.
        """
        return mx.concatenate([codes for (codes,) in self._strides(pcm, self._encode)], axis=2)

    def stages(self, pcm: ArrayLike) -> tuple[mx.array, mx.array, mx.array]:
        """A whole sound on its way to its codes; `pcm` and errors as in `encode`.

        Returns:
            Codes int32 [B, K, F], the convolutions' output at 25 Hz [B, 2 F, dimension], and what the quantizer gets
            [B, F, dimension].
        """
        codes, convolved, latents = map(list, zip(*self._strides(pcm, self._stages), strict=True))
        return mx.concatenate(codes, axis=2), mx.concatenate(convolved, axis=1), mx.concatenate(latents, axis=1)

    def _strides(self, pcm: ArrayLike, step: Callable[..., tuple[Any, ...]]) -> Iterator[list[mx.array]]:
        """What `step` makes of a sound's strides; its last result is the state for the next one."""
        x = check_pcm(pcm, self.dtype)
        B, _, T = x.shape
        if T == 0:
            raise InputError("pcm has no samples; expected [B, 1, T] with T of at least 1.")
        x = mx.pad(x, [(0, 0), (0, 0), (0, -T % FRAME_SIZE)])
        frames = min(_CHUNK_FRAMES, x.shape[2] // FRAME_SIZE)
        state = self.encoder_state(B, frames)
        for start in range(0, x.shape[2], frames * FRAME_SIZE):
            *parts, state = step(x[:, :, start : start + frames * FRAME_SIZE], state)
            mx.eval(parts, state)
            yield parts

    def decode(self, codes: ArrayLike) -> mx.array:
        """Sound of a whole sequence of codes.

        Args:
            codes: integers [B, K, F]; K up to `num_codebooks`.

        Returns:
            float [B, 1, 1920 * F].

        Raises:
            InputError: another shape or type, or (in a NumPy array) codes outside the codebook.
        """
        x = check_codes(codes, self.num_codebooks, self.config.bins)
        B, _, F = x.shape
        frames = min(_CHUNK_FRAMES, F)
        state = self.decoder_state(B, frames)
        pcm = []
        for start in range(0, F, frames):
            sound, state = self._decode(x[:, :, start : start + frames], state)
            mx.eval(sound, state)
            pcm.append(sound)
        return mx.concatenate(pcm, axis=2)


def _at_start(state: State) -> mx.array:
    """Which rows' streams begin with this call, bool [1] or [B, 1, 1]."""
    if isinstance(state, list):
        return (mx.concatenate([row["position"] for row in state]) == 0)[:, None, None]
    return cast(mx.array, state["position"] == 0)


def _arrays(part: object) -> Iterator[mx.array]:
    """All arrays that `part` and its parts hold."""
    if isinstance(part, mx.array):
        yield part
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _arrays(item)
    elif type(part).__module__.startswith(__package__ or ""):
        yield from _arrays(list(vars(part).values()))
