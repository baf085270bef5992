"""Answers of /inference/v1/generate, and of /generate in vLLM's form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import DONE, compact, usage_of
from mlx_parallm.server.output.logprobs import TokenNames, chat_logprobs, shown_at_most
from mlx_parallm.server.rollouts.token_logprobs import by_id, content, prompt_by_id, spans
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.rollouts.vllm import TokenGenerateRequest


class TokenFormat:
    """Makes the response, or the events, of one /inference/v1/generate request.

    Args:
        asked: the request as a completion of ours.
        request_id: as in x-request-id, where the request has none of its own.
        model: as reported to the client.
    """

    def __init__(
        self,
        body: TokenGenerateRequest,
        asked: CompletionRequest,
        request_id: str,
        model: str,
        tokenizer: Any,
    ) -> None:
        self._body = body
        self._top = None if asked.logprobs is None else shown_at_most(asked.logprobs)
        self._of_prompt = asked.prompt_logprobs
        self._names = TokenNames(tokenizer)
        self._head: dict[str, Any] = {
            "request_id": body.request_id or request_id,
            "model": model,
            "created": int(time.time()),
            "output_mode": body.output_mode,
        }
        self._first = True

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare: every event names its choice."""

    def whole(self, tracks: Sequence[Track]) -> dict[str, Any]:
        """The response."""
        choices = [
            self._choice(t, t.token_ids, t.logprobs, t.text)
            | {"weight_versions": spans(t.weight_versions)}
            for t in tracks
        ]
        answer = self._head | {"choices": choices, "usage": usage_of(tracks)}
        if self._of_prompt is not None:
            top = shown_at_most(self._of_prompt)
            entries = tracks[0].prompt_logprobs
            answer["prompt_logprobs"] = [prompt_by_id(entry, top) for entry in entries]
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = tracks[0].prompt.ids
        return answer

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """One event with the new tokens."""
        choice = self._choice(track, delta.token_ids, delta.logprobs or (), delta.text)
        if track.finish_reason is not None:
            choice["weight_versions"] = spans(track.weight_versions)
        event = self._head | {"choices": [choice]}
        if self._first and self._body.return_token_ids:
            event["prompt_token_ids"] = track.prompt.ids
        self._first = False
        return _event(event)

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The usage where it was asked for, and the end."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return DONE
        return _event(self._head | {"choices": [], "usage": usage_of(tracks)}) + DONE

    def _choice(
        self, track: Track, token_ids: list[int], entries: Sequence[TokenLogprob], text: str
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": track.index,
            "token_ids": token_ids,
            "logprobs": None,
            "finish_reason": track.finish_reason,
        }
        if self._body.output_mode == "text":
            choice["text"] = text
        if self._top is not None:
            choice["logprobs"] = {"content": self._content(entries, self._top)}
        return choice

    def _content(self, entries: Sequence[TokenLogprob], top: int) -> list[dict[str, Any]]:
        if self._body.output_mode == "text":
            return chat_logprobs(entries, self._names, top)
        return [content(entry, top) for entry in entries]


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {compact(value)}\n\n".encode()


def api_server_answer(
    asked: CompletionRequest, tracks: Sequence[Track], prompt: str
) -> dict[str, Any]:
    """/generate of vLLM's api_server, as atropos reads it: each token's candidates by id.

    Args:
        prompt: the prompt's text.
    """
    answer: dict[str, Any] = {
        "text": [track.text for track in tracks],
        "prompt": prompt,
        "finish_reasons": [track.finish_reason for track in tracks],
        "prompt_token_ids": tracks[0].prompt.ids,
        "token_ids": [track.token_ids for track in tracks],
    }
    if asked.logprobs is not None:
        top = shown_at_most(asked.logprobs)
        answer["logprobs"] = [[[by_id(e, top)] for e in track.logprobs] for track in tracks]
    if asked.prompt_logprobs is not None:
        top = shown_at_most(asked.prompt_logprobs)
        answer["prompt_logprobs"] = [by_id(e, top) for e in tracks[0].prompt_logprobs]
    if asked.return_weight_versions:
        answer["weight_versions"] = [track.weight_versions for track in tracks]
    return answer
