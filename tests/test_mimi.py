"""The codec against the published implementation's fixtures, and streaming against whole sounds."""

import mlx.core as mx
import numpy as np
import pytest
from golden import golden, reference

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.mimi import Mimi, MimiState

GOLDEN = golden("mimi")


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    return reference("mimi")


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return Mimi.load(GOLDEN)


def noise(batch: int, frames: float, seed: int = 0) -> np.ndarray:
    shape = (batch, 1, round(frames * FRAME_SIZE))
    return np.random.default_rng(seed).normal(scale=0.2, size=shape).astype(np.float32)


def split(pcm: np.ndarray) -> list[np.ndarray]:
    return np.split(pcm, pcm.shape[2] // FRAME_SIZE, axis=2)


def stream(mimi: Mimi, pcm: np.ndarray, state: MimiState) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sound of `pcm`, one frame at a time."""
    codes, sounds = [], []
    for frame in split(pcm):
        codes.append(mimi.encode_step(frame, state))
        sounds.append(mimi.decode_step(codes[-1], state))
        mx.eval(codes[-1], sounds[-1])
    return np.concatenate(codes, axis=2), np.concatenate(sounds, axis=2)


def test_codes_equal_the_published_ones(mimi, published):
    codes = np.array(mimi.encode(published["pcm_in"][None, None]))
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, published["codes"])


def test_the_stages_lead_to_the_published_codes(mimi, published):
    pcm = published["pcm_in"][None, None]
    codes, convolved, latents = mimi.stages(pcm)
    assert np.array_equal(np.array(codes), np.array(mimi.encode(pcm)))
    assert np.array_equal(np.array(mimi.quantize(latents)), np.array(codes))
    F = codes.shape[2]
    assert convolved.shape == (1, 2 * F, mimi.config.dimension)
    # The convolutions' output is all that the rest needs.
    again, _ = mimi.refine_frame(convolved, mimi.encoder_state(1, F))
    assert np.abs(np.array(again) - np.array(latents)).max() < 1e-3


def test_sound_equals_the_published_one(mimi, published):
    np.testing.assert_allclose(np.array(mimi.decode(published["codes"])), published["pcm_out"], atol=1e-4, rtol=0)


def test_streaming_equals_the_published_streaming(mimi, published):
    codes, sound = stream(mimi, published["pcm_in"][None, None], mimi.make_state())
    np.testing.assert_array_equal(codes, published["stream_codes"])
    np.testing.assert_allclose(sound, published["stream_pcm_out"], atol=1e-4, rtol=0)


def test_streaming_equals_whole_sounds_past_the_attention_window(mimi):
    pcm = noise(1, 200)  # 400 steps of the transformers, whose window is 250
    codes, sound = stream(mimi, pcm, mimi.make_state())
    whole = np.array(mimi.encode(pcm))
    assert (codes == whole).mean() >= 0.999
    np.testing.assert_allclose(sound, np.array(mimi.decode(codes)), atol=1e-4, rtol=0)


def test_several_frames_at_a_time_equal_one_at_a_time(mimi):
    pcm = noise(1, 6)
    codes, sound = stream(mimi, pcm, mimi.make_state())
    state = mimi.make_state()
    np.testing.assert_array_equal(np.array(mimi.encode_step(pcm, state)), codes)
    np.testing.assert_allclose(np.array(mimi.decode_step(codes, state)), sound, atol=1e-5, rtol=0)


def test_a_batch_equals_its_streams_one_by_one(mimi):
    pcm = noise(3, 7)
    codes, sound = stream(mimi, pcm, mimi.make_state(3))
    assert codes.shape == (3, 8, 7)
    assert sound.shape == (3, 1, 7 * FRAME_SIZE)
    whole = np.array(mimi.encode(pcm))
    for i in range(3):
        alone, alone_sound = stream(mimi, pcm[i : i + 1], mimi.make_state())
        np.testing.assert_array_equal(codes[i : i + 1], alone)
        np.testing.assert_array_equal(whole[i : i + 1], alone)
        np.testing.assert_allclose(sound[i : i + 1], alone_sound, atol=1e-5, rtol=0)


def test_interleaved_streams_do_not_see_each_other(mimi):
    pcm = [noise(1, 8, seed) for seed in (1, 2)]
    alone = [stream(mimi, x, mimi.make_state()) for x in pcm]
    states = [mimi.make_state() for _ in pcm]
    for t, frames in enumerate(zip(*map(split, pcm), strict=True)):
        for frame, state, (codes, sound) in zip(frames, states, alone, strict=True):
            step = mimi.encode_step(frame, state)
            np.testing.assert_array_equal(np.array(step), codes[:, :, t : t + 1])
            heard = np.array(mimi.decode_step(step, state))
            np.testing.assert_array_equal(heard, sound[:, :, t * FRAME_SIZE : (t + 1) * FRAME_SIZE])


def test_a_copied_state_goes_its_own_way(mimi):
    pcm = noise(1, 6)
    expected = stream(mimi, pcm, mimi.make_state())
    state = mimi.make_state()
    stream(mimi, pcm[:, :, : 3 * FRAME_SIZE], state)
    fork = state.copy()
    stream(mimi, noise(1, 3, seed=9), fork)
    codes, sound = stream(mimi, pcm[:, :, 3 * FRAME_SIZE :], state)
    np.testing.assert_array_equal(codes, expected[0][:, :, 3:])
    np.testing.assert_array_equal(sound, expected[1][:, :, 3 * FRAME_SIZE :])


def test_a_sound_is_padded_with_silence_to_whole_frames(mimi):
    pcm = noise(1, 2.3)
    padded = np.pad(pcm, [(0, 0), (0, 0), (0, 3 * FRAME_SIZE - pcm.shape[2])])
    np.testing.assert_array_equal(np.array(mimi.encode(pcm)), np.array(mimi.encode(padded)))


@pytest.mark.parametrize("num_codebooks", [1, 2, 5])
def test_fewer_codebooks_are_the_first_ones(mimi, num_codebooks):
    pcm = noise(1, 4)
    some = Mimi.load(GOLDEN, num_codebooks=num_codebooks)
    codes = np.array(some.encode(pcm))
    np.testing.assert_array_equal(codes, np.array(mimi.encode(pcm))[:, :num_codebooks])
    np.testing.assert_allclose(np.array(some.decode(codes)), np.array(mimi.decode(codes)), atol=1e-6, rtol=0)


def test_arrays_of_either_kind_give_the_same(mimi):
    pcm = noise(1, 2)
    codes = mimi.encode(mx.array(pcm))
    np.testing.assert_array_equal(np.array(codes), np.array(mimi.encode(pcm.astype(np.float64))))
    np.testing.assert_array_equal(np.array(mimi.decode(codes)), np.array(mimi.decode(np.array(codes, np.int64))))


def test_a_codec_whose_projections_are_numbered_is_the_same(mimi, published, tmp_path):
    numbered = {"in_proj_weight": "in_projs.0.weight", "out_proj.weight": "out_projs.0.weight"}
    tensors = mx.load(str(GOLDEN / "model.safetensors"))
    for old, new in numbered.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    codes = Mimi.load(tmp_path).encode(published["pcm_in"][None, None, :9600])
    np.testing.assert_array_equal(np.array(codes), np.array(mimi.encode(published["pcm_in"][None, None, :9600])))
