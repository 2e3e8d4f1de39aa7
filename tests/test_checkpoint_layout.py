"""The two published layouts: what a file must hold, and one turned into the other."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from making_checkpoints import random_tensors, small_config, write_checkpoint, write_hollow

from moshi_mlx.checkpoint import check_lm, expected_tensors, load_lm_tensors, open_tensors, pieces, to_mlx_layout
from moshi_mlx.config import LMConfig

MANIFESTS = Path(__file__).parent / "data" / "manifests"
PUBLISHED = ("moshiko-pytorch-bf16", "moshiko-mlx-bf16", "moshiko-mlx-q4", "moshiko-mlx-q8")


def manifest(name):
    return json.loads((MANIFESTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_shape_loads_by_its_header(name, tmp_path):
    published = manifest(name)
    path = write_hollow(tmp_path / published["file"], published["tensors"])
    config = LMConfig.published()

    file = check_lm(path, config)
    tensors, quantization = load_lm_tensors(path, config)

    assert file.layout == ("pytorch" if "pytorch" in name else "mlx")
    assert {(q.bits, q.group_size, q.mode) for q in quantization.values()} == (
        {(published["bits"], published["group_size"], "affine")} if published.get("group_size") else set()
    )
    specs = expected_tensors(config, "mlx", quantization)
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: tuple(s.shape) for n, s in specs.items()}
    norm = tensors["depformer.slices.7.transformer.layers.5.norm2.weight"]
    assert not mx.any(norm).item()  # read from the file at last


@pytest.mark.parametrize("name", PUBLISHED)
def test_expected_tensors_are_the_published_ones(name, tmp_path):
    published = manifest(name)
    path = write_hollow(tmp_path / published["file"], published["tensors"])
    file = check_lm(path, LMConfig.published())

    expected = expected_tensors(file.config, file.layout, file.quantization)

    assert {n: tuple(s.shape) for n, s in expected.items()} == {
        n: tuple(shape) for n, (shape, _) in published["tensors"].items()
    }


def test_the_published_config_is_the_one_used_without_config_json():
    assert LMConfig.from_dict(manifest("moshiko-pytorch-bf16")["config"]) == LMConfig.published()


def test_blocks_of_stacked_weights_go_to_the_slices_of_their_weight_set(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    converted = to_mlx_layout(tensors, LMConfig.from_dict(config))

    stacked = np.array(tensors["depformer.layers.1.self_attn.in_proj_weight"])
    norm = np.array(tensors["depformer.layers.1.norm1.alpha"])
    for s, weights in enumerate(config["depformer_weights_per_step_schedule"]):
        layer = f"depformer.slices.{s}.transformer.layers.1"
        block = converted[f"{layer}.self_attn.in_proj.weight"]
        np.testing.assert_array_equal(np.array(block), stacked[96 * weights : 96 * (weights + 1)])
        np.testing.assert_array_equal(
            np.array(converted[f"{layer}.gating.linear_in.weight"]),
            np.array(tensors[f"depformer.layers.1.gating.{weights}.linear_in.weight"]),
        )
        np.testing.assert_array_equal(np.array(converted[f"{layer}.norm1.weight"]), norm[0, 0])
        emb = f"depformer_emb.{s - 1}" if s else "depformer_text_emb"
        for leaf in ("weight", "low_rank.weight"):
            np.testing.assert_array_equal(
                np.array(converted[f"depformer.slices.{s}.emb.{leaf}"]), np.array(tensors[f"{emb}.{leaf}"])
            )
        np.testing.assert_array_equal(
            np.array(converted[f"depformer.slices.{s}.linear_out.weight"]), np.array(tensors[f"linears.{s}.weight"])
        )


def test_conversion_uses_every_tensor_of_the_file():
    config = LMConfig.from_dict(small_config())
    assert {piece.source for piece in pieces(config).values()} == set(expected_tensors(config, "pytorch"))


def test_slices_that_share_a_weight_set_share_arrays():
    config = small_config()
    converted = to_mlx_layout(random_tensors(config), LMConfig.from_dict(config))
    shared = "transformer.layers.0.self_attn.in_proj.weight"

    assert converted[f"depformer.slices.1.{shared}"] is converted[f"depformer.slices.3.{shared}"]
    assert converted[f"depformer.slices.0.{shared}"] is not converted[f"depformer.slices.1.{shared}"]


def test_both_layouts_of_one_model_load_alike(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    parsed = LMConfig.from_dict(config)
    pytorch = write_checkpoint(tmp_path / "pytorch", config, tensors)
    unrolled = write_checkpoint(tmp_path / "mlx", config, to_mlx_layout(tensors, parsed))

    one, _ = load_lm_tensors(pytorch, parsed)
    other, _ = load_lm_tensors(unrolled, parsed)

    assert one.keys() == other.keys()
    assert [name for name in one if not mx.array_equal(one[name], other[name]).item()] == []


def test_a_model_without_depth_transformer(tmp_path):
    config = small_config(dep_q=0, depformer_weights_per_step_schedule=None, depformer_low_rank_embeddings=None)
    path = write_checkpoint(tmp_path, config, random_tensors(config))

    tensors, _ = load_lm_tensors(path, LMConfig.from_dict(config))

    assert not [name for name in tensors if name.startswith("depformer")]
    assert tensors["extra_heads.1.weight"].shape == (6, 64)


def test_open_tensors_reads_nothing_until_asked(tmp_path):
    terabyte = write_hollow(tmp_path / "huge.safetensors", {"a": ((1 << 19, 1 << 20), "BF16"), "b": ((3,), "F32")})
    assert open_tensors(terabyte)["b"].tolist() == [0, 0, 0]
