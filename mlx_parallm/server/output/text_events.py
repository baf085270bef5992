"""Events of /v1/generate: pieces of one text."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import DONE, compact


class TextEvents:
    """Makes one event a piece: request_id, text, tokens, finish_reason."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """One event with the new text and tokens."""
        event = {
            "request_id": self._request_id,
            "text": delta.text,
            "tokens": delta.token_ids,
            "finish_reason": track.finish_reason,
        }
        return f"data: {compact(event)}\n\n".encode()

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The end."""
        return DONE
