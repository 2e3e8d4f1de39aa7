"""What must not change with the length of a stream or a sound: results, memory, exactness."""

import math

import mlx.core as mx
import numpy as np
import pytest
from golden import golden
from mlx.utils import tree_flatten, tree_map

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.mimi import Mimi
from moshi_mlx.mimi.transformer import Rotary, ring_length, visible

GOLDEN = golden("mimi")
DAY = 24 * 3600 * 25  # steps of the codec's transformers


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return Mimi.load(GOLDEN)


def test_state_keeps_its_shapes(mimi):
    state = mimi.make_state(2)
    before = tree_map(lambda a: (a.shape, a.dtype), [state.encoder, state.decoder])
    pcm = np.zeros((2, 1, FRAME_SIZE), np.float32)
    for _ in range(140):
        mx.eval(mimi.decode_step(mimi.encode_step(pcm, state), state))
    assert tree_map(lambda a: (a.shape, a.dtype), [state.encoder, state.decoder]) == before


def test_memory_is_flat_over_a_stream(mimi):
    state = mimi.make_state()
    pcm = mx.random.normal((1, 1, FRAME_SIZE), key=mx.random.key(0))

    def lowest(frames: int) -> int:
        """Of what is held after each of the frames: the last one's temporaries may be given back a little later."""
        held = []
        for _ in range(frames):
            mx.eval(mimi.decode_step(mimi.encode_step(pcm, state), state), state.encoder, state.decoder)
            mx.synchronize()
            held.append(mx.get_active_memory())
        return min(held[frames // 2 :])

    early, late = lowest(40), lowest(800)
    # The least that a frame could leave behind are its codes, 32 bytes; what is given back later comes to 3 KB.
    assert late <= early + 8192, f"{early} bytes after 20 frames and more, {late} after 440 and more"


def test_memory_does_not_grow_with_a_sound(mimi):
    def peak(frames: int) -> int:
        pcm = np.zeros((1, 1, frames * FRAME_SIZE), np.float32)
        mx.reset_peak_memory()
        mx.eval(mimi.encode(pcm))
        return mx.get_peak_memory() - 3 * pcm.nbytes  # the sound itself, padded and not

    peak(32)
    short, long = peak(64), peak(2000)
    assert long < 2 * max(short, 1 << 20), f"{short} bytes for 64 frames, {long} for 2000"


def test_a_stream_sounds_the_same_after_a_day(mimi):
    """A stream that starts at a late position differs from one at an early position by nothing but rounding."""
    pcm = np.random.default_rng(0).normal(scale=0.2, size=(1, 1, 140 * FRAME_SIZE)).astype(np.float32)
    slots = mimi.make_state().encoder["transformer"]["rings"][0].shape[2]

    def late(tree, start: int):
        later = dict(tree)
        later["transformer"] = {**tree["transformer"], "position": mx.array([start], dtype=mx.int32)}
        return later

    def run(start: int) -> tuple[np.ndarray, np.ndarray]:
        state = mimi.make_state()
        state.encoder, state.decoder = late(state.encoder, start), late(state.decoder, start)
        codes = np.array(mimi.encode_step(pcm, state))
        return codes, np.array(mimi.decode_step(codes, state))

    # Past one window, so that the (zero) keys from before the start are forgotten.
    early, early_sound = run(slots)
    codes, sound = run(DAY // slots * slots)
    assert (codes == early).mean() >= 0.999
    same = codes == early
    first = int(np.argmin(same.all(axis=(0, 1)))) if not same.all() else codes.shape[2]
    np.testing.assert_allclose(sound[..., : first * FRAME_SIZE], early_sound[..., : first * FRAME_SIZE], atol=1e-4)


def test_phase_differences_are_exact_after_a_day():
    rotary = Rotary(64, 10_000.0)

    def difference(start: int) -> np.ndarray:
        phases = np.array(rotary.phases(mx.array([start, start + 249], dtype=mx.int32)))[:, 0, 0]
        return phases[1] * np.conj(phases[0])

    frequencies = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    for start in (0, DAY, 2**31 - 300):
        np.testing.assert_allclose(difference(start), np.exp(249j * frequencies), atol=2e-6)


@pytest.mark.parametrize("steps", [2, 4, 32])
@pytest.mark.parametrize("context", [5, 24, 250])
def test_a_step_sees_itself_and_the_window_before_it(steps, context):
    slots = ring_length(context, steps)
    assert slots % steps == 0
    held = np.full(slots, -1)
    for start in range(0, 3 * slots, steps):
        held[start % slots : start % slots + steps] = np.arange(start, start + steps)
        seen = np.array(visible(mx.array([start], dtype=mx.int32), steps, slots, context))
        for i in range(steps):
            query = start + i
            expected = set(range(max(0, query - context + 1), query + 1))
            assert set(held[seen[i]]) == expected, f"query {query}"


def test_ring_is_no_longer_than_it_must_be():
    assert ring_length(250, 2) == 252
    assert math.ceil(249 / 32) * 32 + 32 == ring_length(250, 32)


def test_state_is_small():
    """The published shape's state: what a session keeps besides the weights."""
    from moshi_mlx.config import MimiConfig
    from moshi_mlx.mimi import expected_tensors

    config = MimiConfig.published()
    tensors = {name: mx.zeros(shape) for name, shape in expected_tensors(config).items()}
    state = Mimi(tensors, config, 1).make_state()
    size = sum(array.nbytes for _, array in tree_flatten([state.encoder, state.decoder]))
    assert size < 20e6, f"{size} bytes"
