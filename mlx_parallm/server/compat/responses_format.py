"""OpenAI's response objects: whole, or as numbered events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.errors import ParallmError, RequestCancelledError
from mlx_parallm.server.answer import (
    Call,
    CallArguments,
    CallEnd,
    CallStart,
    Event,
    Reasoning,
    Text,
)
from mlx_parallm.server.answer.blocks import Run
from mlx_parallm.server.compat.item_ids import item_id, new_response_id
from mlx_parallm.server.compat.responses_requests import closed, wants_logprobs
from mlx_parallm.server.compat.responses_tools import homes_of, shown_tools
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.json_text import to_json
from mlx_parallm.server.output.logprobs import TokenNames, chat_logprobs
from mlx_parallm.server.schemas.compat.openai_responses import ResponsesRequest

WITH_THOUGHTS = "reasoning.encrypted_content"

_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a run of text is told.

    Attributes:
        name: of the events that hold its pieces.
        part: of the events that begin and end it.
        field: of the item, a list of parts.
        type: of the part.
        index: what events call the part's place.
    """

    name: str
    part: str
    field: str
    type: str
    index: str


_ANSWER = _Form("output_text", "content_part", "content", "output_text", "content_index")
_THOUGHT = _Form("reasoning_text", "content_part", "content", "reasoning_text", "content_index")
# All of it: where a summary is asked for, clients show nothing else.
_SUMMARY = _Form(
    "reasoning_summary_text", "reasoning_summary_part", "summary", "summary_text", "summary_index"
)


