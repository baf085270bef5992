"""Answers of /generate: the text, and every figure measured on the way to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Generation, Track
from mlx_parallm.server.memory_meter import MemoryMeter
from mlx_parallm.server.output.formats import DONE, compact
from mlx_parallm.server.output.logprobs import TokenNames, finite
from mlx_parallm.server.schemas.generate import GenerateRequest

_MOST_REPEATED = 3


class GenerateFormat:
    """Makes the response, or the events, of one /generate request.

    Args:
        request_id: as in x-request-id.
        tokenizer: to write tokens as text.
    """

    def __init__(self, body: GenerateRequest, request_id: str, tokenizer: Any) -> None:
        self._body = body
        self._request_id = request_id
        self._names = TokenNames(tokenizer)
        self._meter = MemoryMeter()
        self._generation: Generation | None = None

    def about(self, generation: Generation) -> None:
        """Say which generation the figures are about."""
        self._generation = generation

    def whole(self) -> dict[str, Any]:
        """The response."""
        generation = self._ended()
        track = generation.tracks[0]
        answer = {
            "generated_text": self._body.prompt + track.text,
            "prompt": self._body.prompt,
            "generated_only": track.text,
            "request_id": self._request_id,
            "tokens": track.token_ids,
            "total_tokens": len(track.prompt.ids) + len(track.token_ids),
            "finish_reason": track.finish_reason,
        }
        if self._body.include_top_k_candidates:
            answer["generation_steps"] = [
                self._step(place, entry) for place, entry in enumerate(track.logprobs)
            ]
        if track.cited is not None:
            answer["citations"] = track.cited
        return answer | self._figures(generation, track)

    # Events

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare: every event names its request."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """One event with the new text and tokens."""
        event: dict[str, Any] = {
            "request_id": self._request_id,
            "text": delta.text,
            "tokens": delta.token_ids,
            "finish_reason": track.finish_reason,
        }
        if self._body.include_top_k_candidates:
            first = len(track.logprobs) - len(delta.logprobs or ())
            event["generation_steps"] = [
                self._step(first + place, entry) for place, entry in enumerate(delta.logprobs or ())
            ]
        return f"data: {compact(event)}\n\n".encode()

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The whole answer once more, with its figures, and the end."""
        return f"data: {compact(self.whole())}\n\n".encode() + DONE

    # Figures

    def _ended(self) -> Generation:
        if self._generation is None:
            raise RuntimeError("about() was not called")
        return self._generation

    def _step(self, place: int, entry: TokenLogprob) -> dict[str, Any]:
        return {
            "step": place,
            "token_id": entry.token_id,
            "token_text": self._names(entry.token_id),
            "log_probability": finite(entry.logprob),
            "top_k_candidates": [
                {
                    "token_id": token,
                    "token_text": self._names(token),
                    "probability": math.exp(logprob),
                    "log_probability": finite(logprob),
                }
                for token, logprob in entry.top
            ],
        }

    def _figures(self, generation: Generation, track: Track) -> dict[str, Any]:
        prompt, generated = len(track.prompt.ids), len(track.token_ids)
        body = self._body
        return {
            "statistics": {
                "prompt_length": prompt,
                "generated_tokens": generated,
                "total_tokens": prompt + generated,
            },
            "speed_metrics": _speed(generation, prompt, generated),
            "memory_usage": self._meter.read(),
            "quality_metrics": self._quality(track),
            "parameters": {
                "temperature": body.temperature,
                "top_k": body.top_k or None,
                "top_p": body.top_p if body.top_p < 1 else None,
                "repetition_penalty": body.repetition_penalty,
                "max_tokens": body.max_tokens,
            },
        }

    def _quality(self, track: Track) -> dict[str, Any]:
        logprobs = [finite(entry.logprob) for entry in track.logprobs]
        mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
        counts = Counter(track.token_ids)
        repeated = [(t, n) for t, n in counts.most_common(_MOST_REPEATED) if n > 1]
        return {
            "avg_log_prob": mean,
            "perplexity": math.exp(min(-mean, 700.0)),
            "num_repeats": sum(n - 1 for n in counts.values()),
            "most_repeated": [{"token": self._names(t), "count": n} for t, n in repeated],
        }


def _speed(generation: Generation, prompt: int, generated: int) -> dict[str, float]:
    begun = generation.submitted_at
    first = generation.first_output_at or begun
    ended = generation.ended_at or first
    prefill, decode, total = first - begun, ended - first, ended - begun
    return {
        "prefill_time": prefill,
        "prefill_speed": prompt / prefill if prefill else 0.0,
        "decode_time": decode,
        # The first token belongs to the prefill.
        "decode_speed": (generated - 1) / decode if decode else 0.0,
        "avg_latency": 1e3 * total / generated if generated else 0.0,
        "total_time": total,
    }
