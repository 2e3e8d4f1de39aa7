"""The benchmarks: each runs in its smallest setting and writes a valid result, and what they count is right."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import mlx.core as mx
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bars  # noqa: E402
import macs  # noqa: E402
from common import Figure, question_of  # noqa: E402
from conversation import NANO, Bench, Line, by_voice  # noqa: E402
from graph_nodes import kernels_of_metal, nodes, watch  # noqa: E402
from limits import chips, gpu_share, need, verdict  # noqa: E402
from models import SHAPES, make_lm  # noqa: E402
from traffic import kv_bytes, lm_bytes_held, lm_bytes_read  # noqa: E402

import moshi_mlx  # noqa: E402
from moshi_mlx.checkpoint import Recipe, check_lm, kind_of  # noqa: E402
from moshi_mlx.config import LMConfig  # noqa: E402
from moshi_mlx.errors import InputError  # noqa: E402
from moshi_mlx.lm import KVCache  # noqa: E402
from moshi_mlx.quality import Divergence, divergence, predictions  # noqa: E402
from moshi_mlx.recipe_search import time_budget  # noqa: E402
from moshi_mlx.train.script import Script  # noqa: E402


def run(name: str, *arguments: str, result: Path) -> dict[str, Any]:
    """Run a benchmark without peers in a process of its own; its checked result."""
    environment = {key: value for key, value in os.environ.items() if key != "MOSHI_PEERS"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(result.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["question"].endswith("?")
    assert {"processor", "cpus", "mlx", "python", "threads", "device"} <= set(found["machine"])
    assert found["figures"]
    for figure in found["figures"]:
        assert figure["low"] <= figure["median"] <= figure["high"], figure
        assert math.isfinite(figure["median"]), figure
    return found


def figure(found: dict[str, Any], name: str) -> float:
    return next(float(one["median"]) for one in found["figures"] if one["name"] == name)


def test_the_step_is_timed_alone_where_there_are_no_peers(tmp_path: Path) -> None:
    arguments = ["--shapes", "256", "--levels", "q4", "--session-levels", "--rounds", "2", "--steps", "3"]
    found = run("step", *arguments, result=tmp_path / "r.json")
    assert figure(found, "lm 256 q4: ours") > 0
    assert [len(times) for times in found["details"]["lm 256 q4"]["ms"]["ours"]] == [3, 3]
    assert any("MOSHI_PEERS" in note for note in found["notes"])


def test_at_the_7bs_depth_a_step_waits_once_and_launches_three_quarters_of_the_published_ones_operations(
    tmp_path: Path,
) -> None:
    found = run("dispatches", result=tmp_path / "r.json")
    ours = found["details"]["ours"]["nodes"]
    # 4 projections a layer, each slice's output, the slices' inputs in one, the text's.
    assert ours["QuantizedMatmul"] == 4 * 32 + 8 * (4 * 6 + 1) + 1 + 1
    assert ours["RMSNorm"] == 2 * 32 + 8 * 2 * 6 + 1
    assert figure(found, "operations a step") <= 0.75 * 1344, ours
    assert figure(found, "waits of the host a step") == 1
    assert figure(found, "waits of the host a session step") == 1


def test_more_bits_are_closer_to_the_original(tmp_path: Path) -> None:
    arguments = ["random-256", "--levels", "4", "8", "bf16", "--length", "8", "--steps", "5"]
    found = run("quantization", *arguments, result=tmp_path / "r.json")
    assert figure(found, "bf16: KL") < 1e-9 < figure(found, "8: KL") < figure(found, "4: KL")
    caches = [figure(found, f"bf16, {bits}-bit cache: KL") for bits in (8, 4)]
    assert 1e-9 < caches[0] < caches[1]
    four, eight, original, cache_8, cache_4 = found["details"]["levels"]
    assert four["file"] < eight["file"] < original["file"] == cache_8["file"]
    assert cache_4["full"] < cache_8["full"] < original["full"]
    assert cache_4["read"] < cache_8["read"] < original["read"]
    for level in (four, cache_4):
        assert len(level["quality"]["audio_kl"]) == len(level["quality"]["audio_agreement"]) == 8
        assert level["quality"]["audio_agreement"][0] < 1
    assert {len(level[times]) for level in found["details"]["levels"] for times in ("ms", "full_ms")} == {5}


def test_without_quantizing_the_cache_steps_predict_what_a_whole_sequence_does() -> None:
    from quantization import predictions_by_step

    lm = moshi_mlx.load("untrained").lm
    assert lm.config.context == 250
    codes = mx.random.randint(0, 100, (1, 17, 300), key=mx.random.key(0))
    close = divergence(predictions(lm, codes), predictions_by_step(lm, codes, None))
    assert close.kl < 1e-6
    assert close.text_agreement > 0.98


def test_of_a_model_that_is_quantized_only_the_cache_is_varied(tmp_path: Path) -> None:
    speech = Path(__file__).parent / "data" / "spoken" / "hours.wav"
    arguments = ["nano", "--kv-bits", "4", "--speech", str(speech), "--steps", "5"]
    found = run("quantization", *arguments, result=tmp_path / "r.json")
    assert [level["variant"]["kv_bits"] for level in found["details"]["levels"]] == [None, 4]
    assert figure(found, "as stored: KL") < 1e-9 < figure(found, "as stored, 4-bit cache: KL")


def test_limits_are_written_for_every_chip(tmp_path: Path) -> None:
    found = run("roofline", "--kv-bits", "8", result=tmp_path / "r.json")
    assert figure(found, "4: file") == pytest.approx(4.8, abs=0.05), "the published 4-bit file has 4.8 GB"
    assert figure(found, "8: file") == pytest.approx(8.2, abs=0.05), "the published 8-bit file has 8.2 GB"
    assert set(found["details"]["chips"]) == {chip.name for chip in chips()}
    assert any("not measurements" in note for note in found["notes"])
    assert figure(found, "cache, 16 bits: memory") == pytest.approx(1.573, abs=0.001)
    assert figure(found, "cache, 8 bits: memory") == pytest.approx(1.573 / 16 * 8.5, abs=0.001)
    expected = need(LMConfig.published(), "4", 3000, kv_bits=8).read / 1e9
    assert figure(found, "4: read per step") == pytest.approx(expected)


def test_the_readmes_table_of_macs_is_what_the_limits_say() -> None:
    written = (BENCHMARKS / "README.md").read_text()
    lines = macs.table().splitlines()
    assert len(lines) == len(chips()) + 2
    for line in lines:
        assert line in written, "print it anew: benchmarks/roofline.py --markdown"
    measured = [line for line in written.splitlines() if line.startswith("| ") and "random-512-4: " in line]
    assert measured, "no machine was measured"


def test_a_report_is_ready_to_paste(tmp_path: Path) -> None:
    found = run("report", "random-512-4", "--steps", "2", "--kv-bits", "8", result=tmp_path / "r.json")
    table = found["details"]["markdown"].splitlines()
    assert "8-bit cache" in table[-1]
    assert table[2].startswith("| model | level |")
    assert len({line.count("|") for line in table[2:]}) == 1
    line = found["details"]["line"]
    assert "| random-512-4: " in line
    assert line.count("|") == macs.table().splitlines()[0].count("|")
    assert figure(found, "random-512-4: step, full cache") > figure(found, "random-512-4: limit, full cache") > 0


def test_a_share_as_good_as_wanted_is_reached_however_it_was_computed() -> None:
    wanted = 100 * np.mean([True] * 23 + [False] * 7) - 10
    for right, reached in ((21, True), (20, True), (19, False)):
        share = 100 * np.mean([True] * right + [False] * (30 - right))
        assert Line("room", float(share), float(wanted), True, "%", 30).reached is reached
    assert not Line("pauses", 7.5, 5.0, False, "%", 40).reached
    assert Line("pauses", 5.0, 5.0, False, "%", 40).reached


def test_undisturbed_questions_are_counted_by_voice_where_several_ask() -> None:
    asked = [("accuracy, known wordings", "a:1", True), ("accuracy, new wordings", "a:1", False)]
    assert by_voice([{"line": line, "voice": voice, "right": right} for line, voice, right in asked]) is None
    asked += [("accuracy, known wordings, other authors", "b:2", True), ("accuracy, noise at 10 dB", "b:2", False)]
    shown = by_voice([{"line": line, "voice": voice, "right": right} for line, voice, right in asked])
    assert shown is not None
    assert [list(column.cells) for column in shown.columns] == [["a:1", "b:2"], ["50.0 %", "100.0 %"], ["2", "1"]]


def test_answers_that_come_late_or_never_are_counted_together() -> None:
    bench = Bench(moshi_mlx.load("nano"), Script.load(NANO / "script.yaml"), ["espeak:en-us"], None, 0)
    bench.log = [{"delay": delay} for delay in (0.4, 0.81, None, 0.8)] + [{"line": "pauses"}]
    bench.late()
    (line,) = bench.lines
    assert (line.value, line.count, line.at_least) == (50.0, 4, False)


def test_a_soak_compares_an_old_conversation_with_a_young_one(tmp_path: Path) -> None:
    found = run("soak", "--steps", "520", result=tmp_path / "r.json")
    assert figure(found, "memory that MLX holds, the same") < 1.05
    assert found["details"]["verdict"].endswith("Memory: flat.")


def test_a_soaks_verdict_tells_age_from_a_busy_machine() -> None:
    from soak import verdict_on

    def verdict(*ratios: float) -> str:
        return verdict_on([Figure.exact("", "x", ratio, at_most=1.05) for ratio in ratios])

    assert "within 5%" in verdict(1.0, 1.0, 1.0, 1.0, 1.0)
    assert "other work" in verdict(1.6, 1.2, 1.0, 1.0, 1.0)
    assert "are slower than" in verdict(1.6, 1.2, 1.2, 1.0, 1.0)
    assert verdict(1.0, 1.0, 1.0, 1.3, 1.0).endswith("Memory: grows.")


def test_a_soak_that_got_faster_is_judged_by_the_turns_and_not_called_flat_by_the_clock() -> None:
    from soak import verdict_on

    def verdict(clock: float, paired: float) -> str:
        return verdict_on([Figure.exact("", "x", ratio, at_most=1.05) for ratio in (clock, 1.0, paired, 1.0, 1.0)])

    flat = verdict(0.96, 0.9)
    assert flat == "Time: the last steps are within 5% of those right after the window filled. Memory: flat."
    by_turns = verdict(0.918, 0.987)
    assert "the last steps are not within 5%" in by_turns
    assert "0.918 by the clock" in by_turns
    assert "is 0.987, within 5%: the difference is the machine's" in by_turns
    for paired in (0.9, 1.2):
        neither = verdict(0.918, paired)
        assert f"is {paired:.3f}, not within it either" in neither
        assert "machine's" not in neither


def test_an_eight_bit_model_has_smaller_groups_where_the_usual_ones_dont_divide_a_row(tmp_path: Path) -> None:
    weights = make_lm(tmp_path, SHAPES["256"], 8)
    quantization = check_lm(weights, LMConfig.from_dict(SHAPES["256"])).quantization
    by_group = {how.group_size for how in quantization.values()}
    assert by_group == {32, 64}
    assert len(quantization) == sum(kind_of(name.removesuffix(".weight")) is not None for name in mx.load(str(weights)))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng: apt-get install espeak-ng")
def test_echo_is_measured(tmp_path: Path) -> None:
    found = run("echo", "--rooms", "1", "--seconds", "6", result=tmp_path / "r.json")
    assert figure(found, "untreated: ERLE, single talk") == pytest.approx(0, abs=1e-9)
    assert figure(found, "moshi_mlx EchoCanceller: ERLE, single talk") > 15


def test_echo_is_compared_with_webrtc() -> None:
    from echo import OURS, WEBRTC, Result, figures

    found = figures([Result(OURS, [30.0, 29.0, 20.0], [9.0, 8.0, 1.0]), Result(WEBRTC, [35.0] * 3, [6.0, 2.0, -1.0])])
    reached = {one.name: (one.median, one.reached) for one in found if one.reached is not None}
    assert reached == {
        f"{OURS}: ERLE, single talk": (29.0, True),
        "near-end SI-SDR: median above WebRTC's": (6.0, True),
    }


def test_latency_is_compared_round_by_round() -> None:
    from audio_latency import delay_ms, figures

    sound = np.random.default_rng(0).standard_normal(4800)
    heard = np.concatenate([np.zeros(2400), sound, np.zeros(4800)])
    assert delay_ms(sound, heard, 48_000)[0] == pytest.approx(50)
    runs = {"AudioIO": [{"delay_ms": 100.0}, {"delay_ms": 90.0}], "sounddevice": [{"delay_ms": 200.0}] * 2}
    found = {one.name: one for one in figures(runs)}
    assert found["AudioIO / sounddevice"].median == pytest.approx(0.475)
    assert found["AudioIO / sounddevice"].reached


def test_loading_is_measured(tmp_path: Path) -> None:
    found = run("load", "--shape", "tiny", "--runs", "1", result=tmp_path / "r.json")
    assert figure(found, "loading the language model") > 0


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import quantization
    import soak

    quality = Divergence(0.1, 0.9, (0.2, 0.3), (0.8, 0.7))
    levels = [
        quantization.Measured(quantization.Variant(name), size, size, size, size, quality)
        for name, size in (("4", 10), ("8", 20), ("bf16", 30))
    ]
    quantization.plot(levels, tmp_path / "levels.svg", "levels")
    assert "levels" in (tmp_path / "levels.svg").read_text()
    soak.plot(np.linspace(5, 6, 700).tolist(), [(0, 100, 10), (600, 100, 10)], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    import soak

    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(SystemExit, match=r"^--plot needs matplotlib: \S+pip install matplotlib$"),
    ):
        soak.main(["--plot", "soak.png"])
    assert capsys.readouterr().out == ""


def test_ratios_are_drawn_with_target_and_limit(tmp_path: Path) -> None:
    import run as quick_set

    step = [
        Figure.of("lm 512 q4: ours", "ms", [20.0, 22.0]),
        Figure.of("lm 512 q4: peers", "ms", [50.0, 50.0]),
        Figure.of("lm 512 q4: ratio", "x", [0.4, 0.44], at_most=0.4),
        Figure.exact("lm 512 q4: limit", "ms", 10.0),
    ]
    mimi = [
        Figure.of("rustymimi: encode + decode", "ms", [80.0]),
        Figure.of("ours / rustymimi", "x", [0.5], at_most=0.65),
        Figure.exact("limit: weights read once", "ms", 20.0),
        Figure.of("ours / limit", "x", [2.0]),
    ]
    common = {"date": "2026-01-02T03:04:05", "machine": {"processor": "P&Q", "cpus": 2, "threads": 2, "mlx": "0"}}
    common["machine"]["device"] = "CPU"
    for name, figures, details in (("step", step, {"lm 512 q4": {}}), ("mimi", mimi, {})):
        result = common | {"figures": [asdict(one) for one in figures], "details": details}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    lm, codec = bars.ratio_bars(tmp_path).bars
    assert (lm.name, lm.ratio, lm.limit, lm.target) == ("language model 512 wide, q4", pytest.approx(0.42), 0.2, 0.4)
    assert (codec.name, codec.ratio, codec.limit, codec.target) == ("Mimi, by rustymimi", 0.5, 0.25, 0.65)
    assert quick_set.main(["--results", str(tmp_path), "--plot", str(tmp_path / "docs" / "step.svg")]) == 0
    drawn = ElementTree.parse(tmp_path / "docs" / "step.svg").getroot()
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"language model 512 wide, q4", "0.42", "Mimi, by rustymimi", "0.50"} <= set(texts)
    assert "P&Q, 2 CPUs, 2 threads, MLX 0 on CPU, 2026-01-02" in texts


def test_the_quick_set_writes_a_file_each_and_a_table(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--only", "roofline", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roofline.json", "table.md"]
    table = (tmp_path / "table.md").read_text()
    assert "| `benchmarks/roofline.py` | 4: file | 4.81 GB |" in table


# What they count.


def test_a_kernel_of_metal_counts_as_one_and_a_view_as_none() -> None:
    x = mx.ones((1, 2, 4, 8))
    packed = mx.quantize(mx.ones((8, 32)), group_size=32, bits=4)
    mx.eval(x, packed)
    with kernels_of_metal():
        turned = mx.fast.rope(x, 8, traditional=True, base=1e4, scale=1.0, offset=3)
        attended = mx.fast.scaled_dot_product_attention(turned, x, x, scale=1.0)
        normed = mx.fast.rms_norm(attended.swapaxes(1, 2).reshape(1, 4, 16), mx.ones((16,)), 1e-8)
        weights = mx.dequantize(*packed, group_size=32, bits=4)
    assert weights.shape == (8, 32)
    expected = {"RoPE": 1, "Attention": 1, "RMSNorm": 1, "Dequantize": 1, "Matmul": 1}
    assert nodes(normed[0, 0] @ weights[:, :16].T) == Counter(expected)


def test_whatever_way_a_result_is_read_is_a_wait() -> None:
    x = mx.ones((3,))
    mx.eval(x)
    with watch() as seen:
        (x + 1).sum().item()
        np.array(x * 2)
        bool((x > 0).all())
        mx.eval(x * 3)
    assert seen.synchronisations == 4
    with watch() as seen:
        queued = x * 2
        mx.async_eval(queued)
        assert seen.synchronisations == 0
        np.array(queued)
        np.array(queued)
    assert seen.synchronisations == 1
    assert seen.nodes == Counter({"Multiply": 1})


def test_a_step_reads_one_row_of_every_embedding() -> None:
    config = LMConfig.published()
    bf16 = Recipe()
    rows = config.text_card + 1 + config.n_q * (config.card + 1)
    depth_rows = config.text_card + 1 + (config.dep_q - 1) * (config.card + 1)
    unread = (rows - 1 - config.n_q) * config.dim + (depth_rows - config.dep_q) * config.depformer_dim
    assert lm_bytes_held(config, bf16) - lm_bytes_read(config, bf16) == 2 * unread


@pytest.mark.parametrize("kv_bits", [None, 8, 4])
@pytest.mark.parametrize(
    "config",
    [
        LMConfig.published(),
        replace(LMConfig.published(), depformer_weights_per_step_schedule=(0, *[1] * 7), extra_heads_num_heads=2),
    ],
)
def test_a_recipe_search_counts_the_bytes_of_a_step_that_the_limits_do(config: LMConfig, kv_bits: int | None) -> None:
    budget = time_budget(60, 68, config, kv_bits)
    for level in ("2", "4,attention=8", "bf16"):
        beside = 60e-3 * 68e9 - budget.nbytes
        assert budget.of(config, Recipe.parse(level)) + beside == need(config, level, config.context, kv_bits).read


def test_a_full_cache_of_the_7b_takes_1_57_gb() -> None:
    config = LMConfig.published()
    assert kv_bytes(config, 3000) == 1_572_864_000
    assert kv_bytes(config, 10_000) == kv_bytes(config, 3000)
    # A scale and a bias of two bytes for every 64 numbers.
    assert kv_bytes(config, 3000, bits=8) == 1_572_864_000 * (8 + 32 / 64) / 16
    assert kv_bytes(config, 3000, bits=4) == 1_572_864_000 * (4 + 32 / 64) / 16
    cache = KVCache.empty(2, (1, 4, 250, 64), mx.float32, 8)
    assert kv_bytes(replace(config, dim=256, num_heads=4, num_layers=2), 250, mx.float32, 8) == cache.nbytes


def test_a_verdict_follows_from_bandwidth_and_memory() -> None:
    by_name = {chip.name: chip for chip in chips()}
    wanted = need(LMConfig.published(), "4", 3000)
    assert verdict(by_name["M1"], wanted) == "too slow"
    assert verdict(by_name["M2"], wanted) == "tight, 16 GB"
    assert verdict(by_name["M2 Max"], wanted) == "can, 32 GB"
    assert gpu_share(16) < gpu_share(64)


def test_quartiles_and_targets() -> None:
    found = Figure.of("ratio", "x", [0.5, 0.7, 0.6, 0.9, 0.1], at_most=0.65)
    assert (found.low, found.median, found.high, found.runs) == (0.5, 0.6, 0.7, 5)
    assert found.reached is True
    assert Figure.exact("count", "", 3, at_most=2).reached is False
    assert Figure.exact("echo", "dB", 30, at_least=28).reached is True
    assert Figure.exact("echo", "dB", 27, at_least=28).cells() == ["27 dB", "", "", ">= 28"]
    assert question_of("How many\nof them? And more.\n\nElse?") == "How many of them?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--voices", "nobody:x"], "engines are piper"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--json", "nowhere/figures.json"], "there is no folder"),
    ],
)
def test_a_conversation_that_cannot_be_measured_says_why_in_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "conversation.py"), "--parts", "silence", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode not in (0, 1), done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantization", "nowhere/"], "nowhere/"),
        (["quantization", "random-256", "--levels", "7"], "Can't quantize to '7'"),
        (["quantization", "random-256", "--levels", "4", "--streams", "nowhere.npy"], "nowhere.npy"),
        (["report", "nowhere/", "--steps", "2"], "nowhere/"),
        (["report", "random-512-7", "--steps", "2"], "no '7' bits"),
        (["report", "random-9", "--steps", "2"], "No shape 9"),
        (["roofline", "--levels", "4", "7"], "Can't quantize to '7'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{arguments[0]}.py"), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (2, 3), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("roofline", ["--context", "-3000"]),
        ("report", ["nowhere/", "--steps", "0"]),
        ("quantization", ["nowhere/", "--steps", "0"]),
        ("quantization", ["nowhere/", "--length", "0"]),
        ("quantization", ["nowhere/", "--seed", "-1"]),
    ],
)
def test_numbers_that_are_too_small_are_refused(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(arguments)
    assert stopped.value.code == 2
    assert "or more" in capsys.readouterr().err


def test_streams_that_are_none_are_refused(tmp_path: Path) -> None:
    from quantization import stored_streams

    config = moshi_mlx.load("untrained").lm.config
    path = tmp_path / "streams.npy"
    for content in (np.zeros((1, 3, 5)), np.zeros((1, 17, 0)), np.array(["a"]), np.array([None])):
        np.save(path, content)
        with pytest.raises(InputError, match=r"streams\.npy .*expected tokens \[batch, 17, steps\]"):
            stored_streams(path, config)
    for damaged in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"can't be read .*expected tokens"):
            stored_streams(path, config)
    np.save(path, np.ones((2, 17, 5), np.int64))
    assert stored_streams(path, config).shape == (2, 17, 5)
