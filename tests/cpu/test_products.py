"""products.py: our own cblas_sgemm, against float64, and beside threads that have no core."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlx_parallm.cpu import blas, blas_library, products
from tests.waiting import PATIENCE_S

if sys.platform != "linux" or "mlx_cpu" not in blas._mlx_packages() or products.why_not():
    pytest.skip("our own products are for x86 CPUs on Linux", allow_module_level=True)

Matrix = NDArray[np.float32]
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
KINDS = {"native": None, "avx2": ("-mavx2", "-mfma", "-mno-avx512f")}


@pytest.fixture(scope="module", params=KINDS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Compiled for this processor, and for one without AVX-512; the BLAS behind it is numpy."""
    file = tmp_path_factory.mktemp("products") / "products.so"
    flags = KINDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        if flags:
            plain = tuple(flag for flag in products._FLAGS if flag != "-march=native")
            patch.setattr(products, "_FLAGS", (*plain, *flags))
        products.build(file)
    return Library(ctypes.CDLL(str(file)))


@dataclass
class Call:
    """One call of cblas_sgemm: what it gets, and room for the result."""

    a: Matrix  # as it is stored
    b: Matrix
    c: Matrix
    m: int
    n: int
    k: int
    trans_a: bool = False
    trans_b: bool = True
    alpha: float = 1
    beta: float = 0

    def expected(self) -> NDArray[np.float64]:
        """The same in float64."""
        a = self.a[:, : self.m].T if self.trans_a else self.a[:, : self.k]
        b = self.b[:, : self.k].T if self.trans_b else self.b[:, : self.n]
        product = self.alpha * (a.astype(np.float64) @ b.astype(np.float64))
        # Where beta is 0, what was in c counts for nothing, be it NaN.
        return product + (self.beta * self.c[:, : self.n] if self.beta else 0)


class Library:
    """The compiled library, with a BLAS behind it that counts its calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.handed_on = 0
        chosen = blas._library
        assert chosen is not None
        sgemm = ctypes.cast(chosen.cblas_sgemm, ctypes.c_void_p)
        i, f, p = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        kind = ctypes.CFUNCTYPE(None, i, i, i, i, i, i, f, p, i, p, i, f, p, i)
        real = kind(sgemm.value or 0)

        def count(*arguments: object) -> None:
            self.handed_on += 1
            real(*arguments)

        self._behind = kind(count)  # kept alive
        library.mlx_parallm_products_start(self._behind)
        self.threads(1)

    def threads(self, n: int) -> None:
        self.library.mlx_parallm_products_set_threads(n)

    def run(self, call: Call) -> None:
        address = [ctypes.c_void_p(matrix.ctypes.data) for matrix in (call.a, call.b, call.c)]
        orders = [
            TRANSPOSED if transposed else PLAIN for transposed in (call.trans_a, call.trans_b)
        ]
        self.library.cblas_sgemm(
            *(ROW_MAJOR, *orders, call.m, call.n, call.k, ctypes.c_float(call.alpha)),
            *(address[0], call.a.shape[1], address[1], call.b.shape[1]),
            *(ctypes.c_float(call.beta), address[2], call.c.shape[1]),
        )


def draw(*shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def plain_call(rows: int, columns: int, depth: int) -> Call:
    a, b = draw(rows, depth, seed=1), draw(columns, depth, seed=2)
    return Call(a, b, np.full((rows, columns), np.nan, np.float32), rows, columns, depth)


@st.composite
def calls(data: st.DrawFn) -> Call:
    """Any shape, most of them with as many weights as our kernels want, rows apart or not."""
    rows, depth = data(st.integers(1, 45)), data(st.integers(1, 2600))
    columns = data(st.integers(1, 90)) + data(st.sampled_from([0, 65536 // depth]))
    trans_a, trans_b = data(st.booleans()), data(st.integers(0, 3)) > 0
    gaps = data(st.tuples(*[st.integers(0, 5)] * 3))
    a_shape = (depth, rows) if trans_a else (rows, depth)
    b_shape = (columns, depth) if trans_b else (depth, columns)
    a, b, c = (
        draw(shape[0], shape[1] + gap, seed=data(st.integers(0, 99)))
        for shape, gap in zip((a_shape, b_shape, (rows, columns)), gaps, strict=True)
    )
    alpha, beta = data(st.sampled_from([1, -0.5])), data(st.sampled_from([0, 1, 0.25]))
    return Call(a, b, c, rows, columns, depth, trans_a, trans_b, alpha, beta)


@settings(max_examples=120, deadline=None)
@given(call=calls(), threads=st.integers(1, 3))
def test_products_are_those_of_float64(library: Library, call: Call, threads: int) -> None:
    before, expected = call.c.copy(), call.expected()
    library.threads(threads)
    library.run(call)
    np.testing.assert_allclose(call.c[:, : call.n], expected, rtol=0, atol=1e-5 * call.k**0.5 * 4)
    np.testing.assert_array_equal(call.c[:, call.n :], before[:, call.n :])


def test_few_rows_are_ours_and_many_rows_the_other_blas_s(library: Library) -> None:
    for rows, handed_on in ((1, 0), (8, 0), (40, 0), (41, 1)):
        library.handed_on = 0
        library.threads(1)
        call = plain_call(rows, 200, 512)
        library.run(call)
        assert library.handed_on == handed_on, rows
        np.testing.assert_allclose(call.c, call.expected(), rtol=0, atol=1e-3)


def test_a_row_s_bits_do_not_depend_on_the_others_or_on_threads(library: Library) -> None:
    whole = plain_call(40, 500, 3000)
    library.run(whole)
    for rows in range(1, 40):
        library.threads(1 + rows % 3)
        part = plain_call(40, 500, 3000)
        part.m, part.a, part.c = rows, part.a[:rows].copy(), part.c[:rows].copy()
        library.run(part)
        np.testing.assert_array_equal(part.c, whole.c[:rows], str(rows))


@pytest.mark.parametrize("trans_b", [False, True])
def test_sums_of_long_rows_are_ours_too(library: Library, trans_b: bool) -> None:
    library.handed_on = 0
    whole = plain_call(8, 1, 49_157)
    if not trans_b:
        whole.b, whole.trans_b = whole.b.T.copy(), False
    library.run(whole)
    assert library.handed_on == 0
    np.testing.assert_allclose(whole.c, whole.expected(), rtol=0, atol=5e-3)
    # A column in a wider matrix is somebody else's.
    call = Call(whole.a, whole.b, draw(8, 3), 8, 1, 49_157, trans_b=trans_b)
    before, expected = call.c.copy(), call.expected()
    library.run(call)
    assert library.handed_on > 0
    np.testing.assert_allclose(call.c[:, :1], expected, rtol=0, atol=5e-3)
    np.testing.assert_array_equal(call.c[:, 1:], before[:, 1:])


def test_infinite_weights_stay_where_they_are(library: Library) -> None:
    call = plain_call(3, 100, 1003)
    call.b[7, 1002] = np.inf
    library.run(call)
    assert not np.isfinite(call.c[:, 7]).any()
    assert np.isfinite(np.delete(call.c, 7, axis=1)).all()


def test_many_threads_may_call_at_once(library: Library) -> None:
    library.threads(3)
    own = [plain_call(1 + i, 300, 700) for i in range(6)]

    def work(call: Call) -> None:
        for _ in range(50):
            call.c[:] = np.nan
            library.run(call)
            assert np.abs(call.c - expected[id(call)]).max() < 1e-3

    expected = {id(call): call.expected() for call in own}
    failed: list[BaseException] = []

    def guarded(call: Call) -> None:
        try:
            work(call)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_forked_child_multiplies_with_threads_of_its_own(library: Library) -> None:
    library.threads(2)
    call = plain_call(4, 400, 900)
    library.run(call)
    child = os.fork()
    if child == 0:
        call.c[:] = np.nan
        library.run(call)
        os._exit(0 if np.abs(call.c - call.expected()).max() < 1e-3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    library.run(call)


# --- other work on the machine --------------------------------------------------------------


def seconds(library: Library, call: Call, threads: int) -> float:
    """Of 20 products."""
    library.threads(threads)
    started = time.perf_counter()
    for _ in range(20):
        library.run(call)
    return time.perf_counter() - started


def slowdown(library: Library, rounds: int = 5) -> float:
    """Time with two threads over that with one, taking turns."""
    call = plain_call(8, 1400, 512)
    ratios = [seconds(library, call, 2) / seconds(library, call, 1) for _ in range(rounds)]
    return statistics.median(ratios)


def tasks() -> list[int]:
    """This process's threads."""
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


