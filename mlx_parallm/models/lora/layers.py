"""Modules of a model that add what adapters change, row by row.

A module's class is replaced by a subclass for this one instance, so that its parameters,
their names and their memory layout stay. Without an adapter among the forward's rows it
calls what it was, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

from mlx_parallm.models.adapting.summed import SUMMED, SummedLinear, SummedQuantizedLinear
from mlx_parallm.models.lora.delta import HEAD
from mlx_parallm.models.lora.products import low_rank, low_rank_of_experts, low_rank_of_tokens
from mlx_parallm.models.lora.routing import Lanes, Routing
from mlx_parallm.models.lora.stack import Stack

Stacks = dict[str, Stack]
LINEARS = (nn.Linear, nn.QuantizedLinear)
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
_ROUTERS = (SwitchGLU, SwitchMLP)
_UNPACKED: dict[type, Any] = {
    nn.QuantizedLinear: nn.Linear,
    nn.QuantizedEmbedding: nn.Embedding,
    SummedQuantizedLinear: SummedLinear,
}
_SORTED_FROM = 64  # mlx-lm's: so many choices of experts are sorted before they are computed


def attach(module: Any, role: str, stack: Stack) -> None:
    """Let a module add what a stack holds.

    Args:
        role: "" for its call; HEAD for an embedding as the output layer.
    """
    stacks: Stacks | None = getattr(module, "adapter_stacks", None)
    if stacks is None:
        stacks = {}
        # Not through nn.Module, which takes dictionaries for parameters.
        object.__setattr__(module, "adapter_stacks", stacks)
        object.__setattr__(module, "adapted_kind", type(module))
        module.__class__ = _subclass(type(module))
    stacks[role] = stack


def attach_router(module: Any, routing: Routing) -> None:
    """Let a module that sorts tokens by their experts say how."""
    kind = type(module)
    if not isinstance(module, _ROUTERS) or hasattr(module, "adapter_stacks"):
        return
    object.__setattr__(module, "adapter_stacks", {})

    def call(self: Any, x: mx.array, indices: mx.array) -> Any:
        if routing.lanes is None or indices.size < _SORTED_FROM:
            return kind.__call__(self, x, indices)
        with routing.sorted_by(indices):
            return kind.__call__(self, x, indices)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": __name__})


def variant(module: Any, parameters: dict[str, mx.array]) -> Any:
    """A module like this one with some parameters replaced; a packed one's are plain then."""
    kind = getattr(module, "adapted_kind", type(module))
    plain = _UNPACKED.get(kind)
    if "weight" in parameters and plain is not None:
        rows, columns = parameters["weight"].shape
        embeds = plain is nn.Embedding
        other = plain(rows, columns) if embeds else plain(columns, rows, bias=False)
        kept = {"bias": module.bias} if "bias" in module else {}
    else:
        other = copy(module)
        other.__class__, kept = kind, dict(module)
    dict.update(other, kept | parameters)
    return other


def _subclass(kind: type) -> type:
    methods: dict[str, Any] = {"__call__": _plain(kind), "__module__": __name__}
    if issubclass(kind, SUMMED):
        methods["__call__"] = _summed(kind)
    elif issubclass(kind, LINEARS):
        methods["__call__"] = _linear(kind)
    elif issubclass(kind, EXPERTS):
        methods["__call__"] = _experts(kind)
    elif issubclass(kind, EMBEDDINGS):
        methods["__call__"] = _embedding(kind)
        methods["as_linear"] = _head(kind)
    return type(kind.__name__, (kind,), methods)


def _plain(kind: type) -> Callable[..., Any]:
    """A module of which only parameters are replaced, such as a norm."""

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        y = kind.__call__(self, x, *args, **kwargs)
        stack: Stack = self.adapter_stacks[""]
        lanes = stack.lanes
        if lanes is None:
            return y
        return _replaced(stack, lanes, y, lambda other: other(x, *args, **kwargs))

    return call


def _linear(kind: type) -> Callable[..., Any]:
    def call(self: Any, x: mx.array) -> mx.array:
        y: mx.array = kind.__call__(self, x)
        stack: Stack = self.adapter_stacks[""]
        lanes = stack.lanes
        if lanes is None:
            return y
        return _changed(stack, lanes, x, _replaced(stack, lanes, y, lambda other: other(x)))

    return call


