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
from dataclasses import dataclass
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
    """content without calls; calls as (name, arguments); finish_reason of the server."""

    content: str
    calls: list[tuple[str, Any]]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """One prompt and the judge of its answer."""

    group: str
    messages: list[Message]
    tools: list[Tool]
    judge: Callable[[Answer], bool]


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


def _check(group: str, sample: Sample, judge: Callable[[Answer], bool]) -> Check:
    end = next(i for i, m in enumerate(sample.messages) if m["role"] == "assistant")
    return Check(group, sample.messages[:end], sample.tools, judge)


def _sum(rng: random.Random) -> Check:
    sample = draw(lambda rng: sums(rng, digits=2), rng, held_out=True)
    expected = _last_number(sample.messages[1]["content"])
    return _check("sums", sample, lambda answer: _last_number(answer.content) == expected)


def _last_number(text: str) -> str | None:
    """The number after the last equals sign."""
    found = re.findall(r"= (-?\d+)\b", text)
    return found[-1] if found else None


def _recall(rng: random.Random, group: str, facts: int) -> Check:
    sample = draw(lambda rng: recall(rng, facts), rng, held_out=True)
    expected = sample.messages[1]["content"]
    return _check(group, sample, lambda answer: answer.content.strip() == expected)


def _tool(rng: random.Random, *, fits: bool) -> Check:
    def generator(rng: random.Random) -> Sample:
        while True:
            sample = tool_use(rng, offered=3)
            if bool(sample.messages[1].get("tool_calls")) is fits:
                return sample

    sample = draw(generator, rng, held_out=True)
    if not fits:
        return _check("no_tool", sample, lambda answer: not answer.calls and bool(answer.content))
    function = sample.messages[1]["tool_calls"][0]["function"]
    expected = [(function["name"], function["arguments"])]
    return _check("tool", sample, lambda answer: answer.calls == expected)


def _house() -> Iterator[Check]:
    for family in FAMILIES:
        for question in family.held_out:
            messages = [{"role": "user", "content": question}]
            yield Check("house", messages, [], partial(_has_all, family.must))


def _has_all(parts: Sequence[str], answer: Answer) -> bool:
    return all(part in answer.content for part in parts)
