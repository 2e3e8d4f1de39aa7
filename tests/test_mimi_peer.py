"""The codec at its published size against the published Rust implementation, on the same random weights."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.config import FRAME_SIZE
from moshi_mlx.mimi import Mimi

FRAMES = 40
PEER = """
import sys
import numpy as np, rustymimi
weights, inputs, outputs = sys.argv[1:]
mimi = rustymimi.Tokenizer(weights, num_codebooks=8)
pcm = np.load(inputs)
codes = [mimi.encode_step(np.ascontiguousarray(x)) for x in np.split(pcm, pcm.shape[2] // 1920, axis=2)]
sound = [mimi.decode_step(x) for x in codes]
np.savez(outputs, codes=np.concatenate(codes, axis=2), sound=np.concatenate(sound, axis=2))
"""


def random_weights():
    """benchmarks/random_weights.py, which isn't in a package."""
    path = Path(__file__).parents[1] / "benchmarks" / "random_weights.py"
    spec = importlib.util.spec_from_file_location("random_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peer() -> str:
    python = os.environ.get("MOSHI_PEERS")
    if not python:
        pytest.skip("MOSHI_PEERS isn't set to the Python of an environment with rustymimi")
    if subprocess.run([python, "-c", "import rustymimi"], capture_output=True).returncode:
        pytest.skip(f"{python} has no rustymimi")
    return python


def test_codes_and_sound_equal_rustymimi_at_full_size(peer, tmp_path):
    helper = random_weights()
    weights = helper.make_mimi(tmp_path / "mimi.safetensors", seed=3)
    pcm = helper.speechlike(FRAMES, seed=4)
    np.save(tmp_path / "pcm.npy", pcm)
    arguments = [weights, tmp_path / "pcm.npy", tmp_path / "peer.npz"]
    subprocess.run([peer, "-c", PEER, *map(str, arguments)], check=True, stdout=sys.stderr)
    published = np.load(tmp_path / "peer.npz")

    mimi = Mimi.load(weights)
    codes = np.array(mimi.encode(pcm))
    equal = (codes == published["codes"]).mean()
    assert equal >= 0.99, f"{equal:.2%} of codes are equal"
    assert np.unique(codes).size > 200, "codes hardly differ; the comparison shows nothing"
    state = mimi.make_state()
    steps = [mimi.encode_step(x, state) for x in np.split(pcm, FRAMES, axis=2)]
    assert (np.concatenate(steps, axis=2) == published["codes"]).mean() >= 0.99
    sound = np.array(mimi.decode(published["codes"].astype(np.int32)))
    assert sound.shape == (1, 1, FRAMES * FRAME_SIZE)
    np.testing.assert_allclose(sound, published["sound"], atol=1e-3, rtol=0)
