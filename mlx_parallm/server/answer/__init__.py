"""The one reader of what a model says: thinking, text and tool calls, as events.

    dialect = Dialect(tokenizer)                   # how this model writes them
    reader = dialect.reader(prompt, tools=tools)   # one for each answer
    events = reader.feed("new text")               # Reasoning, Text, CallStart, ...
    events = reader.finish()

Every API is a format over these events; whole answers and streams are read the same way. What no
parser can read is text: nothing is lost.

What is where: events, blocks (an answer so far), dialect (a model's markers), reader (markers in a
text), harmony (gpt-oss's channels), call_formats (which parser has which form), call_body,
json_body and tagged_body (the inside of calls), thought_counter (tokens of thinking).
"""

from mlx_parallm.server.answer.dialect import Dialect
from mlx_parallm.server.answer.events import (
    Call,
    CallArguments,
    CallEnd,
    CallLost,
    CallStart,
    Event,
    Reader,
    Reasoning,
    Text,
)

__all__ = [
    "Call",
    "CallArguments",
    "CallEnd",
    "CallLost",
    "CallStart",
    "Dialect",
    "Event",
    "Reader",
    "Reasoning",
    "Text",
]
