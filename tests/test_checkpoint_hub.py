"""Models from the hub: what is fetched, what the cache is good for, and a download that was cut off."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hub_server import HubServer
from making_checkpoints import random_tensors, small_config, write_checkpoint

REPO = "kyutai/moshiko-mlx-q4"
MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"
BLOCK = 10 << 20
"""What huggingface_hub reads from the network before it writes any of it."""

RESOLVE = """
import sys, json
from moshi_mlx.checkpoint import resolve
from moshi_mlx.errors import MoshiError
try:
    files = resolve(sys.argv[1], parts=sys.argv[2].split(","))
    print(json.dumps({k: str(v) for k, v in vars(files).items() if k != "config"} | {"config": dict(files.config)}))
except MoshiError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hub"


def environment(home, url, offline=False):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    return {
        **kept,
        "HF_HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def start(home, url, where=REPO, parts="lm,mimi,tokenizer", offline=False):
    return subprocess.Popen(
        [sys.executable, "-c", RESOLVE, where, parts],
        env=environment(home, url, offline),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resolved(home, url, where=REPO, parts="lm,mimi,tokenizer", offline=False):
    process = start(home, url, where, parts, offline)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("\n") == 1, "the library prints nothing"
    return json.loads(out)


def read(path):
    with open(path, "rb") as file:
        return file.read()


FILES = {REPO: {"model.q4.safetensors": b"weights" * 1000, MIMI: b"codec", TOKENIZER: b"pieces"}}


def test_a_repository_without_config_has_the_published_names(home):
    with HubServer(FILES) as hub:
        files = resolved(home, hub.url)
    assert read(files["lm"]) == b"weights" * 1000
    assert read(files["mimi"]) == b"codec"
    assert read(files["tokenizer"]) == b"pieces"
    assert files["config"] == {}


def test_config_json_names_the_files(home):
    config = {"moshi_name": "hibiki.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "text.model"}
    content = {"config.json": json.dumps(config).encode(), **{name: name.encode() for name in config.values()}}
    with HubServer({"kyutai/hibiki": content}) as hub:
        files = resolved(home, hub.url, "kyutai/hibiki")
    assert [read(files[part]) for part in ("lm", "mimi", "tokenizer")] == [n.encode() for n in config.values()]


def test_only_the_parts_asked_for_are_fetched(home):
    with HubServer(FILES) as hub:
        files = resolved(home, hub.url, parts="mimi")
    assert set(hub.sent) == {MIMI}
    assert files["lm"] == "None"


def test_what_is_in_the_cache_is_not_fetched_again(home):
    with HubServer(FILES) as hub:
        first = resolved(home, hub.url)
        sent = dict(hub.sent)
        assert resolved(home, hub.url) == first
        assert hub.sent == sent


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_network_the_cache_is_enough(offline, home):
    with HubServer(FILES) as hub:
        first = resolved(home, hub.url)
    requests = len(hub.requests)
    assert resolved(home, hub.url, offline=offline) == first  # the server is gone
    assert len(hub.requests) == requests


def test_a_cache_without_a_note_that_there_is_no_config_is_enough(home):
    with HubServer(FILES) as hub:
        first = resolved(home, hub.url)
    notes = list(home.glob("hub/*/.no_exist"))
    assert notes
    for note in notes:
        shutil.rmtree(note)
    assert resolved(home, hub.url, offline=True) == first


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_network_and_cache_one_sentence_says_what_to_do(offline, home):
    with HubServer({}) as hub:
        nobody = hub.url
    started = time.monotonic()
    failed = resolved(home, nobody, offline=offline)
    print(f"took {time.monotonic() - started:.1f} s")
    assert failed["error"] == "DownloadError"
    assert "connect to the internet and run this again" in failed["message"]
    assert "\n" not in failed["message"]


def test_a_download_that_was_killed_goes_on_where_it_stopped(home):
    weights = os.urandom(24_000_000)
    with HubServer({REPO: {"model.q4.safetensors": weights}}, stall_after={"model.q4.safetensors": 15_000_000}) as hub:
        process = start(home, hub.url, parts="lm")
        assert hub.stalled.wait(60)
        partial = wait_for_partial(home, at_least=BLOCK)
        process.kill()
        process.communicate()

        files = resolved(home, hub.url, parts="lm")

        assert read(files["lm"]) == weights
        ranges = [
            r for method, path, r in hub.requests if method == "GET" and r and path.endswith("model.q4.safetensors")
        ]
        assert ranges, "the second run asked for the whole file"
        assert int(ranges[-1].removeprefix("bytes=").rstrip("-")) >= BLOCK
    assert not partial.exists()


def wait_for_partial(home, at_least):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in home.rglob("*.partial"):
            if path.stat().st_size >= at_least:
                return path
        time.sleep(0.05)
    raise AssertionError(f"nothing was kept in {list(home.rglob('*'))}")


def test_a_connection_that_breaks_is_taken_up_again_in_the_same_run(home):
    class Breaking(HubServer):
        def _answer(self, request, send_body):
            if send_body and self.stall_after:
                self._released.set()  # don't stall: end the connection short of what was promised
            super()._answer(request, send_body)
            if send_body:
                request.close_connection = True

    weights = os.urandom(24_000_000)
    content = {REPO: {"model.q4.safetensors": weights}}
    with Breaking(content, stall_after={"model.q4.safetensors": 15_000_000}) as hub:
        files = resolved(home, hub.url, parts="lm")
    assert read(files["lm"]) == weights
    assert hub.sent["model.q4.safetensors"] <= 15_000_000 + len(weights) - BLOCK


def test_a_partial_file_of_other_content_is_not_taken_for_the_file(home):
    weights = os.urandom(24_000_000)
    with HubServer({REPO: {"model.q4.safetensors": weights}}, stall_after={"model.q4.safetensors": 15_000_000}) as hub:
        process = start(home, hub.url, parts="lm")
        assert hub.stalled.wait(60)
        partial = wait_for_partial(home, at_least=BLOCK)
        process.kill()
        process.communicate()
        partial.write_bytes(bytes(partial.stat().st_size))

        failed = resolved(home, hub.url, parts="lm")
        assert failed["error"] == "DownloadError"
        assert "damaged" in failed["message"]
        assert read(resolved(home, hub.url, parts="lm")["lm"]) == weights


def test_a_repository_that_isnt_there(home):
    with HubServer(FILES) as hub:
        failed = resolved(home, hub.url, "kyutai/moshika-mlx-q4")
    assert failed["error"] == "DownloadError"
    assert "no repository kyutai/moshika-mlx-q4" in failed["message"]


def test_a_repository_without_weights(home):
    with HubServer({"someone/notes": {"README.md": b"hello"}}) as hub:
        failed = resolved(home, hub.url, "someone/notes")
    assert failed["error"] == "DownloadError"
    assert "--moshi-weight" in failed["message"]


def test_a_model_loads_straight_from_the_hub(home, tmp_path):
    config = small_config()
    path = write_checkpoint(tmp_path / "model", config, random_tensors(config))
    config_file = json.dumps({**config, "moshi_name": "model.safetensors"}).encode()
    with HubServer({"someone/small": {"config.json": config_file, "model.safetensors": read(path)}}) as hub:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from moshi_mlx.checkpoint import load_lm; print(load_lm('someone/small').config.dim)",
            ],
            env=environment(home, hub.url),
            capture_output=True,
            text=True,
        )
    assert done.stdout == "64\n", done.stderr


def test_a_command_shows_the_download(home, tmp_path):
    config = small_config()
    path = write_checkpoint(tmp_path / "model", config, random_tensors(config))
    config_file = json.dumps({**config, "moshi_name": "weights.safetensors"}).encode()
    content = {"config.json": config_file, "weights.safetensors": read(path), MIMI: b"codec", TOKENIZER: b"pieces"}
    with HubServer({"someone/small": content}) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "moshi_mlx.quantize", "someone/small", str(tmp_path / "saved"), "--bits", "8"],
            env={**environment(home, hub.url), "COLUMNS": "120"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "weights.safetensors" in done.stderr
    assert "MB" in done.stderr
    assert (tmp_path / "saved" / "model.q8.safetensors").exists()
    assert (tmp_path / "saved" / MIMI).read_bytes() == b"codec"
