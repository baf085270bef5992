"""One training or evaluation example, and the rule that keeps the two apart."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
PADDING = "<|endoftext|>"
TOOL_CALL_START = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
# Not <think>: for a vocabulary with that, mlx-lm turns enable_thinking on where nobody asks.
THINK_START = "[THINK]"
THINK_END = "[/THINK]"

# (characters, weight of the tokens that begin in them) from the beginning of a text.
Spans = list[tuple[int, float]]
# How a piece of text is predicted: not at all, by its first token mostly, or as the spans say.
Predicted = bool | Spans

# Weight of a token that decides what kind of answer it is.
DECISION = 4.0

# One prompt in this many belongs to the evaluation and is never trained on.
HELD_OUT_SHARE = 8


@dataclass(slots=True)
class Sample:
    """A conversation, or raw text when `text` is set.

    key: what makes the prompt itself, apart from its wording ("47 + 38", not "What is ...").
    `is_held_out(key)` decides on which side of the split the sample lies.
    """

    key: str
    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    text: str | None = None


Generator = Callable[[random.Random], Sample]


def is_held_out(key: str) -> bool:
    """Whether a key belongs to the evaluation: a fixed function of its text, so that no prompt
    can be on both sides, whatever the seed."""
    digest = hashlib.sha256(key.encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


def draw(generator: Generator, rng: random.Random, *, held_out: bool) -> Sample:
    """Draw until the sample lies on the wanted side of the split."""
    while True:
        sample = generator(rng)
        if is_held_out(sample.key) is held_out:
            return sample


def turn(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def spoken(*parts: tuple[str, float], **fields: Any) -> Message:
    """An assistant message of (text, weight in the loss) parts; weight 0 is not to be predicted.

    What follows the parts (calls, the end of the turn) has weight 1.

    Args:
        fields: of the message, such as `tool_calls`; or the `thought` before it, which only the
            last message can have: templates do not repeat what was thought.
    """
    content = "".join(text for text, _ in parts)
    spans = [(len(text), weight) for text, weight in parts]
    return {"role": "assistant", "content": content, "spans": spans, **fields}


def segments(sample: Sample) -> list[tuple[str, Predicted]]:
    """The text of a sample as the chat template writes it, in pieces; not False where the model
    has to predict the piece. Every piece starts at a token border (after a special token or a
    newline before a word), so that pieces may be encoded one by one. What an assistant message
    says depends on its first token, and on that at the character `decision`, where a piece begins
    too; a message with `spans` says itself what its parts weigh.
    """
    if sample.text is not None:
        return [(sample.text + TURN_END, True)]
    pieces: list[tuple[str, Predicted]] = []
    messages = sample.messages
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    head = system_text(system, sample.tools)
    if head:
        pieces.append((f"{TURN_START}system\n{head}{TURN_END}\n", False))
    for message in messages:
        if message["role"] == "system":
            continue
        if message["role"] == "assistant":
            pieces += _spoken_pieces(message)
        else:
            content = message["content"]
            pieces.append((f"{TURN_START}{message['role']}\n{content}{TURN_END}\n", False))
    return pieces


def _spoken_pieces(message: Message) -> list[tuple[str, Predicted]]:
    """Those of an assistant message. A thought has been begun by the prompt."""
    start = f"{TURN_START}assistant\n"
    text = assistant_text(message) + TURN_END
    if "thought" in message:
        thought = message["thought"] + THINK_END
        return [(start + THINK_START, False), (thought, True), (text, _spans(message))]
    if "spans" in message:
        return [(start, False), (text, _spans(message)), ("\n", False)]
    decision = message.get("decision", 0)
    parts = [part for part in (text[:decision], text[decision:]) if part]
    return [(start, False), *((part, True) for part in parts), ("\n", False)]


def _spans(message: Message) -> Predicted:
    spans: Spans | None = message.get("spans")
    return True if spans is None else spans


def system_text(system: str, tools: list[Tool]) -> str:
    """The system turn; the same text as CHAT_TEMPLATE makes (a test compares them)."""
    if not tools:
        return system
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    head = f"{system}\n\n" if system else ""
    return f"{head}{TOOLS_BEFORE}\n<tools>\n{lines}\n</tools>\n{TOOLS_AFTER}"


def assistant_text(message: Message) -> str:
    """Content and tool calls of an assistant message, Hermes style."""
    calls = [
        f"{TOOL_CALL_START}\n{json.dumps(call['function'], ensure_ascii=False)}\n{TOOL_CALL_END}"
        for call in message.get("tool_calls", [])
    ]
    content = message.get("content") or ""
    return "\n".join([content, *calls] if content else calls)


TOOLS_BEFORE = "You can call these tools:"
TOOLS_AFTER = (
    "If one of them fits, answer with:\n"
    f'{TOOL_CALL_START}\n{{"name": "the name", "arguments": {{"key": "value"}}}}\n{TOOL_CALL_END}'
)

# `tool_call.name` in the template is also how mlx-lm finds out which tool parser fits.
CHAT_TEMPLATE = (
    "{%- if messages[0].role == 'system' %}"
    "{%- set system = messages[0].content %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{%- if tools or system %}"
    "{{- '<|im_start|>system\\n' + system }}"
    "{%- if tools %}"
    "{%- if system %}{{- '\\n\\n' }}{%- endif %}"
    "{{- " + json.dumps(TOOLS_BEFORE + "\n<tools>\n") + " }}"
    "{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}"
    "{{- " + json.dumps("</tools>\n" + TOOLS_AFTER) + " }}"
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- set tool_call = call.function if call.function is defined else call %}"
    "{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}"
    "{{- '<tool_call>\\n{\"name\": ' + (tool_call.name | tojson) + ', \"arguments\": ' }}"
    "{%- if tool_call.arguments is string %}{{- tool_call.arguments }}"
    "{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}"
    "{{- '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- elif message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking %}"
    "{{- " + json.dumps(THINK_START) + " }}"
    "{%- endif %}{%- endif %}"
)
