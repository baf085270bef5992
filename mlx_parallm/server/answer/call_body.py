"""The inside of a tool call, read while it is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_parallm.server.answer.call_formats import CallFormat
from mlx_parallm.server.answer.events import (
    Call,
    CallArguments,
    CallEnd,
    CallLost,
    CallStart,
    Event,
    Text,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallParser:
    """mlx-lm's parser of finished calls, for one request.

    Attributes:
        format: of the model's calls.
        tools: the request's, in OpenAI's shape.
    """

    format: CallFormat
    tools: list[dict[str, Any]]

    def calls(self, body: str) -> list[Call]:
        """The calls in the text between the markers; none where it cannot be read."""
        try:
            parsed = self.format.parse(body, self.tools)
            return [self._call(item) for item in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception as error:  # noqa: BLE001 - whatever a parser trips over is no call
            logger.debug("a tool call could not be read: %s", error)
            return []

    def schemas(self, name: str) -> dict[str, Any]:
        """The JSON schemas of a tool's parameters."""
        for tool in self.tools:
            function = tool.get("function") or {}
            if function.get("name") == name:
                found = (function.get("parameters") or {}).get("properties")
                return found if isinstance(found, dict) else {}
        return {}

    def _call(self, item: dict[str, Any]) -> Call:
        name = item["name"]
        arguments = item.get("arguments", item.get("parameters", {}))
        if not isinstance(name, str) or not name:
            raise ValueError("a call needs a name")
        if self.format.guesses and set(arguments) == {"raw"} and not self._is_tool(name):
            raise ValueError("the parser took some text for a call")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        call = Call(name, arguments=arguments)
        if isinstance(item.get("id"), str) and item["id"]:
            call.id = item["id"]
        return call

    def _is_tool(self, name: str) -> bool:
        return any(tool.get("function", {}).get("name") == name for tool in self.tools)


def whole(call: Call) -> Iterator[Event]:
    """The events of a call that is there at once."""
    yield CallStart(call)
    yield CallArguments(call, call.arguments)
    yield CallEnd(call)


class CallBody:
    """Reads what stands between two markers; this one waits for the end of it.

    Attributes:
        text: all of it so far.
    """

    def __init__(self, parser: CallParser) -> None:
        self.parser = parser
        self.text = ""

    def feed(self, text: str) -> list[Event]:
        """Add text between the markers."""
        self.text += text
        return []

    def close(self, before: str, after: str, cut: bool = False) -> list[Event]:
        """There is no more.

        Args:
            before, after: what stands around the body; text again where there is no call.
            cut: the answer was ended in the middle.
        """
        calls = self.parser.calls(self.text)
        if not calls:
            return [Text(before + self.text + after)]
        return [event for call in calls for event in whole(call)]


class StreamedBody(CallBody):
    """A body whose arguments are given on as they are written."""

    def __init__(self, parser: CallParser) -> None:
        super().__init__(parser)
        self.num_calls = 0
        self._open: Call | None = None
        # All before it has become events.
        self._at = 0
        # Of the open call.
        self._begins_at = 0
        self._broken = False

    def feed(self, text: str) -> list[Event]:
        """Add text between the markers."""
        self.text += text
        events: list[Event] = []
        while not self._broken and (more := self._step()) is not None:
            events += more
        if self._broken and self._open is not None:
            events += self._write(self._open, self._take_rest())
        return events

    def close(self, before: str, after: str, cut: bool = False) -> list[Event]:
        """There is no more; see CallBody."""
        if self._open is not None:
            call, self._open = self._open, None
            written = self._write(call, self._take_rest())
            return [*written, CallLost(call, before + self.text[self._begins_at :] + after)]
        if self.num_calls == 0:
            return super().close(before, after, cut)
        return self._behind_calls(after)

    def _step(self) -> list[Event] | None:
        """Read on by one part; None where more text is needed."""
        raise NotImplementedError

    def _begin(self, call: Call, at: int) -> list[Event]:
        """A call whose arguments begin at `at`."""
        self._open, self._begins_at, self._at = call, self._at, at
        return [CallStart(call)]

    def _write(self, call: Call, text: str) -> list[Event]:
        call.arguments += text
        return [CallArguments(call, text)] if text else []

    def _end(self, call: Call, at: int) -> list[Event]:
        """The open call ends before `at`."""
        self._open, self._at = None, at
        self.num_calls += 1
        return [CallEnd(call)]

    def _take_rest(self) -> str:
        rest, self._at = self.text[self._at :], len(self.text)
        return rest

    def _behind_calls(self, after: str) -> list[Event]:
        """What stands behind the last call: calls in another form, or text."""
        rest = self._take_rest()
        if not self._says_something(rest):
            return []
        calls = self.parser.calls(self.text)
        if len(calls) < self.num_calls:
            return [Text(rest + after)]
        return [event for call in calls[self.num_calls :] for event in whole(call)]

    def _says_something(self, rest: str) -> bool:
        return bool(rest.strip())
