"""Layers whose inputs are divided over ranks: the ranks' products are added up."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn


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
