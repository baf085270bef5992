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
from mlx_parallm.server.flow.generation import Track, first_of_each_prompt
from mlx_parallm.server.observing.receipt import receipts_of
from mlx_parallm.server.output.json_text import compact as compact
from mlx_parallm.server.schemas.sampling import ReportFields

FINGERPRINT = f"mlx_parallm-{__version__}"
DONE = b"data: [DONE]\n\n"

escaped = encode_basestring


def usage_of(tracks: Sequence[Track]) -> dict[str, Any]:
    """Token counts of a request; a prompt that several tracks share is counted once."""
    prompts = first_of_each_prompt(tracks)
    prompt_tokens = sum(len(track.prompt.ids) for track in prompts)
    completion_tokens = sum(len(track.token_ids) for track in tracks)
    cached = sum(track.cached_tokens for track in prompts)
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


def metrics_of(tracks: Sequence[Track]) -> dict[str, float | None] | None:
    """vLLM's per-request metrics, in ms; None where several answers share a request."""
    if len(tracks) != 1:
        return None
    track, count = tracks[0], len(tracks[0].token_ids)
    begun, decoding = track.sequence.begun, 1e3 * track.decode_s
    between = decoding / (count - 1) if count > 1 else None
    return {
        "time_to_first_token_ms": 1e3 * track.prefill_s,
        "generation_time_ms": decoding,
        "queue_time_ms": None if begun is None else 1e3 * max(0.0, begun - track.begun_at),
        "mean_itl_ms": between,
        "tokens_per_second": 1e3 / between if between else None,
    }


class Events:
    """The constant parts of one request's events.

    Args:
        prefix: of the response id, such as "cmpl".
        kind: of the chunk objects.
        model: as reported to the client.
    """

    def __init__(self, prefix: str, kind: str, model: str, body: ReportFields) -> None:
        options = body.stream_options
        self._metrics = body.include_metrics
        self._receipt = body.receipt
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
        self._finish = f"{null_usage}}}\n\n"

    def event(self, choice: str, tracks: Sequence[Track], beside: str = "") -> str:
        """One event with one choice.

        Args:
            choice: the choice's JSON.
            tracks: of the request, for its usage so far.
            beside: JSON of more fields of the event, each behind a comma.
        """
        if self._usage_always:
            usage = compact(usage_of(tracks))
            return f'{self._begin}{choice}]{beside},"usage":{usage}}}\n\n'
        return f"{self._begin}{choice}]{beside}{self._finish}"

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The last events."""
        if not (self._usage_at_end or self._metrics or self._receipt):
            return DONE
        last = f"{self._begin}]"
        if self._usage_at_end:
            last += f',"usage":{compact(usage_of(tracks))}'
        if self._metrics:
            last += f',"metrics":{compact(metrics_of(tracks))}'
        if self._receipt:
            last += f',"receipts":{compact(receipts_of(tracks))}'
        return f"{last}}}\n\n".encode() + DONE

    def whole(self, choices: list[dict[str, Any]], tracks: Sequence[Track]) -> dict[str, Any]:
        """A whole response."""
        response = {**self.head, "choices": choices, "usage": usage_of(tracks)}
        if self._metrics:
            response["metrics"] = metrics_of(tracks)
        if self._receipt:
            response["receipts"] = receipts_of(tracks)
        return response
