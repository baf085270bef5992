"""The last hidden states of a model, for sequences that are pooled and not sampled."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

_PATHS = (
    ("language_model", "model"),
    ("language_model", "backbone"),
    ("model",),
    ("backbone",),
    ("transformer",),
    ("gpt_neox",),
)


class HiddenTap:
    """Keeps what a model's body returns, that is, the input of its head.

    The body is the module below the head, after its last norm. Its class is
    replaced by a subclass for this one model; nothing is kept unless asked for.

    Args:
        model: an mlx-lm model.
    """

    def __init__(self, model: Any) -> None:
        self._open = False
        self._last: mx.array | None = None
        body = _body(model)
        self.available = body is not None
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

    def _attach(self, body: Any) -> None:
        kind, tap = type(body), self

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = kind.__call__(self, *args, **kwargs)
            if tap._open:
                tap._last = out[0] if isinstance(out, tuple) else out
            return out

        body.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _body(model: Any) -> Any:
    for path in _PATHS:
        found = model
        for name in path:
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None
