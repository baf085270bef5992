"""blas.py: what is loaded into a process stays there, so most of it is tested in new ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlx_parallm.cpu import blas, blas_library
from tests.cpu.interpreter import REPORT, linux, run, wheel_library

SPEED = """
import time
import mlx_parallm
from mlx_parallm.cpu import blas
import mlx.core as mx, numpy as np
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(0)
answer = {"source": blas.info().source, "error": [], "seconds": []}
for rows in (1, 32, 128):
    x = rng.standard_normal((rows, 2048), dtype=np.float32)
    w = rng.standard_normal((768, 2048), dtype=np.float32)
    product = np.array(mx.array(x) @ mx.array(w).T)
    answer["error"].append(float(np.abs(product - x.astype(np.float64) @ w.T).max()))
    a, b = mx.array(x), mx.array(w)
    times = []
    while len(times) < 3 or sum(times) < 0.2:
        start = time.process_time()
        mx.eval(a @ b.T)
        times.append(time.process_time() - start)
    answer["seconds"].append(min(times))
"""


@linux
def test_products_are_right_and_several_times_faster(cache: Path) -> None:
    # One thread: threads that wait for each other say little beside other busy processes.
    slow, _ = run(SPEED, cache, MLX_PARALLM_BLAS="off")
    fast, _ = run(SPEED, cache, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert slow["source"] == "none"
    assert fast["source"] in ("system", "wheel")
    assert max(fast["error"]) < 1e-3
    # Measured on an idle machine: 20 times, and with two threads 38 times.
    assert slow["seconds"][1] > 4 * fast["seconds"][1]
    assert slow["seconds"][2] > 4 * fast["seconds"][2]


@linux
def test_only_the_symbols_of_mlx_are_taken_over(cache: Path) -> None:
    code = """
import ctypes, mlx_parallm
from mlx_parallm.cpu import blas
process = ctypes.CDLL(None)
address = lambda library, name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
answer = {
    "ours": address(process, "cblas_sgemm") == address(blas._products.library, "cblas_sgemm"),
    "chosen": address(process, "cblas_dgemm") == address(blas._library, "cblas_dgemm"),
    "fortran": hasattr(process, "sgemm_"),
    "lapack": hasattr(process, "sgetrf_"),
    "internals": hasattr(process, "gotoblas") or hasattr(process, "openblas_get_config"),
}
"""
    answer, _ = run(code, cache)
    taken = {"ours": True, "chosen": True}
    assert answer == {**taken, "fortran": False, "lapack": False, "internals": False}


@linux
def test_linear_algebra_of_mlx_and_faiss_stay_right(cache: Path) -> None:
    code = """
import mlx_parallm
import mlx.core as mx, numpy as np, faiss
rng = np.random.default_rng(0)
m = rng.standard_normal((96, 96), dtype=np.float32)
spd, a, eye = m @ m.T + 96 * np.eye(96, dtype=np.float32), mx.array(m), np.eye(96)
far = lambda got, want: float(np.abs(np.array(got) - want).max())
with mx.stream(mx.cpu):
    u, s, vt = mx.linalg.svd(a)
    q, r = mx.linalg.qr(a)
    lower = mx.linalg.cholesky(mx.array(spd))
    values, vectors = mx.linalg.eigh(mx.array(spd))
    solved = mx.linalg.solve(mx.array(spd), a)
    answer = {
        "svd": far((u * s) @ vt, m), "qr": far(q @ r, m), "orthogonal": far(q.T @ q, eye),
        "cholesky": far(lower @ lower.T, spd) / 100, "solve": far(mx.array(spd) @ solved, m),
        "eigh": far((vectors * values) @ vectors.T, spd) / 100,
        "inverse": far(mx.linalg.inv(mx.array(spd)) @ mx.array(spd), eye),
    }
data = rng.standard_normal((3000, 64), dtype=np.float32)
index = faiss.IndexFlatIP(64)
index.add(data)
for queries in (1, 40):
    wanted = data[:queries] @ data.T
    scores, found = index.search(data[:queries], 5)
    answer[f"faiss {queries}"] = far(scores, -np.sort(-wanted, axis=1)[:, :5])
pca = faiss.PCAMatrix(64, 64)
pca.train(data)
turned = pca.apply(data)
answer["faiss pca"] = far(turned @ turned.T, (data - data.mean(0)) @ (data - data.mean(0)).T)
"""
    answer, _ = run(code, cache)
    assert {name: error for name, error in answer.items() if not error < 1e-3} == {}


@linux
def test_a_forked_child_can_multiply(cache: Path) -> None:
    code = """
import os, mlx_parallm
from array import array
from mlx_parallm.cpu import blas_library
from mlx_parallm.cpu import blas
n = 256
x, out = array("f", [1.0]) * (n * n), array("f", [0.0]) * (n * n)
multiply = blas_library._product(blas._library, x, x, out, (n, n, n))
multiply()
child = os.fork()
if child == 0:
    out[7] = 0.0
    multiply()
    os._exit(0 if out[7] == n else 1)
