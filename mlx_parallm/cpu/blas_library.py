"""One BLAS library opened with ctypes: its threads, its version and its speed.

Nothing of this package is imported, because this file is also run as a script
(`python -I -S blas_library.py LIBRARY`): it then measures a library in a process of its own
and prints a JSON object.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Names that an isolated copy hides carry this, see blas_copy.py.
PRIVATE_PREFIX = "mlx_parallm_"

# OpenBLAS's idle threads spin for 2^26 cycles before they sleep. For 25 ms after each product
# that takes a core from FAISS (measured: 2.4 times slower beside MLX) and from the event loop;
# 2^20 still takes it from MLX's and Python's threads on two cores (a decode step of the bundled
# model: 1.3 times slower than with 2^14; of larger models: the same).
_SPIN_VARIABLE, _SPIN = "OPENBLAS_THREAD_TIMEOUT", "14"
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
)


def open_library(path: str, mode: int = os.RTLD_NOW) -> ctypes.CDLL:
    """Open a library with as many threads as there are CPUs for us. Raises OSError."""
    unset = _SPIN_VARIABLE not in os.environ
    if unset:
        os.environ[_SPIN_VARIABLE] = _SPIN  # read once, while it is opened
    try:
        library = ctypes.CDLL(path, mode=mode)
    finally:
        if unset:
            del os.environ[_SPIN_VARIABLE]
    # OpenBLAS counts the machine's CPUs; more threads than a container may use only spin.
    if not any(os.environ.get(variable) for variable in THREAD_VARIABLES):
        set_num_threads(library, usable_cpus())
    return library


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may use: its affinity, cut down to the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cpus, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return cpus


def set_num_threads(library: ctypes.CDLL, n: int) -> bool:
    """Use n >= 1 threads. False where the library has no such function."""
    function = _find(
        library, "openblas_set_num_threads", "bli_thread_set_num_threads", "MKL_Set_Num_Threads"
    )
    if function is None:
        return False
    # BLIS takes its 64-bit dim_t; the others read an int out of the wider register.
    function(ctypes.c_long(max(1, n)))
    return True


def num_threads(library: ctypes.CDLL) -> int | None:
    """Threads that the library computes with; None where it cannot say."""
    function = _find(
        library, "openblas_get_num_threads", "bli_thread_get_num_threads", "MKL_Get_Max_Threads"
    )
    # BLIS answers -1 while nobody has set a number.
    count = int(function()) if function else 0
    return count if count > 0 else None


def version(library: ctypes.CDLL) -> str | None:
    """Name, version and build of the library in its own words, or None."""
    function = _find(library, "openblas_get_config", "bli_info_get_version_str")
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    text = str((function() or b"").decode(errors="replace")).strip()
    return text if text.startswith("OpenBLAS") else f"BLIS {text}"


def measure(path: str, rows: int = 32, depth: int = 2048, columns: int = 768) -> dict[str, Any]:
    """Time x @ W.T in float32, x (rows, depth), W (columns, depth): a decode step's product.

    Returns gflops (the best of many runs), correct (the product is right) and version. Beside
    other busy processes, threads that wait for each other can be 50 times slower than alone, so
    one thread is measured too, and only the quietest moment says what the library can do.
    """
    library = open_library(path)
    x = array("f", (float(i % 7 + 1) for i in range(rows) for _ in range(depth)))
    w = array("f", (float(j % 5 + 1) for j in range(columns) for _ in range(depth)))
    out = array("f", bytes(4 * rows * columns))
    multiply = _product(library, x, w, out, (rows, depth, columns))
    seconds = _shortest(multiply)
    if set_num_threads(library, 1):
        seconds = min(seconds, _shortest(multiply))
    # Small whole numbers: the sums are exact in float32.
    right = (depth * (i % 7 + 1) * (j % 5 + 1) for i in range(rows) for j in range(columns))
    return {
        "gflops": 2e-9 * rows * depth * columns / seconds,
        "correct": all(a == b for a, b in zip(out, right, strict=True)),
        "version": version(library),
    }


def _shortest(run: Callable[[], float], runs: int = 40, limit_s: float = 0.25) -> float:
    run()
    start = time.perf_counter()
    shortest = run()
    while (runs := runs - 1) > 0 and time.perf_counter() - start < limit_s:
        shortest = min(shortest, run())
    return shortest


def _product(
    library: ctypes.CDLL,
    x: array[float],
    w: array[float],
    out: array[float],
    shape: tuple[int, ...],
) -> Callable[[], float]:
    """A function that computes out = x @ w.T once and returns the seconds it took."""
    rows, depth, columns = shape
    x_, w_, out_ = (ctypes.c_void_p(data.buffer_info()[0]) for data in (x, w, out))
    layout, order = (101, 111, 112), (rows, columns, depth)  # row major, plain, transposed
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def multiply() -> float:
        started = time.perf_counter()
        library.cblas_sgemm(*layout, *order, one, x_, depth, w_, depth, zero, out_, columns)
        return time.perf_counter() - started

    return multiply


def _find(library: ctypes.CDLL, *names: str) -> Any:
    """The first of these functions that the library has, plain or hidden; else None."""
    for name in names:
        for symbol in (name, PRIVATE_PREFIX + name):
            function = getattr(library, symbol, None)
            if function is not None:
                return function
    return None


if __name__ == "__main__":
    json.dump(measure(sys.argv[1]), sys.stdout)
