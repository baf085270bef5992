"""blas.py: what is loaded into a process stays there, so most of it is tested in new ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.cpu import blas, blas_copy, blas_library
from mlx_parallm.cpu.elf import ElfLibrary

linux = pytest.mark.skipif(
    sys.platform != "linux" or "mlx_cpu" not in blas._mlx_packages(),
    reason="only the mlx-cpu wheel on Linux needs another BLAS",
)
PUBLIC = {f"cblas_{kind}gem{shape}" for kind in "sdcz" for shape in "mv"}


def wheel_library() -> Path:
    library = blas._wheel_library()
    assert library is not None
    return library


def run(code: str, cache: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """Run code in a new interpreter; it sets `answer`. Returns that and the standard error."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json; print(json.dumps(answer))"],
        env={
            **{k: v for k, v in os.environ.items() if k != blas.ENVIRONMENT_VARIABLE},
            "PYTHONPATH": str(Path(blas.__file__).parents[1]),
            "XDG_CACHE_HOME": str(cache),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# --- in place -----------------------------------------------------------------------------

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
        start = time.perf_counter()
        mx.eval(a @ b.T)
        times.append(time.perf_counter() - start)
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

REPORT = """
import mlx_parallm
from mlx_parallm.cpu import blas
from dataclasses import asdict
import mlx.core as mx
answer = asdict(blas.info()) | {"product": (mx.ones((4, 4)) @ mx.ones((4, 4)))[0, 0].item()}
"""


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


# --- the cache ----------------------------------------------------------------------------


@linux
def test_the_second_start_measures_nothing_and_damage_is_repaired(tmp_path: Path) -> None:
    first, _ = run(REPORT, tmp_path)
    folder = tmp_path / "mlx_parallm"
    (record,) = folder.glob("blas-*.json")
    (copy,) = folder.glob("lib*.so")
    # Were it measured again, the made-up speed would be gone.
    record.write_text(json.dumps({**json.loads(record.read_text()), "gflops": 12345.0}))
    assert run(REPORT, tmp_path)[0]["gflops"] == 12345.0
    record.write_text("{")
    assert run(REPORT, tmp_path)[0]["path"] == first["path"]
    copy.unlink()
    assert run(REPORT, tmp_path)[0]["path"] == first["path"]
    assert copy.is_file()


@linux
def test_processes_that_start_together(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(blas.__file__).parents[1])!r})\n{REPORT}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}\nprint(answer['source'], answer['product'])"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert {error for _, error in results} == {""}
    assert {out for out, _ in results} in ({"wheel 4.0\n"}, {"system 4.0\n"})
    left = sorted(path.suffix for path in (tmp_path / "mlx_parallm").iterdir())
    assert left == [".json", ".lock", ".so", ".so"]


@linux
def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer, _ = run(REPORT, tmp_path / "file", TMPDIR=str(tmp_path))
    assert answer["source"] in ("system", "wheel")
    assert list(tmp_path.glob(f"mlx_parallm-{os.getuid()}/*.so"))


@linux
def test_a_folder_that_others_can_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / f"mlx_parallm-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(PermissionError):
        blas._cache_folder()
    planted.chmod(0o700)
    assert blas._cache_folder() == planted
    monkeypatch.setenv("XDG_CACHE_HOME", "~/relative")
    assert blas._cache_folder() == planted


@linux
def test_pruning_removes_what_nothing_refers_to(tmp_path: Path) -> None:
    def record(name: str, source: Path) -> Path:
        copy = tmp_path / f"lib{name}.so"
        copy.touch()
        choice = blas._Choice("OpenBLAS", "wheel", str(source), str(copy), 1.0, None)
        blas._write_choice(tmp_path / f"blas-{name}.json", choice)
        return copy

    kept = record("kept", wheel_library())
    gone = record("gone", tmp_path / "removed.so")
    loser = tmp_path / "libloser.so"
    loser.touch()
    blas._prune(tmp_path)
    assert (kept.exists(), gone.exists(), loser.exists()) == (True, False, False)
    assert [path.name for path in tmp_path.glob("*.json")] == ["blas-kept.json"]


# --- choosing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "own", "chosen"),
    [(95.0, 2.0, "system"), (60.0, 2.0, "wheel"), (300.0, 2.0, "system"), (95.0, 90.0, None)],
)
def test_the_system_wins_a_tie_and_the_slow_are_refused(
    system: float, own: float, chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"system": system, "wheel": 100.0}

    def prepare(source: str, path: Path, cache: Path) -> blas._Choice:
        return blas._Choice("OpenBLAS", source, str(path), str(path), speeds[source], None)

    monkeypatch.setattr(blas, "_prepare", prepare)
    monkeypatch.setattr(blas, "_own_gflops", lambda: own)
    candidates = [("system", tmp_path / "a"), ("wheel", tmp_path / "b")]
    if chosen is None:
        with pytest.raises(blas_copy.BlasError, match="not faster"):
            blas._fastest(candidates, tmp_path)
    else:
        assert blas._fastest(candidates, tmp_path).source == chosen


