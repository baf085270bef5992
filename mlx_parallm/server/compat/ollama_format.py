"""Ollama's answers: one JSON object, or one a line; times in nanoseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.server.answer import Call, CallEnd, CallLost, Event, Reasoning, Text
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import compact
from mlx_parallm.server.output.logprobs import TokenNames, chat_logprobs


class OllamaFormat:
    """What the answers of /api/chat and /api/generate have in common.

    Args:
        model: as the client wrote it.
        top: alternatives of each token's logprob; None shows no logprobs.
    """

    def __init__(self, model: str, tokenizer: Any, top: int | None) -> None:
        self._model = model
        self._names = TokenNames(tokenizer)
        self._top = top
        self._num_calls = 0

    def content(self, text: str, thought: str, calls: Sequence[Call], first: int) -> dict[str, Any]:
        """The part of an object that holds text, thinking and calls.

        Args:
            first: the first call's place among all of the answer.
        """
        raise NotImplementedError

    def last(self, track: Track) -> dict[str, Any]:
        """More fields of the last object."""
        return {}

    # Whole

    def whole(self, track: Track) -> dict[str, Any]:
        """The response."""
        return {
            **self._head(),
            **self.content(track.text, track.thought, track.calls, 0),
            **self._logprobs(track.logprobs),
            **self._ending(track),
        }

    # Lines

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """A line for something new; calls are shown when they are whole."""
        logprobs = self._logprobs(delta.logprobs or ())
        text = "".join(e.text for e in said if isinstance(e, (Text, CallLost)))
        thought = "".join(event.text for event in said if isinstance(event, Reasoning))
        calls = [event.call for event in said if isinstance(event, CallEnd)]
        if not (text or thought or calls or logprobs):
            return b""
        content = self.content(text, thought, calls, self._num_calls)
        self._num_calls += len(calls)
        return _line({**self._head(), **content, "done": False, **logprobs})

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The last line, with the figures."""
        return _line({**self._head(), **self._nothing(), **self._ending(tracks[0])})

    def loaded(self) -> dict[str, Any]:
        """The answer to a request that only asks for the model to be there."""
        return {**self._head(), **self._nothing(), "done": True, "done_reason": "load"}

    def _nothing(self) -> dict[str, Any]:
        return self.content("", "", (), 0)

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": rfc3339(datetime.now(UTC))}

    def _logprobs(self, entries: Sequence[Any]) -> dict[str, Any]:
        if self._top is None or not entries:
            return {}
        return {"logprobs": chat_logprobs(entries, self._names, self._top)}

    def _ending(self, track: Track) -> dict[str, Any]:
        reason = "length" if track.finish_reason == "length" else "stop"
        return {"done": True, "done_reason": reason, **self.last(track), **figures(track)}


class ChatLines(OllamaFormat):
    """Answers of /api/chat."""

    def content(self, text: str, thought: str, calls: Sequence[Call], first: int) -> dict[str, Any]:
        """The message."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = [_call(call, first + i) for i, call in enumerate(calls)]
        return {"message": message}


class GenerateLines(OllamaFormat):
    """Answers of /api/generate.

    Args:
        with_context: end with the token ids of prompt and answer, to be sent again.
    """

    def __init__(self, model: str, tokenizer: Any, top: int | None, with_context: bool) -> None:
        super().__init__(model, tokenizer, top)
        self._with_context = with_context

    def content(self, text: str, thought: str, calls: Sequence[Call], first: int) -> dict[str, Any]:
        """The text."""
        return {"response": text, "thinking": thought} if thought else {"response": text}

    def last(self, track: Track) -> dict[str, Any]:
        """The conversation so far as token ids."""
        if not self._with_context:
            return {}
        return {"context": [*track.prompt.ids, *track.token_ids]}


def figures(track: Track) -> dict[str, int]:
    """Token counts and nanoseconds; the model is loaded before any request is taken."""
    prefill, decode = (int(1e9 * seconds) for seconds in (track.prefill_s, track.decode_s))
    return {
        "total_duration": prefill + decode,
        "load_duration": 0,
        "prompt_eval_count": len(track.prompt.ids),
        "prompt_eval_duration": prefill,
        "eval_count": len(track.token_ids),
        "eval_duration": decode,
    }


def rfc3339(moment: datetime) -> str:
    """A moment as Ollama writes it, in UTC."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(value: dict[str, Any]) -> bytes:
    return compact(value).encode() + b"\n"


def _call(call: Call, place: int) -> dict[str, Any]:
    function = {"index": place, "name": call.name, "arguments": _arguments(call.arguments)}
    return {"id": call.id, "function": function}


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments as the object that Ollama's clients expect."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"arguments": value}