answer = {"child": os.waitpid(child, 0)[1]}
out[7] = 0.0
multiply()
answer["parent"] = out[7]
"""
    answer, _ = run(code, cache)
    assert answer == {"child": 0, "parent": 256.0}


@linux
def test_number_of_threads(cache: Path) -> None:
    code = """
import mlx_parallm
from mlx_parallm.cpu import blas
first = blas.preload()
answer = {"same": blas.preload() is first is blas.info(), "start": first.threads}
answer["set"] = blas.set_num_threads(1)
answer["threads"] = blas.info().threads
blas.fit_threads(10_000_000)
answer["large"] = blas.info().threads
blas.fit_threads(100_000)
answer["small"] = blas.info().threads
"""
    clean = dict.fromkeys(blas_library.THREAD_VARIABLES, "")
    answer, _ = run(code, cache, **clean)
    cpus = blas_library.usable_cpus()
    expected = {"same": True, "start": cpus, "set": True, "threads": 1}
    assert answer == {**expected, "large": cpus, "small": 1}
    answer, _ = run(code, cache, **clean | {"OPENBLAS_NUM_THREADS": "1"})
    assert answer["large"] == 1  # what the user has set stays


# --- nothing breaks start-up --------------------------------------------------------------


@linux
@pytest.mark.parametrize("name", ["missing.so", "text.so", "cut.so", "libm.so.6"])
def test_a_bad_override_costs_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    (tmp_path / "cut.so").write_bytes(wheel_library().read_bytes()[:100_000])
    library = tmp_path / name
    if name == "libm.so.6":
        library.symlink_to(_system_file("libm.so.6"))
    answer, log = run(REPORT, tmp_path, MLX_PARALLM_BLAS=str(library))
    assert (answer["source"], answer["name"], answer["product"]) == ("none", "default", 4.0)
    assert answer["reason"]
    assert [line for line in log.splitlines() if "BLAS" in line] == log.splitlines()
    assert len(log.splitlines()) == 1


def _system_file(name: str) -> str:
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if line.rstrip().endswith(name))


@linux
def test_an_override_is_used_whatever_its_speed(cache: Path) -> None:
    answer, log = run(REPORT, cache, MLX_PARALLM_BLAS=str(wheel_library()))
    assert (answer["source"], answer["path"]) == ("override", str(wheel_library()))
    assert answer["gflops"] > 0
    assert log == ""


@linux
@pytest.mark.parametrize("first", ["mlx_parallm", "mlx.core"])
def test_either_may_be_imported_first(first: str, cache: Path) -> None:
    code = f"""
import {first}
import ctypes, mlx_parallm, mlx.core as mx
from mlx_parallm.cpu import blas_late
from mlx_parallm.cpu import blas
libmlx = (blas._mlx_packages()["mlx_cpu"] / "mlx/lib/libmlx.so").resolve()
slots = blas_late.function_slots(libmlx)
answer = {{
    "source": blas.info().source != "none",
    "functions": sorted(slots),
    "ours": [
        slot.value == ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        for name, slot in slots.items()
        for library in [blas._products.library if name == "cblas_sgemm" else blas._library]
    ],
    "product": (mx.ones((8, 9)) @ mx.ones((9, 8))).sum().item(),
}}
"""
    answer, log = run(code, cache)
    assert answer == {
        "source": True,
        "functions": ["cblas_cgemm", "cblas_dgemm", "cblas_sgemm"],
        "ours": [True] * 3,
        "product": 576.0,
    }
    assert log == ""


@linux
def test_an_unexpected_libmlx_is_left_alone(cache: Path) -> None:
    code = """
import ctypes, mlx.core as mx
from mlx_parallm.cpu import blas_late
real = blas_late.function_slots
answer = {}
for name, fake in {
    "nothing to write": lambda libmlx: {},
    "another address": lambda libmlx: {n: ctypes.c_void_p(4096) for n in real(libmlx)},
}.items():
    blas_late.function_slots = fake
    from mlx_parallm.cpu import blas
    blas._info = None
    answer[name] = blas.preload().reason
answer["product"] = (mx.ones((8, 9)) @ mx.ones((9, 8))).sum().item()
"""
    answer, log = run(code, cache)
    late = "import mlx_parallm before mlx"
    assert answer == {"nothing to write": late, "another address": late, "product": 576.0}
    assert late in log


@linux
def test_no_patchelf(tmp_path: Path) -> None:
    code = f"import sys; sys.executable = '/nowhere/python'\n{REPORT}"
    answer, log = run(code, tmp_path, PATH="/nowhere")
    assert answer["source"] == "none"
    assert "patchelf" in log


def test_only_on_linux_with_the_cpu_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(blas.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "not needed" in blas._why_not()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(blas, "_mlx_packages", lambda: {"mlx_cuda_13": Path(), "mlx_cpu": Path()})
    assert "CUDA" in blas._why_not()
    monkeypatch.setattr(blas, "_mlx_packages", lambda: {"mlx_lm": Path()})
    assert "mlx-cpu" in blas._why_not()
