"""Calls whose arguments are written as a JSON object."""

from __future__ import annotations

import json
import re

from mlx_parallm.server.answer.call_body import CallParser, StreamedBody
from mlx_parallm.server.answer.call_formats import JsonForm
from mlx_parallm.server.answer.events import Call, Event

# What of a JSON text matters for where an object ends.
_SIGNS = re.compile(r'[{}\[\]"]')
_STRING_SIGNS = re.compile(r'["\\]')


class JsonSpan:
    """Finds the end of a JSON object or array that is read in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end_in(self, text: str, at: int) -> int | None:
        """Where it ends in text[at:], which goes on from the last call; None: not yet.

        Returns:
            The place behind the last bracket.
        """
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (_STRING_SIGNS if self._in_string else _SIGNS).search(text, at)
            if found is None:
                return None
            at = found.end()
            if self._take(found.group()):
                return at
        return None

    def _take(self, sign: str) -> bool:
        if sign == "\\":
            self._escaped = True
        elif sign == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if sign in "{[" else -1
            return self._depth <= 0
        return False


class JsonBody(StreamedBody):
    """Gives a JSON object on as it is written."""

    def __init__(self, parser: CallParser, form: JsonForm) -> None:
        super().__init__(parser)
        self._form = form
        self._span = JsonSpan()

    def _step(self) -> list[Event] | None:
        call = self._open
        if call is None:
            return self._head()
        end = self._span.end_in(self.text, self._at)
        stop = len(self.text) if end is None else end
        events = self._write(call, self.text[self._at : stop])
        self._at = stop
        if end is None:
            return events or None
        if is_object(call.arguments):
            return events + self._end(call, end)
        # Its brackets are right, but something else is not.
        self._broken = True
        return events

    def _head(self) -> list[Event] | None:
        found = self._form.head.match(self.text, self._at)
        if found is None:
            return None
        parts = found.groupdict()
        quoted = parts.get("quoted")
        call = Call(parts["name"] if quoted is None else json.loads(f'"{quoted}"', strict=False))
        call.id = parts.get("id") or call.id
        self._span = JsonSpan()
        return self._begin(call, found.end())

    def _says_something(self, rest: str) -> bool:
        return bool(rest.replace("<|tool_call_end|>", "").strip(" \t\r\n}],"))


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
