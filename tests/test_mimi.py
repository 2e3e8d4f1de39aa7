"""The codec against the published implementation's fixtures, and streaming against whole sounds."""

from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.mimi import Mimi

GOLDEN = Path(__file__).resolve().parents[2] / "shared/golden/mimi"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "reference.npz"))


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return Mimi.load(GOLDEN)


def noise(batch: int, frames: int, seed: int = 0) -> np.ndarray:
    shape = (batch, 1, frames * FRAME_SIZE)
    return np.random.default_rng(seed).normal(scale=0.2, size=shape).astype(np.float32)


def test_codes_equal_the_published_ones(mimi, golden):
    codes = np.array(mimi.encode(golden["pcm_in"][None, None]))
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, golden["codes"])


def test_sound_equals_the_published_one(mimi, golden):
    np.testing.assert_allclose(np.array(mimi.decode(golden["codes"])), golden["pcm_out"], atol=1e-4, rtol=0)


def test_streaming_equals_the_published_streaming(mimi, golden):
    state = mimi.make_state(1)
    pcm = golden["pcm_in"][None, None]
    for i in range(pcm.shape[2] // FRAME_SIZE):
        codes = mimi.encode_step(pcm[:, :, i * FRAME_SIZE : (i + 1) * FRAME_SIZE], state)
        np.testing.assert_array_equal(np.array(codes), golden["stream_codes"][:, :, i : i + 1])
        sound = np.array(mimi.decode_step(codes, state))
        expected = golden["stream_pcm_out"][:, :, i * FRAME_SIZE : (i + 1) * FRAME_SIZE]
        np.testing.assert_allclose(sound, expected, atol=1e-4, rtol=0)