class ResponsesFormat:
    """Makes the response, or the events, of one request.

    Args:
        model: as the client wrote it.
        keep: called with the finished response.
    """

    def __init__(
        self, body: ResponsesRequest, model: str, tokenizer: Any, keep: Callable[[_Json], None]
    ) -> None:
        self._body = body
        self._keep = keep
        self._names = TokenNames(tokenizer)
        self._top = (body.top_logprobs or 0) if wants_logprobs(body) else None
        self._homes = homes_of(body)
        reasoning = body.reasoning
        is_summary = reasoning is not None and reasoning.summary not in (None, "none")
        self._thought = _SUMMARY if is_summary else _THOUGHT
        self._head = _head(body, model)
        self._number = 0
        self._is_begun = False
        # Of a stream: the items so far, and the one that is being written.
        self._items: list[_Json] = []
        self._open: Run | Call | None = None
        self._logprobs: list[_Json] = []

    @property
    def id(self) -> str:
        """The response's."""
        return str(self._head["id"])

    # Whole

    def whole(self, track: Track) -> _Json:
        """The response."""
        status = _status(track)
        blocks = enumerate(track.blocks.all)
        items = [self._item(block, status, place) for place, block in blocks]
        messages = [item for item in items if item["type"] == "message"]
        if messages:
            messages[-1]["content"][0]["logprobs"] = self._shown(track.logprobs)
        response = self._response(track, items)
        self._keep(response)
        return response

    # Events

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The events for something new."""
        events = b"" if self._is_begun else self._begin(track)
        logprobs = self._shown(delta.logprobs or ())
        for event in said:
            events += self._said(event, logprobs)
        return events

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The events after the last token."""
        track = tracks[0]
        events = self._close(_status(track))
        response = self._response(track, self._items)
        self._keep(response)
        return events + self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ParallmError) -> bytes:
        """The last event of a stream that fails."""
        was_cancelled = isinstance(error, RequestCancelledError)
        response = self.unfinished("cancelled" if was_cancelled else "failed")
        response["error"] = {"code": "server_error", "message": error.message}
        self._keep(response)
        return self._event("response.failed", response=response)

    def unfinished(self, status: str) -> _Json:
        """The response so far."""
        return {**self._head, "status": status, "output": self._items}

    def _begin(self, track: Track) -> bytes:
        self._is_begun = True
        created = {**self._head, "status": "in_progress", "output": []}
        return self._event("response.created", response=created) + self._event(
            "response.in_progress", response=created
        )

    def _said(self, event: Event, logprobs: list[_Json]) -> bytes:
        if isinstance(event, (Text, Reasoning)):
            return self._piece(event.text, isinstance(event, Reasoning), logprobs)
        if isinstance(event, CallStart):
            return self._start(event.call)
        if isinstance(event, CallArguments):
            return self._about("response.function_call_arguments.delta", delta=event.text)
        return self._close("completed" if isinstance(event, CallEnd) else "incomplete")

    def _piece(self, text: str, is_thinking: bool, logprobs: list[_Json]) -> bytes:
        started, run = b"", self._open
        if not isinstance(run, Run) or run.is_thinking != is_thinking:
            run = Run(is_thinking)
            started = self._start(run)
        run.pieces.append(text)
        told: _Json = {} if is_thinking else {"logprobs": logprobs}
        self._logprobs += told.get("logprobs", [])
        form = self._form(run)
        return started + self._part(form, f"{form.name}.delta", delta=text, **told)

    def _start(self, block: Run | Call) -> bytes:
        events = self._close("completed")
        self._open, self._logprobs = block, []
        item = self._item(block, "in_progress", len(self._items))
        # What the block says comes in the events after this one, though it may be known already.
        form = self._form(block) if isinstance(block, Run) else None
        empty: _Json = {"arguments": ""} if form is None else {form.field: []}
        self._items.append(item | empty)
        events += self._about("response.output_item.added", with_id=False, item=self._items[-1])
        if form is not None:
            events += self._part(form, f"{form.part}.added", part=item[form.field][0])
        return events

    def _close(self, status: str) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        item = self._item(block, status, len(self._items) - 1)
        self._items[-1] = item
        if isinstance(block, Call):
            events = self._about(
                "response.function_call_arguments.done",
                arguments=block.arguments,
                name=item["name"],
            )
        else:
            events = self._close_run(block, item)
        return events + self._about("response.output_item.done", with_id=False, item=item)

    def _close_run(self, run: Run, item: _Json) -> bytes:
        form = self._form(run)
        part = item[form.field][0]
        told: _Json = {} if run.is_thinking else {"logprobs": self._logprobs}
        part.update(told)
        done = self._part(form, f"{form.name}.done", text=run.text, **told)
        return done + self._part(form, f"{form.part}.done", part=part)

    def _form(self, run: Run) -> _Form:
        return self._thought if run.is_thinking else _ANSWER

    def _part(self, form: _Form, kind: str, **fields: Any) -> bytes:
        """An event about the newest item's only part."""
        place: _Json = {form.index: 0}
        return self._about(f"response.{kind}", **place, **fields)

    def _about(self, kind: str, with_id: bool = True, **fields: Any) -> bytes:
        """An event about the newest item."""
        about = {"item_id": self._items[-1]["id"]} if with_id else {}
        return self._event(kind, **about, output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + to_json(event) + b"\n\n"

    # Items

    def _item(self, block: Run | Call, status: str, place: int) -> _Json:
        if isinstance(block, Call):
            return self._call(block, status, place)
        if block.is_thinking:
            shown = closed(block.text) if WITH_THOUGHTS in self._body.include else None
            return {
                "id": item_id("rs", self.id, place),
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [],
                "encrypted_content": shown,
                self._thought.field: [{"type": self._thought.type, "text": block.text}],
            }
        text = {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
        return {
            "id": item_id("msg", self.id, place),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [text],
        }

    def _call(self, call: Call, status: str, place: int) -> _Json:
        namespace, name = self._homes.get(call.name, (None, call.name))
        return {
            "id": item_id("fc", self.id, place),
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": name,
            "arguments": call.arguments,
            **({} if namespace is None else {"namespace": namespace}),
        }

    def _shown(self, entries: Sequence[Any]) -> list[_Json]:
        return [] if self._top is None else chat_logprobs(entries, self._names, self._top)

    def _response(self, track: Track, items: list[_Json]) -> _Json:
        status = _status(track)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if cut is None else None,
            "incomplete_details": cut,
            "output": items,
            "usage": _usage(track),
        }


def _status(track: Track) -> str:
    return "incomplete" if track.finish_reason == "length" else "completed"


def _head(body: ResponsesRequest, model: str) -> _Json:
    """What of a response does not depend on the answer."""
    reasoning = body.reasoning
    text = body.text.format if body.text is not None else None
    return {
        "id": new_response_id(),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": reasoning.summary if reasoning is not None else None,
        },
        "store": body.store,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text or {"type": "text"}},
        "tool_choice": body.tool_choice,
        "tools": shown_tools(body),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _usage(track: Track) -> _Json:
    prompt, answer = len(track.prompt.ids), len(track.token_ids)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": track.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": track.reasoning_tokens},
        "total_tokens": prompt + answer,
    }