@linux
def test_a_system_library_is_found_and_measured(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    # Stands in for a distribution's OpenBLAS: names without a prefix, everything public.
    renames = {
        name: name.removeprefix("scipy_")
        for name in ElfLibrary(wheel_library().read_bytes()).defined_symbols()
    }
    library = folder / "libopenblas.so.0"
    library.write_bytes(wheel_library().read_bytes())
    (tmp_path / "map").write_text(
        "".join(f"{old} {new}\n" for old, new in renames.items() if old != new)
    )
    options = ["--set-soname", library.name, "--rename-dynamic-symbols", str(tmp_path / "map")]
    subprocess.run([blas_copy._patchelf(), *options, str(library)], check=True)
    answer, _ = run(REPORT, tmp_path, MLX_PARALLM_BLAS=str(library))
    assert (answer["path"], answer["name"]) == (str(library), "OpenBLAS")
    assert answer["version"].startswith("OpenBLAS 0.")
    (copy,) = (tmp_path / "mlx_parallm").glob("lib*.so")
    names = ElfLibrary(copy.read_bytes()).defined_symbols()
    assert {n for n in names if not n.startswith(blas_library.PRIVATE_PREFIX)} == PUBLIC
    # And it would have been a candidate.
    found, _ = run(
        "from mlx_parallm.cpu import blas\nanswer = [str(p) for s, p in blas._candidates()]",
        tmp_path,
        LD_LIBRARY_PATH=str(folder),
    )
    assert str(library) in found


@linux
def test_the_copy_of_the_wheel_shows_only_what_mlx_calls(tmp_path: Path) -> None:
    copy = blas_copy.isolated_copy(wheel_library(), tmp_path)
    names = ElfLibrary(copy.read_bytes()).defined_symbols()
    assert {n for n in names if not n.startswith(blas_library.PRIVATE_PREFIX)} == PUBLIC
    before = copy.stat().st_mtime_ns
    assert blas_copy.isolated_copy(wheel_library(), tmp_path) == copy
    assert copy.stat().st_mtime_ns == before
    gflops, version = blas_copy.measure(copy)
    assert gflops > 0
    assert version is not None


@linux
def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A library with cblas_sgemm that computes nothing leaves zeros behind.
    copy = blas_copy.isolated_copy(wheel_library(), tmp_path)
    monkeypatch.setattr(blas_library, "_product", lambda *arguments: lambda: 1e-3)
    assert not blas_library.measure(str(copy), rows=2, depth=3, columns=4)["correct"]
    monkeypatch.setattr(
        blas_copy, "_run", lambda command: '{"correct": false, "gflops": 1, "version": null}'
    )
    with pytest.raises(blas_copy.BlasError, match="wrong"):
        blas_copy.measure(copy)


def test_the_quota_of_a_container_limits_the_threads(tmp_path: Path) -> None:
    quota, everything = tmp_path / "cpu.max", blas_library.usable_cpus(tmp_path / "missing")
    assert everything >= 1
    for text, cpus in [
        ("max 100000", everything),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("9999900000 100000", everything),
        ("nonsense", everything),
    ]:
        quota.write_text(text)
        assert blas_library.usable_cpus(quota) == cpus, text


def test_info_reads_well() -> None:
    none = blas.BlasInfo("default", "none", reason="MLX_PARALLM_BLAS=off")
    some = blas.BlasInfo("BLIS", "system", "/lib/libblis.so", 80.4, "BLIS 0.9", 2)
    assert str(none) == "default (MLX_PARALLM_BLAS=off)"
    assert str(some) == "BLIS 0.9 (system, 2 threads, 80 GFLOP/s)"


@linux
def test_a_warm_preload_is_cheap(cache: Path) -> None:
    code = """
import time, mlx_parallm.cpu.blas as blas
blas._info = None
start = time.perf_counter()
blas.preload()
answer = {"seconds": time.perf_counter() - start, "source": blas.info().source}
"""
    run(code, cache)
    started = time.monotonic()
    answer, _ = run(code, cache)
    assert answer["source"] != "none"
    assert answer["seconds"] < 0.1
    assert time.monotonic() - started < 10
