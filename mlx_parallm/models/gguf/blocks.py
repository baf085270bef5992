"""Weights of GGUF's block types in MLX's packing, with the very same values.

Both divide a row into blocks of 32 and store small whole numbers q: llama.cpp's value is d * q,
d * (q - 8), d * (q - 16) or d * q + m, MLX's is scale * q + bias. d and m are float16, and d times
a power of two is too, so that nothing is rounded. Sources: ggml-common.h and mlx.core.quantize.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Kind

GROUP = 32


@dataclass(frozen=True)
class Packed:
    """MLX's affine quantisation of a matrix, groups of 32.

    Attributes:
        weight: (..., N * bits / 32) uint32; scales, biases: (..., N / 32) float16.
    """

    bits: int
    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray


def can_pack(kind: Kind) -> bool:
    """Whether a type has an exact equal in MLX."""
    return kind in _LAYOUTS


@dataclass(frozen=True)
class _Layout:
    """A block: float16 scale, then float16 minimum if `minimum`, then the numbers.

    Attributes:
        zero: the number that stands for 0, where there is no minimum.
    """

    bits: int
    minimum: bool
    zero: int = 0


_LAYOUTS = {
    Kind.Q4_0: _Layout(4, False, 8),
    Kind.Q4_1: _Layout(4, True),
    Kind.Q5_0: _Layout(5, False, 16),
    Kind.Q5_1: _Layout(5, True),
    Kind.Q8_0: _Layout(8, False, 128),
}


def pack(data: np.ndarray, kind: Kind) -> Packed:
    """Blocks to MLX's layout.

    Args:
        data: (..., bytes of a row) uint8.
        kind: a type that can_pack.
    """
    layout = _LAYOUTS[kind]
    header = 4 if layout.minimum else 2
    size = header + GROUP * layout.bits // 8
    blocks = data.reshape(*data.shape[:-1], -1, size)
    scales = _float16(blocks[..., :2])
    biases = _float16(blocks[..., 2:4]) if layout.minimum else scales * np.float16(-layout.zero)
    numbers = _numbers(blocks[..., header:], layout.bits)
    return Packed(layout.bits, _as_words(numbers, layout.bits), scales, biases)


def _float16(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view(np.float16)[..., 0]


def _numbers(data: np.ndarray, bits: int) -> np.ndarray:
    """(..., 32) uint8 of the bytes that follow a block's header."""
    if bits == 8:
        return np.asarray(data ^ 0x80)  # int8 plus 128
    high = np.zeros((*data.shape[:-1], GROUP), np.uint8)
    if bits == 5:  # the fifth bits of all numbers come first
        high = np.unpackbits(data[..., :4], axis=-1, bitorder="little") << 4
        data = data[..., 4:]
    low = np.concatenate([data & 0xF, data >> 4], axis=-1)
    return np.asarray(low | high)


def _as_words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers as a row of bits, least significant first, in words of 32."""
    flat = numbers.reshape(*numbers.shape[:-2], -1)
    if bits == 8:
        return np.ascontiguousarray(flat).view(np.uint32)
    if bits == 4:
        pairs = flat[..., 0::2] | flat[..., 1::2] << 4
        return np.ascontiguousarray(pairs).view(np.uint32)
    row = np.unpackbits(flat[..., None], axis=-1, count=bits, bitorder="little")
    packed = np.packbits(row.reshape(*flat.shape[:-1], -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.uint32)
