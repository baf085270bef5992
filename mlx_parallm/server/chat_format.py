"""Answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.server.formats import Events, compact, escaped, usage_of
from mlx_parallm.server.generation import Track
from mlx_parallm.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.tools import ParsedCall


class ChatFormat:
    """Makes the response, or the events, of one chat request."""

    def __init__(self, body: ChatCompletionRequest, model: str, tokenizer: Any) -> None:
        self._body = body
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        self._names = TokenNames(tokenizer, body.return_tokens_as_token_ids)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._events = Events("chatcmpl", kind, model, body)
        self._tracks: Sequence[Track] = ()
        self._begun: set[int] = set()

    def follow(self, tracks: Sequence[Track]) -> None:
        """Say which tracks the events are about, before the first one."""
        self._tracks = tracks

    # Whole

    def whole(self, tracks: Sequence[Track]) -> dict[str, Any]:
        """The response."""
        choices = [self._choice(track) for track in tracks]
        response = {**self._events.head, "choices": choices, "usage": usage_of(tracks)}
        if self._body.prompt_logprobs is not None:
            response["prompt_logprobs"] = prompt_logprobs(
                tracks[0].prompt_logprobs, self._names, self._body.prompt_logprobs
            )
        return response

    def _choice(self, track: Track) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": track.text,
            "refusal": None,
        }
        if track.calls:
            message["content"] = track.text or None
            message["tool_calls"] = [_call(call) for call in track.calls]
        choice = {
            "index": track.index,
            "message": message,
            "logprobs": self._logprobs(track.logprobs),
            "finish_reason": track.finish_reason,
            "stop_reason": track.stop_reason,
        }
        return choice if track.cited is None else {**choice, "citations": track.cited}

    def _logprobs(self, entries: Sequence[Any]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        return {"content": chat_logprobs(entries, self._names, self._top), "refusal": None}

    # Events

    def delta(self, track: Track, delta: TextDelta, calls: Sequence[ParsedCall]) -> bytes:
        """The events for something new; the first one carries the role."""
        events = ""
        if track.index not in self._begun:
            self._begun.add(track.index)
            events = self._event(track, '{"role":"assistant","content":""}', "null", None)
        logprobs = "null"
        if self._top is not None and delta.logprobs:
            logprobs = compact(self._logprobs(delta.logprobs))
        if calls:
            # A text before the call in the same step goes first.
            if delta.text:
                events += self._event(track, _content(delta.text), "null", None)
            shown = _call_delta(calls, len(track.calls) - len(calls))
            return (events + self._event(track, shown, logprobs, track.finish_reason)).encode()
        if delta.text or logprobs != "null":
            shown = _content(delta.text)
        elif delta.finish_reason is not None:
            shown = "{}"
        else:
            return events.encode()
        return (events + self._event(track, shown, logprobs, track.finish_reason)).encode()

    def _event(self, track: Track, delta: str, logprobs: str, finish: str | None) -> str:
        choice = f'{{"index":{track.index},"delta":{delta},"logprobs":{logprobs},'
        if finish is None:
            choice += '"finish_reason":null}'
        else:
            cited = "" if track.cited is None else f',"citations":{compact(track.cited)}'
            stop = compact(track.stop_reason)
            choice += f'"finish_reason":"{finish}","stop_reason":{stop}{cited}}}'
        return self._events.event(choice, self._tracks)

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The events after the last token."""
        return self._events.end(tracks)


def _content(text: str) -> str:
    return f'{{"content":{escaped(text)}}}'


def _call(call: ParsedCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _call_delta(calls: Sequence[ParsedCall], first: int) -> str:
    return compact(
        {"tool_calls": [{"index": first + i, **_call(call)} for i, call in enumerate(calls)]}
    )
