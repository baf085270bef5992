"""Makes memories: K before its rotation, and V, of a text that runs through the model.

mlx-lm's attention rotates keys with its module `rope` and hands the result to
the cache. While a capture runs, each `rope` remembers what it made of what, so
that the cache can tell the keys before rotation from the ones it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import MAX_WIDTH, BatchedCache, BatchedKVCache
from mlx_parallm.errors import UnsupportedError

Rotate = Callable[[mx.array], mx.array]
KeysValues = list[tuple[mx.array, mx.array]]

DEFAULT_WINDOW = 3072
DEFAULT_STRIDE = 512


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) run through the model; those from `keep` on are kept."""

    start: int
    keep: int
    stop: int


def windows(count: int, window: int, stride: int) -> list[Window]:
    """Windows over `count` tokens: each kept token sees at least window - stride before it."""
    found = [Window(0, 0, min(window, count))]
    while found[-1].stop < count:
        start = found[-1].start + stride
        found.append(Window(start, found[-1].stop, min(start + window, count)))
    return found


class Capture:
    """Runs texts through a model, apart from its batch. On the engine's thread only.

    Raises:
        UnsupportedError: not every layer of the model is attention that rotates
            its keys by itself.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.ropes: list[Any] = []
        captured = self._run(np.zeros(1, dtype=np.int32), self._fresh())
        self.num_layers = len(captured)
        mx.eval(captured)

    def rotate(self, layer: int, keys: mx.array) -> mx.array:
        """(kv_heads, M, dim) keys as the layer rotates positions 0 .. M-1."""
        # An array, because some of mlx-lm's take a number for the length of the text.
        rotated: mx.array = self.ropes[layer](keys[None], offset=mx.array([0]))
        return rotated[0]

    def steps(
        self, tokens: np.ndarray, window: Window, chunk: Callable[[], int]
    ) -> Iterator[tuple[int, KeysValues]]:
        """One window in several forwards.

        Args:
            chunk: says how many tokens the next forward may have.

        Yields:
            after each forward how many of the window's tokens are computed, and K and
            V of the kept ones that were in it, (kv_heads, n, dim) a layer, evaluated;
            n may be 0.
        """
        cache, at = self._fresh(), window.start
        while at < window.stop:
            stop = min(at + min(chunk(), MAX_WIDTH), window.stop)
            captured = self._run(tokens[at:stop], cache)
            skip = min(max(window.keep - at, 0), stop - at)
            kept = [(k[0, :, skip:], v[0, :, skip:]) for k, v in captured]
            mx.eval(kept, cache.arrays)
            at = stop
            yield at - window.start, kept

    def _fresh(self) -> BatchedCache:
        cache = BatchedCache(self.model)
        if not all(type(layer) is BatchedKVCache for layer in cache.layers):
            raise UnsupportedError("Memories need a model whose layers all are attention.")
        cache.join()
        return cache

    def _run(self, tokens: np.ndarray, cache: BatchedCache) -> list[tuple[mx.array, mx.array]]:
        """(1, kv_heads, T, dim) raw K and V of each layer, lazily."""
        cache.begin(0, 1, len(tokens), [len(tokens)])
        with _watching(self.model) as rotated:
            layers = [_CapturingLayer(layer, rotated) for layer in cache.layers]
            # The logits are never evaluated, so they cost nothing.
            self.model(mx.array(tokens)[None], cache=layers)
        cache.commit()
        if not self.ropes:
            self.ropes = [layer.rope for layer in layers]
        return [(layer.raw_keys, layer.new_values) for layer in layers]


class _CapturingLayer:
    """A layer's cache that keeps the raw keys and the values of the newest forward."""

    def __init__(self, layer: Any, rotated: dict[int, tuple[Any, mx.array, mx.array]]) -> None:
        self._layer = layer
        self._rotated = rotated
        self.rope: Any = None
        self.raw_keys: mx.array
        self.new_values: mx.array

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        found = self._rotated.get(id(keys))
        if found is None:
            raise UnsupportedError(
                "Memories are not supported for this model: its keys change after their rotation."
            )
        self.rope, self.raw_keys, _ = found
        self.new_values = values
        return self._layer.update_and_fetch(keys, values)


@contextmanager
def _watching(model: Any) -> Iterator[dict[int, tuple[Any, mx.array, mx.array]]]:
    """Every `rope` writes down (itself, input, output) under its output's identity."""
    rotated: dict[int, tuple[Any, mx.array, mx.array]] = {}
    ropes = {id(m.rope): m.rope for m in model.modules() if "rope" in m}
    kinds = {id(rope): type(rope) for rope in ropes.values()}
    for rope in ropes.values():
        rope.__class__ = _watched(type(rope), rotated)
    try:
        yield rotated
    finally:
        for rope in ropes.values():
            rope.__class__ = kinds[id(rope)]


def _watched(kind: type, rotated: dict[int, tuple[Any, mx.array, mx.array]]) -> type:
    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        output: mx.array = kind.__call__(self, x, *args, **kwargs)
        # The output is kept, so that its identity stays its own.
        rotated[id(output)] = (self, x, output)
        return output

    return type(kind.__name__, (kind,), {"__call__": call})
