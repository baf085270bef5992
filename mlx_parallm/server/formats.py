"""What both kinds of answers share: ids, usage, and events written by hand.

A token's event is put together from constant bytes and the escaped text; building an object
and serialising it costs several times as much, for every token of every stream.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Any

from mlx_parallm import __version__
from mlx_parallm.server.generation import Track
from mlx_parallm.server.json_text import compact as compact
from mlx_parallm.server.schemas.sampling import SamplingFields

FINGERPRINT = f"mlx_parallm-{__version__}"
DONE = b"data: [DONE]\n\n"

escaped = encode_basestring


def usage_of(tracks: Sequence[Track]) -> dict[str, Any]:
    """Token counts of a request; a prompt that several tracks share is counted once."""
    prompts = {id(track.prompt): track for track in reversed(tracks)}
    prompt_tokens = sum(len(track.prompt.ids) for track in prompts.values())
    completion_tokens = sum(len(track.token_ids) for track in tracks)
    cached = sum(track.cached_tokens for track in prompts.values())
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if any(track.thoughts is not None for track in tracks):
        reasoning = sum(track.reasoning_tokens for track in tracks)
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


class Events:
    """The constant parts of one request's events.

    Args:
        prefix: of the response id, such as "cmpl".
        kind: of the chunk objects.
        model: as reported to the client.
    """

    def __init__(self, prefix: str, kind: str, model: str, body: SamplingFields) -> None:
        options = body.stream_options
        self._usage_at_end = options is not None and options.include_usage
        self._usage_always = (
            options is not None and options.include_usage and options.continuous_usage_stats
        )
        self.head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._begin = f'data: {compact(self.head)[:-1]},"choices":['
        null_usage = ',"usage":null' if self._usage_at_end else ""
        self._finish = f"]{null_usage}}}\n\n"

    def event(self, choice: str, tracks: Sequence[Track]) -> str:
        """One event with one choice.

        Args:
            choice: the choice's JSON.
            tracks: of the request, for its usage so far.
        """
        if self._usage_always:
            return f'{self._begin}{choice}],"usage":{compact(usage_of(tracks))}}}\n\n'
        return f"{self._begin}{choice}{self._finish}"

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The last events."""
        if not self._usage_at_end:
            return DONE
        usage = f'{self._begin}],"usage":{compact(usage_of(tracks))}}}\n\n'
        return usage.encode() + DONE
