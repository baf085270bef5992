"""A hook in every attention: the cache may compute it itself, or a faster function may.

mlx-lm's models import `scaled_dot_product_attention` by name into their own modules.
`install_attention` replaces it there with a hook:

1. a cache with a method `attend` computes the attention (extended mind, packed
   forwards); it is given `compute`, which computes what 2. or 3. would have;
2. a cache with `bits` is quantised and goes to mlx-lm's function;
3. everything else goes to the installed attention, mlx-lm's function by default.

The hook belongs to the model's modules, so all loaded models of one family share it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention

_NAME = "scaled_dot_product_attention"

Attention = Callable[..., mx.array]


@dataclass(frozen=True, slots=True)
class AttentionHook:
    """Stands in for mlx-lm's scaled_dot_product_attention.

    Attributes:
        computed: attention(queries, keys, values, *, scale, mask, sinks), or None for
            mlx-lm's function.
    """

    computed: Attention | None = None

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,  # an array, "causal" or None
        sinks: mx.array | None = None,
    ) -> mx.array:
        attend: Attention | None = getattr(cache, "attend", None)
        if attend is not None:
            return attend(
                queries, keys, values, scale=scale, mask=mask, sinks=sinks, compute=self.compute
            )
        if hasattr(cache, "bits"):
            output: mx.array = scaled_dot_product_attention(
                queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
            )
            return output
        return self.compute(queries, keys, values, scale=scale, mask=mask, sinks=sinks)

    def compute(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """The attention as such, whoever holds K and V."""
        if self.computed is not None:
            return self.computed(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        output: mx.array = scaled_dot_product_attention(
            queries, keys, values, cache=None, scale=scale, mask=mask, sinks=sinks
        )
        return output


attention = AttentionHook()


def install_attention(model: Any, computed: Attention | None = None) -> None:
    """Hook the attention of this model's layers; idempotent.

    Args:
        model: an mlx-lm model.
        computed: what computes attention where the cache does not. None keeps what an
            earlier call installed, or mlx-lm's function.
    """
    hook = attention if computed is None else AttentionHook(computed)
    for module in modules_of(model):
        current = getattr(module, _NAME, None)
        hooked = isinstance(current, AttentionHook)
        if current is scaled_dot_product_attention or (hooked and computed is not None):
            setattr(module, _NAME, hook)


def uninstall_attention(model: Any) -> None:
    """Give the model's modules mlx-lm's function back."""
    for module in modules_of(model):
        if isinstance(getattr(module, _NAME, None), AttentionHook):
            setattr(module, _NAME, scaled_dot_product_attention)


def modules_of(model: Any) -> Iterator[ModuleType]:
    """The Python modules of mlx-lm that define the classes of this model's parts."""
    for name in sorted({type(part).__module__ for part in model.modules()}):
        module = sys.modules.get(name)
        if module is not None and name.startswith("mlx_lm."):
            yield module
