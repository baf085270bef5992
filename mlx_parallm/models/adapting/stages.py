"""Models whose layers are divided over ranks: each rank computes some of them, one after the other.

Rank 0 has the embedding and the first layers, the last rank the last ones and the head. What a
rank does not have stays in the model as a module without memory: it keeps its shapes, and passes
on what it is given. So mlx-lm's code, caches and adapters find everything in its place.

Every send is evaluated where it is made. So each forward sends and receives once on every rank,
whatever of it anybody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.adapting.adapt import adapt
from mlx_parallm.models.adapting.packed import unpatched

Weights = dict[str, mx.array]
_METHODS = ("__call__", "as_linear")


def is_elsewhere(module: Any) -> bool:
    """Whether another rank has this module's weights."""
    return bool(getattr(module, "elsewhere", False))


def held(model: Any) -> Weights:
    """The weights that this process has, by their paths."""
    return {
        f"{path}.{name}" if path else name: array
        for path, module in model.named_modules()
        if not is_elsewhere(module)
        for name, array in _own(module).items()
    }


def divide(model: Any, group: mx.distributed.Group, config: Mapping[str, Any]) -> None:
    """Keep this rank's layers of a model whose weights are still to be read.

    Raises:
        ModelLoadError: the architecture is not a chain of layers, or has too few.
    """
    rank, size = group.rank(), group.size()
    adapt(model)  # first, or it would replace what layers do here
    chain = _chain_of(model, str(config["model_type"]))
    if len(chain.layers) < size:
        raise ModelLoadError(
            f"--pipeline-parallel {size}: the model has {len(chain.layers)} layers only"
        )
    bounds = _bounds([_nbytes(layer) for layer in chain.layers], chain.head_nbytes, size)
    first, stop = bounds[rank], bounds[rank + 1]
    for layer in [*chain.layers[:first], *chain.layers[stop:]]:
        for module in layer.modules():
            _empty(module)
        _become(layer, __call__=_pass_on)
    if rank > 0:
        _receive(chain.layers[first], chain.dtypes[first], rank - 1, group)
    if rank < size - 1:
        _send(chain.layers[stop - 1], rank + 1, group)
    for around in chain.around:
        _keep_or_empty(around, is_first=rank == 0, is_last=rank == size - 1)


def _keep_or_empty(around: _Around, *, is_first: bool, is_last: bool) -> None:
    """Take the weights away from a module outside the layers, where they are not needed."""
    needed = (around.before and is_first) or (around.after and is_last)
    stand_ins = {name: _stand_in(*output) for name, output in around.outputs.items()}
    if not needed:
        _empty(around.module, **stand_ins)
    elif around.before and not is_last:  # a tied embedding is no head here
        _become(around.module, **{n: m for n, m in stand_ins.items() if n != "__call__"})


def _pass_on(self: Any, x: mx.array, *_: Any, **__: Any) -> mx.array:
    """A layer of another rank."""
    return x


def _receive(layer: Any, dtype: mx.Dtype, source: int, group: mx.distributed.Group) -> None:
    """Let a layer compute what another rank sends."""
    kind = type(layer)

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        received = mx.distributed.recv(x.shape, dtype, source, group=group)
        return kind.__call__(self, received, *args, **kwargs)

    _become(layer, __call__=call)


def _send(layer: Any, target: int, group: mx.distributed.Group) -> None:
    """Send what a layer computes to another rank, at once."""
    kind = type(layer)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent = mx.distributed.send(kind.__call__(self, *args, **kwargs), target, group=group)
        mx.async_eval(sent)
        return sent

    _become(layer, __call__=call)


def _empty(module: Any, **methods: Any) -> None:
    """Take a module's weights away; their shapes and types stay."""
    if is_elsewhere(module):
        return
    for name, array in _own(module).items():
        module[name] = mx.broadcast_to(mx.zeros((), array.dtype), array.shape)
    _become(module, elsewhere=True, **methods)