@contextmanager
def one_core() -> Iterator[None]:
    """All threads of this process share one core; those that start in it too."""
    before = {task: os.sched_getaffinity(task) for task in tasks()}
    core = {min(os.sched_getaffinity(0))}
    for task in before:
        os.sched_setaffinity(task, core)
    try:
        yield
    finally:
        for task in tasks():
            os.sched_setaffinity(task, before.get(task, before[os.getpid()]))


def test_two_threads_on_one_core_are_as_fast_as_one(library: Library) -> None:
    seconds(library, plain_call(8, 1400, 512), 2)
    with one_core():
        # Threads that spin for each other: 80 times slower.
        assert slowdown(library) < 10


@pytest.mark.parametrize("niceness", [0, 19])
def test_beside_busy_processes_two_threads_lose_nothing(library: Library, niceness: int) -> None:
    loop = ["nice", "-n", str(niceness), sys.executable, "-S", "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(blas_library.usable_cpus())]
    try:
        assert slowdown(library, rounds=7) < 10
    finally:
        for process in busy:
            process.kill()
            process.wait()


# --- where it cannot be compiled ------------------------------------------------------------

REPORT = """
import mlx_parallm
from mlx_parallm.cpu import blas
import mlx.core as mx
product = mx.ones((4, 512)) @ mx.ones((300, 512)).T
own = blas.info().own_products
print(blas.info().source != "none", own, product.min().item(), product.max().item())
"""


def report(cache: Path, **environment: str) -> tuple[str, str]:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_without_a_compiler_mlx_calls_the_blas_itself(tmp_path: Path) -> None:
    assert report(tmp_path, PATH="/nowhere") == ("True False 512.0 512.0", "")
    assert report(tmp_path, MLX_PARALLM_PRODUCTS="off") == ("True False 512.0 512.0", "")


def test_a_compiler_that_fails_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    assert report(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin") == ("True False 512.0 512.0", "")
    assert not list((tmp_path / "mlx_parallm").glob("products*"))


def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert report(tmp_path) == ("True True 512.0 512.0", "")
    (file,) = (tmp_path / "mlx_parallm").glob("products*")
    before = file.stat().st_mtime_ns
    assert report(tmp_path) == ("True True 512.0 512.0", "")
    assert file.stat().st_mtime_ns == before
