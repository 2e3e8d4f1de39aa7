"""Finding a model's files in folders."""

import json

import pytest

from moshi_mlx.checkpoint import resolve
from moshi_mlx.config import LMConfig
from moshi_mlx.errors import CheckpointError, ConfigError, DownloadError

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"


def folder_with(folder, *names, config=None):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "weights", ["model.safetensors", "model.q4.safetensors", "model.q8.safetensors", "mine.safetensors"]
)
def test_a_folder_with_the_published_names(weights, tmp_path):
    files = resolve(folder_with(tmp_path, weights, MIMI, TOKENIZER))
    assert (files.lm, files.mimi, files.tokenizer) == (tmp_path / weights, tmp_path / MIMI, tmp_path / TOKENIZER)
    assert files.lm_config == LMConfig.published()


def test_config_json_says_which_of_several_files(tmp_path):
    config = {"moshi_name": "b.safetensors", "mimi_name": "codec", "tokenizer_name": "text.model"}
    folder_with(
        tmp_path, "a.safetensors", "b.safetensors", "codec/config.json", "text.model", "other.model", config=config
    )
    files = resolve(str(tmp_path))
    assert (files.lm, files.mimi, files.tokenizer) == tuple(tmp_path / name for name in config.values())


def test_a_codec_folder_beside_the_weights(tmp_path):
    files = resolve(folder_with(tmp_path, "model.safetensors", "codec/config.json", "codec/model.safetensors"))
    assert files.mimi == tmp_path / "codec"


def test_several_weights_and_no_config_ask_which(tmp_path):
    folder_with(tmp_path, "model.safetensors", "model.q4.safetensors")
    with pytest.raises(
        CheckpointError, match=r"several weights: model.q4.safetensors, model.safetensors.*--moshi-weight"
    ):
        resolve(tmp_path)
    assert resolve(tmp_path, moshi_weight=tmp_path / "model.q4.safetensors").lm == tmp_path / "model.q4.safetensors"


def test_files_given_by_hand_go_before_those_found(tmp_path):
    folder_with(tmp_path, "model.safetensors", MIMI, TOKENIZER)
    other = folder_with(tmp_path / "other", "codec.safetensors") / "codec.safetensors"
    files = resolve(tmp_path, mimi_weight=other)
    assert files.mimi == other
    assert files.tokenizer == tmp_path / TOKENIZER


def test_a_weights_file_with_its_config_beside_it(tmp_path):
    folder_with(tmp_path, "model.safetensors", config={"dim": 64})
    files = resolve(tmp_path / "model.safetensors")
    assert files.lm == tmp_path / "model.safetensors"
    assert files.config == {"dim": 64}


def test_files_given_by_hand_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder_with(tmp_path, "model.safetensors", MIMI, TOKENIZER)
    given = [tmp_path / name for name in ("model.safetensors", MIMI, TOKENIZER)]
    assert resolve("kyutai/moshiko-mlx-q4", *given).lm_config == LMConfig.published()
    folder_with(tmp_path, config={"dep_q": 4})
    assert resolve("kyutai/moshiko-mlx-q4", *given).config == {"dep_q": 4}
    with pytest.raises(DownloadError, match="isn't in the cache"):
        resolve("kyutai/moshiko-mlx-q4", *given[:2])


def test_weights_given_by_hand_bring_their_config(tmp_path):
    where = folder_with(tmp_path / "a", "model.safetensors", MIMI, TOKENIZER, config={"dep_q": 8})
    other = folder_with(tmp_path / "b", "model.safetensors", config={"dep_q": 4})
    files = resolve(where, moshi_weight=other / "model.safetensors")
    assert files.config == {"dep_q": 4} and files.mimi == where / MIMI


def test_a_part_that_is_not_there_is_asked_for_by_its_flag(tmp_path):
    files = resolve(folder_with(tmp_path, "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"text tokenizer.*--tokenizer"):
        files.need("tokenizer")


def test_a_file_that_config_json_names_and_isnt_there(tmp_path):
    folder_with(tmp_path, config={"moshi_name": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"names gone.safetensors, which isn't there"):
        resolve(tmp_path)


def test_a_file_given_by_hand_that_isnt_there(tmp_path):
    folder_with(tmp_path, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no such file, given as --tokenizer"):
        resolve(tmp_path, tokenizer=tmp_path / "gone.model")


@pytest.mark.parametrize("where", ["./not/here", "/not/here", "nothing", "a/b/c"])
def test_a_place_that_is_neither_folder_nor_repository(where):
    with pytest.raises(CheckpointError, match="Expected a folder, a hub repository such as kyutai/moshiko-mlx-q4"):
        resolve(where)


def test_an_unreadable_config(tmp_path):
    folder_with(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        resolve(tmp_path)
