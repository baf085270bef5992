"""Labels and options as tokens at the place where the reply begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.decisions.option_tree import OptionTree, Prefix
from mlx_parallm.server.decisions.question import Question
from mlx_parallm.server.input.prompts import Prompts

# How much shown text an error repeats.
_MAX_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a prompt, behind which replies begin.

    Attributes:
        text: a short prompt that ends as all others do.
        ids: its tokens.
        spaced: a reply begins with a space there, as behind "Answer:".
    """

    text: str
    ids: tuple[int, ...]
    spaced: bool


class Labels:
    """Finds the tokens of what a reply may be.

    Args:
        end: the token that ends a reply; it is part of options that are read as sequences.
    """

    def __init__(self, prompts: Prompts, place: Place, end: int | None) -> None:
        self._tokenizer: Any = prompts.tokenizer
        self._place = place
        self._end = end
        self._known: dict[tuple[str, ...], list[Prefix] | None] = {}

    def tree(self, question: Question) -> OptionTree:
        """The question's options as tokens.

        Raises:
            InvalidRequestError: a label cannot be told from what stands before it, or from
                another one.
        """
        if question.read == "sequence":
            ending = () if self._end is None else (self._end,)
            first = " " if self._place.spaced else ""
            options = self._behind([first + text for text in question.labels])
            found = None if options is None else [(*tokens, *ending) for tokens in options]
        else:
            found = self._shortest(question.labels)
        try:
            if found is None:
                raise ValueError("an option runs together with the end of the prompt")
            return OptionTree(found)
        except ValueError as error:
            shown = ", ".join(question.labels)[:_MAX_SHOWN]
            raise InvalidRequestError(
                f"The options ({shown}) cannot be read from this model: {error}.",
                param=question.param,
            ) from None

    def _shortest(self, labels: tuple[str, ...]) -> list[Prefix] | None:
        """The labels as they are one token each; where none of their forms is, the first form."""
        if labels not in self._known:
            spaces = (" ", "") if self._place.spaced else ("", " ")
            forms = [[space + label for label in labels] for space in spaces]
            if not labels[0][0].isdigit():
                forms += [[space + label.capitalize() for label in labels] for space in spaces]
            found = [tokens for form in forms if (tokens := self._behind(form)) is not None]
            short = [tokens for tokens in found if all(len(one) == 1 for one in tokens)]
            self._known[labels] = next(iter([*short, *found]), None)
        return self._known[labels]

    def _behind(self, texts: Sequence[str]) -> list[Prefix] | None:
        """The tokens of each text behind the place; None where one changes those before it."""
        before = self._place.ids
        found = []
        for text in texts:
            ids = tuple(self._tokenizer.encode(self._place.text + text, add_special_tokens=False))
            if ids[: len(before)] != before or len(ids) == len(before):
                return None
            found.append(ids[len(before) :])
        return found
