"""How far a quantized model's predictions are from the original's, on the same streams of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .generation import LMGen
from .lm import LMModel
from .lm.model import LMOutput


@dataclass(frozen=True)
class Divergence:
    """Averages over all positions at which a token is predicted."""

    text_kl: float
    """Kullback-Leibler divergence of the text distribution from the original's, in nats."""
    text_agreement: float
    """Share of positions at which the most likely text token is the same."""
    audio_kl: tuple[float, ...]
    """The same for every codebook that the model generates."""
    audio_agreement: tuple[float, ...]

    @property
    def kl(self) -> float:
        """Mean over the streams: text and every codebook count the same."""
        return float(np.mean([self.text_kl, *self.audio_kl]))


def generate_streams(lm: LMModel, steps: int = 48, batch_size: int = 2, seed: int = 0) -> mx.array:
    """Streams of tokens that a model makes of itself: each conversation hears what the next one says.

    Where the model generates fewer codebooks than it hears, the others are random.

    Returns:
        int32 [batch_size, 1 + n_q, steps]: text, Moshi's codebooks, the user's, aligned in time.
    """
    config = lm.config
    generator = LMGen(lm, seed=seed, batch_size=batch_size)
    random = np.random.default_rng(seed)
    heard = random.integers(0, config.card, (batch_size, config.user_q, steps))
    said: list[np.ndarray] = []
    for step in range(steps + config.max_delay):
        if said and step < steps:
            echoed = min(config.user_q, config.dep_q)
            heard[:, :echoed, step] = np.roll(said[-1][:, 1 : 1 + echoed], 1, axis=0)
        tokens = generator.step(mx.array(heard[:, :, min(step, steps - 1)].astype(np.int32)))
        if tokens is not None:
            said.append(np.array(tokens))
    own = np.stack(said[:steps], axis=2)
    return mx.array(np.concatenate([own, heard], axis=1).astype(np.int32))


def predictions(lm: LMModel, codes: mx.array) -> LMOutput:
    """A model's teacher-forced predictions, evaluated."""
    output = lm(codes)
    mx.eval(output.text_logits, *([] if output.logits is None else [output.logits]))
    return output


def divergence(reference: LMOutput, other: LMOutput) -> Divergence:
    """Compare two models' predictions for the same codes."""
    text_kl, text_agreement = _compare(reference.text_logits, other.text_logits, reference.text_mask)
    if reference.logits is None or other.logits is None or reference.mask is None:
        return Divergence(text_kl[0], text_agreement[0], (), ())
    audio_kl, audio_agreement = _compare(reference.logits, other.logits, reference.mask)
    return Divergence(text_kl[0], text_agreement[0], tuple(audio_kl), tuple(audio_agreement))


def _compare(p: mx.array, q: mx.array, mask: mx.array) -> tuple[list[float], list[float]]:
    """KL(p, q) and agreement of logits [B, K, T, V] by stream K, over the positions of `mask` [B, K, T]."""
    p, q = (mx.where(mask[..., None], logits.astype(mx.float32), 0) for logits in (p, q))
    log_p, log_q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (p, q))
    kl = mx.sum(mx.exp(log_p) * (log_p - log_q), axis=-1) * mask
    same = (mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)) * mask
    count = mx.maximum(mx.sum(mask, axis=(0, 2)), 1)
    averages = [mx.sum(x, axis=(0, 2)) / count for x in (kl, same)]
    return [[float(x) for x in np.array(average)] for average in averages]  # type: ignore[return-value]
