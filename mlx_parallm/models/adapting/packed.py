"""Products with weights in few bits on a CPU, which stay packed in memory.

MLX's own `quantized_matmul` is slow there, and it has no place for a kernel of ours. But it calls
our `cblas_sgemm` (cpu/products.py) for x @ w.T. So a packed matrix gets a stand-in: an array of its
shape whose address is known to the library, which then reads the packed weights instead. The
stand-in has no memory of its own, and nothing but this product ever sees it.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_parallm.cpu import blas

BITS = frozenset((2, 3, 4, 5, 6, 8))
_PLACE = 16  # floats; see cpu/native/packed.c

_mlx_product = mx.quantized_matmul


def install() -> bool:
    """From now on MLX's products with packed weights are ours, where they can be."""
    if not _usable():
        return False
    mx.quantized_matmul = _product
    return True


def stays_packed(module: Any) -> bool:
    """Whether a module's products are ours once its scales are float32."""
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return (
        _usable()
        and isinstance(module, kinds)
        and module.mode == "affine"
        and module.bits in BITS
        and module.weight.ndim == 2
    )


def _usable() -> bool:
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return bool(on_cpu) and blas.own_products() is not None


def _product(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    **others: Any,
) -> mx.array:
    """mx.quantized_matmul."""
    known = x.dtype == scales.dtype == mx.float32 and w.ndim == 2 and mode == "affine"
    if not known or not transpose or biases is None or bits not in BITS or not group_size:
        return _mlx_product(x, w, scales, biases, transpose, group_size, bits, mode, **others)
    stand_in = _stand_ins.get(w, scales, biases, int(bits), int(group_size))
    if stand_in is None:
        return _mlx_product(x, w, scales, biases, transpose, group_size, bits, mode, **others)
    # The result keeps the weights until it is computed: MLX holds what a node depends on until
    # all tasks before it have run.
    result: mx.array
    (result,) = mx.depends([x @ stand_in.T], [w, scales, biases])
    return result


@dataclass(frozen=True)
class _StandIn:
    """The array, and the weights that it stands for; None where they do not lie row after row."""

    array: mx.array | None
    weights: tuple[weakref.ref[mx.array], ...]

    def is_for(self, weights: tuple[mx.array, ...]) -> bool:
        return all(own() is other for own, other in zip(self.weights, weights, strict=True))


class _StandIns:
    """Stand-ins of all packed matrices of this process, by the identity of their words."""

    def __init__(self) -> None:
        self._known: dict[int, _StandIn] = {}
        self._anchor: mx.array | None = None
        self._places = 0
        self._lock = threading.Lock()

    def get(
        self, words: mx.array, scales: mx.array, biases: mx.array, bits: int, group: int
    ) -> mx.array | None:
        """The (out, in) array to multiply by, if there can be one."""
        known = self._known.get(id(words))
        if known is None or not known.is_for((words, scales, biases)):
            with self._lock:
                known = self._add((words, scales, biases), bits, group)
                self._known[id(words)] = known
        return known.array

    def _add(self, weights: tuple[mx.array, ...], bits: int, group: int) -> _StandIn:
        library = blas.own_products()
        assert library is not None
        if self._anchor is None:
            self._anchor = mx.zeros(library.packed_room() // 4)
            library.set_packed_anchor(np.array(self._anchor, copy=False).ctypes.data)
        views = [np.array(weight, copy=False) for weight in weights]
        known = tuple(map(weakref.ref, weights))
        if not all(view.flags.c_contiguous for view in views):
            return _StandIn(None, known)
        # The oldest place is taken anew once all were used: after hundreds of models.
        place = self._places % (self._anchor.size // _PLACE)
        self._places += 1
        rows, columns = weights[0].shape[0], weights[1].shape[1] * group
        # Numbers stay where they are while their array lives.
        words, scales, biases = (view.ctypes.data for view in views)
        library.put_packed(place, (words, scales, biases), (rows, columns, bits, group))
        array = mx.as_strided(self._anchor, (rows, columns), (columns, 1), offset=place * _PLACE)
        mx.eval(array)
        key = id(weights[0])
        forget = weakref.ref(weights[0], lambda _: self._known.pop(key, None))
        return _StandIn(array, (forget, *known[1:]))


_stand_ins = _StandIns()
