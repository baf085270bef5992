"""Products with weights in few bits on a CPU, which stay packed in memory.

MLX's own `quantized_matmul` is slow there, and it has no place for a kernel of ours. But it calls
our `cblas_sgemm` (cpu/products.py) for x @ w.T. So a packed matrix gets a stand-in: an array of its
shape whose address is known to the library, which then reads the packed weights instead. The
stand-in has no memory of its own, and nothing but this product ever sees it.

Experts have one stand-in for all of them, with one column more: there each row of x names its
expert. So the library sees all rows of a layer at once, and unpacks each expert's weights once for
all rows that use it; `gather_qmm` would multiply row by row.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from mlx_parallm.cpu import blas

BITS = frozenset((2, 3, 4, 5, 6, 8))
_PLACE = 16  # floats; see cpu/native/packed.c
_LAYERS = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)

_mlx_product = mx.quantized_matmul
_mlx_product_of_experts = mx.gather_qmm


def install() -> bool:
    """From now on MLX's products with packed weights are ours, where they can be."""
    if not _usable():
        return False
    mx.quantized_matmul = _product
    mx.gather_qmm = _product_of_experts  # type: ignore[assignment]
    return True


@contextmanager
def unpatched() -> Iterator[None]:
    """MLX's own products for as long as the block lasts: ours read the weights at once."""
    installed, mx.quantized_matmul = mx.quantized_matmul, _mlx_product
    try:
        yield
    finally:
        mx.quantized_matmul = installed


def stays_packed(module: Any) -> bool:
    """Whether a module's products are ours once its scales are float32."""
    if not (_usable() and isinstance(module, _LAYERS)):
        return False
    axes = 3 if isinstance(module, QuantizedSwitchLinear) else 2
    known = module.mode == "mxfp4" or (module.mode == "affine" and module.bits in BITS)
    return known and module.weight.ndim == axes


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
    stand_in = None
    if transpose and x.dtype == mx.float32 and w.ndim == 2:
        stand_in = _stand_ins.find(w, scales, biases, group_size, bits, mode)
    if stand_in is None:
        return _mlx_product(x, w, scales, biases, transpose, group_size, bits, mode, **others)
    return _times(x, stand_in, w, scales, biases)


def _product_of_experts(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    **others: Any,
) -> mx.array:
    """mx.gather_qmm, where each matrix of x is one row."""
    stand_in = None
    if transpose and x.dtype == mx.float32 and w.ndim == 3 and x.ndim > 1 and x.shape[-2] == 1:
        stand_in = _stand_ins.find(w, scales, biases, group_size, bits, mode)
    packed = (w, scales, biases)
    how = {"group_size": group_size, "bits": bits, "mode": mode, **others}
    if stand_in is None or rhs_indices is None or lhs_indices is not None:
        return _mlx_product_of_experts(
            x, *packed, lhs_indices, rhs_indices, transpose=transpose, **how
        )

    @mx.custom_function
    def product(x: mx.array, experts: mx.array) -> mx.array:
        shape = np.broadcast_shapes(x.shape[:-2], experts.shape)
        rows = mx.broadcast_to(x.squeeze(-2), (*shape, x.shape[-1])).reshape(-1, x.shape[-1])
        named = mx.broadcast_to(experts, shape).reshape(-1, 1).astype(mx.float32)
        y = _times(mx.concatenate([rows, named], axis=1), stand_in, *packed)
        return y.reshape(*shape, 1, -1)

    @product.vjp
    def gradients(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, mx.array]:
        _, pulled = mx.vjp(
            lambda x: _mlx_product_of_experts(x, *packed, None, primals[1], transpose=True, **how),
            [primals[0]],
            [cotangent],
        )
        return pulled[0], mx.zeros_like(primals[1])

    result: Any = product(x, rhs_indices)
    return cast(mx.array, result)


def _times(x: mx.array, stand_in: mx.array, *weights: mx.array | None) -> mx.array:
    # The result keeps the weights until it is computed: MLX holds what a node depends on until
    # all tasks before it have run.
    result: mx.array
    (result,) = mx.depends([x @ stand_in.T], [w for w in weights if w is not None])
    return result


@dataclass(frozen=True)
class _StandIn:
    """The array, and the weights that it stands for; None where they do not lie row after row."""

    array: mx.array | None
    weights: tuple[weakref.ref[mx.array], ...]

    def is_for(self, weights: tuple[mx.array, ...]) -> bool:
        same = (own() is other for own, other in zip(self.weights, weights, strict=False))
        return len(self.weights) == len(weights) and all(same)


class _StandIns:
    """Stand-ins of all packed matrices of this process, by the identity of their words."""

    def __init__(self) -> None:
        self._known: dict[int, _StandIn] = {}
        self._anchor: mx.array | None = None
        self._places = 0
        self._lock = threading.Lock()

    def find(
        self,
        words: mx.array,
        scales: mx.array,
        biases: mx.array | None,
        group: int | None,
        bits: int | None,
        mode: str,
    ) -> mx.array | None:
        """The (out, in) array to multiply by, (out, in + 1) of experts, if there can be one."""
        weights: tuple[mx.array, ...]
        if mode == "mxfp4":
            weights, group, bits = (words, scales), 32, 4
        elif mode == "affine" and biases is not None and scales.dtype == mx.float32:
            weights = (words, scales, biases)
        else:
            return None
        if bits not in BITS or not group:
            return None
        known = self._known.get(id(words))
        if known is None or not known.is_for(weights):
            with self._lock:
                known = self._add(weights, int(bits), int(group))
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
        *experts, rows, groups = weights[1].shape
        columns = groups * group
        # Numbers stay where they are while their array lives.
        words, scales, *biases = (view.ctypes.data for view in views)
        addresses = (words, scales, biases[0] if biases else None)
        library.put_packed(place, addresses, (rows, columns, bits, group, *(experts or [0])))
        width = columns + len(experts)
        array = mx.as_strided(self._anchor, (rows, width), (width, 1), offset=place * _PLACE)
        mx.eval(array)
        key = id(weights[0])
        forget = weakref.ref(weights[0], lambda _: self._known.pop(key, None))
        return _StandIn(array, (forget, *known[1:]))


_stand_ins = _StandIns()
