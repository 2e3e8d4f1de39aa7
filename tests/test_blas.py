"""MLX's matrix products on the CPU, led to OpenBLAS and to the extension, are still products."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moshi_mlx
from moshi_mlx import _cpu

PRODUCTS = """
import numpy as np
{imports}
import mlx.core as mx

assert moshi_mlx.BLAS == "OpenBLAS"
draws = np.random.default_rng(0)
small = [(1, 64, 64), (64, 64, 1), (2, 33, 70), (70, 33, 2), (3, 50, 9), (9, 50, 4), (5, 40, 6), (1, 1, 1)]
for m, k, n in [*small, (3000, 700, 1), (1, 700, 3000)]:
    a, b = (draws.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    for turned_a in (False, True):
        for turned_b in (False, True):
            x = mx.array(np.ascontiguousarray(a.T)).T if turned_a else mx.array(a)
            y = mx.array(np.ascontiguousarray(b.T)).T if turned_b else mx.array(b)
            assert np.abs(np.array(x @ y) - a @ b).max() < 1e-4 * k**0.5, (m, k, n, turned_a, turned_b)
            c = mx.ones((m, n))
            assert np.abs(np.array(mx.addmm(c, x, y, alpha=0.5, beta=2)) - (0.5 * (a @ b) + 2)).max() < 1e-4 * k**0.5
"""


@pytest.mark.skipif(moshi_mlx.BLAS is None, reason="MLX has its own BLAS here")
@pytest.mark.parametrize(
    "imports",
    [
        "import moshi_mlx",
        "import mlx.core as mx; mx.eval(mx.ones((4, 4)) @ mx.ones((4, 1))); import moshi_mlx",
        "import ctypes; ctypes.CDLL('libopenblas.so.0', mode=ctypes.RTLD_GLOBAL); import moshi_mlx",
    ],
    ids=["alone", "after MLX has run", "after OpenBLAS"],
)
def test_products_are_right_whatever_was_loaded_first(imports: str) -> None:
    subprocess.run([sys.executable, "-c", PRODUCTS.format(imports=imports)], check=True, timeout=60)


IDLE = """
import time
import moshi_mlx
import mlx.core as mx

x = mx.random.normal((600, 600))
mx.eval(x @ x)
before = time.process_time()
time.sleep(0.3)
print(time.process_time() - before)
"""


def printed(code: str, **settings: str) -> str:
    """What a process prints whose BLAS has these settings alone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_"))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True, env=kept | settings)
    return done.stdout.strip()


@pytest.mark.skipif(moshi_mlx.BLAS is None or os.cpu_count() == 1, reason="no threads that could wait")
def test_threads_sleep_between_steps() -> None:
    def busy(**settings: str) -> float:
        return float(printed(IDLE, **settings))

    waiting = busy(OPENBLAS_THREAD_TIMEOUT="28")
    if waiting < 0.02:
        pytest.skip("this OpenBLAS has one thread")
    assert busy() < waiting / 4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx avx2 fma avx512f avx512_bf16", "Cooperlake"),
        ("flags\t\t: fpu avx avx2 fma avx512f", "SkylakeX"),
        ("flags\t\t: fpu avx avx2 fma", "Haswell"),
        ("flags\t\t: fpu sse4_2 avx", None),
        ("Features\t: fp asimd", None),
    ],
)
def test_openblas_is_told_what_the_processor_can_do(flags: str, expected: str | None, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n", encoding="utf-8")
    assert _cpu._kernels(str(tmp_path / "cpuinfo")) == expected


def test_a_system_without_a_list_of_what_the_processor_can_do_leaves_the_choice_to_openblas(tmp_path: Path):
    assert _cpu._kernels(str(tmp_path / "none")) is None


CHOSEN = """
import ctypes
import os
import moshi_mlx

name = ctypes.CDLL("libopenblas.so.0").openblas_get_corename
name.restype = ctypes.c_char_p
print(name().decode(), os.environ.get("OPENBLAS_CORETYPE"))
"""


@pytest.mark.skipif(moshi_mlx.BLAS is None or _cpu._kernels() is None, reason="no OpenBLAS that chooses kernels")
def test_openblas_takes_those_kernels_unless_the_user_names_others():
    assert printed(CHOSEN) == f"{_cpu._kernels()} None"
    assert printed(CHOSEN, OPENBLAS_CORETYPE="Nehalem") == "Nehalem Nehalem"
