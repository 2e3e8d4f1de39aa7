"""The learning rate by step."""

import itertools

import mlx.core as mx
import pytest

from moshi_mlx.train.schedule import Schedule, learning_rate


def rates(at: Schedule) -> list[float]:
    return [float(at(mx.array(step))) for step in range(1000)]


def test_the_rate_rises_and_falls_to_its_share():
    rate = rates(learning_rate(1e-3, 1000, 50, final=0.1))
    assert rate[0] == pytest.approx(2e-5)
    assert rate[49:51] == pytest.approx([1e-3, 1e-3], rel=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rate[50:]))
    assert rate[999] == pytest.approx(1e-4, rel=0.05)


def test_the_rate_rises_again_where_more_begins_to_learn():
    rate = rates(learning_rate(1e-3, 1000, 100, later=300))
    assert max(rate[:300]) == pytest.approx(1e-3) and max(rate) <= 1e-3 * 1.0001
    assert rate[0] < 5e-5 and rate[300] < 5e-5 < 5e-4 < rate[299]
    assert rate[400] > 5e-4
    assert rate[999] == pytest.approx(2e-5, rel=0.05)


def test_heads_learn_first_at_a_rate_of_their_own():
    rate = rates(learning_rate(1e-3, 1000, 50, heads=(200, 2e-3)))
    assert rate[:200] == pytest.approx([2e-3] * 200)
    assert rate[200] == pytest.approx(2e-5) and rate[250] == pytest.approx(1e-3, rel=0.01)
    assert rate[999] == pytest.approx(2e-5, rel=0.05)
