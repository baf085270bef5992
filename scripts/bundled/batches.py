"""Packing of samples into rows, so that little of a batch is padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .sample import Sample

Encoded = tuple[list[int], list[float]]


@dataclass(slots=True)
class Batch:
    """inputs (B, T) token ids; visible (B, 1, T, T) 1 where a position may look;
    rows (N,) flat positions whose next token is asked for; targets (N,) those tokens;
    weights (N,) their share of the loss; tasks (N,) index of the task of each."""

    inputs: mx.array
    visible: mx.array
    rows: mx.array
    targets: mx.array
    weights: mx.array
    tasks: np.ndarray


class DocumentCache:
    """Stands where mlx-lm's models expect a cache and keeps packed samples apart: each position
    sees its own sample only, as it will when the sample is served alone."""

    offset = 0

    def __init__(self, visible: mx.array) -> None:
        self._visible = visible

    def make_mask(self, *_: object, **__: object) -> mx.array:
        return self._visible

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


def make_batch(
    rng: random.Random,
    draw: Callable[[random.Random], tuple[int, float, Sample]],
    encode: Callable[[Sample], Encoded],
    *,
    rows: int,
    length: int,
) -> Batch:
    """Draw samples (task index, loss weight, sample) until `rows` rows of `length` are full."""
    inputs = np.zeros((rows, length), dtype=np.int32)
    document = np.zeros((rows, length), dtype=np.int32)
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    tasks: list[int] = []
    row = used = documents = 0
    while row < rows:
        task, weight, sample = draw(rng)
        ids, shares = encode(sample)
        if len(ids) > length:
            continue
        if used + len(ids) > length:
            row, used = row + 1, 0
            if row == rows:
                break
        documents += 1
        inputs[row, used : used + len(ids)] = ids
        document[row, used : used + len(ids)] = documents
        start = row * length + used
        asked = [i for i in range(1, len(ids)) if shares[i]]
        positions += [start + i - 1 for i in asked]
        targets += [ids[i] for i in asked]
        weights += [weight * shares[i] for i in asked]
        tasks += [task] * len(asked)
        used += len(ids)
    same = document[:, None, :, None] == document[:, None, None, :]
    visible = np.tril(same).astype(np.float32)
    return Batch(
        mx.array(inputs),
        mx.array(visible),
        mx.array(np.array(positions, dtype=np.int32)),
        mx.array(np.array(targets, dtype=np.int32)),
        mx.array(np.array(weights, dtype=np.float32)),
        np.array(tasks),
    )
