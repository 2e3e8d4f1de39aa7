"""Damaged, foreign and mismatched files: one clear error each, before anything is loaded."""

import random

import mlx.core as mx
import pytest
from making_checkpoints import random_tensors, small_config, write_checkpoint, write_hollow

from moshi_mlx.checkpoint import TensorSpec, check_lm, check_tensors, load_lm, load_lm_tensors, read_header
from moshi_mlx.config import LMConfig
from moshi_mlx.errors import CheckpointError, InputError

CONFIG = small_config()


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "model", CONFIG, random_tensors(CONFIG))


def refusal(path, config=CONFIG, quantize=None):
    with pytest.raises(CheckpointError) as refused:
        load_lm_tensors(path, LMConfig.from_dict(config), quantize)
    message = str(refused.value)
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"abc", "only 3 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 42\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x80\x02}q\x00." + bytes(100), "pickle"),
        (b"GGUF" + bytes(100), "GGUF"),
        (bytes(1000), "not a safetensors file"),
        (b"\xff" * 1000, "not a safetensors file"),
        ((200).to_bytes(8, "little") + b"{" + b"x" * 500, "unreadable header"),
        ((2).to_bytes(8, "little") + b"{}", "no tensors"),
        ((4).to_bytes(8, "little") + b"{[]}", "unreadable header"),
        ((200_005).to_bytes(8, "little") + b'{"a":' + b"[" * 200_000, "unreadable header"),
        ((55).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0]}}', "unreadable header"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, said, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_missing_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "model.safetensors")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_file_that_was_cut_off(kept, model):
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * kept)])
    assert "cut off" in refusal(model)


def test_a_file_with_something_behind_its_end(model):
    with model.open("ab") as file:
        file.write(b"tail")
    assert "damaged" in refusal(model)


def test_damaged_headers_never_escape_as_another_error(model, tmp_path):
    content = bytearray(model.read_bytes())
    length = int.from_bytes(content[:8], "little")
    dice = random.Random(0)
    outcomes = {"refused": 0, "accepted": 0}
    for trial in range(300):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(8 + length)] = dice.randrange(256)
        path = tmp_path / f"{trial % 2}.safetensors"
        path.write_bytes(damaged)
        try:
            check_lm(path, LMConfig.from_dict(CONFIG))
            outcomes["accepted"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 290, outcomes


def changed(tmp_path, change):
    tensors = random_tensors(CONFIG)
    change(tensors)
    return write_checkpoint(tmp_path / "changed", CONFIG, tensors)


def test_missing_tensors_are_named(tmp_path):
    path = changed(tmp_path, lambda t: [t.pop(f"emb.{k}.weight") for k in range(5)])
    message = refusal(path)
    assert "5 tensors missing: emb.0.weight, emb.1.weight, emb.2.weight and 2 more" in message
    assert "config.json" in message


def test_an_extra_tensor_is_named(tmp_path):
    message = refusal(changed(tmp_path, lambda t: t.update(lora=mx.zeros(3))))
    assert "1 tensor too many: lora" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    message = refusal(changed(tmp_path, lambda t: t.update({"text_linear.weight": mx.zeros((100, 64))})))
    assert "text_linear.weight is [100, 64] F32, expected [128, 64]" in message


def test_a_tensor_of_the_wrong_type_is_named(tmp_path):
    message = refusal(changed(tmp_path, lambda t: t.update({"out_norm.alpha": mx.zeros((1, 1, 64), mx.int32)})))
    assert "out_norm.alpha is [1, 1, 64] I32" in message


def test_weights_of_another_model_than_config_json_says(model):
    assert "misshapen" in refusal(model, small_config(dim=128))


def test_the_codec_given_as_the_language_model(tmp_path):
    path = write_hollow(tmp_path / "mimi.safetensors", {"quantizer.rvq_first.input_proj.weight": ((16, 32, 1), "F32")})
    assert "Mimi codec" in refusal(path)


def test_some_other_model(tmp_path):
    path = write_hollow(tmp_path / "other.safetensors", {"model.layers.0.weight": ((16, 32), "F32")})
    assert "no Moshi language model" in refusal(path)


@pytest.mark.parametrize(("stored", "asked"), [(4, 8), (8, 4), (4, "mxfp4"), ("mxfp4", 4), (4, "4,attention=8")])
def test_a_level_that_contradicts_the_file(stored, asked, tmp_path):
    path = write_quantized(tmp_path, stored)
    message = refusal(path, quantize=asked)
    assert "quantized already" in message
    assert "-q" in message


@pytest.mark.parametrize("level", [4, 8, "mxfp4"])
def test_the_level_that_the_file_has_is_accepted(level, tmp_path):
    path = write_quantized(tmp_path, level)
    _, quantization = load_lm_tensors(path, LMConfig.from_dict(CONFIG), level)
    assert quantization


def write_quantized(folder, level):
    path = write_checkpoint(folder / "float", CONFIG, random_tensors(CONFIG))
    tensors, _ = load_lm_tensors(path, LMConfig.from_dict(CONFIG), level)
    return write_checkpoint(folder / "quantized", CONFIG, tensors)


def test_scales_that_fit_no_quantization(tmp_path):
    path = write_quantized(tmp_path, 4)
    tensors = {**mx.load(str(path)), "text_emb.scales": mx.zeros((129, 3))}
    path = write_checkpoint(tmp_path / "wrong", CONFIG, tensors)
    assert "text_emb.weight [129, 8] with scales [129, 3] is no quantization of the [129, 64]" in refusal(path)


@pytest.mark.parametrize("level", [1, 7, "q4", "fp4", ""])
def test_levels_that_dont_exist(level, model):
    with pytest.raises(InputError, match="expected one of 2, 3, 4, 5, 6, 8, mxfp4, nvfp4"):
        load_lm_tensors(model, LMConfig.from_dict(CONFIG), level)


@pytest.mark.parametrize(
    ("level", "name"), [(None, "text_emb.weight"), (4, "transformer.layers.0.self_attn.out_proj.scales")]
)
@pytest.mark.parametrize("value", [mx.nan, mx.inf])
def test_weights_that_are_no_numbers_are_named(level, name, value, tmp_path):
    path = (
        write_quantized(tmp_path, level) if level else write_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG, "mlx"))
    )
    load_lm(path.parent)
    tensors = mx.load(str(path))
    tensors[name][0, 0] = value
    write_checkpoint(path.parent, CONFIG, tensors)
    with pytest.raises(CheckpointError, match=f"1 of .* NaN or infinity: {name.rpartition('.')[0]}.*again"):
        load_lm(path.parent)


def test_check_tensors_serves_any_model(tmp_path):
    path = write_hollow(tmp_path / "codec.safetensors", {"a.weight": ((2, 3), "F32"), "flag": ((1,), "F32")})
    found = read_header(path).tensors
    check_tensors({"a.weight": TensorSpec((2, 3))}, found, path, optional=["flag", "other"])
    with pytest.raises(CheckpointError, match="1 tensor missing: b"):
        check_tensors({"a.weight": TensorSpec((2, 3)), "b": TensorSpec(())}, found, path, optional=["flag"])
