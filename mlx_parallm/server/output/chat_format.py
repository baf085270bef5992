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
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import Events, compact, escaped
from mlx_parallm.server.output.logprobs import (
    TokenNames,
    chat_logprobs,
    prompt_logprobs,
    shown_at_most,
)
from mlx_parallm.server.schemas.chat import ChatCompletionRequest


class ChatFormat:
    """Makes the response, or the events, of one chat request."""

    def __init__(self, body: ChatCompletionRequest, model: str, tokenizer: Any) -> None:
        self._body = body
        self._top = shown_at_most(body.top_logprobs or 0) if body.logprobs else None
        self._names = TokenNames(tokenizer, body.return_tokens_as_token_ids)
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._events = Events("chatcmpl", kind, model, body)
        self._tracks: Sequence[Track] = ()
        self._begun: set[int] = set()
        # Places of calls, by track and by the call's identity.
        self._places: dict[int, dict[int, int]] = {}
        last = body.messages[-1]
        self._role = "assistant" if body.writes_new_message else last.role
        said = last.content if last.role == self._role else None
        self._echoed = said if body.echo and isinstance(said, str) else ""
        self._opening = compact({"role": self._role, "content": self._echoed})

    def follow(self, tracks: Sequence[Track]) -> None:
        """Say which tracks the events are about, before the first one."""
        self._tracks = tracks

    # Whole

    def whole(self, tracks: Sequence[Track]) -> dict[str, Any]:
        """The response."""
        choices = [self._choice(track) for track in tracks]
        response = self._events.whole(choices, tracks)
        wanted = self._body.prompt_logprobs
        if wanted is not None:
            response["prompt_logprobs"] = prompt_logprobs(
                tracks[0].prompt_logprobs, self._names, shown_at_most(wanted)
            )
        if self._body.return_token_ids:
            response["prompt_token_ids"] = tracks[0].prompt.ids
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
        if self._body.return_token_ids:
            choice["token_ids"] = track.token_ids
        if self._body.return_weight_versions:
            choice["weight_versions"] = track.weight_versions
            choice["base_weight_versions"] = track.base_weight_versions
        return choice if track.cited is None else {**choice, "citations": track.cited}

    def _logprobs(self, entries: Sequence[Any]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        named = bool(self._body.logprob_token_ids)
        return {"content": chat_logprobs(entries, self._names, self._top, named), "refusal": None}

    # Events

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The events for something new; the first one carries the role."""
        events = ""
        if track.index not in self._begun:
            events = self._first_event(track)
        logprobs = "null"
        if self._top is not None and delta.logprobs:
            logprobs = compact(self._logprobs(delta.logprobs))
        shown = [piece for event in said if (piece := self._piece(track, event))]
        if not shown:
            # Tokens whose text is held back still have logprobs and ids, and an end is always told.
            if logprobs != "null" or (self._body.return_token_ids and delta.token_ids):
                shown = [_content("")]
            elif delta.finish_reason is not None:
                shown = ["{}"]
            else:
                return events.encode()
        # All of a step's tokens go with the last of its events.
        for piece in shown[:-1]:
            events += self._event(track, piece, "null", None)
        ids = delta.token_ids if self._body.return_token_ids else None
        last = self._event(track, shown[-1], logprobs, track.finish_reason, ids)
        return (events + last).encode()

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

    def _first_event(self, track: Track) -> str:
        """The role; the request's first event has the prompt's tokens, where they are wanted."""
        beside = ""
        if self._body.return_token_ids and not self._begun:
            beside = f',"prompt_token_ids":{compact(track.prompt.ids)}'
        self._begun.add(track.index)
        return self._event(track, self._opening, "null", None, None, beside)

    def _event(
        self,
        track: Track,
        delta: str,
        logprobs: str,
        finish: str | None,
        token_ids: Sequence[int] | None = None,
        beside: str = "",
    ) -> str:
        choice = f'{{"index":{track.index},"delta":{delta},"logprobs":{logprobs},'
        if token_ids is not None:
            choice += f'"token_ids":{compact(token_ids)},'
        if finish is None:
            choice += '"finish_reason":null}'
        else:
            cited = "" if track.cited is None else f',"citations":{compact(track.cited)}'
            stop = compact(track.stop_reason)
            if self._body.return_weight_versions:
                base = compact(track.base_weight_versions)
                cited += f',"weight_versions":{compact(track.weight_versions)}'
                cited += f',"base_weight_versions":{base}'
            choice += f'"finish_reason":"{finish}","stop_reason":{stop}{cited}}}'
        return self._events.event(choice, self._tracks, beside)

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The events after the last token."""
        return self._events.end(tracks)


def _content(text: str) -> str:
    return f'{{"content":{escaped(text)}}}'


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
