"""The Tower: prepared pictures to features, in pieces that fit between two steps.

MLX is lazy: a picture's whole computation is written down at once, which takes no time, and
then computed piece by piece, as far as there is time before the next step. A piece is a block
of the tower; on a CPU it is one module of a block, or the attention of some of its queries.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.vision.pieces import in_pieces
from mlx_parallm.models.vision.prepared import PreparedPicture


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """What the text model is given of one picture.

    Attributes:
        rows: (n, D), one for each placeholder.
        deeper: (n, D) for each of the first text layers, added behind them; most have none.
    """

    rows: mx.array
    deeper: tuple[mx.array, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in (self.rows, *self.deeper))


@dataclass(eq=False, slots=True)
class Encoding:
    """One picture's features on their way."""

    features: Features
    _left: deque[mx.array] = field(default_factory=deque)

    def advance(self, seconds: float | None = None) -> bool:
        """Compute for about so long, one piece at least; None computes all.

        Returns:
            whether the features are there.
        """
        if seconds is None:
            mx.eval(list(self._left))
            self._left.clear()
        began = time.perf_counter()
        while self._left:
            mx.eval(self._left.popleft())
            if seconds is not None and time.perf_counter() - began >= seconds:
                break
        return not self._left


class _Embeddings(nn.Module):
    """Stands where the language model was: text is nothing, so that features stay what they are."""

    def __init__(self, width: int, dtype: mx.Dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._width, self._dtype = width, dtype

    # Of gemma4, which wants features as they are.
    embed_scale = 1.0
    hidden_size_per_layer_input = 0

    @property
    def model(self) -> _Embeddings:
        return self

    def embed_tokens(self, ids: mx.array) -> mx.array:
        return mx.zeros((*ids.shape, self._width), self._dtype)

    def get_rope_index(self, ids: mx.array, *args: Any, **kwargs: Any) -> tuple[None, None]:
        return None, None


class Tower:
    """Tower and projector of an mlx-vlm model. On the engine's thread.

    Args:
        model: mlx_vlm's Model, whose language model is taken away.
        feature_id: the token that stands for one row of features.
        width: D, of the text model.
        deepstack: the tower gives deeper features, too.
        scaled: features are divided by the root of D, by which the text model multiplies them.
        rename: gives a checkpoint's tensors the model's names; None where they have these.
    """

    def __init__(
        self,
        model: Any,
        feature_id: int,
        width: int,
        *,
        deepstack: bool = False,
        scaled: bool = False,
        rename: Callable[[dict[str, mx.array]], dict[str, mx.array]] | None = None,
    ) -> None:
        self.model = model
        self._rename = rename or dict
        self._divisor = width**0.5 if scaled else 1.0
        self._deepstack = deepstack
        self._feature_id = feature_id
        self._trace: deque[mx.array] | None = None
        model.language_model = nn.Module()
        weights = dict(tree_flatten(model.parameters()))
        floats = [a for a in weights.values() if mx.issubdtype(a.dtype, mx.floating)]
        if not floats:
            raise ModelLoadError("the checkpoint has no weights for pictures")
        self._dtype = floats[0].dtype
        model.language_model = _Embeddings(width, self._dtype)
        self._fine = mx.default_device().type == mx.DeviceType.cpu
        for block in _blocks(model):
            for part in block.modules() if self._fine else [block]:
                self._tap(part)

    @property
    def nbytes(self) -> int:
        """Of its weights."""
        return sum(array.nbytes for array in self._weights().values())

    def differences(self, checkpoint: dict[str, mx.array]) -> Iterator[str]:
        """For each of its weights in a checkpoint: its name where it is another one, or nothing."""
        found, own = self._rename(checkpoint), self._weights()
        for name in sorted(found.keys() & own.keys()):
            same = found[name].shape == own[name].shape
            yield "" if same and _equal(found[name], own[name]) else name

    def _weights(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.parameters()))

    def begin(self, picture: PreparedPicture) -> Encoding:
        """Write a picture's computation down; nothing is computed yet."""
        inputs = {name: mx.array(array) for name, array in picture.inputs.items()}
        trace: deque[mx.array] = deque()
        self._trace = trace
        try:
            with in_pieces(self.model, trace) if self._fine else nullcontext():
                rows, deeper = self._encode(inputs, picture.num_features)
        finally:
            self._trace = None
        trace.extend([rows, *deeper])
        return Encoding(Features(rows, deeper), trace)

    def _encode(self, inputs: dict[str, mx.array], count: int) -> tuple[mx.array, Any]:
        """(count, D) features, and those for deeper layers."""
        pixels = inputs.pop("pixel_values").astype(self._dtype)
        if self._deepstack:
            # Its get_input_embeddings would compute all of them at once.
            rows, deeper = self.model.vision_tower(pixels, inputs["image_grid_thw"])
            return rows, tuple(deeper or ())
        ids = mx.full((1, count), self._feature_id, mx.int32)
        mask = mx.ones(ids.shape, mx.int32)
        found = self.model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
        return found.inputs_embeds[0] / self._divisor, ()

    def _tap(self, block: Any) -> None:
        """Keep what a block gives while a computation is written down."""
        kind, tower = type(block), self

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = kind.__call__(self, *args, **kwargs)
            first = out[0] if isinstance(out, tuple) else out
            if tower._trace is not None and isinstance(first, mx.array):
                tower._trace.append(first)
            return out

        block.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _equal(found: mx.array, own: mx.array) -> bool:
    return bool(mx.array_equal(found.astype(own.dtype), own).item())


def _blocks(model: nn.Module) -> list[Any]:
    """The blocks of the tower: the longest list of modules."""
    lists = [
        value
        for part in model.modules()
        for value in part.children().values()
        if isinstance(value, list) and all(isinstance(item, nn.Module) for item in value)
    ]
    return max(lists, key=len, default=[])


def as_inputs(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a processor made, as numpy arrays: these may go from thread to thread."""
    return {name: np.array(value) for name, value in found.items() if value is not None}
