"""The tower that turns pixels into what the language model reads, for training.

The names of its weights, and what it computes, are those of mlx-vlm's idefics3 (a test compares
them); the exponential functions are the fast ones of bundled/fast_ops.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from bundled.fast_ops import fast_exp

from .gelu import gelu

EDGE, PATCH, MERGE = 48, 8, 2
# Patches along an edge, and tokens of a picture.
SIDE = EDGE // PATCH
TOKENS = (SIDE // MERGE) ** 2
EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class TowerSize:
    width: int = 96
    layers: int = 3
    heads: int = 3
    hidden: int = 384


def patches(pictures: np.ndarray) -> np.ndarray:
    """(B, 48, 48, 3) uint8 -> (B, 36, 192) float32 from -1 to 1, patch by patch."""
    count = len(pictures)
    scaled = pictures.astype(np.float32) / 127.5 - 1.0
    cut = scaled.reshape(count, SIDE, PATCH, SIDE, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(count, SIDE * SIDE, PATCH * PATCH * 3)


class Attention(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heads = size.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(size.width, size.width))

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        scale = math.sqrt(self.heads / width)
        queries, keys, values = (
            project(x).reshape(batch, length, self.heads, -1).swapaxes(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (queries * scale) @ keys.swapaxes(-1, -2)
        top = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
        shares = fast_exp(scores - top)
        mixed = (shares @ values) / shares.sum(axis=-1, keepdims=True)
        out: mx.array = self.out_proj(mixed.swapaxes(1, 2).reshape(batch, length, width))
        return out


class Mlp(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fc1 = nn.Linear(size.width, size.hidden)
        self.fc2 = nn.Linear(size.hidden, size.width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.self_attn, self.mlp = Attention(size), Mlp(size)
        self.layer_norm1 = nn.LayerNorm(size.width, eps=EPSILON)
        self.layer_norm2 = nn.LayerNorm(size.width, eps=EPSILON)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Tower(nn.Module):
    """Patches (B, 36, 192) -> embeddings of the language model (B, TOKENS, width of it)."""

    def __init__(self, size: TowerSize, text_width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.patch = nn.Linear(PATCH * PATCH * 3, size.width)
        self.position = nn.Embedding(SIDE * SIDE, size.width)
        self.layers = [Layer(size) for _ in range(size.layers)]
        self.post_layernorm = nn.LayerNorm(size.width, eps=EPSILON)
        self.proj = nn.Linear(size.width * MERGE**2, text_width, bias=False)

    def __call__(self, cut: mx.array) -> mx.array:
        return self.proj(self.seen(cut))

    def seen(self, cut: mx.array) -> mx.array:
        """What is projected, (B, TOKENS, 4 widths of the tower)."""
        x = self.patch(cut) + self.position.weight
        for layer in self.layers:
            x = layer(x)
        return _merged(self.post_layernorm(x))


def _merged(x: mx.array) -> mx.array:
    """(B, 36, W) -> (B, 9, 4 W): each square of 2 x 2 patches side by side."""
    batch, _, width = x.shape
    half = SIDE // MERGE
    squares = x.reshape(batch, half, MERGE, half, MERGE, width).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, half * half, MERGE * MERGE * width)
