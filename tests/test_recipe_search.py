"""The recipe search: within its budget, better than what it is measured against, and kept in a file."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import mlx.core as mx
import pytest
from making_checkpoints import random_tensors, small_config, write_checkpoint

import moshi_mlx
from moshi_mlx.checkpoint import Quantization, Recipe, check_lm, load_lm, read_header
from moshi_mlx.checkpoint.saving import size_of
from moshi_mlx.config import LMConfig, MimiConfig
from moshi_mlx.config_values import read_config
from moshi_mlx.errors import InputError
from moshi_mlx.quality import divergence, generate_streams, predictions
from moshi_mlx.quantize import main
from moshi_mlx.recipe_file import read_recipe
from moshi_mlx.recipe_search import codec_bytes_read, file_budget, kv_bytes, search, time_budget, units

CONFIG = small_config(num_layers=3)
LEVELS = (2, 4, 8)
NANO = Path(moshi_mlx.__file__).parent / "nano"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose audio embeddings matter most: they are much larger than everything else."""
    tensors = {name: array * (8 if name.startswith("emb.") else 2) for name, array in random_tensors(CONFIG).items()}
    path = write_checkpoint(tmp_path_factory.mktemp("model"), CONFIG, tensors)
    return check_lm(path, LMConfig.from_dict(CONFIG))


def test_the_search_beats_every_uniform_level_that_fits(source):
    bounds = [size_of(source, Recipe.parse(bits)) for bits in (4, 8)]
    budget = file_budget(sum(bounds) / 2e9)

    outcome = search(source, budget, LEVELS, steps=24)

    fitting = {name: measured.kl for name, (nbytes, measured) in outcome.uniform.items() if nbytes <= budget.nbytes}
    assert len(fitting) == 2
    assert outcome.nbytes <= budget.nbytes
    assert outcome.measured.kl < 0.7 * min(fitting.values()), (outcome.measured.kl, fitting)


def test_a_units_divergence_falls_with_its_bits(source):
    outcome = search(source, file_budget(1.0), LEVELS, steps=24)
    for unit, measured in outcome.sensitivity.items():
        two, four, eight = measured.values()
        assert two > 2 * four > 4 * eight > 0, (unit, measured)


def test_with_room_for_the_highest_level_everything_gets_it(source):
    outcome = search(source, file_budget(1.0), LEVELS, steps=24)
    assert {how.bits for how in outcome.levels.values()} == {8}


def test_a_budget_below_the_lowest_level_is_refused(source):
    with pytest.raises(InputError, match="smallest model that these levels allow"):
        search(source, file_budget(1e-6), LEVELS)


def test_units_cover_every_tensor_that_can_be_quantized_once(source):
    covered = [module for modules in units(source.config).values() for module in modules]
    recipe = Recipe.parse(8)
    assert len(covered) == len(set(covered))
    assert set(source_modules(source, recipe)) == set(covered)
    shared = units(source.config)["depformer.weights.1"]
    assert {module.split(".")[2] for module in shared} == {"1", "2", "3"}


def source_modules(file, recipe):
    from moshi_mlx.checkpoint import pieces

    return [
        n.removesuffix(".weight") for n, p in pieces(file.config).items() if recipe(n.removesuffix(".weight"), p.shape)
    ]


