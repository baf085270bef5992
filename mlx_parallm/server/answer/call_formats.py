"""How the models that mlx-lm has parsers for write calls.

The parsers (`mlx_lm.tool_parsers`) read finished calls. The forms here say where in an unfinished
call the name, the arguments and their values are, so that they can be given on as they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ONE_LINE = "\n"
BLANKS = " \t\r\n\f\v"


@dataclass(frozen=True, slots=True)
class JsonForm:
    """Arguments that are a JSON object behind a head.

    head: what stands before the object, closing signs of an earlier call included. Groups:
        `name`, or `quoted` for one in JSON's quotes, and perhaps `id`.
    """

    head: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class TagForm:
    """Arguments that are written one by one between tags.

    Attributes:
        head: up to the arguments, with the group `name`.
        opening: before a value, with the group `key`.
        closing: behind a value.
        end: behind the arguments; None where the call lasts as long as its markers.
        strips: the blank signs around a value that are not its own: ONE_LINE or all BLANKS.
    """

    head: re.Pattern[str]
    opening: re.Pattern[str]
    closing: str
    end: str | None
    strips: str


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How one model writes calls.

    Attributes:
        name: of mlx-lm's parser.
        start, end: markers around one or several calls; an empty `end` is that of the answer.
        parse: mlx-lm's parser: (text between the markers, tools) -> call, or list of calls.
        form: for arguments that are given on as they come; None where calls are read as a whole.
        tokens: texts of special tokens within calls.
    """

    name: str
    start: str
    end: str
    parse: Callable[[str, Any], Any]
    form: JsonForm | TagForm | None = None
    tokens: tuple[str, ...] = ()

    @property
    def guesses(self) -> bool:
        """Whether the parser makes calls of texts that are none."""
        return self.name == "glm47"


_OBJECT = r"(?=\{)"
_JSON_HEAD = (
    r'[\s\[,}]*\{\s*"name"\s*:\s*"(?P<quoted>(?:[^"\\]|\\.)+)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*' + _OBJECT
)
_MISTRAL_HEAD = (
    r"\s*(?:\[TOOL_CALLS\]\s*)?(?P<name>[\w.-]+)\s*"
    r"(?:\[CALL_ID\]\s*(?P<id>[\w-]+)\s*)?\[ARGS\]\s*" + _OBJECT
)
_KIMI_HEAD = (
    r"(?:\s*<\|tool_call_end\|>)?\s*<\|tool_call_begin\|>\s*"
    r"(?P<id>(?:functions\.)?(?P<name>[^<>\s]{1,256}?):\d+)"
    r"\s*<\|tool_call_argument_begin\|>\s*" + _OBJECT
)


def _glm(prefix: str) -> TagForm:
    key, value = f"{prefix}arg_key", f"{prefix}arg_value"
    return TagForm(
        head=re.compile(rf"\s*(?P<name>[^\s<>{{]+)\s*(?=<{key}>)"),
        opening=re.compile(rf"<{key}>(?P<key>.*?)</{key}>(?:\\n|\s)*<{value}>", re.DOTALL),
        closing=f"</{value}>",
        end=None,
        strips=BLANKS,
    )


FORMS: dict[str, JsonForm | TagForm] = {
    "json_tools": JsonForm(re.compile(_JSON_HEAD)),
    "mistral": JsonForm(re.compile(f"(?:{_JSON_HEAD}|{_MISTRAL_HEAD})")),
    "kimi_k2": JsonForm(re.compile(_KIMI_HEAD)),
    "glm47": _glm(""),
    "longcat": _glm("longcat_"),
    "qwen3_coder": TagForm(
        head=re.compile(r"\s*<function=\s*(?P<name>[^\s<>]+)>"),
        opening=re.compile(r"<parameter=\s*(?P<key>[^\s<>]+)>"),
        closing="</parameter>",
        end="</function>",
        strips=ONE_LINE,
    ),
    "minimax_m2": TagForm(
        head=re.compile(r"""\s*<invoke name=\s*["']?(?P<name>[^"'<>\s]+)["']?\s*>"""),
        opening=re.compile(r"""<parameter name=\s*["']?(?P<key>[^"'<>]+?)["']?\s*>"""),
        closing="</parameter>",
        end="</invoke>",
        strips=BLANKS,
    ),
}

# Special tokens that stand within calls.
TOKENS: dict[str, tuple[str, ...]] = {
    "function_gemma": ("<escape>",),
    "gemma4": ('<|"|>',),
    "mistral": ("[ARGS]", "[CALL_ID]"),
    "kimi_k2": ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "kimi_k3": ("<|open|>", "<|close|>", "<|sep|>"),
    "glm47": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "longcat": (
        "<longcat_arg_key>",
        "</longcat_arg_key>",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
    ),
}


def call_format_of(tokenizer: Any) -> CallFormat | None:
    """The format of a tokenizer's parser; None where it has none.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper.
    """
    if not tokenizer.has_tool_calling:
        return None
    # laguna's parser is glm47's own function.
    name = tokenizer.tool_parser.__module__.rpartition(".")[2]
    return CallFormat(
        name,
        tokenizer.tool_call_start,
        tokenizer.tool_call_end or "",
        tokenizer.tool_parser,
        FORMS.get(name),
        TOKENS.get(name, ()),
    )
