"""The ModelDrafter: a smaller model guesses what the target will say."""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models import cpu_ops
from mlx_parallm.models.adapt import adapt
from mlx_parallm.models.base import MAX_WIDTH, BatchedCache
from mlx_parallm.models.span import Row


class ModelDrafter:
    """A smaller model with the same tokenizer guesses greedily.

    Its rows may lag behind the target's; a guess begins with catching up.
    """

    is_free = False

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.model = adapt(model)
        cpu_ops.install(model)
        self.vocab_size = vocab_size
        self.cache = BatchedCache(model)

    @property
    def caches(self) -> list[BatchedCache]:
        """See Drafter."""
        return [self.cache]

    def propose(self, sequences: list[Sequence], rows: list[Row], most: int) -> Proposal:
        """See Drafter."""
        lag = sum(s.num_tokens - r.length for s, r in zip(sequences, rows, strict=True))
        began = time.perf_counter()
        token = self._catch_up(sequences, rows)
        seconds = 0.0
        if lag > len(rows) * (most + 1):  # more than the step before left behind
            mx.eval(token, self.cache.arrays)
            seconds = time.perf_counter() - began
        guesses = [token]
        while len(guesses) < most:
            token = self._forward(token[:, None], [1] * len(rows), 1)
            guesses.append(token)
        counts = np.full(len(rows), most, dtype=np.int32)
        return Proposal(mx.stack(guesses, axis=1), counts, None, lag if seconds else 0, seconds)

    def learn(self, verified: Items[int], accepted: Items[int]) -> None:
        """See Drafter: a model's guesses stay what they are."""

    def reset(self) -> None:
        """See Drafter."""
        self.cache = BatchedCache(self.model)

    def _catch_up(self, sequences: list[Sequence], rows: list[Row]) -> mx.array:
        """(B,) the first guess, after all known tokens were computed."""
        while True:
            left = [s.num_tokens - r.length for s, r in zip(sequences, rows, strict=True)]
            width = min(max(left), MAX_WIDTH)
            # The last chunk computes every row's last token; those before it may not.
            spare = 0 if max(left) <= MAX_WIDTH else 1
            counts = [max(0, min(n - spare, width)) for n in left]
            inputs = np.zeros((len(rows), width), dtype=np.int32)
            for place, (sequence, row, count) in enumerate(
                zip(sequences, rows, counts, strict=True)
            ):
                inputs[place, :count] = sequence.tokens[row.length : row.length + count]
            token = self._forward(mx.array(inputs), counts, width)
            if not spare:
                return token
            mx.eval(self.cache.arrays)

    def _forward(self, inputs: mx.array, counts: list[int], width: int) -> mx.array:
        self.cache.begin(0, len(counts), width, counts)
        logits = self.model(inputs, cache=self.cache.layers)
        last = mx.array(np.maximum(np.array(counts, dtype=np.int32) - 1, 0))[:, None, None]
        best = mx.argmax(logits[..., : self.vocab_size], axis=-1, keepdims=True)
        self.cache.commit()
        return mx.take_along_axis(best, last, axis=1)[:, 0, 0].astype(mx.int32)
