"""The benchmarks: each runs in its smallest setting and writes a valid result, and what they count is right."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

from common import Figure, question_of  # noqa: E402
from graph_nodes import kernels_of_metal, nodes, watch  # noqa: E402
from limits import chips, gpu_share, need, verdict  # noqa: E402
from traffic import kv_bytes, lm_bytes_held, lm_bytes_read  # noqa: E402

from moshi_mlx.checkpoint import Recipe  # noqa: E402
from moshi_mlx.config import LMConfig  # noqa: E402
from moshi_mlx.quality import Divergence  # noqa: E402


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
    four, eight, original = found["details"]["levels"]
    assert four["file"] < eight["file"] < original["file"]
    assert len(four["quality"]["audio_kl"]) == 8


def test_limits_are_written_for_every_chip(tmp_path: Path) -> None:
    found = run("roofline", result=tmp_path / "r.json")
    assert figure(found, "4: file") == pytest.approx(4.8, abs=0.05), "the published 4-bit file has 4.8 GB"
    assert figure(found, "8: file") == pytest.approx(8.2, abs=0.05), "the published 8-bit file has 8.2 GB"
    assert set(found["details"]["chips"]) == {chip.name for chip in chips()}
    assert any("not measurements" in note for note in found["notes"])


def test_a_report_is_ready_to_paste(tmp_path: Path) -> None:
    found = run("report", "random-512-4", "--steps", "2", result=tmp_path / "r.json")
    table = found["details"]["markdown"].splitlines()
    assert table[2].startswith("| model | level |")
    assert len({line.count("|") for line in table[2:]}) == 1
    assert figure(found, "random-512-4: step, full cache") > figure(found, "random-512-4: limit, full cache") > 0


def test_a_soak_compares_an_old_conversation_with_a_young_one(tmp_path: Path) -> None:
    found = run("soak", "--steps", "520", result=tmp_path / "r.json")
    assert figure(found, "memory that MLX holds, the same") < 1.05


def test_loading_is_measured(tmp_path: Path) -> None:
    found = run("load", "--shape", "tiny", "--runs", "1", result=tmp_path / "r.json")
    assert figure(found, "loading the language model") > 0


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import quantization
    import soak

    quality = Divergence(0.1, 0.9, (0.2, 0.3), (0.8, 0.7))
    levels = [quantization.Measured(name, size, size, size, size, quality) for name, size in (("4", 10), ("8", 20))]
    quantization.plot(levels, tmp_path / "levels.svg", "levels")
    assert "levels" in (tmp_path / "levels.svg").read_text()
    soak.plot(np.linspace(5, 6, 700).tolist(), [(0, 100, 10), (600, 100, 10)], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_the_quick_set_writes_a_file_each(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--only", "roofline", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["roofline.json"]


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


def test_a_full_cache_of_the_7b_takes_1_57_gb() -> None:
    config = LMConfig.published()
    assert kv_bytes(config, 3000) == 1_572_864_000
    assert kv_bytes(config, 10_000) == kv_bytes(config, 3000)


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
    assert question_of("How many\nof them? And more.\n\nElse?") == "How many of them?"
