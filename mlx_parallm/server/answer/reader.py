"""The AnswerReader: thinking, text and calls by their markers, however the text is cut."""

from __future__ import annotations

from enum import Enum
from typing import Any

from mlx_parallm.server.answer.call_body import CallBody, CallParser
from mlx_parallm.server.answer.call_formats import CallFormat, JsonForm
from mlx_parallm.server.answer.events import CallEnd, Event, Reasoning, Text, held, merged
from mlx_parallm.server.answer.json_body import JsonBody
from mlx_parallm.server.answer.tagged_body import TaggedBody


class _Place(Enum):
    """What is being read: what may be thinking, thinking, text, or the inside of a call."""

    EDGE = "edge"
    THINKING = "thinking"
    TEXT = "text"
    CALL = "call"


class AnswerReader:
    """Splits one answer's text.

    Thinking is read where it begins an answer, follows thinking or follows a call. Blank space
    at its edges, and before a call, belongs to neither.

    Args:
        think: markers of thinking; None where the model has none.
        opened: the prompt has opened the thinking already.
        calls: how the model writes calls; None leaves them as text.
        tools: the request's, for parsers that look up types.
        dropped: markers that mean nothing.
    """

    def __init__(
        self,
        think: tuple[str, str] | None,
        opened: bool,
        calls: CallFormat | None,
        tools: list[dict[str, Any]],
        dropped: tuple[str, ...] = (),
    ) -> None:
        self._think = think
        self._calls = calls
        self._tools = tools
        self._dropped = dropped
        self._place = _Place.THINKING if opened else _Place.EDGE
        self._buffer = ""
        # Blank space before a call; shown only if it turns out to be none.
        self._gap = ""
        # Whether blank space that comes next is nobody's.
        self._trims = opened
        self._has_called = False
        self._body: CallBody | None = None

    def feed(self, text: str) -> list[Event]:
        """What more text brings; what may yet become a marker is held back."""
        self._buffer += text
        return self._read()

    def finish(self, cut: bool = False) -> list[Event]:
        """The rest; an unfinished call that can be read counts.

        Args:
            cut: the answer was ended in the middle, by its length.
        """
        events = self._read()
        rest, self._buffer = self._buffer, ""
        if self._place is _Place.THINKING:
            events.append(Reasoning(rest.rstrip()))
        elif self._place is _Place.CALL:
            assert self._body is not None
            events += [*self._body.feed(rest), *self._close_call("", cut)]
        elif rest.strip() or not (self._has_called or self._trims):
            events.append(Text(rest))
        return merged(events)

    def _read(self) -> list[Event]:
        events: list[Event] = []
        steps = {
            _Place.EDGE: self._at_edge,
            _Place.THINKING: self._in_thinking,
            _Place.TEXT: self._in_text,
            _Place.CALL: self._in_call,
        }
        while steps[self._place](events):
            pass
        return merged(events)

    # Each step says whether there is something more to read in another place.

    def _at_edge(self, events: list[Event]) -> bool:
        inside = self._buffer.lstrip()
        if self._think is not None:
            opener = self._think[0]
            if inside.startswith(opener):
                self._buffer = inside[len(opener) :]
                return self._go(_Place.THINKING, trims=True)
            if opener.startswith(inside):
                return False
        if self._trims:
            self._buffer = inside
        if not self._buffer:
            return False
        return self._go(_Place.TEXT)

    def _in_thinking(self, events: list[Event]) -> bool:
        assert self._think is not None
        closer = self._think[1]
        if self._trims:
            self._buffer = self._buffer.lstrip()
            self._trims = not self._buffer
        at = self._buffer.find(closer)
        if at < 0:
            events.append(Reasoning(self._taken(closer)))
            return False
        events.append(Reasoning(self._buffer[:at].rstrip()))
        self._buffer = self._buffer[at + len(closer) :]
        return self._go(_Place.EDGE, trims=True)

    def _in_text(self, events: list[Event]) -> bool:
        starts = (self._calls.start,) if self._calls is not None else ()
        found = [(self._buffer.find(m), m) for m in (*starts, *self._dropped)]
        at, marker = min((f for f in found if f[0] >= 0), default=(-1, ""))
        if at < 0:
            events.append(Text(self._taken(*starts, *self._dropped)))
            return False
        before, self._buffer = self._buffer[:at], self._buffer[at + len(marker) :]
        if marker not in starts:
            events.append(Text(before))
            return True
        assert self._calls is not None
        events.append(Text(before.rstrip()))
        self._gap = before[len(before.rstrip()) :]
        self._body = body_for(CallParser(self._calls, self._tools))
        return self._go(_Place.CALL)

    def _in_call(self, events: list[Event]) -> bool:
        assert self._body is not None and self._calls is not None
        # Some formats have no end marker: the calls last to the end of the text.
        end = self._calls.end
        at = self._buffer.find(end) if end else -1
        if at < 0:
            keep = held(self._buffer, end)
            events += self._body.feed(self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        events += self._body.feed(self._buffer[:at])
        self._buffer = self._buffer[at + len(end) :]
        closed = self._close_call(end, cut=False)
        events += closed
        self._has_called |= any(isinstance(event, CallEnd) for event in events)
        is_text = any(isinstance(event, Text) for event in closed)
        return self._go(_Place.TEXT if is_text else _Place.EDGE)

    def _close_call(self, end: str, cut: bool) -> list[Event]:
        assert self._body is not None and self._calls is not None
        body, self._body = self._body, None
        return body.close(self._gap + self._calls.start, end, cut)

    def _taken(self, *markers: str) -> str:
        """What is in the buffer, but for its end where that may belong to a marker."""
        if not markers:
            text, self._buffer = self._buffer, ""
            return text
        sure = self._buffer[: len(self._buffer) - held(self._buffer, *markers)].rstrip()
        self._buffer = self._buffer[len(sure) :]
        return sure

    def _go(self, place: _Place, trims: bool = False) -> bool:
        self._place, self._trims = place, trims
        return True


def body_for(parser: CallParser) -> CallBody:
    """The reader of what stands between the markers of this format."""
    form = parser.format.form
    if form is None:
        return CallBody(parser)
    return JsonBody(parser, form) if isinstance(form, JsonForm) else TaggedBody(parser, form)
