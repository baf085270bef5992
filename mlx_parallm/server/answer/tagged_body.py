"""Calls whose arguments are written one by one, between tags."""

from __future__ import annotations

import json
from typing import Any

from mlx_parallm.server.answer.call_body import CallParser, StreamedBody
from mlx_parallm.server.answer.call_formats import ONE_LINE, TagForm
from mlx_parallm.server.answer.events import Call, Event, held

# Parsers read this as no value, whatever the type is.
_NULL = "null"
# Keywords by which a value of type string may be read as another.
_OTHER_TYPES = frozenset({"enum", "anyOf", "oneOf", "allOf"})


class TaggedBody(StreamedBody):
    """Makes a JSON object of tagged values: texts as they are written, others when they are whole.

    What a value means is what mlx-lm's parser makes of it.
    """

    def __init__(self, parser: CallParser, form: TagForm) -> None:
        super().__init__(parser)
        self._form = form
        self._head_text = ""
        self._schemas: dict[str, Any] = {}
        self._num_keys = 0
        # Of the value that is being read: what stands before it, and what was written of it.
        self._key: str | None = None
        self._opening = ""
        self._written = ""

    def close(self, before: str, after: str, cut: bool = False) -> list[Event]:
        """There is no more; see CallBody."""
        call = self._open
        ends_here = self._form.end is None and self._key is None and not cut
        if call is not None and ends_here and not self.text[self._at :].strip():
            return self._finish(call, len(self.text))
        return super().close(before, after, cut)

    def _step(self) -> list[Event] | None:
        call = self._open
        if call is None:
            return self._head()
        if self._key is not None:
            return self._value(call, self._key)
        return self._next_key(call)

    def _head(self) -> list[Event] | None:
        found = self._form.head.match(self.text, self._at)
        if found is None:
            return None
        call = Call(found.group("name"))
        self._head_text = found.group()
        self._schemas = self.parser.schemas(call.name)
        self._num_keys = 0
        return self._begin(call, found.end()) + self._write(call, "{")

    def _next_key(self, call: Call) -> list[Event] | None:
        found = self._form.opening.search(self.text, self._at)
        end = -1 if self._form.end is None else self.text.find(self._form.end, self._at)
        if end >= 0 and (found is None or end < found.start()):
            assert self._form.end is not None
            return self._finish(call, end + len(self._form.end))
        if found is None:
            return None
        self._key, self._opening, self._written = found.group("key").strip(), found.group(), ""
        self._at = found.end()
        before = ", " if self._num_keys else ""
        self._num_keys += 1
        return self._write(call, f"{before}{json.dumps(self._key, ensure_ascii=False)}: ")

    def _value(self, call: Call, key: str) -> list[Event] | None:
        end = self.text.find(self._form.closing, self._at)
        if end < 0:
            return self._more_text(call) if self._is_text(key) else None
        shown = self._read(call.name, key, self.text[self._at : end])
        if shown is None or not shown.startswith(self._written):
            self._broken = True
            return []
        rest = shown[len(self._written) :]
        self._key, self._at = None, end + len(self._form.closing)
        return self._write(call, rest) or []

    def _more_text(self, call: Call) -> list[Event] | None:
        """As much of an unfinished text as is certain."""
        text = self._without_start(self.text[self._at :])
        text = text[: len(text) - held(text, self._form.closing)].rstrip()
        if _NULL.startswith(text.lower()):
            return None
        shown = json.dumps(text, ensure_ascii=False)[:-1]
        rest = shown[len(self._written) :]
        self._written = shown
        return self._write(call, rest) or None

    def _read(self, name: str, key: str, raw: str) -> str | None:
        """A value as JSON; None where mlx-lm's parser does not find it."""
        end = self._form.end or ""
        alone = f"{self._head_text}{self._opening}{raw}{self._form.closing}{end}"
        calls = self.parser.calls(alone)
        arguments = json.loads(calls[0].arguments) if len(calls) == 1 else {}
        return json.dumps(arguments[key], ensure_ascii=False) if key in arguments else None

    def _is_text(self, key: str) -> bool:
        schema = self._schemas.get(key)
        return (
            isinstance(schema, dict)
            and schema.get("type") == "string"
            and not _OTHER_TYPES.intersection(schema)
        )

    def _without_start(self, raw: str) -> str:
        if self._form.strips == ONE_LINE:
            return raw.removeprefix(ONE_LINE)
        return raw.lstrip(self._form.strips)

    def _finish(self, call: Call, at: int) -> list[Event]:
        return self._write(call, "}") + self._end(call, at)
