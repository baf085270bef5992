"""PictureInputs: how rows of features get into mlx-lm's text model, whatever its code is.

The module that embeds tokens gives a row of features at a placeholder's place, the first
layers add their deeper features behind them, and rotary embeddings turn by the position in
time, height and width where a forward computes placeholders. All other forwards pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.models.body import body_of
from mlx_parallm.models.vision.families import Axes
from mlx_parallm.models.vision.tower import Features


@dataclass(eq=False, slots=True)
class Pictured:
    """What one forward over N tokens computes of pictures.

    Attributes:
        places: (M,) int32, of the flattened tokens, where features stand.
        features: whose rows these are, and which of them: (features, (m,) rows) in order.
        positions: (3, N) of each token in time, height and width; None: one position a token.
    """

    places: np.ndarray
    features: list[tuple[Features, np.ndarray]]
    positions: np.ndarray | None = None
    _turns: dict[int, tuple[mx.array, mx.array]] = field(default_factory=dict)

    def put(self, hidden: mx.array) -> mx.array:
        """(B, T, D) with features at their places."""
        flat = mx.flatten(hidden, 0, 1)
        flat[mx.array(self.places)] = self._rows(lambda f: f.rows).astype(hidden.dtype)
        return flat.reshape(hidden.shape)

    def add(self, hidden: mx.array, layer: int) -> mx.array:
        """(B, T, D) with the deeper features of a layer added at their places."""
        flat = mx.flatten(hidden, 0, 1)
        added = self._rows(lambda f: f.deeper[layer]).astype(hidden.dtype)
        return flat.at[mx.array(self.places)].add(added).reshape(hidden.shape)

    def blank(self, ids: mx.array, blank_id: int) -> mx.array:
        """(B, T) with another token at the places of features."""
        flat = mx.flatten(ids)
        flat[mx.array(self.places)] = blank_id
        return flat.reshape(ids.shape)

    def _rows(self, of: Callable[[Features], mx.array]) -> mx.array:
        parts = [of(features)[mx.array(rows)] for features, rows in self.features]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def turn(self, x: mx.array, rotation: Rotation) -> mx.array:
        """x (B, heads, T, dim) rotated by each token's three positions."""
        key = id(rotation)
        if key not in self._turns:
            assert self.positions is not None
            angles = rotation.angles(self.positions)
            shape = (x.shape[0], 1, x.shape[2], angles.shape[-1])
            self._turns[key] = (
                mx.array(np.cos(angles).reshape(shape)),
                mx.array(np.sin(angles).reshape(shape)),
            )
        return rotation.rotate(x, *self._turns[key])


class Rotation:
    """A rotary embedding whose frequencies belong to one of three axes each.

    Args:
        dims: features that are rotated; base: of the frequencies.
        sections: how many frequencies are time's, height's and width's.
        axes: how these lie: one section behind the other, or taking turns.
        pairs: a frequency turns two neighbours; else a feature of each half.
    """

    def __init__(
        self, dims: int, base: float, sections: list[int], axes: Axes, *, pairs: bool = False
    ) -> None:
        self.dims = dims
        self._pairs = pairs
        half = dims // 2
        self._frequencies = base ** (-np.arange(half, dtype=np.float64) / half)
        if axes == "chunked":
            self._axis = np.repeat(np.arange(3), sections)
        else:
            self._axis = np.zeros(half, dtype=np.int64)
            for axis in (1, 2):
                self._axis[axis : 3 * sections[axis] : 3] = axis

    def angles(self, positions: np.ndarray) -> np.ndarray:
        """(N, dims / 2) float32 of (3, N) positions."""
        by_axis = positions[self._axis].T.astype(np.float32)
        return by_axis * self._frequencies.astype(np.float32)

    def rotate(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        """x (B, heads, T, dim); features from `dims` on stay."""
        turned, rest = x[..., : self.dims].astype(mx.float32), x[..., self.dims :]
        if self._pairs:
            first, second = turned[..., ::2], turned[..., 1::2]
        else:
            first, second = mx.split(turned, 2, axis=-1)
        parts = [first * cos - second * sin, second * cos + first * sin]
        if self._pairs:
            turned = mx.flatten(mx.stack(parts, axis=-1), -2)
        else:
            turned = mx.concatenate(parts, axis=-1)
        return mx.concatenate([turned.astype(x.dtype), rest], axis=-1)


class PictureInputs:
    """Stands in a text model where pictures get in. One model's, on the engine's thread.

    Args:
        model: mlx-lm's, as it will run.
        axes, sections: of its rotary embeddings, see Rotation; None where it has one position.
        depth: layers that get deeper features.
        blank_id: the token whose embeddings by layer those of a picture have, in models with
            such embeddings.
    """

    def __init__(
        self,
        model: Any,
        axes: Axes | None = None,
        sections: list[int] | None = None,
        depth: int = 0,
        blank_id: int = 0,
    ) -> None:
        self._now: Pictured | None = None
        self._blank_id = blank_id
        body = body_of(model)
        _wrap(body.embed_tokens, self._embed)
        if getattr(body, "embed_tokens_per_layer", None) is not None:
            _wrap(body.embed_tokens_per_layer, self._embed_by_layer)
        for layer in range(depth):
            _wrap(body.layers[layer], self._deepen(layer))
        rotations: dict[tuple[int, float], Rotation] = {}
        if axes is None:
            return
        for layer in body.layers:
            if not hasattr(layer, "self_attn"):  # it is recurrent
                continue
            rope = layer.self_attn.rope
            key = (int(rope.dims), float(rope.base))
            if key not in rotations:
                pairs = bool(rope.traditional)
                rotations[key] = Rotation(*key, list(sections or ()), axes, pairs=pairs)
            _wrap(rope, self._rotate(rotations[key]))

    @contextmanager
    def over(self, pictured: Pictured | None) -> Iterator[None]:
        """Compute these pictures in the forward inside."""
        self._now = pictured
        try:
            yield
        finally:
            self._now = None

    def _embed(self, call: Callable[..., mx.array], *args: Any) -> mx.array:
        hidden = call(*args)
        return hidden if self._now is None else self._now.put(hidden)

    def _embed_by_layer(self, call: Callable[..., mx.array], ids: mx.array) -> mx.array:
        return call(ids if self._now is None else self._now.blank(ids, self._blank_id))

    def _deepen(self, layer: int) -> Callable[..., mx.array]:
        def deepen(call: Callable[..., mx.array], *args: Any, **kwargs: Any) -> mx.array:
            hidden = call(*args, **kwargs)
            return hidden if self._now is None else self._now.add(hidden, layer)

        return deepen

    def _rotate(self, rotation: Rotation) -> Callable[..., mx.array]:
        def rotate(call: Callable[..., mx.array], x: mx.array, *args: Any, **how: Any) -> mx.array:
            if self._now is None or self._now.positions is None:
                return call(x, *args, **how)
            return self._now.turn(x, rotation)

        return rotate


def _wrap(module: Any, around: Callable[..., mx.array]) -> None:
    """Give one module a class of its own, in which a call goes through `around`."""
    kind = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(lambda *a, **k: kind.__call__(self, *a, **k), *args, **kwargs)

    # By its module a class is known for what it is (see models/adapting).
    members = {"__call__": call, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), members)
