"""Quantizing while loading: levels, recipes, what a file says of itself, and memory."""

import subprocess
import sys
import textwrap

import mlx.core as mx
import numpy as np
import pytest
from making_checkpoints import random_tensors, small_config, write_checkpoint, write_streaming

from moshi_mlx.checkpoint import KINDS, LEVELS, Quantization, Recipe, kind_of, load_lm, load_lm_tensors, pieces
from moshi_mlx.checkpoint.quantization import level, quantize_weight
from moshi_mlx.config import LMConfig
from moshi_mlx.errors import CheckpointError, InputError

CONFIG = small_config()


def dequantized(tensors, quantization, module):
    how = quantization[module]
    parts = [tensors[f"{module}.{part}"] for part in ("weight", "scales", "biases") if f"{module}.{part}" in tensors]
    return np.array(mx.dequantize(*parts, group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=mx.float32))


@pytest.mark.parametrize("chosen", LEVELS)
def test_every_level_keeps_weights_as_well_as_its_bits_allow(chosen, tmp_path):
    tensors = random_tensors(CONFIG)
    path = write_checkpoint(tmp_path, CONFIG, tensors)

    loaded, quantization = load_lm_tensors(path, LMConfig.from_dict(CONFIG), chosen)

    module, how = "transformer.layers.0.gating.linear_in", level(chosen)
    assert quantization[module] == how
    error = np.abs(dequantized(loaded, quantization, module) - np.array(tensors[f"{module}.weight"]))
    groups = np.array(tensors[f"{module}.weight"]).reshape(-1, how.group_size)
    affine = np.ptp(groups, axis=1) / (2**how.bits - 1)
    widest_gap_of_4_bit_floats = np.abs(groups).max(axis=1) / 2  # scales are powers of two
    step = affine if how.mode == "affine" else widest_gap_of_4_bit_floats
    worst = (error.reshape(-1, how.group_size).max(axis=1) / step).max()
    assert worst <= 1.0, worst


@pytest.mark.parametrize("chosen", LEVELS)
def test_bits_and_groups_are_read_off_the_file(chosen, tmp_path):
    parsed = LMConfig.from_dict(CONFIG)
    path = write_checkpoint(tmp_path / "float", CONFIG, random_tensors(CONFIG))
    tensors, quantization = load_lm_tensors(path, parsed, chosen)
    saved = write_checkpoint(tmp_path / "quantized", CONFIG, tensors, "without-a-hint.safetensors")

    again, found = load_lm_tensors(saved, parsed)

    assert found == quantization
    assert again.keys() == tensors.keys()


def test_a_mixed_file_is_read_tensor_by_tensor(tmp_path):
    parsed = LMConfig.from_dict(CONFIG)
    recipe = Recipe.parse("4,attention=8,mlp=mxfp4,embeddings=bf16,heads=3")
    path = write_checkpoint(tmp_path / "float", CONFIG, random_tensors(CONFIG))
    tensors, _ = load_lm_tensors(path, parsed, recipe)
    saved = write_checkpoint(tmp_path / "mixed", CONFIG, tensors)

    _, found = load_lm_tensors(saved, parsed)

    assert found["transformer.layers.1.self_attn.in_proj"] == Quantization(8, 64)
    assert found["transformer.layers.1.gating.linear_in"] == Quantization(4, 32, "mxfp4")
    assert found["depformer.slices.3.linear_out"] == Quantization(3, 32)
    assert found["depformer.slices.3.linear_in"] == Quantization(4, 32)
    assert "text_emb" not in found
    with pytest.raises(CheckpointError, match="quantized already"):
        load_lm_tensors(saved, parsed, 4)


def test_a_mixed_model_runs_close_to_the_original(tmp_path):
    path = write_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG))
    tokens = mx.random.randint(0, 64, (1, 9, 12), key=mx.random.key(1))
    _, exact = load_lm(path).forward_text(tokens)

    _, close = load_lm(path, "8,embeddings=bf16").forward_text(tokens)
    _, far = load_lm(path, 2).forward_text(tokens)

    spread = mx.std(exact).item()
    assert mx.abs(close - exact).max().item() < 0.1 * spread
    assert mx.abs(far - exact).max().item() > 0.2 * spread


def test_shared_weight_sets_are_quantized_once(tmp_path):
    path = write_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG))
    tensors, _ = load_lm_tensors(path, LMConfig.from_dict(CONFIG), 4)
    shared = "transformer.layers.0.self_attn.in_proj.scales"
    assert tensors[f"depformer.slices.1.{shared}"] is tensors[f"depformer.slices.2.{shared}"]


