"""Activation functions, and what mlx-lm's models call them.

`swiglu` and `precise_swiglu` replace mlx-lm's functions of these names. The others stand
in for those of `mlx.nn`, which models also call inside functions that they compile
themselves, so they consist of fusable operations only.
"""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx
from mlx import nn

from mlx_parallm.cpu.exponential import exp_negated, is_small
from mlx_parallm.cpu.fusing import fused

_TANH_SCALE = 2.0 * math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| < 1.5e-7.
_ERF_P = 0.3275911 / math.sqrt(2.0)
_VECTOR = mx.array([1.0] * 8)
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@fused(_VECTOR, _VECTOR, _VECTOR)
def _gated(gate: mx.array, up: mx.array, e: mx.array) -> mx.array:
    return gate * up / (1.0 + e)


@fused(_VECTOR, _VECTOR)
def _gated_few(gate: mx.array, up: mx.array) -> mx.array:
    return gate * up / (1.0 + mx.power(math.e, -gate))


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, for finite gates; any shape, both the same."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32 or gate.shape != up.shape:
        return mx.multiply(nn.silu(gate), up)
    # A strided input would make MLX compile another kernel.
    gate, up = mx.contiguous(gate), mx.contiguous(up)
    small = is_small(gate)
    product: mx.array = _gated_few(gate, up) if small else _gated(gate, up, exp_negated(gate))
    return product


def precise_swiglu(h: mx.array, gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up in float32, as h's type."""
    return swiglu(gate.astype(mx.float32), up.astype(mx.float32)).astype(h.dtype)


@partial(mx.compile, shapeless=True)
def _silu(x: mx.array) -> mx.array:
    return x / (1.0 + mx.power(math.e, -x))


@partial(mx.compile, shapeless=True)
def _gelu_approx(x: mx.array) -> mx.array:
    # 0.5 (1 + tanh(y)) is the logistic function of 2 y.
    inner = x * (_TANH_SCALE + _TANH_SCALE * _TANH_CUBE * mx.square(x))
    return x / (1.0 + mx.power(math.e, -inner))


@partial(mx.compile, shapeless=True)
def _gelu(x: mx.array) -> mx.array:
    size = mx.abs(x)
    t = 1.0 / (1.0 + _ERF_P * size)
    tail = t * _ERF[4] + _ERF[3]
    for coefficient in _ERF[2::-1]:
        tail = tail * t + coefficient
    return mx.maximum(x, 0.0) - 0.5 * size * tail * t * mx.power(math.e, -0.5 * mx.square(x))


def silu(x: mx.array) -> mx.array:
    """nn.silu."""
    return _silu(x) if x.dtype == mx.float32 else nn.silu(x)


def gelu_approx(x: mx.array) -> mx.array:
    """nn.gelu_approx."""
    return _gelu_approx(x) if x.dtype == mx.float32 else nn.gelu_approx(x)


def gelu(x: mx.array) -> mx.array:
    """nn.gelu to 2e-7 max(1, |x|)."""
    return _gelu(x) if x.dtype == mx.float32 else nn.gelu(x)
