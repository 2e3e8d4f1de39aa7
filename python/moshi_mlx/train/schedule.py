"""The learning rate by step."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

Schedule = Callable[[mx.array], mx.array]


def learning_rate(
    rate: float,
    steps: int,
    warmup: int,
    final: float = 0.02,
    heads: tuple[int, float] = (0, 0.0),
    later: int = 0,
) -> Schedule:
    """A rise to `rate` in `warmup` steps, then a cosine that at step `steps` has come down to `final` of it.

    Args:
        rate: the highest.
        steps: of the whole run.
        warmup: steps of the rise.
        final: share of `rate` at the end.
        heads: steps before the rise, and their own constant rate.
        later: a step from which on the rate rises once more, when other weights begin to learn: Adam knows little of
            their gradients then and would take too large steps, which weights that were trained already don't survive.

    Returns:
        The rate at a step, both arrays without dimensions.
    """
    first, constant = heads
    warmup, later = max(1, warmup), max(first, later)
    decay = optim.cosine_decay(rate, max(1, steps - first - warmup), rate * final)

    def at(step: mx.array) -> mx.array:
        since = step - mx.where(step < later, first, later)
        falling: mx.array = decay(mx.maximum(step - first - warmup, 0))
        return mx.where(step < first, constant, falling * mx.minimum((since + 1) / warmup, 1.0))

    return at
