"""Tool calls in generated text, found while it streams.

Where a call begins and ends, and how its inside is read, comes from mlx-lm's parser for the
model (`mlx_lm.tool_parsers`). What does not parse is given back as text: nothing is lost.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call. arguments: a string that holds JSON, as OpenAI sends it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Found:
    """What a piece of text held: text to show, then calls."""

    text: str = ""
    calls: Sequence[ParsedCall] = ()


class ToolReader:
    """Splits one answer's text into content and calls.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper with has_tool_calling.
        tools: the request's tools, for parsers that look up argument types.
    """

    def __init__(self, tokenizer: Any, tools: list[dict[str, Any]]) -> None:
        self._start: str = tokenizer.tool_call_start
        self._end: str = tokenizer.tool_call_end
        self._parse = tokenizer.tool_parser
        self._tools = tools
        self._buffer = ""
        # Blank space before a call; shown only if it turns out to be none.
        self._gap = ""
        self._inside = False
        self.num_calls = 0

    def feed(self, text: str) -> Found:
        """Add text; what may yet become a marker, or blank space before one, is held back."""
        self._buffer += text
        found = Found()
        while self._advance(found):
            pass
        return found

    def finish(self) -> Found:
        """The rest: an unfinished call that parses counts, one that does not is text."""
        found = self.feed("")
        rest, self._buffer = self._buffer, ""
        if self._inside:
            self._inside = False
            self._take_call(rest, found, "")
        elif rest.strip() or not self.num_calls:
            found.text += rest
        return found

    def _advance(self, found: Found) -> bool:
        """Move over one marker if it is there."""
        if self._inside:
            # Some formats have no end marker: the call lasts to the end of the text.
            at = self._buffer.find(self._end) if self._end else -1
            if at < 0:
                return False
            body, self._buffer = self._buffer[:at], self._buffer[at + len(self._end) :]
            self._inside = False
            self._take_call(body, found, self._end)
            return True
        at = self._buffer.find(self._start)
        if at < 0:
            keep = self._num_held(self._buffer)
            found.text += self._buffer[: len(self._buffer) - keep]
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        before = self._buffer[:at]
        found.text += before.rstrip()
        self._gap = before[len(before.rstrip()) :]
        self._buffer = self._buffer[at + len(self._start) :]
        self._inside = True
        return True

    def _num_held(self, text: str) -> int:
        """How much of the end may belong to a call: part of a marker and the space before it."""
        partial = next(
            (
                size
                for size in range(min(len(self._start) - 1, len(text)), 0, -1)
                if text.endswith(self._start[:size])
            ),
            0,
        )
        return len(text) - len(text[: len(text) - partial].rstrip())

    def _take_call(self, body: str, found: Found, end: str) -> None:
        calls = self._read(body)
        if calls:
            self.num_calls += len(calls)
            found.calls = [*found.calls, *calls]
        else:
            found.text += f"{self._gap}{self._start}{body}{end}"

    def _read(self, body: str) -> list[ParsedCall]:
        try:
            parsed = self._parse(body, self._tools)
            items = parsed if isinstance(parsed, list) else [parsed]
            return [_call(item) for item in items]
        except Exception as error:  # noqa: BLE001 - whatever a parser trips over is no call
            logger.debug("a tool call could not be read: %s", error)
            return []


def _call(item: dict[str, Any]) -> ParsedCall:
    name, arguments = item["name"], item.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise ValueError("a call needs a name")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    given = item.get("id")
    return ParsedCall(
        id=given if isinstance(given, str) and given else f"call_{uuid.uuid4().hex[:24]}",
        name=name,
        arguments=arguments,
    )
