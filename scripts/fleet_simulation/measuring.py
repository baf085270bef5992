"""Measures a model's steps on this machine."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import statistics
from pathlib import Path

import numpy as np
from benchlib.sides import our_engine
from benchlib.work import Work

from .curve import Curve

_ROWS = (1, 2, 4, 8, 16, 32)
_PROMPTS = (64, 128, 256, 512)
_TOKENS = 24  # that each row generates while its steps are measured
_TIMES = 5
_FIRST_TOKEN_ID = 128  # behind special tokens


def measure(folder: Path, name: str) -> Curve:
    """Run a model: decoding rows for the small steps, prompts for the large ones."""
    points = {}
    longest = max(_PROMPTS)
    with our_engine(folder, prefill_chunk=longest, prefix_cache_memory=0) as ours:
        for rows in _ROWS:
            work = [Work(_prompt(row, 16), _TOKENS) for row in range(rows)]
            ours.run(work)  # allocates
            points[rows] = statistics.median(ours.run(work).steps())
        for size in _PROMPTS:
            seconds = [ours.run([Work(_prompt(n, size), 1)]).times[0][0] for n in range(_TIMES)]
            points[size] = statistics.median(seconds)
    return Curve(name, points)


def _prompt(seed: int, size: int) -> list[int]:
    rng = np.random.default_rng((seed, size))
    return [int(token) for token in rng.integers(_FIRST_TOKEN_ID, 2 * _FIRST_TOKEN_ID, size)]
