"""Weights of GGUF's block types in MLX's packing.

Both divide a row into blocks of 32 and store small whole numbers q: llama.cpp's value is d * q,
d * (q - 8), d * (q - 16) or d * q + m, MLX's is scale * q + bias. d and m are float16, and d times
a power of two is too, so that nothing is rounded. In Q4_K and Q5_K scale and bias are products of
a float16 and a whole number below 64, which float16 rounds: to values that are as near as float16
weights would be. Sources: ggml-common.h, ggml-quants.c and mlx.core.quantize.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from gguf import GGMLQuantizationType as Kind

GROUP = 32


@dataclass(frozen=True)
class Packed:
    """MLX's affine quantisation of a matrix, groups of 32.

    Attributes:
        weight: (..., N * bits / 32) uint32; scales, biases: (..., N / 32) float16.
            In the mode "mxfp4" scales are powers of two, uint8, and there are no biases.
        error: of the values, relative, root mean square.
    """

    bits: int
    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None
    error: float = 0.0
    mode: str = "affine"

    def with_columns(self, order: np.ndarray) -> Packed:
        """The same matrix with its groups of columns in another order."""
        weight, scales = reordered(self.weight, order), reordered(self.scales, order)
        biases = None if self.biases is None else reordered(self.biases, order)
        return replace(self, weight=weight, scales=scales, biases=biases)


def reordered(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Equal parts of the last axis in another order."""
    parts = array.reshape(*array.shape[:-1], len(order), -1)
    return np.ascontiguousarray(parts[..., order, :]).reshape(array.shape)


def can_pack(kind: Kind) -> bool:
    """Whether a type has an equal in MLX."""
    return kind is Kind.MXFP4 or kind in _LAYOUTS or kind in _SUPER_LAYOUTS


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
    if kind is Kind.MXFP4:
        return _pack_mxfp4(data)
    if kind in _SUPER_LAYOUTS:
        return _pack_super(data, _SUPER_LAYOUTS[kind])
    layout = _LAYOUTS[kind]
    header = 4 if layout.minimum else 2
    size = header + GROUP * layout.bits // 8
    blocks = data.reshape(*data.shape[:-1], -1, size)
    scales = _float16(blocks[..., :2])
    biases = _float16(blocks[..., 2:4]) if layout.minimum else scales * np.float16(-layout.zero)
    numbers = _numbers(blocks[..., header:], layout.bits)
    return Packed(layout.bits, _as_words(numbers, layout.bits), scales, biases)


def _pack_mxfp4(data: np.ndarray) -> Packed:
    """The same numbers and exponents; only the order of a block's numbers is another."""
    blocks = data.reshape(*data.shape[:-1], -1, 1 + GROUP // 2)
    words = _as_words(_numbers(blocks[..., 1:], 4), 4)
    return Packed(4, words, np.ascontiguousarray(blocks[..., 0]), None, mode="mxfp4")


# Eight blocks with one float16 scale and one minimum, by which each block's own are multiplied;
# the numbers are the bits of a weight.
_SUPER_LAYOUTS = {Kind.Q4_K: 4, Kind.Q5_K: 5}
_BLOCKS = 8


def _pack_super(data: np.ndarray, bits: int) -> Packed:
    size = 16 + _BLOCKS * GROUP * bits // 8
    blocks = data.reshape(*data.shape[:-1], -1, size)
    numbers = _super_numbers(blocks[..., 16:], bits)
    whole = [_float16(blocks[..., at : at + 2]).astype(np.float32) for at in (0, 2)]
    scales, minima = (
        (one[..., None] * part).reshape(*data.shape[:-1], -1)
        for one, part in zip(whole, _six_bits(blocks[..., 4:16]), strict=True)
    )
    rounded = scales.astype(np.float16), (-minima).astype(np.float16)
    values = numbers * scales[..., None] - minima[..., None]
    found = numbers * rounded[0][..., None].astype(np.float32) + rounded[1][..., None]
    error = np.linalg.norm(found - values) / max(float(np.linalg.norm(values)), 1e-30)
    return Packed(bits, _as_words(numbers, bits), *rounded, float(error))


def _six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 8) scales and minima out of 12 bytes; the last four's upper bits are the first's."""
    first, second, last = (data[..., at : at + 4] for at in (0, 4, 8))
    scales = [first & 63, last & 15 | (first >> 6) << 4]
    minima = [second & 63, last >> 4 | (second >> 6) << 4]
    return np.concatenate(scales, axis=-1), np.concatenate(minima, axis=-1)


def _super_numbers(data: np.ndarray, bits: int) -> np.ndarray:
    """(..., blocks, 32) uint8; each 32 bytes hold two blocks, the upper bits are in front."""
    high = np.zeros((*data.shape[:-1], _BLOCKS, GROUP), np.uint8)
    if bits == 5:
        shifts = np.arange(_BLOCKS, dtype=np.uint8)[:, None]
        high = (data[..., None, :GROUP] >> shifts & 1) << 4
        data = data[..., GROUP:]
    pairs = data.reshape(*data.shape[:-1], _BLOCKS // 2, 1, GROUP)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=-2).reshape(high.shape)
    return np.asarray(low | high).reshape(*data.shape[:-2], -1, GROUP)


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
