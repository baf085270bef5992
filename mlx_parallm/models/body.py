"""The body of a model, below its head: which of its hidden states go where.

The body is the module below the head, after its last norm. Its class is replaced by a
subclass for this one model, so that hidden states can be kept for pooling, and the head
is given those only whose logits somebody wants.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.models.lora.routing import Routing

_PATHS = (
    ("language_model", "model"),
    ("language_model", "backbone"),
    ("model",),
    ("backbone",),
    ("transformer",),
    ("gpt_neox",),
)


class BodyTap:
    """Stands between a model's body and its head.

    Args:
        model: an mlx-lm model.

    Attributes:
        available: whether the body was found.
        selects: whether the head can be given some hidden states only.
        routing: which adapters the rows of a forward have.
    """

    def __init__(self, model: Any) -> None:
        self.routing = Routing()
        self._open = False
        self._last: mx.array | None = None
        self._wanted: np.ndarray | None = None
        self._wanted_tokens: np.ndarray | None = None
        body = body_of(model)
        self.available = self.selects = body is not None
        if body is not None:
            self._attach(body)

    def open(self) -> None:
        """Keep the hidden states of the next forward."""
        self._open = True

    def take(self) -> mx.array:
        """(B, T, D) of the forward since `open`.

        Raises:
            RuntimeError: the model's body was not called.
        """
        self._open, last, self._last = False, self._last, None
        if last is None:
            raise RuntimeError("this model's hidden states cannot be reached")
        return last

    def select(self, wanted: np.ndarray | None) -> None:
        """Give the head these places of the next forwards' first axis only; None is all."""
        self._wanted = wanted

    def select_tokens(self, wanted: np.ndarray | None) -> None:
        """Give the head only these tokens, (M,) places of the flattened (B, T), as (1, M, D)."""
        self._wanted_tokens = wanted

    def _attach(self, body: Any) -> None:
        kind, tap = type(body), self

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return tap._pass_on(kind.__call__(self, *args, **kwargs))

        body.__class__ = type(kind.__name__, (kind,), {"__call__": call})

    def _pass_on(self, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        if self._open:
            self._last = hidden
        if self._wanted_tokens is not None:
            tokens = mx.flatten(hidden, 0, 1)[mx.array(self._wanted_tokens.astype(np.int32))]
            return (tokens[None], *out[1:]) if isinstance(out, tuple) else tokens[None]
        if self._wanted is None:
            return out
        hidden = hidden[mx.array(self._wanted.astype(np.int32))]
        self.routing.narrow(self._wanted)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden


def body_of(model: Any) -> Any:
    """The module below the head of mlx-lm's models; None where it is not known."""
    for path in _PATHS:
        found = model
        for name in path:
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None
