"""GELU as the towers have it, made for training on CPUs: one compiled pass forward, one back.

tanh is a quotient of polynomials there (relative error below 1e-4): MLX computes tanh and exp
one element at a time on a CPU, which would be half of a training step.
"""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

_SCALE, _CUBE = math.sqrt(2 / math.pi), 0.044715
# The quotient is above 1 from here on.
_EDGE = 4.97


def _tanh(u: mx.array) -> mx.array:
    """Lambert's continued fraction, cut after seven terms."""
    u = mx.clip(u, -_EDGE, _EDGE)
    s = u * u
    above = u * (135135.0 + s * (17325.0 + s * (378.0 + s)))
    return above / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0)))


@mx.compile
def _forward(x: mx.array) -> mx.array:
    return 0.5 * x * (1.0 + _tanh(x * (1.0 + _CUBE * x * x) * _SCALE))


@mx.compile
def _backward(x: mx.array, cotangent: mx.array) -> mx.array:
    tanh = _tanh(x * (1.0 + _CUBE * x * x) * _SCALE)
    inner = _SCALE * (1.0 + 3 * _CUBE * x * x)
    return cotangent * 0.5 * (1.0 + tanh + x * (1.0 - tanh * tanh) * inner)


@mx.custom_function
def _gelu(x: mx.array) -> mx.array:
    return _forward(x)


@_gelu.vjp
def _gelu_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return _backward(x, cotangent)


def gelu(x: mx.array) -> mx.array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) for float32."""
    return cast(mx.array, _gelu(x))
