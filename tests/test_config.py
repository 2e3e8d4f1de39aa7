"""What is said of a `config.json` that no model can be built from."""

import copy
import json

import pytest
from golden import golden
from making_checkpoints import small_config

from moshi_mlx import load
from moshi_mlx.checkpoint import resolve
from moshi_mlx.config import LMConfig, MimiConfig
from moshi_mlx.config_values import read_config
from moshi_mlx.errors import ConfigError, InputError


def lut(**changes):
    return {"description": {"type": "lut", "lut": {"n_bins": 3, "dim": 16, "possible_values": ["good"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": "64"}, "'dim' is '64'; expected int"),
        ({"dim": True}, "'dim' is True"),
        ({"card": 0}, "card is 0; expected at least 1"),
        ({"context": 0}, "context is 0"),
        ({"delays": [0] * 8 + ["1"]}, "'delays' is"),
        ({"delays": [0] * 8 + [1.5]}, "'delays' is"),
        ({"max_period": 0}, "max_period"),
        ({"hidden_scale": float("nan")}, "'hidden_scale' is nan"),
        ({"depformer_weights_per_step_schedule": 5}, "'depformer_weights_per_step_schedule' is 5"),
        ({"depformer_weights_per_step_schedule": ["a"] * 4}, "expected whole numbers"),
        ({"depformer_weights_per_step_schedule": [0, -1, 0, 0]}, "counted from 0"),
        ({"depformer_weights_per_step_schedule": [0, 2, 3, 3]}, "counted from 0, all used"),
        ({"max_period": 10**400}, "'max_period' is 1000"),
        ({"context": 10**13}, "'context' is 1000"),
        ({"delays": [0] * 8 + [10**13]}, "'delays' is"),
        ({"extra_heads_num_heads": -1}, "extra_heads_num_heads is -1"),
        ({"conditioners": 5}, "'conditioners' is 5; expected an object"),
        ({"conditioners": {"description": 5}}, "'description' is 5"),
        ({"conditioners": lut(n_bins="3")}, "'n_bins' is '3'"),
        ({"conditioners": lut(possible_values=5)}, "'possible_values' is 5"),
        ({"conditioners": lut(possible_values=list("abcd"))}, "n_bins is 3; expected at least 4"),
        ({"fuser": "sum"}, "'fuser' is 'sum'"),
        ({"norm": "batch_norm"}, "supports 'rms_norm_f32'"),
    ],
)
def test_a_language_model_that_cannot_be(changes, said):
    with pytest.raises(ConfigError) as refused:
        LMConfig.from_dict(small_config(**changes))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("seanet", "ratios", [8, 6, 5], "frames of 480 samples"),
        ("seanet", "ratios", [8, 6, 5, "4"], "expected whole numbers"),
        ("seanet", "ratios", [-8, -6, 5, 4], "ratios"),
        ("seanet", "compress", 0, "compress is 0"),
        ("transformer", "num_heads", 5, "can't be divided among 5 heads"),
        ("transformer", "num_heads", 0, "num_heads is 0"),
        ("transformer", "context", 0, "context is 0"),
        ("transformer", "layer_scale", None, "layer_scale"),
        ("quantizer", "n_q", 0, "n_q is 0"),
    ],
)
def test_a_codec_that_cannot_be(part, key, value, said):
    data = copy.deepcopy(read_config(golden("mimi") / "config.json"))
    data[part][key] = value
    with pytest.raises(ConfigError) as refused:
        MimiConfig.from_dict(data)
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"dim": 64', b"[" * 100_000])
def test_what_is_no_json_object(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json (is not valid JSON|holds a list)"):
        read_config(tmp_path / "config.json")


def test_a_file_name_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small_config(moshi_name=5)))
    with pytest.raises(ConfigError, match="'moshi_name' is 5"):
        resolve(tmp_path)


def test_the_untrained_model_takes_no_files():
    with pytest.raises(InputError, match="takes no weights"):
        load("untrained", moshi_weight="model.safetensors")
