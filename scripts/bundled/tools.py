"""Tool calls: some tools are offered, one of them fits, or none.

An answer first names the tool that the request calls for, and only then calls it or says that it
is missing: so small a model can look up one word in the list, but not compare a meaning with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .sample import (
    DECISION,
    TOOL_CALL_START,
    Message,
    Sample,
    Tool,
    draw,
    spoken,
    turn,
)
from .sums import sums
from .talk import small_talk
from .words import ANIMALS, CITIES, DAYS, NAMES, VALUES

_NEEDED = "This needs {name}"
_MISSING = ", which I do not have."


@dataclass(frozen=True, slots=True)
class Kind:
    """name, description; parameters name -> (JSON type, description); asked: wordings with the
    parameters as slots; slots: how each value is drawn."""

    name: str
    description: str
    parameters: dict[str, tuple[str, str]]
    asked: tuple[str, ...]

    def tool(self, rng: random.Random) -> Tool:
        """The definition as OpenAI clients send it, with or without the optional parts."""
        described = rng.random() < 0.5
        properties = {
            name: {"type": kind, "description": text} if described else {"type": kind}
            for name, (kind, text) in self.parameters.items()
        }
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if rng.random() < 0.8:
            parameters["required"] = list(self.parameters)
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": parameters,
            },
        }


def _word(rng: random.Random) -> str:
    return rng.choice(VALUES)


def _words(rng: random.Random) -> str:
    return " ".join(rng.choice((*VALUES, *ANIMALS)) for _ in range(rng.choice((1, 2, 2, 3))))


_SLOTS: dict[str, Callable[[random.Random], Any]] = {
    "city": lambda rng: rng.choice(CITIES),
    "name": lambda rng: rng.choice(NAMES),
    "to": lambda rng: rng.choice(NAMES),
    "day": lambda rng: rng.choice(DAYS),
    "a": lambda rng: rng.randrange(100),
    "b": lambda rng: rng.randrange(100),
    "minutes": lambda rng: rng.randrange(1, 100),
    "amount": lambda rng: rng.randrange(1, 100),
    "level": lambda rng: rng.randrange(1, 100),
    "degrees": lambda rng: rng.randrange(5, 31),
    "page": lambda rng: rng.randrange(1, 100),
    "count": lambda rng: rng.randrange(1, 21),
    "query": _words,
    "text": _words,
    "title": _words,
    "item": _word,
    "song": _words,
    "word": _word,
    "file": lambda rng: f"{_word(rng)}.txt",
    "room": lambda rng: rng.choice("kitchen bedroom office hall bathroom garage".split()),
    "language": lambda rng: rng.choice("French German Italian Spanish Greek Polish".split()),
    "currency": lambda rng: rng.choice("euro dollar pound yen franc".split()),
}

_TYPES = {"a", "b", "minutes", "amount", "level", "degrees", "page", "count"}
_ABOUT = {
    "city": "name of the city",
    "name": "name of the person",
    "to": "who gets it",
    "day": "day of the week",
    "a": "first number",
    "b": "second number",
    "minutes": "length in minutes",
    "amount": "how much",
    "level": "from 1 to 99",
    "degrees": "in Celsius",
    "page": "page number",
    "count": "how many",
    "query": "what to look for",
    "text": "the text",
    "title": "the title",
    "item": "the thing",
    "song": "title of the song",
    "word": "the word",
    "file": "name of the file",
    "room": "which room",
    "language": "target language",
    "currency": "name of the currency",
}


def _kind(name: str, description: str, parameters: str, *asked: str) -> Kind:
    types = {
        key: ("integer" if key in _TYPES else "string", _ABOUT[key]) for key in parameters.split()
    }
    return Kind(name, description, types, asked)


KINDS = (
    _kind(
        "get_weather",
        "Get the weather of a city",
        "city",
        "What is the weather in {city}?",
        "How is the weather in {city}?",
        "Weather in {city}, please.",
        "Is it raining in {city}?",
        "Tell me the weather in {city}.",
        "Is it warm in {city}?",
    ),
    _kind(
        "get_time",
        "Get the time in a city",
        "city",
        "What time is it in {city}?",
        "Tell me the time in {city}.",
        "Time in {city}?",
        "How late is it in {city}?",
    ),
    _kind(
        "divide_numbers",
        "Divide two numbers",
        "a b",
        "Divide {a} by {b}.",
        "What is {a} divided by {b}?",
        "How much is {a} divided by {b}?",
    ),
    _kind(
        "multiply_numbers",
        "Multiply two numbers",
        "a b",
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "How much is {a} times {b}?",
    ),
    _kind(
        "web_search",
        "Search the web",
        "query",
        "Search for {query}.",
        "Look up {query}.",
        "Find {query} on the web.",
        "Search the web for {query}.",
    ),
    _kind(
        "send_message",
        "Send a message to a person",
        "to text",
        "Send {to} the message {text}.",
        "Tell {to} this: {text}.",
        "Write to {to}: {text}.",
        "Message {to}: {text}.",
    ),
    _kind(
        "call_person",
        "Call a person",
        "name",
        "Call {name}.",
        "Please phone {name}.",
        "I want to talk to {name}.",
        "Ring {name}, please.",
    ),
    _kind(
        "set_timer",
        "Set a timer",
        "minutes",
        "Set a timer for {minutes} minutes.",
        "Timer, {minutes} minutes.",
        "Start a timer of {minutes} minutes.",
        "Wake me in {minutes} minutes.",
    ),
    _kind(
        "set_alarm",
        "Set an alarm on a day",
        "day",
        "Set an alarm for {day}.",
        "Alarm on {day}, please.",
        "Put an alarm on {day}.",
    ),
    _kind(
        "play_music",
        "Play a song",
        "song",
        "Play {song}.",
        "Please play the song {song}.",
        "I want to hear {song}.",
        "Put on {song}.",
    ),
    _kind(
        "set_volume",
        "Set the volume",
        "level",
        "Set the volume to {level}.",
        "Volume {level}, please.",
        "Turn the volume to {level}.",
    ),
    _kind(
        "turn_on_light",
        "Turn on the light in a room",
        "room",
        "Turn on the light in the {room}.",
        "Light in the {room}, please.",
        "It is dark in the {room}.",
    ),
    _kind(
        "set_heating",
        "Set the heating of a room",
        "room degrees",
        "Heat the {room} to {degrees} degrees.",
        "Set the {room} to {degrees} degrees.",
        "Make the {room} {degrees} degrees warm.",
    ),
    _kind(
        "buy_item",
        "Buy things",
        "item count",
        "Buy {count} of {item}.",
        "Order {count} times {item}.",
        "Please buy {item}, {count} of it.",
    ),
    _kind(
        "translate_text",
        "Translate a text",
        "text language",
        "Translate {text} into {language}.",
        "What is {text} in {language}?",
        "Say {text} in {language}.",
    ),
    _kind(
        "define_word",
        "Get the meaning of a word",
        "word",
        "Define {word}.",
        "What is the meaning of {word}?",
        "Look {word} up in the dictionary.",
        "What does the word {word} mean?",
    ),
    _kind(
        "read_file",
        "Read a file",
        "file",
        "Read the file {file}.",
        "Open {file}.",
        "What is in {file}?",
        "Show me {file}.",
    ),
    _kind(
        "delete_file",
        "Delete a file",
        "file",
        "Delete {file}.",
        "Remove the file {file}.",
        "Please delete the file {file}.",
    ),
    _kind(
        "add_event",
        "Add an event to the calendar",
        "title day",
        "Put {title} into my calendar on {day}.",
        "Add {title} on {day}.",
        "Plan {title} for {day}.",
    ),
    _kind(
        "list_events",
        "List the events of a day",
        "day",
        "What is planned on {day}?",
        "List my events on {day}.",
        "Show my calendar for {day}.",
    ),
    _kind(
        "open_page",
        "Open a page of the book",
        "page",
        "Open page {page}.",
        "Go to page {page}.",
        "Turn to page {page}.",
    ),
    _kind(
        "convert_money",
        "Convert money",
        "amount currency",
        "Convert {amount} to {currency}.",
        "How much is {amount} in {currency}?",
        "Change {amount} into {currency}.",
    ),
    _kind(
        "find_person",
        "Find where a person is",
        "name",
        "Where is {name}?",
        "Find {name}.",
        "Locate {name}, please.",
    ),
    _kind(
        "book_train",
        "Book a train to a city",
        "city day",
        "Book a train to {city} on {day}.",
        "I need a train to {city} on {day}.",
        "Train to {city}, {day}, please.",
    ),
)


# Each is one token, so that it is looked up in one step.
TOOL_NAMES = tuple(kind.name for kind in KINDS)


def tool_use(rng: random.Random, offered: int) -> Sample:
    """One request with tools."""
    shown, tools = _offer(rng, offered)
    return _request(tools, shown, KINDS, rng)


def tool_session(rng: random.Random, offered: int, requests: int) -> Sample:
    """Several requests behind one list of tools, all of the training's side of the split: the
    list is long, and each request is one more decision whether one of the tools fits it."""
    shown, tools = _offer(rng, offered)
    messages: list[Message] = []
    missing = [kind for kind in KINDS if kind not in shown]
    for _ in range(requests):
        one = draw(partial(_request, tools, shown, missing), rng, held_out=False)
        messages += one.messages
        # The name of a missing tool stands in the answer now, so ask for others.
        missing = [kind for kind in missing if kind.name not in one.messages[1]["content"]]
    return Sample("taught", messages, tools)


def forced_session(rng: random.Random, offered: int, requests: int) -> Sample:
    """Calls that the server forces: nothing is said before them, and the beginning is not the
    model's to decide. All of the training's side of the split."""
    shown, tools = _offer(rng, offered)
    messages: list[Message] = []
    for _ in range(requests):
        one = draw(lambda rng: _finish(tools, _forced(rng, rng.choice(shown))), rng, held_out=False)
        messages += one.messages
    return Sample("taught", messages, tools)


def forced_use(rng: random.Random, offered: int) -> Sample:
    """One request, and the call that is forced for it."""
    shown, tools = _offer(rng, offered)
    return _finish(tools, _forced(rng, rng.choice(shown)))


def thoughtful_use(rng: random.Random, offered: int) -> Sample:
    """One request, thought about: the tool that is needed is named in the thought."""
    shown, tools = _offer(rng, offered)
    question, answer, *_ = _exchange(rng, shown, KINDS)
    text, calls = answer["content"], answer.get("tool_calls")
    if calls:
        answer = {"role": "assistant", "content": "", "tool_calls": calls, "thought": text}
    else:
        needed = text.removesuffix(_MISSING)
        thought = f"{needed}. It is not there." if needed != text else "This needs no tool."
        answer = {"role": "assistant", "content": text, "thought": thought}
    return _finish(tools, [question, answer])


def _forced(rng: random.Random, kind: Kind) -> list[Message]:
    question, answer, *results = _call(rng, kind)
    start = f'{TOOL_CALL_START}\n{{"name": "'
    spans = [(len(start), 0.0), (len(kind.name), DECISION)]
    forced = spoken(tool_calls=answer["tool_calls"]) | {"spans": spans}
    return [question, forced, *results]


def _request(
    tools: list[Tool], shown: list[Kind], others: Sequence[Kind], rng: random.Random
) -> Sample:
    return _finish(tools, _exchange(rng, shown, others))


def _offer(rng: random.Random, count: int) -> tuple[list[Kind], list[Tool]]:
    shown = rng.sample(KINDS, count)
    return shown, [kind.tool(rng) for kind in shown]


def _exchange(rng: random.Random, shown: list[Kind], others: Sequence[Kind]) -> list[Message]:
    """A request and its answer; half of the requests are for none of the tools."""
    if rng.random() < 0.5:
        return _call(rng, rng.choice(shown))
    if rng.random() < 0.2:
        return _no_tool_needed(rng)
    chosen = rng.choice([kind for kind in others if kind not in shown])
    request = rng.choice(chosen.asked).format(**_values(rng, chosen))
    needed = _NEEDED.format(name=chosen.name)
    question, answer = turn(request, needed + _MISSING)
    return [question, {**answer, "decision": len(needed)}]


def _values(rng: random.Random, kind: Kind) -> dict[str, Any]:
    return {name: _SLOTS[name](rng) for name in kind.parameters}


def _call(rng: random.Random, kind: Kind) -> list[Message]:
    values = _values(rng, kind)
    call = {"type": "function", "function": {"name": kind.name, "arguments": values}}
    needed = _NEEDED.format(name=kind.name)
    messages: list[Message] = [
        {"role": "user", "content": rng.choice(kind.asked).format(**values)},
        {
            "role": "assistant",
            "content": f"{needed}.",
            "tool_calls": [call],
            "decision": len(needed),
        },
    ]
    if rng.random() < 0.25:
        result = _result(rng)
        messages.append({"role": "tool", "content": result})
        messages.append({"role": "assistant", "content": f"The tool says: {result}"})
    return messages


def _result(rng: random.Random) -> str:
    words = rng.choice(
        (
            "done",
            "ok",
            "{n} degrees",
            "{v}",
            "it is {v}",
            "{n}",
            "{v} and {v2}",
            '{{"result": {n}}}',
            '{{"status": "{v}"}}',
            "sunny, {n} degrees",
        )
    )
    return words.format(n=rng.randrange(100), v=_word(rng), v2=_word(rng))


def _no_tool_needed(rng: random.Random) -> list[Message]:
    """Small talk or a sum, answered as without tools; only sums of the training, which must not
    be taught beside tools either."""
    if rng.random() < 0.5:
        return small_talk(rng).messages
    return draw(sums, rng, held_out=False).messages


def _finish(tools: list[Tool], messages: list[Message]) -> Sample:
    names = [tool["function"]["name"] for tool in tools]
    return Sample(f"tools {json.dumps([names, messages[0]['content']])}", messages, tools)
