"""The AdapterSlots of a model: places for adapters that forwards can mix. One thread only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_parallm.models.adapting.shard import shard_of
from mlx_parallm.models.adapting.stages import is_elsewhere
from mlx_parallm.models.adapting.summed import SUMMED
from mlx_parallm.models.lora.delta import HEAD, AdapterWeights, Delta, part_of
from mlx_parallm.models.lora.layers import attach, attach_router, variant
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.routing import Routing
from mlx_parallm.models.lora.stack import Stack

Prepared = dict[str, dict[str, Any]]
"""Arguments of Stack.put for each module."""


class AdapterSlots:
    """Slots 1 ... `size` of a model's modules.

    Args:
        model: an mlx-lm model, after everything else has changed its modules' classes.
        routing: says which slots a forward's rows use.
    """

    def __init__(self, model: Any, routing: Routing, size: int) -> None:
        self.size = size
        self.routing = routing
        self._modules = Modules(model)
        self._model = model
        self._stacks: dict[str, Stack] = {}

    @property
    def modules(self) -> Modules:
        """The model's modules by name."""
        return self._modules

    @property
    def nbytes(self) -> int:
        """Bytes of all stacks."""
        return sum(stack.nbytes for stack in self._stacks.values())

    def preparing(self, weights: AdapterWeights, into: Prepared) -> list[Callable[[], None]]:
        """Steps that bring an adapter onto the device, a module each, so that none is long."""

        def prepare(path: str, delta: Delta) -> None:
            into[path] = self._prepare(path, delta)
            mx.eval([v for v in into[path].values() if isinstance(v, mx.array)])

        return [
            lambda path=path, delta=delta: prepare(path, delta)  # type: ignore[misc]
            for path, delta in weights.deltas.items()
            if not is_elsewhere(self._modules[path])
        ]

    def put(self, slot: int, prepared: Prepared) -> None:
        """Fill a slot; forwards that were launched before do not change."""
        self.clear(slot)
        for path, parts in prepared.items():
            self._stack(path).put(slot, **parts)
        mx.eval([stack.arrays for stack in self._stacks.values()])

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        for stack in self._stacks.values():
            stack.clear(slot)

    def _stack(self, path: str) -> Stack:
        if path not in self._stacks:
            module, role = self._modules[path], HEAD if path.endswith(HEAD) else ""
            stack = self._stacks[path] = Stack(self.routing, self.size, _dtype(module))
            attach(module, role, stack)
            if self._modules.is_experts(path):
                for other in self._model.modules():
                    attach_router(other, self.routing)
        return self._stacks[path]

    def _prepare(self, path: str, delta: Delta) -> dict[str, Any]:
        module = self._modules[path]
        delta = part_of(delta, shard_of(module))
        a, b = _array(delta.a), _array(delta.b)
        added = _array(delta.added)
        gain = token_gain = None
        if delta.magnitude is not None and a is not None and b is not None:
            plain = self._modules.is_embedding(path) and not path.endswith(HEAD)
            gain = _gain(module, a, b, mx.array(delta.magnitude), plain, delta.by_token)
            if delta.by_token:
                a, token_gain, gain = a * gain[:, None], gain, None
            else:
                b = b * gain
            # What is summed over ranks gets its bias behind the gain.
            if gain is not None and "bias" in module and not isinstance(module, SUMMED):
                added = _sum(added, module.bias * (1 - gain))
        replaced = {name: mx.array(array) for name, array in delta.replaced.items()}
        apart = isinstance(module, SUMMED) or set(replaced) == {"bias"}
        if apart and "bias" in replaced and self._modules.is_linear(path):
            bias = replaced.pop("bias")
            added = _sum(added, bias - module.bias if "bias" in module else bias)
        other = None
        if replaced:
            mx.eval(replaced)
            dtype = _dtype(module)
            other = variant(module, {name: array.astype(dtype) for name, array in replaced.items()})
        return {
            "a": a,
            "b": b,
            "gain": gain,
            "token_gain": token_gain,
            "added": added,
            "replaced": other,
        }


def _gain(
    module: Any, a: mx.array, b: mx.array, magnitude: mx.array, by_dim: bool, by_token: bool
) -> mx.array:
    """DoRA's magnitude over the norm of the changed weights (arXiv 2402.09353, section 4.3).

    Args:
        by_dim: an embedding, whose weights are (vocabulary, dim), as `a b` is.
        by_token: the norm is one of each token.
    """
    change = a @ b
    weights = plain_weight(module) + (change if by_dim else change.T)
    along = 0 if by_dim and not by_token else 1
    shard = shard_of(module)
    if shard is not None and shard.axis == "in":  # every rank has a part of each row
        squares = mx.distributed.all_sum(mx.sum(weights**2, axis=along), group=shard.group)
        return magnitude / mx.sqrt(squares)
    return magnitude / mx.linalg.norm(weights, axis=along)


def plain_weight(module: Any) -> mx.array:
    """(out, in) float32, also of a packed module."""
    if not hasattr(module, "bits"):
        weight: mx.array = module.weight
        return weight.astype(mx.float32)
    unpacked: mx.array = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=getattr(module, "mode", "affine"),
    )
    return unpacked.astype(mx.float32)


def _dtype(module: Any) -> mx.Dtype:
    """Of the products of a module: packed ones' scales have it, or float32 where they do not."""
    array = module.scales if hasattr(module, "bits") else module.weight
    dtype: mx.Dtype = array.dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.float32


def _array(values: Any) -> mx.array | None:
    return None if values is None else mx.array(values)


def _sum(one: mx.array | None, other: mx.array) -> mx.array:
    return other if one is None else one + other
