"""A question as every API's format asks it, and how it is put to the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

Read = Literal["label", "sequence"]
Kind = Literal["yes_no", "choice", "score"]

MAX_OPTIONS = 255


@dataclass(frozen=True, slots=True)
class Option:
    """One allowed answer.

    Attributes:
        text: what the model is shown of it, or, with read "sequence", what it would write.
        description: more about it.
    """

    text: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        param: its path in the request, for errors.
        options: a question of kind "yes_no" has yes and no, in this order.
        read: "label" gives each option a short label, and reads the label's probability;
            "sequence" reads that of the option's own text.
    """

    param: str
    kind: Kind
    instructions: str
    options: tuple[Option, ...]
    read: Read = "label"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model would write for each option; none is the beginning of another."""
        count = len(self.options)
        if self.read == "sequence":
            return tuple(option.text for option in self.options)
        if self.kind == "yes_no":
            return ("yes", "no")
        if self.kind == "score":
            return tuple(str(place) for place in range(count))
        if count <= len(ascii_uppercase):
            return tuple(ascii_uppercase[:count])
        # Equally long, so that each is a number of its own.
        width = len(str(count))
        return tuple(f"{place:0{width}}" for place in range(1, count + 1))

    @property
    def text(self) -> str:
        """The question without the input that it is about."""
        if self.read == "sequence":
            # Options without a description are not shown: who asks may write them where they
            # like, and the reply's likelihood is that of a free answer.
            lines = [f"- {_described(o.text, o)}" for o in self.options if o.description]
            return _joined(self.instructions, lines)
        if self.kind == "yes_no":
            pairs = zip(self.labels, self.options, strict=True)
            lines = [f"{label}: {o.description}" for label, o in pairs if o.description]
            return _joined(self.instructions, lines, "Answer yes or no.")
        pairs = zip(self.labels, self.options, strict=True)
        lines = [f"{label}: {_described(option.text, option)}" for label, option in pairs]
        what = "letter" if self.labels[0] == "A" else "number"
        return _joined(self.instructions, lines, f"Answer with the {what} of one of these only.")


def about(state: str, question: Question, instructions: str = "") -> str:
    """The whole message. Its beginning is the same for all questions about one input.

    Args:
        state: the input.
        instructions: for all questions.
    """
    return "\n\n".join(part for part in (instructions, state, question.text) if part)


def as_text(value: Any) -> str:
    """A text as it is, any other JSON as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _described(text: str, option: Option) -> str:
    return f"{text} - {option.description}" if option.description else text


def _joined(instructions: str, lines: Sequence[str], *ending: str) -> str:
    return "\n".join([instructions, *lines, *ending])
