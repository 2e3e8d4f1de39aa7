"""Whether to compile a run's steps."""

from ..layers import can_compile, on_cpu

WORTH_COMPILING = 400
"""Steps of a run that make up for the minute that compiling takes on a CPU."""


def worth_compiling(steps: int) -> bool:
    """Whether a run of so many steps is done sooner with its step compiled, and can be."""
    return can_compile() and (not on_cpu() or steps >= WORTH_COMPILING)
