"""What is measured on the bundled model, and how an answer is judged.

Every prompt here lies on the held-out side of `is_held_out` (sums by their numbers, recall and
tools by the whole prompt, facts by fact and wording) or, for the questions about mlx_parallm,
in a list of wordings that the training refuses to draw.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .house import FAMILIES
from .recall import recall
from .sample import TOOL_CALL_END, TOOL_CALL_START, Message, Sample, Tool, draw
from .sums import sums
from .talk import story
from .tools import tool_use


@dataclass(frozen=True, slots=True)
class Answer:
    """content without calls; calls as (name, arguments); finish_reason of the server; what was
    thought before, and its tokens."""

    content: str
    calls: list[tuple[str, Any]]
    finish_reason: str
    thought: str = ""
    thought_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One prompt, further fields of its request, and the judge of its answer."""

    group: str
    messages: list[Message]
    tools: list[Tool]
    judge: Callable[[Answer], bool]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """name of a row of the table, what it says, the share that is aimed for."""

    name: str
    title: str
    goal: float


GROUPS = (
    Group("sums", "Two-digit sums and differences in chat", 0.95),
    Group("recall16", "Recall of one of 16 facts", 0.95),
    Group("recall48", "Recall of one of 48 facts", 0.85),
    Group("tool", "Right tool and arguments, three offered", 0.95),
    Group("no_tool", "No call when none of three fits", 0.95),
    Group("choice", "Multiple choice by log-likelihood", 0.90),
    Group("house", "Questions about mlx_parallm, new wordings", 0.80),
    Group("end", "Chats that end with the end-of-turn token", 0.99),
    Group("agreement", "Greedy agreement of the draft", 0.70),
    Group("required", "`tool_choice: required`: right tool and arguments", 0.95),
    Group("named", "A named function: right arguments", 0.95),
    Group("json_words", "JSON asked for in words: right keys and values", 0.90),
    Group("json_object", "`json_object`, nothing said: the right value", 0.90),
    Group("json_schema", "`json_schema`, nothing said: right values", 0.90),
    Group("thinking", "`enable_thinking`: right after a thought", 0.95),
    Group("short_thought", "`enable_thinking`: a thought of 1 to 40 tokens", 0.99),
    Group("no_thought", "No thought where nobody turned it on", 0.99),
    Group("letter", "Typed question on one fact: its value by a letter (chance: 25%)", 0.90),
    Group("yes_no", "Typed question on one fact: whether it was said (chance: 50%)", 0.90),
    Group("digit", "Typed question on one fact: a digit (chance: 10%)", 0.90),
)


def chats(count: int) -> list[Check]:
    """`count` held-out prompts of each kind; all questions about mlx_parallm that fit in it."""
    rng = random.Random("held out")
    result = [_sum(rng) for _ in range(count)]
    result += [_recall(rng, "recall16", 16) for _ in range(count)]
    result += [_recall(rng, "recall48", 48) for _ in range(count)]
    result += [_tool(rng, fits=True) for _ in range(count)]
    result += [_tool(rng, fits=False) for _ in range(count)]
    house = list(_house())
    return result + rng.sample(house, min(count, len(house)))


def tasks(seed: str, count: int) -> list[Check]:
    """`count` held-out prompts, recall of one of 16 facts and tool calls in turn."""
    rng = random.Random(f"tasks {seed}")
    kinds = (partial(_recall, rng, "recall16", 16), partial(_tool, rng, fits=True))
    return [kinds[place % 2]() for place in range(count)]


def stories(count: int) -> list[list[Message]]:
    """Prompts for stories, to be looked at."""
    rng = random.Random("stories")
    return [story(rng).messages[:1] for _ in range(count)]


def parse_calls(content: str) -> tuple[str, list[tuple[str, Any]]]:
    """Hermes calls in a text: (text without them, calls). Broken JSON stays in the text."""
    calls: list[tuple[str, Any]] = []
    pattern = f"{re.escape(TOOL_CALL_START)}(.*?){re.escape(TOOL_CALL_END)}"
    for found in re.findall(pattern, content, re.DOTALL):
        try:
            call = json.loads(found)
            calls.append((call["name"], call["arguments"]))
        except (ValueError, KeyError, TypeError):
            return content, calls
    return re.sub(pattern, "", content, flags=re.DOTALL).strip(), calls


def check_of(group: str, sample: Sample, judge: Callable[[Answer], bool], **options: Any) -> Check:
    """A check of a sample's first answer; options are further fields of the request."""
    end = next(i for i, m in enumerate(sample.messages) if m["role"] == "assistant")
    return Check(group, sample.messages[:end], sample.tools, judge, options)


def is_call_of(sample: Sample) -> Callable[[Answer], bool]:
    """Judges whether an answer makes the sample's call, and nothing else."""
    function = sample.messages[1]["tool_calls"][0]["function"]
    expected = [(function["name"], function["arguments"])]
    return lambda answer: answer.calls == expected


def is_sum_of(sample: Sample) -> Callable[[Answer], bool]:
    """Judges whether an answer comes to the sample's result."""
    expected = _last_number(sample.messages[1]["content"])
    return lambda answer: _last_number(answer.content) == expected


def _sum(rng: random.Random) -> Check:
    sample = draw(lambda rng: sums(rng, digits=2), rng, held_out=True)
    return check_of("sums", sample, is_sum_of(sample))


def _last_number(text: str) -> str | None:
    """The number after the last equals sign."""
    found = re.findall(r"= (-?\d+)\b", text)
    return found[-1] if found else None


def _recall(rng: random.Random, group: str, facts: int) -> Check:
    sample = draw(lambda rng: recall(rng, facts), rng, held_out=True)
    expected = sample.messages[1]["content"]
    return check_of(group, sample, lambda answer: answer.content.strip() == expected)


def _tool(rng: random.Random, *, fits: bool) -> Check:
    def generator(rng: random.Random) -> Sample:
        while True:
            sample = tool_use(rng, offered=3)
            if bool(sample.messages[1].get("tool_calls")) is fits:
                return sample

    sample = draw(generator, rng, held_out=True)
    if not fits:
        return check_of("no_tool", sample, lambda answer: not answer.calls and bool(answer.content))
    return check_of("tool", sample, is_call_of(sample))


def _house() -> Iterator[Check]:
    for family in FAMILIES:
        for question in family.held_out:
            messages = [{"role": "user", "content": question}]
            yield Check("house", messages, [], partial(_has_all, family.must))


def _has_all(parts: Sequence[str], answer: Answer) -> bool:
    return all(part in answer.content for part in parts)
