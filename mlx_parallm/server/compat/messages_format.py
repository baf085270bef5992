"""Anthropic's answers: a message of blocks, whole or as named events."""

from __future__ import annotations

import json
import uuid
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
from mlx_parallm.server.answer.blocks import Run
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.json_text import to_json


class MessagesFormat:
    """Makes the response, or the events, of one request.

    Args:
        model: as the client wrote it.
    """

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"msg_{uuid.uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._is_begun = False
        # Of the block that is being streamed: its number, and a text's kind or a call.
        self._index = -1
        self._open: str | Call | None = None

    # Whole

    def whole(self, track: Track) -> dict[str, Any]:
        """The response."""
        return {
            **self._head,
            "content": [_block(block) for block in track.blocks.all],
            **_ending(track),
            "usage": _usage(track),
        }

    # Events

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The events for something new."""
        events = b"" if self._is_begun else self._begin(track)
        for event in said:
            events += self._said(event)
        return events

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The events after the last token."""
        track = tracks[0]
        ending = {"type": "message_delta", "delta": _ending(track), "usage": _usage(track)}
        return self._close() + _event(ending) + _event({"type": "message_stop"})

    def _begin(self, track: Track) -> bytes:
        self._is_begun = True
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = {**_usage(track), "output_tokens": 0}
        message = {**self._head, **nothing, "usage": usage}
        return _event({"type": "message_start", "message": message}) + _event({"type": "ping"})

    def _said(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return self._piece("text", event.text)
        if isinstance(event, Reasoning):
            return self._piece("thinking", event.text)
        if isinstance(event, CallStart):
            return self._start(event.call, {**_tool_use(event.call), "input": {}})
        if isinstance(event, CallArguments):
            return self._delta({"type": "input_json_delta", "partial_json": event.text})
        return self._close()

    def _piece(self, kind: str, text: str) -> bytes:
        started = b""
        if self._open != kind:
            block = {"type": kind, kind: ""}
            started = self._start(kind, block if kind == "text" else {**block, "signature": ""})
        return started + self._delta({"type": f"{kind}_delta", kind: text})

    def _start(self, what: str | Call, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._open, self._index = what, self._index + 1
        return closed + _event(
            {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        # There is nothing that could be signed; clients wait for it.
        is_thinking = self._open == "thinking"
        signed = self._delta({"type": "signature_delta", "signature": ""}) if is_thinking else b""
        self._open = None
        return signed + _event({"type": "content_block_stop", "index": self._index})


def _block(block: Run | Call) -> dict[str, Any]:
    if isinstance(block, Run):
        if block.is_thinking:
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        return {"type": "text", "text": block.text}
    return {**_tool_use(block), "input": json.loads(block.arguments or "{}")}


def _tool_use(call: Call) -> dict[str, Any]:
    """A call's block without its input."""
    return {"type": "tool_use", "id": f"toolu_{call.id.removeprefix('call_')}", "name": call.name}


def _ending(track: Track) -> dict[str, Any]:
    """stop_reason and stop_sequence."""
    if track.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if track.calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(track.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": track.stop_reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage(track: Track) -> dict[str, Any]:
    return {
        "input_tokens": len(track.prompt.ids) - track.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": track.cached_tokens,
        "output_tokens": len(track.token_ids),
        "output_tokens_details": {"thinking_tokens": track.reasoning_tokens},
    }


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\n".encode() + b"data: " + to_json(event) + b"\n\n"
