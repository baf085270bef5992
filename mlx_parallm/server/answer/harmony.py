"""Harmony, the format of gpt-oss: messages in channels, between the model's own special tokens.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>final<|message|>text

A message whose header has a recipient, `to=functions.name`, is a call. The whole format:
https://developers.openai.com/cookbook/articles/openai-harmony
"""

from __future__ import annotations

import re

from mlx_parallm.server.answer.events import (
    Call,
    CallArguments,
    CallEnd,
    CallLost,
    CallStart,
    Event,
    Reasoning,
    Text,
    held,
    merged,
)
from mlx_parallm.server.answer.json_body import is_object

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
TOKENS = (START, CHANNEL, MESSAGE, "<|constrain|>", *ENDS)

THINKING_CHANNEL = "analysis"
ANSWER_CHANNEL = "final"
_BORDERS = (START, CHANNEL, *ENDS)
_ANY_TOKEN = re.compile("|".join(map(re.escape, TOKENS)))
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
# A header has a role, a channel, a recipient and a type; what is longer is none.
_LONGEST_HEADER = 400


class HarmonyReader:
    """Reads an answer that consists of messages.

    Args:
        channel: of the message that the prompt has begun already; None where it has not.
        reads_calls: False leaves messages with a recipient as text.
    """

    def __init__(self, channel: str | None = None, reads_calls: bool = True) -> None:
        self._reads_calls = reads_calls
        self._in_header = channel is None
        self._channel = channel or ""
        self._call: Call | None = None
        self._is_begun = False
        self._header = ""
        self._buffer = ""

    def feed(self, text: str) -> list[Event]:
        """What more text brings; what may yet become a token of the format is held back."""
        self._buffer += text
        events: list[Event] = []
        while self._read_header() if self._in_header else self._read_body(events):
            pass
        return merged(events)

    def finish(self, cut: bool = False) -> list[Event]:
        """The rest; a call that is no JSON object is text."""
        events = self.feed("")
        rest, self._buffer = self._buffer, ""
        if self._in_header:
            # A role without anything behind it says nothing.
            said = _ANY_TOKEN.sub("", rest).strip()
            events.append(Text("" if said in ("", "assistant") else rest))
        else:
            events += self._said(rest)
            events += self._end_of_message()
        return merged(events)

    def _read_header(self) -> bool:
        at = self._buffer.find(MESSAGE)
        if at >= 0:
            self._begin_message(self._buffer[:at])
            self._buffer = self._buffer[at + len(MESSAGE) :]
            return True
        if self._is_header(self._buffer):
            return False
        # No header: the model has left the format.
        self._channel, self._call, self._in_header = "", None, False
        return True

    @staticmethod
    def _is_header(text: str) -> bool:
        if len(text) > _LONGEST_HEADER:
            return False
        first = text.lstrip()
        openings = (START, CHANNEL, "assistant", "to=", "<|constrain|>")
        return any(first.startswith(o) or o.startswith(first) for o in openings)

    def _begin_message(self, header: str) -> None:
        self._in_header, self._header, self._call = False, header, None
        self._is_begun = False
        channel = _CHANNEL.search(header)
        self._channel = channel.group(1) if channel is not None else ""
        recipient = _RECIPIENT.search(header)
        if recipient is not None and self._reads_calls:
            self._call = Call(recipient.group(1).removeprefix("functions."))

    def _read_body(self, events: list[Event]) -> bool:
        found = [(self._buffer.find(border), border) for border in _BORDERS]
        at, border = min((f for f in found if f[0] >= 0), default=(-1, ""))
        if at < 0:
            sure = len(self._buffer) - held(self._buffer, *_BORDERS)
            events += self._said(self._buffer[:sure])
            self._buffer = self._buffer[sure:]
            return False
        events += self._said(self._buffer[:at])
        events += self._end_of_message()
        # A channel without an end before it begins a message too.
        keep = "" if border in ENDS else border
        self._buffer = keep + self._buffer[at + len(border) :]
        self._in_header = True
        return True

    def _said(self, text: str) -> list[Event]:
        if self._call is not None:
            begin: list[Event] = [] if self._is_begun else [CallStart(self._call)]
            self._is_begun = True
            self._call.arguments += text
            return [*begin, *([CallArguments(self._call, text)] if text else [])]
        if not text:
            return []
        return [Reasoning(text) if self._channel == THINKING_CHANNEL else Text(text)]

    def _end_of_message(self) -> list[Event]:
        call, self._call = self._call, None
        if call is None:
            return []
        if is_object(call.arguments):
            return [CallEnd(call)]
        return [CallLost(call, f"{self._header}{MESSAGE}{call.arguments}")]


def begun_channel(prompt: str) -> str | None:
    """The channel of the message that the prompt's end has begun; None where it has not."""
    last = max(prompt.rfind(border) for border in (START, *ENDS))
    header, begun, _ = prompt[max(last, 0) :].partition(MESSAGE)
    if not begun:
        return None
    channel = _CHANNEL.search(header)
    return channel.group(1) if channel is not None else ANSWER_CHANNEL