@pytest.mark.parametrize(
    ("ms", "kv_bits", "least_ms", "with_4_bits"), [(60, None, 68.8, 52.1), (20, 8, 57.9, 52.1), (50, 4, 52.1, None)]
)
def test_a_time_that_is_too_short_is_refused_with_what_it_goes_to_and_the_least_that_will_do(
    ms, kv_bits, least_ms, with_4_bits, source
):
    published = replace(source, config=LMConfig.published())
    with pytest.raises(InputError, match=r"smallest model that these levels allow a step reads 2\.77 GB") as refused:
        search(published, time_budget(ms, 68, published.config, kv_bits))
    said = str(refused.value)
    cache = {None: "1.57", 8: "0.836", 4: "0.442"}[kv_bits]
    assert f"{ms} ms at 68 GB/s" in said
    assert f"KV cache takes {cache} GB of them, the codec 0.334 GB" in said
    assert float(re.search(r"Allow (\S+) ms", said)[1]) == least_ms
    assert ("--kv-bits" in said) == (with_4_bits is not None)
    assert with_4_bits is None or float(re.search(r"with --kv-bits 4, (\S+) ms", said)[1]) == with_4_bits
    for enough, bits in ((least_ms, kv_bits), (with_4_bits, 4)):
        if enough is not None:
            budget, shorter = (time_budget(enough - less, 68, published.config, bits) for less in (0, 0.1))
            assert shorter.nbytes < budget.of(published.config, Recipe.parse(2)) <= budget.nbytes


@pytest.mark.parametrize(("kv_bits", "recipe"), [(8, "2"), (4, "2,attention=3")])
def test_on_68_gb_a_second_the_7b_fits_into_60_ms_with_a_quantized_cache(kv_bits, recipe):
    published = LMConfig.published()
    budget = time_budget(60, 68, published, kv_bits)
    assert budget.of(published, Recipe.parse(recipe)) <= budget.nbytes


def test_where_heads_are_too_narrow_a_quantized_cache_is_not_advised(source):
    with pytest.raises(InputError) as refused:
        search(source, time_budget(1e-3, 68, source.config))
    assert "--kv-bits" not in str(refused.value)


def test_a_time_budget_counts_what_a_step_reads():
    published = LMConfig.published()
    budget = time_budget(60, 68, published)
    kv_cache = 2 * 32 * 3000 * 4096 * 2
    assert budget.nbytes == 60e-3 * 68e9 - kv_cache - codec_bytes_read(MimiConfig.published(), 8)
    small = replace(MimiConfig.published(), n_filters=8)
    assert time_budget(60, 68, published, codec=small).nbytes > budget.nbytes
    read, stored = budget.of(published, Recipe.parse(4)), file_budget(1).of(published, Recipe.parse(4))
    tables = (32001 * (4096 + 1024) + 2049 * (16 * 4096 + 7 * 1024)) * 5 / 8
    assert abs(stored - tables - read) < 1e5


def test_a_model_doesnt_diverge_from_itself(source):
    lm = load_lm(source.path)
    codes = generate_streams(lm, steps=16)
    assert codes.shape == (2, 9, 16)
    same = divergence(predictions(lm, codes), predictions(lm, codes))
    assert same.kl == 0
    assert (same.text_agreement, set(same.audio_agreement)) == (1, {1})
    assert len(same.audio_kl) == 4


def test_divergence_is_the_textbooks():
    from moshi_mlx.lm.model import LMOutput

    def output(probabilities, mask):
        return LMOutput(None, mx.log(mx.array([[probabilities]])), None, mx.array([[mask]]))

    found = divergence(
        output([[0.5, 0.5], [0.9, 0.1], [1.0, 1.0]], [True, True, False]),
        output([[0.25, 0.75], [0.9, 0.1], [float("nan")] * 2], [True, True, False]),
    )
    assert found.text_kl == pytest.approx((0.5 * 0.69314718 + 0.5 * -0.40546511) / 2, abs=1e-6)
    assert found.text_agreement == 0.5  # argmax of a tie is the first


def test_the_command_writes_a_model_that_loads_and_the_recipe_that_made_it(source, tmp_path, capsys):
    target = size_of(source, Recipe.parse(6))
    arguments = [str(source.path.parent), str(tmp_path / "found"), "--target-gb", str(target / 1e9), "--steps", "16"]
    assert main([*arguments, "--levels", "3,8"]) == 0

    weights = tmp_path / "found" / read_config(tmp_path / "found" / "config.json")["moshi_name"]
    assert read_header(weights).nbytes <= target
    load_lm(tmp_path / "found")
    report = json.loads((tmp_path / "found" / "recipe.json").read_text())
    assert report["cost_bytes"] == read_header(weights).nbytes
    assert {how["bits"] for how in report["modules"].values()} == {3, 8}
    assert "found" in capsys.readouterr().err

    again = [str(source.path.parent), str(tmp_path / "again"), "--recipe", str(tmp_path / "found" / "recipe.json")]
    assert main(again) == 0
    assert (tmp_path / "again" / weights.name).read_bytes() == weights.read_bytes()


