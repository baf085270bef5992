"""The reader of answers: every format of mlx-lm's parsers, thinking, channels, any cuts."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.server.answer import (
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
from mlx_parallm.server.answer.call_formats import CallFormat, call_format_of
from mlx_parallm.server.answer.harmony import HarmonyReader, begun_channel
from mlx_parallm.server.answer.reader import AnswerReader
from mlx_parallm.server.answer.thought_counter import HarmonyThoughts, MarkedThoughts

THINK = ("<think>", "</think>")
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "wide": {"type": "boolean"},
                    "at": {"type": "object"},
                },
            },
        },
    }
]
ARGUMENTS = {"city": 'São "P"\\\n<b>', "days": 3, "wide": True, "at": {"x": [1, 2.5]}}
AT = '{"x": [1, 2.5]}'


def _xml(opening: str, closing: str, pad: str = "\n") -> str:
    values = {"city": ARGUMENTS["city"], "days": "3", "wide": "true", "at": AT}
    return "".join(
        f"{opening.format(key)}{pad}{value}{pad}{closing}\n" for key, value in values.items()
    )


def _glm(prefix: str) -> str:
    tags = (
        f"<{prefix}arg_key>{{}}</{prefix}arg_key>\n<{prefix}arg_value>",
        f"</{prefix}arg_value>",
    )
    body = f"weather\n{_xml(*tags, pad='')}"
    return f"<{prefix}tool_call>{body}</{prefix}tool_call>"


OBJECT = json.dumps(ARGUMENTS, ensure_ascii=False)
WRITTEN = {
    "json_tools": f'<tool_call>\n{{"name": "weather", "arguments": {OBJECT}}}\n</tool_call>',
    "mistral": f"[TOOL_CALLS]weather[ARGS]{OBJECT}",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{OBJECT}<|tool_call_end|><|tool_calls_section_end|>",
    "qwen3_coder": "<tool_call>\n<function=weather>\n"
    + _xml("<parameter={}>", "</parameter>")
    + "</function>\n</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n'
    + _xml('<parameter name="{}">', "</parameter>", pad="")
    + "</invoke>\n</minimax:tool_call>",
    "glm47": _glm(""),
    "longcat": _glm("longcat_"),
    "pythonic": f"<|tool_call_start|>[weather(city={ARGUMENTS['city']!r}, days=3, wide=True, "
    f"at={AT})]<|tool_call_end|>",
}
STREAMED = set(WRITTEN) - {"pythonic"}


@dataclass
class _Tokenizer:
    """What call_format_of() asks a tokenizer."""

    tool_parser: Any
    tool_call_start: str
    tool_call_end: str
    has_tool_calling: bool = True


def format_of(parser: str) -> CallFormat:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    made = call_format_of(
        _Tokenizer(module.parse_tool_call, module.tool_call_start, module.tool_call_end)
    )
    assert made is not None and made.name == parser
    return made


def reader_for(parser: str, opened: bool = False) -> AnswerReader:
    return AnswerReader(THINK, opened, format_of(parser), TOOLS)


@dataclass
class Answer:
    """What a client has at the end. shown: arguments as a stream shows them."""

    text: str
    reasoning: str
    calls: list[Call]
    shown: list[str]


def read(reader: Reader, pieces: list[str], cut: bool = False) -> Answer:
    """Feed pieces, put the events together and check their order."""
    events: list[Event] = [event for piece in pieces for event in reader.feed(piece)]
    events += reader.finish(cut)
    text, reasoning = "", ""
    begun: list[Call] = []
    shown: dict[int, str] = {}
    good: list[Call] = []
    for event in events:
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, Reasoning):
            reasoning += event.text
        elif isinstance(event, CallStart):
            begun.append(event.call)
            shown[id(event.call)] = ""
        elif isinstance(event, CallArguments):
            assert event.call is begun[-1]
            shown[id(event.call)] += event.text
        elif isinstance(event, CallEnd):
            assert event.call is begun[-1]
            assert shown[id(event.call)] == event.call.arguments
            good.append(event.call)
        else:
            assert isinstance(event, CallLost)
            text += event.text
    return Answer(text, reasoning, good, list(shown.values()))


def cuts(text: str, sizes: list[int]) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(text):
        pieces.append(text[at : at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    return pieces


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=10)


@pytest.mark.parametrize("parser", WRITTEN)
def test_a_call_is_what_mlx_lms_parser_reads(parser: str) -> None:
    made = format_of(parser)
    inside = WRITTEN[parser].removeprefix(made.start)
    inside = inside.removesuffix(made.end) if made.end else inside
    known = made.parse(inside, TOOLS)
    known = known[0] if isinstance(known, list) else known
    for pieces in ([WRITTEN[parser]], list(WRITTEN[parser])):
        answer = read(reader_for(parser), pieces)
        (call,) = answer.calls
        assert call.name == known["name"] == "weather"
        assert json.loads(call.arguments) == known["arguments"] == ARGUMENTS
        assert call.id == known.get("id", call.id)
        assert (answer.text, answer.reasoning) == ("", "")


@pytest.mark.parametrize("parser", sorted(STREAMED))
def test_arguments_come_while_they_are_written(parser: str) -> None:
    reader, text = reader_for(parser), WRITTEN[parser]
    until = text.index("São") + 3
    events = [event for letter in text[:until] for event in reader.feed(letter)]
    assert isinstance(events[0], CallStart) and events[0].call.name == "weather"
    shown = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert shown.endswith("São")


@given(
    st.sampled_from(sorted(WRITTEN)),
    st.lists(
        st.sampled_from(["call", "text", " ", "\n", "<", "<tool", "{}", "<think>"]), max_size=5
    ),
    SIZES,
)
def test_the_cuts_do_not_matter(parser: str, parts: list[str], sizes: list[int]) -> None:
    text = "".join(WRITTEN[parser] if part == "call" else part for part in parts)
    once, cut = read(reader_for(parser), [text]), read(reader_for(parser), cuts(text, sizes))
    assert (cut.text, cut.reasoning) == (once.text, once.reasoning)
    facts = [[(call.name, call.arguments) for call in answer.calls] for answer in (once, cut)]
    assert facts[0] == facts[1]


@given(st.sampled_from(sorted(WRITTEN)), st.data())
def test_what_is_cut_off_is_text(parser: str, data: st.DataObject) -> None:
    whole = WRITTEN[parser]
    text = whole[: data.draw(st.integers(1, len(whole) - 1))]
    answer = read(reader_for(parser), list(text), cut=True)
    if not answer.calls:
        assert answer.text == text
    else:
        assert json.loads(answer.calls[0].arguments) == ARGUMENTS


@given(st.text(alphabet="<tol_ca> \n{}x/hink", max_size=40), SIZES)
def test_text_without_markers_is_untouched(text: str, sizes: list[int]) -> None:
    answer = read(reader_for("json_tools"), cuts(text, sizes))
    if not (answer.calls or "<think>" in text or "<tool_call>" in text):
        assert (answer.text, answer.reasoning) == (text, "")


F = '{"name": "f", "arguments": {}}'
INVOKES = '<invoke name="f"></invoke>\n<invoke name="g">\n</invoke>'
KIMI = "<|tool_calls_section"
KIMI_CALLS = "".join(
    f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
    for name in "fg"
)
GEMMA = "<start_function_call>call:f{a:<escape>x<escape>}<end_function_call>"


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}g[CALL_ID]abc123def[ARGS]{}', ["f", "g"]),
        ("mistral", f"[TOOL_CALLS][{F}, {F.replace('f', 'g')}]", ["f", "g"]),
        ("json_tools", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ["f"]),
        ("json_tools", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', ["f"]),
        ("json_tools", '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', ["f"]),
        ("json_tools", '<tool_call>{"name": "f"}</tool_call>', ["f"]),
        ("glm47", "<tool_call>weather</tool_call>", ["weather"]),
        ("minimax_m2", f"<minimax:tool_call>{INVOKES}</minimax:tool_call>", ["f", "g"]),
        ("kimi_k2", f"{KIMI}_begin|>{KIMI_CALLS}{KIMI}_end|>", ["f", "g"]),
        ("pythonic", "<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>", ["f", "g"]),
        ("function_gemma", GEMMA, ["f"]),
    ],
)
def test_other_ways_to_write_calls(parser: str, text: str, expected: list[str]) -> None:
    for pieces in ([text], list(text)):
        answer = read(reader_for(parser), pieces)
        assert [call.name for call in answer.calls] == expected
        assert answer.text == ""
        assert all(isinstance(json.loads(call.arguments), dict) for call in answer.calls)


def test_a_mistral_call_has_the_models_id() -> None:
    text = "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}"
    assert read(reader_for("mistral"), [text]).calls[0].id == "abc123def"


def test_a_guess_of_a_parser_is_no_call() -> None:
    text = "<tool_call>I would call something</tool_call>"
    assert read(reader_for("glm47"), list(text)) == Answer(text, "", [], [])


def test_null_as_a_text_is_what_the_parser_says() -> None:
    value = "<parameter=city>\nnull\n</parameter>"
    text = f"<tool_call>\n<function=weather>\n{value}\n</function>\n</tool_call>"
    (call,) = read(reader_for("qwen3_coder"), list(text)).calls
    assert json.loads(call.arguments) == {"city": None}


# Thinking


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>Hm. <b>", False, "Hm. <b>", ""),
        ("Yes, <think> is a tag.", False, "", "Yes, <think> is a tag."),
        ("Hm.</think>Yes.", False, "", "Hm.</think>Yes."),
        (" \n<think>a</think><think>b</think>c", False, "ab", "c"),
        ("  Yes. ", False, "", "  Yes. "),
        ("<think>a <tool_call> b</think>c", False, "a <tool_call> b", "c"),
    ],
)
def test_thinking(text: str, opened: bool, reasoning: str, answer: str) -> None:
    for pieces in ([text], list(text)):
        found = read(reader_for("json_tools", opened), pieces)
        assert (found.reasoning, found.text, found.calls) == (reasoning, answer, [])


def test_thinking_between_calls() -> None:
    call = WRITTEN["json_tools"]
    found = read(
        reader_for("json_tools"), list(f"<think>a</think>\n{call}\n<think>b</think>{call}")
    )
    assert (found.reasoning, found.text, len(found.calls)) == ("ab", "", 2)


@given(st.lists(st.sampled_from([7, 8, 9, 1]), max_size=12), st.booleans())
def test_tokens_of_thinking(tokens: list[int], opened: bool) -> None:
    counter = MarkedThoughts((7,), (8,), opened)
    counter.add(tokens)
    expected, inside = 0, opened
    for token in tokens:
        if inside and token != 8:
            expected += 1
        inside = token != 8 if inside else token == 7
    assert counter.count == expected


def test_tokens_of_thinking_between_long_markers() -> None:
    counter = MarkedThoughts((1, 2), (3, 4), opened=False)
    for token in [1, 2, 5, 3, 5, 3, 4, 6]:
        counter.add([token])
    assert counter.count == 3


# Channels

ANALYSIS = "<|channel|>analysis<|message|>Hm."
COMMENTARY = "<|channel|>commentary<|message|>I look."
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes."
HARMONY_CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
    '<|message|>{"city": "Bern"}<|call|>'
)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "names"),
    [
        (f"{ANALYSIS}<|end|>{FINAL}<|return|>", "Hm.", "Yes.", []),
        (f"{ANALYSIS}<|end|>{HARMONY_CALL}", "Hm.", "", ["weather"]),
        (HARMONY_CALL.removeprefix("<|start|>assistant"), "", "", ["weather"]),
        (" to=functions.weather<|channel|>commentary<|message|>{}", "", "", ["weather"]),
        (f"{COMMENTARY}<|end|>{HARMONY_CALL}", "", "I look.", ["weather"]),
        ("Just text.", "", "Just text.", []),
        (ANALYSIS + FINAL, "Hm.", "Yes.", []),
        ("<|channel|>fin", "", "<|channel|>fin", []),
        (f"{ANALYSIS}<|end|><|start|>assistant", "Hm.", "", []),
    ],
)
def test_harmony(text: str, reasoning: str, answer: str, names: list[str]) -> None:
    for pieces in ([text], list(text)):
        found = read(HarmonyReader(), pieces)
        assert (found.reasoning, found.text) == (reasoning, answer)
        assert [call.name for call in found.calls] == names


def test_a_harmony_call_that_is_cut_off() -> None:
    text = HARMONY_CALL.removeprefix("<|start|>").removesuffix('"}<|call|>')
    found = read(HarmonyReader(), [text], cut=True)
    assert found.calls == [] and found.text == text


def test_what_a_prompt_has_begun() -> None:
    said = "<|start|>user<|message|>x<|end|><|start|>assistant"
    assert begun_channel(said) is None
    assert begun_channel(f"{said}<|channel|>analysis<|message|>Hm") == "analysis"
    found = read(HarmonyReader("analysis"), [f"m.<|end|>{FINAL}"])
    assert (found.reasoning, found.text) == ("m.", "Yes.")


def test_tokens_of_thinking_in_channels() -> None:
    # start 1, channel 2, message 3, end 4; analysis is 10, final 11.
    counter = HarmonyThoughts(2, 3, [1, 2, 4], [10], opened=False)
    counter.add([2, 10, 3, 20, 21, 4, 1, 30, 2, 11, 3, 22, 4])
    assert counter.count == 2