def test_every_matrix_of_the_published_model_has_a_kind():
    config = LMConfig.published()
    without = {name for name, piece in pieces(config).items() if len(piece.shape) > 1 and not kind_of(name[:-7])}
    kinds = {kind_of(name.removesuffix(".weight")) for name in pieces(config)}
    assert without == set()
    assert kinds == {*KINDS, None}


def test_published_levels_have_the_published_groups():
    assert level(4) == Quantization(4, 32)
    assert level("8") == Quantization(8, 64)


def test_rows_too_short_for_a_group_take_a_smaller_one_or_stay(tmp_path):
    recipe = Recipe.parse(8)
    assert recipe("text_linear", (128, 4096)) == Quantization(8, 64)
    assert recipe("text_linear", (128, 96)) == Quantization(8, 32)
    assert recipe("text_linear", (128, 24)) is None
    assert recipe("out_norm", (64,)) is None


def test_recipes_that_make_no_sense():
    with pytest.raises(InputError, match="kind 'ears'; expected one of attention"):
        Recipe.parse("4,ears=8")


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_chunks_of_a_matrix_quantize_like_the_whole(mode):
    how = level(mode)
    weight = mx.random.normal((80, 8192), key=mx.random.key(0)).astype(mx.bfloat16)  # 2.5 chunks
    whole = mx.quantize(weight, group_size=how.group_size, bits=how.bits, mode=how.mode)
    parts = quantize_weight(weight, how)
    assert all(mx.array_equal(a, b).item() for a, b in zip(whole, parts.values(), strict=True))


MEMORY = """
    import sys, mlx.core as mx
    import moshi_mlx
    from mlx.utils import tree_flatten
    from moshi_mlx.checkpoint import load_lm, load_lm_tensors
    from moshi_mlx.config import LMConfig
    from moshi_mlx.config_values import read_config
    from pathlib import Path

    def peak():  # VmHWM belongs to this program; ru_maxrss would count the memory of the one that started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    folder, quantize, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = LMConfig.from_dict(read_config(folder / "config.json"))
    mx.eval(mx.quantize(mx.ones((256, 256)), group_size=32, bits=4))
    before = peak()
    quantize = None if quantize == "as it is" else quantize
    if what == "tensors":
        tensors, _ = load_lm_tensors(folder / "model.safetensors", config, quantize)
        mx.eval(tensors)
        arrays = list(tensors.values())
    else:
        arrays = [array for _, array in tree_flatten(load_lm(folder, quantize).parameters())]
    print(peak() - before, sum(a.nbytes for a in {id(a): a for a in arrays}.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("layout", "quantize", "allowed"),
    [
        ("pytorch", "4", 1.3),
        ("mlx", "4", 1.3),
        ("mlx", "8", 1.3),
        ("pytorch", "as it is", 1.1),
        ("mlx", "as it is", 1.1),
    ],
)
def test_loading_peaks_little_above_its_result(layout, quantize, allowed, tmp_path):
    peak, result = peak_and_result(tmp_path, layout, quantize, layers=16 if quantize == "8" else 8)
    report = f"result {result / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB: {peak / result:.3f}x"
    print(report)
    assert result > 7e7, report
    assert peak <= allowed * result, report


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_floating_point_modes_take_bounded_memory_too(tmp_path):
    peak, result = peak_and_result(tmp_path, "pytorch", "mxfp4", layers=1)
    report = f"result {result / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB"
    print(report)
    assert peak < result + 50e6, report  # a matrix of 12 MB at once would take 240 MB more


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("quantize", ["4", "as it is"])
def test_a_model_takes_little_more_memory_to_load_than_to_have(quantize, tmp_path):
    peak, held = peak_and_result(tmp_path, "pytorch", quantize, layers=4, what="model")
    report = f"held {held / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB: {peak / held:.3f}x"
    print(report)
    assert peak <= 1.3 * held, report


def peak_and_result(folder, layout, quantize, layers, what="tensors"):
    """Bytes by which loading raises a process's peak memory, and bytes of what was loaded."""
    config = small_config(
        dim=1024, num_layers=layers, n_q=8, card=512, text_card=4000, depformer_dim=256, depformer_dim_feedforward=1056,
        depformer_weights_per_step_schedule=None, depformer_low_rank_embeddings=None, depformer_num_heads=8,
    )  # fmt: skip
    write_checkpoint(folder, config, {"placeholder": mx.zeros(1)})
    write_streaming(folder / "model.safetensors", config, layout)
    measured = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(folder), quantize, what],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, result = map(int, measured.stdout.split())
    return peak, result