def _become(module: Any, **members: Any) -> None:
    """Give one module other methods. By its module the class is known for what it is."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **members})


def _bounds(costs: list[int], head: int, size: int) -> list[int]:
    """The first layer of each rank, and the number of layers: about as much to read for each."""
    before = [0, *accumulate(costs)]
    total = before[-1] + head
    bounds = [0]
    for rank in range(1, size):
        places = range(bounds[-1] + 1, len(costs) - (size - rank) + 1)
        bounds.append(min(places, key=lambda place: abs(before[place] - total * rank / size)))
    return [*bounds, len(costs)]


@dataclass(slots=True)
class _Around:
    """A module with weights outside the layers.

    Attributes:
        before, after: whether it computes before the first layer, and after the last one; a tied
            embedding does both.
        outputs: last axis and type of what its methods give.
    """

    module: Any
    before: bool = False
    after: bool = False
    outputs: dict[str, tuple[int, mx.Dtype]] = field(default_factory=dict)


@dataclass(slots=True)
class _Chain:
    """How a model computes.

    Attributes:
        layers: in their order.
        around: what computes before and after them.
        dtypes: of what each layer is given.
        newest: what the newest one gave.
        shared: other arrays that the first one is given.
    """

    layers: list[Any]
    around: list[_Around]
    dtypes: list[mx.Dtype] = field(default_factory=list)
    newest: mx.array | None = None
    shared: list[mx.array] = field(default_factory=list)

    @property
    def head_nbytes(self) -> int:
        """Bytes that are read after the last layer."""
        return sum(_nbytes(around.module) for around in self.around if around.after)


def _stand_in(width: int, dtype: mx.Dtype) -> Callable[..., mx.array]:
    """A method that gives the shape and type of what another rank computes."""

    def call(self: Any, x: mx.array, *_: Any, **__: Any) -> mx.array:
        looks_up = mx.issubdtype(x.dtype, mx.integer)
        return mx.zeros((*(x.shape if looks_up else x.shape[:-1]), width), dtype)

    return call


class _NotAChainError(Exception):
    """Why layers cannot be divided."""


def _chain_of(model: Any, model_type: str) -> _Chain:
    """Follow a forward of one token, of which nothing is computed."""
    try:
        if getattr(model, "whole_sequence", False):
            raise _NotAChainError("it is an encoder")
        with unpatched(), _followed(model) as chain:
            model(mx.zeros((1, 1), mx.int32))
        if len(chain.dtypes) != len(chain.layers):
            raise _NotAChainError("its layers are not computed one after the other")
    except (_NotAChainError, AttributeError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"--pipeline-parallel: the architecture {model_type!r} cannot be divided over ranks: "
            f"{error}"
        ) from error
    return chain


@contextmanager
def _followed(model: Any) -> Iterator[_Chain]:
    """Note what modules are given, and what they give."""
    layers = list(model.layers)
    inside = {id(module) for layer in layers for module in layer.modules()}
    around = [
        _Around(module)
        for module in model.modules()
        if _own(module)
        and id(module) not in inside
        and not any(id(part) in inside for part in module.modules())  # the body itself
    ]
    if len(layers) != len({id(layer) for layer in layers}):
        raise _NotAChainError("some of its layers are the same one")
    chain = _Chain(layers, around)
    kinds = [(m, type(m)) for m in [*layers, *(one.module for one in around)]]
    for layer in layers:
        _become(layer, __call__=_following(chain, type(layer)))
    for one in around:
        kind = type(one.module)
        methods = [name for name in _METHODS if hasattr(kind, name)]
        _become(one.module, **{name: _noting(chain, one, kind, name) for name in methods})
    try:
        yield chain
    finally:
        for module, kind in kinds:
            module.__class__ = kind


def _following(chain: _Chain, kind: type) -> Callable[..., Any]:
    """A layer that has to be given what the one before gave, and nothing else that is computed."""

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        at = len(chain.dtypes)
        if at >= len(chain.layers) or chain.layers[at] is not self:
            raise _NotAChainError("its layers are not computed one after the other")
        if at and chain.newest is not x:
            raise _NotAChainError("something is computed between its layers")
        given: list[Any] = list(dict(tree_flatten([args, kwargs])).values())
        others = [one for one in given if isinstance(one, mx.array)]
        if not at:
            chain.shared = others
        if not all(_is_of_the_input(one, x, chain.shared) for one in others):
            raise _NotAChainError("its layers are given more than the hidden states")
        out: Any = kind.__call__(self, x, *args, **kwargs)
        if not isinstance(out, mx.array) or out.shape != x.shape:
            raise _NotAChainError("its layers give more than the hidden states")
        chain.dtypes.append(x.dtype)
        chain.newest = out
        return out

    return call


def _is_of_the_input(array: mx.array, hidden: mx.array, shared: list[mx.array]) -> bool:
    """Whether a layer's argument is a mask, or depends on positions only, as all layers get it."""
    given = any(array is one for one in shared)
    return array.dtype == mx.bool_ or (given and array.shape[-1:] != hidden.shape[-1:])


def _noting(chain: _Chain, around: _Around, kind: type, name: str) -> Callable[..., Any]:
    """A method of a module outside the layers."""
    method = getattr(kind, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = method(self, *args, **kwargs)
        if isinstance(out, mx.array):
            around.before |= not chain.dtypes
            around.after |= bool(chain.dtypes)
            around.outputs[name] = out.shape[-1], out.dtype
        return out

    return call


def _own(module: Any) -> Weights:
    """A module's own arrays, without those of its parts."""
    return {name: value for name, value in module.items() if isinstance(value, mx.array)}


def _nbytes(module: nn.Module) -> int:
    weights: Weights = dict(tree_flatten(module.parameters()))
    return sum(array.nbytes for array in weights.values())
