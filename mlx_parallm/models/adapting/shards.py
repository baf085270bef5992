"""Models divided over ranks: each holds some of the heads and of the wide layers' columns.

mlx-lm's models divide themselves (`shard`). Their divided layers become plain ones here, where
they compute what a plain one does, so that everything else knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx.nn.layers import distributed
from mlx.utils import tree_flatten

from mlx_parallm.errors import ModelLoadError

_NAME = "shard_of_layer"
_PLAIN: dict[type, Any] = {
    distributed.AllToShardedLinear: nn.Linear,
    distributed.QuantizedAllToShardedLinear: nn.QuantizedLinear,
}


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a layer this rank has.

    Attributes:
        axis: the outputs are divided, or the inputs, whose products are then added up.
        in_order: whether the parts lie in the layer in the order of the ranks, and the layer
            is one of those below.
    """

    axis: Literal["out", "in"]
    rank: int
    size: int
    in_order: bool

    def part(self, array: Any, axis: int) -> Any:
        """This rank's part of an array that is divided like the layer."""
        each = array.shape[axis] // self.size
        first = self.rank * each
        places = [slice(None)] * array.ndim
        places[axis] = slice(first, first + each)
        return array[tuple(places)]


def shard_of(module: Any) -> Shard | None:
    """Which part of a layer this is; None for a whole one."""
    return getattr(module, _NAME, None)


class SummedLinear(nn.Linear):
    """A layer whose inputs are divided: the ranks' products are added up."""

    group: Any

    def __call__(self, x: mx.array) -> mx.array:
        """As nn.Linear."""
        return self.whole(self.part(x))

    def part(self, x: mx.array) -> mx.array:
        """This rank's part of the product."""
        product: mx.array = x @ self.weight.T
        return product

    def whole(self, part: mx.array) -> mx.array:
        """The parts of all ranks, and the bias."""
        return _added_up(self, part)


class SummedQuantizedLinear(nn.QuantizedLinear):
    """The same of packed weights."""

    group: Any

    def __call__(self, x: mx.array) -> mx.array:
        """As nn.QuantizedLinear."""
        return self.whole(self.part(x))

    def part(self, x: mx.array) -> mx.array:
        """See SummedLinear."""
        product: mx.array = mx.quantized_matmul(
            x,
            self.weight,
            scales=self.scales,
            biases=self.get("biases"),
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        return product

    def whole(self, part: mx.array) -> mx.array:
        """See SummedLinear."""
        return _added_up(self, part)


def _added_up(layer: Any, part: mx.array) -> mx.array:
    y = mx.distributed.all_sum(part, group=layer.group)
    return y + layer.bias if "bias" in layer else y


SUMMED = (SummedLinear, SummedQuantizedLinear)
_SUMMED: dict[type, Any] = {
    distributed.ShardedToAllLinear: SummedLinear,
    distributed.QuantizedShardedToAllLinear: SummedQuantizedLinear,
}


def shard(model: Any, group: mx.distributed.Group, model_type: str) -> None:
    """Keep this rank's part of a model whose weights are still to be read, and read it.

    Raises:
        ModelLoadError: the architecture cannot be divided, or not among so many ranks.
    """
    if not hasattr(model, "shard"):
        raise ModelLoadError(
            f"--tensor-parallel: the architecture {model_type!r} cannot be divided over ranks: "
            "mlx-lm does not say how (its model has no `shard`)"
        )
    before = {path: _shape(module) for path, module in model.named_modules()}
    try:
        model.shard(group)
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise ModelLoadError(
            f"--tensor-parallel {group.size()}: this model cannot be divided by that number: "
            f"{error}"
        ) from error
    for path, module in model.named_modules():
        _settle(path, module, before.get(path), group)
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for array in weights.values():
        mx.eval(array)  # one after the other: what is cut off is freed before the next is read
        mx.clear_cache()


def _settle(
    path: str, module: Any, before: tuple[int, ...] | None, group: mx.distributed.Group
) -> None:
    """Give a divided layer a plain class, and say which part it is."""
    now = _shape(module)
    divided = type(module) in _PLAIN or type(module) in _SUMMED
    if before is not None and now is not None and before[-2:] != now[-2:]:
        axis: Literal["out", "in"] = "out" if before[-1] == now[-1] else "in"
        place = -2 if axis == "out" else -1
        equal = now[place] * group.size() == before[place]
        in_order = divided and equal and "qkv" not in path  # those are several layers in one
        # Not through nn.Module, which takes only parameters and modules for its own.
        object.__setattr__(module, _NAME, Shard(axis, group.rank(), group.size(), in_order))
    if divided:
        module.__class__ = (_PLAIN | _SUMMED)[type(module)]


def _shape(module: Any) -> tuple[int, ...] | None:
    weight = module.get("weight") if isinstance(module, dict) else None
    return tuple(weight.shape) if isinstance(weight, mx.array) and weight.ndim > 1 else None
