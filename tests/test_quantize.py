"""python -m moshi_mlx.quantize: what it writes, and that it writes all of it or nothing."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from making_checkpoints import random_tensors, small_config, write_checkpoint

import moshi_mlx
from moshi_mlx.checkpoint import LEVELS, Quantization, check_lm, load_lm, load_lm_tensors, read_header
from moshi_mlx.config import LMConfig
from moshi_mlx.config_values import read_config
from moshi_mlx.errors import StorageError
from moshi_mlx.mimi import Mimi, expected_tensors
from moshi_mlx.mimi.weights import locate, quantize_weights
from moshi_mlx.quantize import main
from moshi_mlx.sound import load_sound

CONFIG = small_config()
NANO = Path(moshi_mlx.__file__).parent / "nano"
SPEECH = Path(__file__).parent / "data" / "spoken" / "hours.wav"


@pytest.fixture
def source(tmp_path):
    tensors = {name: array.astype(mx.bfloat16) for name, array in random_tensors(CONFIG).items()}
    return write_checkpoint(tmp_path / "source", CONFIG, tensors).parent


def named_weights(folder):
    return folder / read_config(folder / "config.json")["moshi_name"]


@pytest.mark.parametrize("level", [*LEVELS, "bf16"])
def test_a_saved_model_is_the_one_quantized_while_loading(level, source, tmp_path):
    assert main([str(source), str(tmp_path / "saved"), "--bits", str(level)]) == 0

    parsed = LMConfig.from_dict(CONFIG)
    saved, found = load_lm_tensors(named_weights(tmp_path / "saved"), parsed)
    loaded, quantization = load_lm_tensors(source / "model.safetensors", parsed, None if level == "bf16" else level)
    assert found == quantization
    assert saved.keys() == loaded.keys()
    assert [name for name in saved if not mx.array_equal(saved[name], loaded[name]).item()] == []


def test_the_result_has_the_published_layout_and_runs(source, tmp_path):
    assert main([str(source), str(tmp_path / "saved"), "--bits", "4"]) == 0

    weights = tmp_path / "saved" / "model.q4.safetensors"
    header = read_header(weights)
    assert header.tensors["depformer.slices.3.transformer.layers.1.self_attn.in_proj.scales"].dtype == "BF16"
    assert header.tensors["text_emb.weight"].dtype == "U32"
    assert all(info.start % 4 == 0 for info in header.tensors.values() if info.dtype == "U32")
    tokens = mx.zeros((1, 9, 3), mx.int32)
    saved = load_lm(tmp_path / "saved").forward_text(tokens)[1]
    loaded = load_lm(source, 4).forward_text(tokens)[1]
    assert mx.allclose(saved, loaded, atol=1e-5).item()


def test_other_readers_of_the_format_accept_the_file(source, tmp_path):
    assert main([str(source), str(tmp_path / "q.safetensors"), "--bits", "8"]) == 0
    safetensors = pytest.importorskip("safetensors", reason="the format's own library is not installed")
    with safetensors.safe_open(tmp_path / "q.safetensors", framework="numpy") as file:
        assert file.get_slice("out_norm.weight").get_shape() == [64]
        assert len(list(file.keys())) == len(read_header(tmp_path / "q.safetensors").tensors)


def test_a_float32_checkpoint_is_saved_in_bfloat16(tmp_path):
    write_checkpoint(tmp_path / "float32", CONFIG, random_tensors(CONFIG))
    assert main([str(tmp_path / "float32"), str(tmp_path / "saved"), "--bits", "8"]) == 0
    dtypes = {info.dtype for info in read_header(named_weights(tmp_path / "saved")).tensors.values()}
    assert dtypes == {"BF16", "U32"}


def test_a_recipe_by_kind(source, tmp_path):
    assert main([str(source), str(tmp_path / "saved"), "--recipe", "4,attention=8,embeddings=bf16"]) == 0
    found = check_lm(named_weights(tmp_path / "saved"), LMConfig.from_dict(CONFIG)).quantization
    assert found["transformer.layers.0.self_attn.in_proj"] == Quantization(8, 64)
    assert found["transformer.layers.0.gating.linear_in"].bits == 4
    assert "audio_embs.0" not in found


def test_codec_and_tokenizer_come_along(source, tmp_path):
    (source / "tokenizer-e351c8d8-checkpoint125.safetensors").write_bytes(b"codec")
    (source / "tokenizer_spm_32k_3.model").write_bytes(b"pieces")
    assert main([str(source), str(tmp_path / "saved"), "--bits", "4"]) == 0
    config = read_config(tmp_path / "saved" / "config.json")
    assert (tmp_path / "saved" / config["mimi_name"]).read_bytes() == b"codec"
    assert (tmp_path / "saved" / config["tokenizer_name"]).read_bytes() == b"pieces"
    assert LMConfig.from_dict(config) == LMConfig.from_dict(CONFIG)


@pytest.mark.parametrize("codec", ["mimi", "codec"])
def test_a_model_can_be_quantized_where_it_is_with_its_codec_in_a_folder(codec, source):
    kept = {"config.json": b"{}", "model.safetensors": b"codec"}
    (source / codec).mkdir()
    for name, content in kept.items():
        (source / codec / name).write_bytes(content)
    assert main([str(source), str(source / codec), "--bits", "8"]) == 2, "the codec's place"
    assert main([str(source), str(source), "--bits", "8"]) == 0
    assert read_config(source / "config.json")["mimi_name"] == codec
    assert named_weights(source).name == "model.q8.safetensors"
    load_lm(source)
    assert {path.name: path.read_bytes() for path in (source / codec).iterdir()} == kept


def test_a_codec_in_fewer_bits_finds_the_codes_that_it_found(source, tmp_path):
    shutil.copytree(NANO / "codec", source / "codec")
    whole = Mimi.load(NANO / "codec")
    command = [str(source), str(tmp_path / "saved"), "--bits", "8", "--codec-bits", "8"]
    assert main(command) == 0
    small = tmp_path / "saved" / read_config(tmp_path / "saved" / "config.json")["mimi_name"]
    coded = Mimi.load(small)
    tensors = read_header(small / "model.safetensors").tensors
    assert tensors["encoder.model.12.conv.conv.weight"].dtype == "U32"
    assert all(info.dtype == "F16" for name, info in tensors.items() if name.startswith("quantizer."))
    floats = sum(2 * math.prod(shape) for shape in expected_tensors(whole.config).values())
    assert sum(info.nbytes for info in tensors.values()) < 0.8 * floats
    assert coded.config == whole.config

    pcm = mx.array(load_sound(SPEECH))[None, None]
    codes = whole.encode(pcm)
    found = coded.encode(pcm)
    assert mx.mean(found[:, 0] == codes[:, 0]).item() > 0.9
    assert mx.mean(found[:, 1] == codes[:, 1]).item() > 0.9
    sound, heard = whole.decode(codes), coded.decode(codes)
    assert (sound - heard).square().sum().item() < 1e-3 * sound.square().sum().item()

    # Once more, and in its own place.
    before = {name: mx.array(tensor) for name, tensor in mx.load(str(small / "model.safetensors")).items()}
    quantize_weights(*locate(small), 8)
    after = mx.load(str(small / "model.safetensors"))
    assert before.keys() == after.keys()
    assert mx.mean(Mimi.load(small).encode(pcm)[:, 0] == codes[:, 0]).item() > 0.9


def test_a_codec_in_fewer_bits_needs_one_and_a_place(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "saved"), "--bits", "8", "--codec-bits", "8"]) == 2
    assert "has no codec" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()
    assert main([str(source), str(tmp_path / "q.safetensors"), "--bits", "8", "--codec-bits", "8"]) == 2
    assert "--codec-bits goes with a folder" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_config_gets_one(tmp_path):
    from moshi_mlx.checkpoint.saving import config_to_save

    written = json.loads(json.dumps(config_to_save({}, LMConfig.published())))
    assert LMConfig.from_dict(written) == LMConfig.published()
    assert written["depformer_pos_emb"] == "none"


def test_a_quantized_source_is_refused_and_nothing_is_written(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "q4"), "--bits", "4"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "q4"), str(tmp_path / "q2"), "--bits", "2"]) == 3
    said = capsys.readouterr().err
    assert "quantized already" in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "q2").exists()


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(source, tmp_path):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.quantize", str(source), str(tmp_path / "saved.safetensors"), "--bits", "8"],
        preexec_fn=small_files_only,
        capture_output=True,
        text=True,
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert "saved.safetensors" in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name != "source"]


def test_a_run_that_is_interrupted_leaves_the_old_result(source, tmp_path):
    from moshi_mlx.checkpoint import Recipe
    from moshi_mlx.checkpoint.saving import save_quantized

    target = tmp_path / "model.q4.safetensors"
    target.write_bytes(b"the old result")

    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    file = check_lm(source / "model.safetensors", LMConfig.from_dict(CONFIG))
    with pytest.raises(KeyboardInterrupt):
        save_quantized(file, target, Recipe.parse(4), interrupt)
    assert target.read_bytes() == b"the old result"
    assert sorted(os.listdir(tmp_path)) == ["model.q4.safetensors", "source"]


def test_a_search_measures_on_one_step_at_least(source, capsys):
    with pytest.raises(SystemExit):
        main([str(source), "--target-gb", "1", "--steps", "0"])
    assert "is not 1 or more" in capsys.readouterr().err


def test_a_search_takes_no_seed_below_zero(source, capsys):
    with pytest.raises(SystemExit):
        main([str(source), "--target-gb", "1", "--seed", "-1"])
    assert "is not 0 or more" in capsys.readouterr().err


def test_one_way_of_saying_how_is_needed(source, tmp_path):
    for arguments in ([], ["--bits", "4", "--recipe", "4"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(source), str(tmp_path / "saved"), *arguments])
        assert stopped.value.code == 2
