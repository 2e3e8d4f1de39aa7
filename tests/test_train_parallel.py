"""Training on two processes: both get the mean of what each has learned, and the first one writes the result."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
from train_corpus import make_corpus

from moshi_mlx.train.parallel import Processes

MEAN = """
import mlx.core as mx, sys
from moshi_mlx.train.parallel import Processes
p = Processes()
tree = {"a.b": mx.full((2, 3), p.rank + 1.0), "c": [mx.array([10.0 * p.rank])]}
mean = p.mean(tree)
first = p.first(mx.array([7.0 + p.rank]))
assert p.count == 2, p.count
assert mean["a.b"].shape == (2, 3) and mean["a.b"].tolist() == [[1.5] * 3] * 2, mean
assert mean["c"][0].tolist() == [5.0], mean
assert first.tolist() == [7.0], first
"""


def two_processes(folder: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run Python twice as one group of processes."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets]
    for s in sockets:
        s.close()
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps(addresses))
    running = []
    for rank in range(2):
        environment = {**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
        running.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    try:
        results = [p.communicate(timeout=240) for p in running]
    finally:
        for p in running:
            p.kill()
    done = [subprocess.CompletedProcess(p.args, p.returncode, *r) for p, r in zip(running, results, strict=True)]
    assert [p.returncode for p in done] == [0, 0], "\n".join(p.stdout + p.stderr for p in done)
    return done


def test_alone_a_process_is_the_first_and_its_mean_is_its_own():
    processes = Processes()
    assert (processes.rank, processes.count) == (0, 1)
    tree = {"x": mx.array([1.0, 2.0])}
    assert processes.mean(tree) is tree


def test_two_processes_get_the_mean_and_the_firsts_array(tmp_path: Path):
    two_processes(tmp_path, "-c", MEAN)


def test_a_model_trained_by_two_processes_is_written_once(tmp_path: Path):
    config = make_corpus(tmp_path)
    both = two_processes(tmp_path, "-m", "moshi_mlx.train", "lm", str(config), "--steps", "4")
    assert "model in" in both[0].stdout and not both[1].stdout
    assert (tmp_path / "model" / "model.safetensors").exists()
