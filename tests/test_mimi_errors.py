"""What the codec says to wrong arguments and wrong files."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden import golden

from moshi_mlx.config import FRAME_SIZE, MimiConfig
from moshi_mlx.errors import CheckpointError, ConfigError, InputError
from moshi_mlx.mimi import Mimi, expected_tensors

GOLDEN = golden("mimi")
MANIFEST = Path(__file__).parent / "data/manifests/mimi.json"


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return Mimi.load(GOLDEN)


@pytest.mark.parametrize("samples", [0, 1, FRAME_SIZE - 1, FRAME_SIZE + 1])
def test_a_stream_refuses_part_of_a_frame(mimi, samples):
    state = mimi.make_state()
    with pytest.raises(InputError, match=f"{samples} samples.*whole frames of 1920"):
        mimi.encode_step(np.zeros((1, 1, samples), np.float32), state)


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.zeros(FRAME_SIZE, np.float32), r"shape \[1920\]; expected \[B, 1, samples\]"),
        (np.zeros((1, 2, FRAME_SIZE), np.float32), r"mono"),
        (np.zeros((1, 1, FRAME_SIZE), np.int16), r"int16.*divide 16-bit samples by 32768"),
        (mx.zeros((1, 1, FRAME_SIZE), mx.int32), r"int32"),
        (np.zeros((0, 1, FRAME_SIZE), np.float32), r"batch of 0"),
        (np.zeros((1, 1, 0), np.float32), r"no samples"),
        ([0.0] * FRAME_SIZE, r"list; expected a NumPy array"),
    ],
)
def test_encode_refuses_what_is_no_mono_sound(mimi, pcm, message):
    with pytest.raises(InputError, match=message):
        mimi.encode(pcm)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((8, 1), np.int32), r"shape \[8, 1\]"),
        (np.zeros((1, 9, 1), np.int32), r"K of 1 to 8"),
        (np.zeros((1, 8, 0), np.int32), r"at least one frame"),
        (np.zeros((1, 8, 1), np.float32), r"float32; expected integers"),
        (np.full((1, 8, 1), 32), r"from 32 to 32; expected 0 to 31"),
        (np.full((1, 8, 1), -1), r"from -1 to -1"),
    ],
)
def test_decode_refuses_what_are_no_codes(mimi, codes, message):
    with pytest.raises(InputError, match=message):
        mimi.decode(codes)


def test_codes_in_an_mlx_array_that_are_out_of_range_are_taken_for_the_nearest(mimi):
    for beyond, nearest in ((10**6, 31), (-(10**6), 0)):
        assert mx.array_equal(mimi.decode(mx.full((1, 8, 2), beyond)), mimi.decode(mx.full((1, 8, 2), nearest)))


def test_a_stream_refuses_another_batch_size(mimi):
    state = mimi.make_state(2)
    with pytest.raises(InputError, match="batch of 1; expected 2"):
        mimi.encode_step(np.zeros((1, 1, FRAME_SIZE), np.float32), state)
    with pytest.raises(InputError, match="batch of 3; expected 2"):
        mimi.decode_step(np.zeros((3, 8, 1), np.int32), state)
    with pytest.raises(InputError, match="batch_size is 0"):
        mimi.make_state(0)


@pytest.mark.parametrize("num_codebooks", [0, 9])
def test_a_codec_has_the_codebooks_it_has(num_codebooks):
    with pytest.raises(InputError, match=f"num_codebooks is {num_codebooks}; this codec has 1 to 8"):
        Mimi.load(GOLDEN, num_codebooks=num_codebooks)


def test_expected_tensors_are_the_published_ones():
    manifest = json.loads(MANIFEST.read_text())["tensors"]
    expected = expected_tensors(MimiConfig.published())
    assert expected == {name: tuple(shape) for name, (shape, _) in manifest.items()}


def test_missing_and_misshapen_tensors_are_named(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    tensors = mx.load(str(GOLDEN / "model.safetensors"))
    del tensors["downsample.conv.conv.conv.weight"]
    tensors["encoder.model.0.conv.conv.bias"] = mx.zeros((5,))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError) as error:
        Mimi.load(tmp_path)
    for part in ("downsample.conv.conv.conv.weight", "encoder.model.0.conv.conv.bias", "[5]", "[4]"):
        assert part in str(error.value)


def test_scales_that_fit_no_weight_are_refused(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    tensors = mx.load(str(GOLDEN / "model.safetensors"))
    module = "downsample.conv.conv.conv"
    rows, columns, kernel = tensors[f"{module}.weight"].shape
    tensors[f"{module}.weight"] = mx.zeros((rows, columns * kernel // 4), mx.uint32)
    tensors[f"{module}.scales"] = tensors[f"{module}.biases"] = mx.zeros((rows, 3))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError, match=rf"{module}\.weight .* is no quantization of the"):
        Mimi.load(tmp_path)


def test_weights_that_are_no_numbers_are_named(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    tensors = mx.load(str(GOLDEN / "model.safetensors"))
    tensors["encoder.model.0.conv.conv.bias"][1] = mx.nan
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError, match=r"NaN or infinity: encoder\.model\.0\.conv\.conv\.bias"):
        Mimi.load(tmp_path)


def test_a_codec_of_another_shape_is_not_taken_for_the_published_one():
    with pytest.raises(CheckpointError, match="misshapen"):
        Mimi.load(GOLDEN / "model.safetensors")


def test_a_file_cut_off_is_refused(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    data = (GOLDEN / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut off"):
        Mimi.load(tmp_path)


def test_places_without_a_codec_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Mimi.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no codec"):
        Mimi.load(tmp_path)
    (tmp_path / "config.json").write_text('{"seanet": {}')
    with pytest.raises(ConfigError, match="not valid JSON"):
        Mimi.load(tmp_path)
