"""The switch for the CPU replacements: `install(model)` after loading.

Nothing happens on a GPU, or on processors other than x86, where MLX's own operations
are vectorised. See `mlx_parallm.cpu` for what is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models import activations as mlx_lm_activations

from mlx_parallm.cpu import activations, gradients
from mlx_parallm.cpu.allocator import keep_freed_memory
from mlx_parallm.cpu.attention import attention
from mlx_parallm.cpu.device import is_slow_cpu
from mlx_parallm.cpu.exponential import exp, log_softmax, logsumexp, softmax
from mlx_parallm.cpu.fusing import compile_kernels
from mlx_parallm.cpu.linear import optimize_linears
from mlx_parallm.cpu.norm import RowRMSNorm
from mlx_parallm.cpu.rope import drop_tables, use_tables
from mlx_parallm.models.adapting.attention import (
    AttentionHook,
    install_attention,
    modules_of,
    uninstall_attention,
)

__all__ = [
    "attention",
    "differentiable",
    "exp",
    "install",
    "is_slow_cpu",
    "log_softmax",
    "logsumexp",
    "optimize_linears",
    "softmax",
    "uninstall",
]

_FUNCTIONS: tuple[tuple[Callable[..., mx.array], Callable[..., mx.array]], ...] = (
    (mlx_lm_activations.swiglu, activations.swiglu),
    (mlx_lm_activations.precise_swiglu, activations.precise_swiglu),
)


class _FasterNN(ModuleType):
    """mlx.nn with other activation functions, for the modules of one model."""

    silu = staticmethod(activations.silu)
    gelu = staticmethod(activations.gelu)
    gelu_approx = staticmethod(activations.gelu_approx)

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


_FASTER_NN = _FasterNN(nn.__name__)


def install(model: Any) -> bool:
    """Switch the replacements on for a loaded mlx-lm model; idempotent.

    Functions are replaced in the Python modules that define the model's classes, so a
    second model of the same family gets them too. Weights may change their memory layout,
    never their values. False, and nothing done, where `is_slow_cpu` says no.
    """
    if not is_slow_cpu():
        return False
    keep_freed_memory()
    compile_kernels()
    install_attention(model, attention)
    for module in modules_of(model):
        _replace(module, nn, _FASTER_NN)
        for original, faster in _FUNCTIONS:
            _replace(module, original, faster)
    _swap_class(model, nn.RMSNorm, RowRMSNorm)
    use_tables(model)
    optimize_linears(model)
    return True


def uninstall(model: Any) -> None:
    """Give the model mlx-lm's functions and layers back; memory layouts stay."""
    uninstall_attention(model)
    for module in modules_of(model):
        _replace(module, _FASTER_NN, nn)
        for original, faster in _FUNCTIONS:
            _replace(module, faster, original)
    _swap_class(model, RowRMSNorm, nn.RMSNorm)
    drop_tables(model)


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Let forwards of the model's family have gradients, as long as the block lasts.

    The functions are swapped in Python modules that all models of the family share, so no
    other thread may run one meanwhile: this is for the engine's thread.
    """
    swapped: list[tuple[ModuleType, str, Any]] = []
    for module in modules_of(model):
        for name, value in list(vars(module).items()):
            other = _with_gradient(value)
            if other is not None:
                swapped.append((module, name, value))
                setattr(module, name, other)
    try:
        yield
    finally:
        for module, name, value in swapped:
            setattr(module, name, value)


def _with_gradient(function: Any) -> Any:
    """What stands for one of the functions that `install` put in; None for others."""
    if isinstance(function, AttentionHook) and function.computed is attention:
        return AttentionHook(gradients.attention)
    if function is activations.swiglu:
        return gradients.swiglu
    if function is activations.precise_swiglu:
        return gradients.precise_swiglu
    return None


def _swap_class(model: Any, old: type, new: type) -> None:
    for part in model.modules():
        if type(part) is old:
            part.__class__ = new


def _replace(module: ModuleType, old: Any, new: Any) -> None:
    for name, value in list(vars(module).items()):
        if value is old:
            setattr(module, name, new)