def test_a_recipe_of_another_model_is_refused(source, tmp_path, capsys):
    recipe = {"default": None, "modules": {"transformer.layers.99.self_attn.in_proj": None}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = [str(source.path.parent), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(arguments) == InputError.exit_code
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how",
    [
        {"bits": 7, "group_size": 64},
        {"bits": 4, "group_size": 0},
        {"bits": 4, "group_size": 48},
        {"bits": "4", "group_size": 32},
        {"bits": True, "group_size": 32},
        {"bits": 4, "group_size": 32, "mode": "affin"},
        {"bits": 4, "group_size": 64, "mode": "mxfp4"},
        {"bits": 4, "group_size": 32, "mode": []},
        {"bits": 4},
        4,
    ],
)
@pytest.mark.parametrize("place", ["default", "modules"])
def test_a_quantization_that_there_isnt_is_refused(how, place, source, tmp_path, capsys):
    recipe = {"default": None, "modules": {}} | ({"default": how} if place == "default" else {})
    if place == "modules":
        recipe["modules"] = {"text_emb": how}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = [str(source.path.parent), str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(arguments) == InputError.exit_code
    assert "holds no recipe" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_quantization_that_there_is_can_be_in_a_recipe(source, tmp_path):
    for how in (Quantization(3, 128), Quantization(8, 32), *(Recipe.parse(mode).default for mode in ("nvfp4", 6))):
        data = {"bits": float(how.bits), "group_size": how.group_size, "mode": how.mode}
        (tmp_path / "recipe.json").write_text(json.dumps({"default": data, "modules": {"text_emb": None}}))
        found = read_recipe(tmp_path / "recipe.json", source.config)
        assert (found.default, found.modules) == (how, {"text_emb": None})
        assert type(found.default.bits) is int


def test_the_command_counts_the_cache_that_it_is_told(tmp_path, capsys):
    config = small_config(num_heads=2)
    weights = write_checkpoint(tmp_path / "model", config, random_tensors(config))
    arguments = [str(weights.parent), str(tmp_path / "out"), "--target-ms", "60", "--bandwidth", "68"]
    with mock.patch("moshi_mlx.quantize.search", side_effect=InputError("enough")) as searched:
        for kv_bits in ([], ["--kv-bits", "8"], ["--kv-bits", "4"]):
            assert main([*arguments, *kv_bits]) == InputError.exit_code
    plain, eight, four = (call.args[1].nbytes for call in searched.call_args_list)
    parsed = LMConfig.from_dict(config)
    full, at_8, at_4 = (kv_bytes(parsed, parsed.context, bits=bits) for bits in (None, 8, 4))
    assert (eight - plain, four - plain) == (full - at_8, full - at_4)
    capsys.readouterr()

    assert main([*arguments[:2], "--target-gb", "1", "--kv-bits", "4"]) == InputError.exit_code
    assert "--kv-bits goes with --target-ms" in capsys.readouterr().err


def test_the_command_counts_the_models_own_codec(source, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(source.path.parent, folder)
    shutil.copytree(NANO / "codec", folder / "codec")
    with mock.patch("moshi_mlx.quantize.search", side_effect=InputError("enough")) as searched:
        main([str(folder), str(tmp_path / "out"), "--target-ms", "60", "--bandwidth", "68"])
    assert searched.call_args.args[1].nbytes > time_budget(60, 68, source.config).nbytes


def test_a_time_target_needs_a_bandwidth(source, tmp_path, capsys):
    assert main([str(source.path.parent), str(tmp_path / "out"), "--target-ms", "60"]) == InputError.exit_code
    assert "--bandwidth" in capsys.readouterr().err
