"""Answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.server.answer import (
    Call,
    CallArguments,
    CallStart,
    Event,
    Reasoning,
    Text,
)
from mlx_parallm.server.formats import Events, compact, escaped, usage_of
from mlx_parallm.server.generation import Track
from mlx_parallm.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from mlx_parallm.server.schemas.chat import ChatCompletionRequest


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
        # Places of calls, by track and by the call's identity.
        self._places: dict[int, dict[int, int]] = {}
        last = body.messages[-1]
        self._role = "assistant" if body.writes_new_message else last.role
        is_same = last.role == self._role and isinstance(last.content, str)
        self._echoed = (last.content or "") if body.echo and is_same else ""
        self._opening = compact({"role": self._role, "content": self._echoed})

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
        text, thought = self._echoed + track.text, track.thought
        message: dict[str, Any] = {
            "role": self._role,
            "content": text or None if track.calls or thought else text,
            "refusal": None,
        }
        if thought and self._body.include_reasoning:
            message |= {"reasoning": thought, "reasoning_content": thought}
        if track.calls:
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

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The events for something new; the first one carries the role."""
        events = ""
        if track.index not in self._begun:
            self._begun.add(track.index)
            events = self._event(track, self._opening, "null", None)
        logprobs = "null"
        if self._top is not None and delta.logprobs:
            logprobs = compact(self._logprobs(delta.logprobs))
        shown = [piece for event in said if (piece := self._piece(track, event))]
        if not shown:
            # Tokens whose text is held back still have logprobs, and an end is always told.
            if logprobs != "null":
                shown = [_content("")]
            elif delta.finish_reason is not None:
                shown = ["{}"]
            else:
                return events.encode()
        # All of a step's tokens go with the last of its events.
        for piece in shown[:-1]:
            events += self._event(track, piece, "null", None)
        return (events + self._event(track, shown[-1], logprobs, track.finish_reason)).encode()

    def _piece(self, track: Track, event: Event) -> str:
        """The delta for one event; empty where there is nothing to show."""
        if isinstance(event, Text):
            return _content(event.text)
        if isinstance(event, Reasoning):
            if not self._body.include_reasoning:
                return ""
            text = escaped(event.text)
            return f'{{"reasoning":{text},"reasoning_content":{text}}}'
        if isinstance(event, CallStart):
            call = {**_call(event.call), "function": {"name": event.call.name, "arguments": ""}}
            return self._call_piece(track, event.call, call)
        if isinstance(event, CallArguments):
            more = {"function": {"arguments": event.text}}
            return self._call_piece(track, event.call, more)
        # A call that is none has been shown as one.
        return ""

    def _call_piece(self, track: Track, call: Call, shown: dict[str, Any]) -> str:
        places = self._places.setdefault(track.index, {})
        place = places.setdefault(id(call), len(places))
        return compact({"tool_calls": [{"index": place, **shown}]})

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


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