def _summed(kind: Any) -> Callable[..., Any]:
    """A layer whose ranks have parts of the inputs: the change is in what they add up."""

    def call(self: Any, x: mx.array) -> mx.array:
        y: mx.array = kind.part(self, x)
        stack: Stack = self.adapter_stacks[""]
        lanes = stack.lanes
        if lanes is None:
            return kind.whole(self, y)  # type: ignore[no-any-return]
        y = _replaced(stack, lanes, y, lambda other: other.part(x))
        y = kind.whole(self, _scaled(stack, lanes, x, y))
        return _shifted(stack, lanes, y)

    return call


def _head(kind: type) -> Callable[..., Any]:
    def as_linear(self: Any, x: mx.array) -> mx.array:
        y: mx.array = kind.as_linear(self, x)  # type: ignore[attr-defined]
        stack: Stack | None = self.adapter_stacks.get(HEAD)
        lanes = None if stack is None else stack.lanes
        if stack is None or lanes is None:
            return y
        y = _replaced(stack, lanes, y, lambda other: other.as_linear(x))
        return _changed(stack, lanes, x, y)

    return as_linear


def _embedding(kind: type) -> Callable[..., Any]:
    def call(self: Any, ids: mx.array) -> mx.array:
        y: mx.array = kind.__call__(self, ids)
        stack: Stack | None = self.adapter_stacks.get("")
        lanes = None if stack is None else stack.lanes
        if stack is None or lanes is None:
            return y
        y = _replaced(stack, lanes, y, lambda other: other(ids))
        if stack.b is not None:
            assert stack.a is not None
            if stack.token_gain is not None:
                y = y * stack.token_gain[lanes.index[:, None], ids][..., None]
            if stack.gain is not None:
                y = y * stack.gain[lanes.index][:, None]
            y = y + low_rank_of_tokens(ids, stack.a, stack.b, lanes).astype(y.dtype)
        return y

    return call


def _experts(kind: type) -> Callable[..., Any]:
    def call(self: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = kind.__call__(self, x, indices, sorted_indices)
        stack: Stack = self.adapter_stacks[""]
        lanes = stack.lanes
        if lanes is None or stack.a is None or stack.b is None:
            return y
        slots = stack.routing.sorted_slots
        if not sorted_indices:
            of_tokens = lanes.of_tokens(indices.size // indices.shape[-1])
            slots = mx.broadcast_to(of_tokens.reshape(*indices.shape[:-1], 1), indices.shape)
        if slots is None:
            raise RuntimeError("experts were sorted by a module that does not say how")
        return y + low_rank_of_experts(x, indices, stack.a, stack.b, slots).astype(y.dtype)

    return call


def _changed(stack: Stack, lanes: Lanes, x: mx.array, y: mx.array) -> mx.array:
    """y with the gain, the low-rank part and the added bias of each lane."""
    return _shifted(stack, lanes, _scaled(stack, lanes, x, y))


def _scaled(stack: Stack, lanes: Lanes, x: mx.array, y: mx.array) -> mx.array:
    """y with the gain and the low-rank part of each lane."""
    shape, lines = y.shape, len(lanes.host)
    if y.ndim != 3 or shape[0] != lines:  # some models put all tokens on one axis
        x, y = x.reshape(lines, -1, x.shape[-1]), y.reshape(lines, -1, shape[-1])
    if stack.gain is not None:
        y = y * stack.gain[lanes.index][:, None]
    if stack.a is not None and stack.b is not None:
        y = y + low_rank(x, stack.a, stack.b, lanes).astype(y.dtype)
    return y.reshape(shape) if y.shape != shape else y


def _shifted(stack: Stack, lanes: Lanes, y: mx.array) -> mx.array:
    """y with the added bias of each lane."""
    if stack.added is None:
        return y
    shape, lines = y.shape, len(lanes.host)
    if y.ndim != 3 or shape[0] != lines:
        y = y.reshape(lines, -1, shape[-1])
    y = y + stack.added[lanes.index][:, None]
    return y.reshape(shape) if y.shape != shape else y


def _replaced(stack: Stack, lanes: Lanes, y: Any, call: Callable[[Any], Any]) -> Any:
    for slot, other in stack.replaced.items():
        if slot in lanes.active:
            mask = lanes.mask(slot, y.size // y.shape[-1]).reshape(*y.shape[:-1], 1)
            y = mx.where(mask, call(other).astype(y.dtype), y)
    return y
