"""All products of a decode step, by our own cblas_sgemm and by the BLAS behind it."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (loads both)

import ctypes
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_parallm.cpu import blas, blas_library

Matrix = NDArray[np.float32]
Step = Callable[[ctypes.CDLL], None]
_ROWS = (1, 2, 4, 8, 16, 32)


def compare(weights: list[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """A line for each number of rows: ms of a step's products, and BLAS over ours.

    Args:
        weights: (outputs, inputs) of each, as they come in a step.
    """
    own, behind = blas.loaded()
    matrices = [np.random.default_rng(0).standard_normal(w, dtype=np.float32) for w in weights]
    threads = (1, blas_library.usable_cpus())
    lines = []
    for rows in _ROWS:
        line: dict[str, Any] = {"rows": rows}
        step = _step(matrices, rows)
        for n in dict.fromkeys(threads):
            ratios, times = _take_turns(step, own, behind, n, rounds)
            line[f"ms, {n} threads"] = " -> ".join(f"{t:.1f}" for t in times)
            line[f"ratio, {n}"] = f"{statistics.median(ratios):.2f}"
            line[f"spread, {n}"] = f"{min(ratios):.2f}-{max(ratios):.2f}"
        lines.append(line)
    return lines


def _take_turns(
    step: Step, own: ctypes.CDLL, behind: ctypes.CDLL, threads: int, rounds: int
) -> tuple[list[float], tuple[float, float]]:
    """BLAS over ours in each round; median ms of both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        blas_library.set_num_threads(behind, threads)
        times[0].append(_ms(step, behind))
        blas_library.set_num_threads(behind, 1)  # as ours wants it
        blas.set_num_threads(threads)
        times[1].append(_ms(step, own))
    ratios = [theirs / ours for theirs, ours in zip(*times, strict=True)]
    return ratios, (statistics.median(times[0]), statistics.median(times[1]))


def _ms(step: Step, library: ctypes.CDLL) -> float:
    step(library)
    started = time.perf_counter()
    step(library)
    return (time.perf_counter() - started) * 1e3


def _step(matrices: list[Matrix], rows: int) -> Step:
    random = np.random.default_rng(1).standard_normal
    inputs = {w.shape[1]: random((rows, w.shape[1]), dtype=np.float32) for w in matrices}
    outputs = {w.shape[0]: np.empty((rows, w.shape[0]), np.float32) for w in matrices}
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def address(matrix: Matrix) -> ctypes.c_void_p:
        return ctypes.c_void_p(matrix.ctypes.data)

    order = (101, 111, 112)  # row major, plain, transposed

    def arguments(w: Matrix) -> tuple[Any, ...]:
        n, k = w.shape
        sides = (address(inputs[k]), k, address(w), k)
        return (*order, rows, n, k, one, *sides, zero, address(outputs[n]), n)

    calls = [arguments(w) for w in matrices]
    # An address keeps nothing alive.
    return partial(_multiply, calls, [*inputs.values(), *outputs.values()])


def _multiply(calls: list[tuple[Any, ...]], _alive: list[Matrix], library: ctypes.CDLL) -> None:
    for call in calls:
        library.cblas_sgemm(*call)
