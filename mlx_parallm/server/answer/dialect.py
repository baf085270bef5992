"""The Dialect: how one model writes thinking and calls, as its tokenizer shows it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.server.answer import harmony
from mlx_parallm.server.answer.call_formats import CallFormat, call_format_of
from mlx_parallm.server.answer.call_grammar import Wanted, call_grammar
from mlx_parallm.server.answer.events import Reader
from mlx_parallm.server.answer.harmony import HarmonyReader
from mlx_parallm.server.answer.reader import AnswerReader
from mlx_parallm.server.answer.thought_counter import (
    HarmonyThoughts,
    MarkedThoughts,
    ThoughtCounter,
)

logger = logging.getLogger(__name__)

_SOMETHING = {"role": "user", "content": "x"}
# Markers of thinking that mlx-lm does not know.
_MORE_MARKERS = (("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


@dataclass(frozen=True)
class Thinking:
    """Markers of thinking, as text and as token ids."""

    start: str
    end: str
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def is_open(self, prompt: str, continued: str | None) -> bool:
        """Whether the answer goes on thinking.

        Args:
            prompt: its text.
            continued: the message in it that the answer goes on with; None where it is a new one.
        """
        if continued is not None:
            return continued.rfind(self.start) > continued.rfind(self.end)
        return prompt.rstrip().endswith(self.start)


class Dialect:
    """How one model writes what is not text.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper.

    Attributes:
        thinking: markers; None for a model without them, and for harmony.
        calls: None for a model whose calls cannot be read, and for harmony.
        is_harmony: gpt-oss's channels.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        needed = (harmony.START, harmony.CHANNEL, harmony.MESSAGE, *harmony.ENDS)
        self.is_harmony = all(token in vocabulary for token in needed)
        self.thinking = None if self.is_harmony else _thinking_of(tokenizer, vocabulary)
        self.calls: CallFormat | None = None if self.is_harmony else call_format_of(tokenizer)
        self._vocabulary = vocabulary

    @property
    def thinks(self) -> bool:
        """Whether the model's thinking can be told from its answer."""
        return self.is_harmony or self.thinking is not None

    @cached_property
    def thinks_where_opened(self) -> bool:
        """Whether the chat template opens the thinking that is asked for, so that an answer behind
        any other prompt does not begin to think by itself."""
        if self.thinking is None or not self._tokenizer.has_chat_template:
            return False
        variables = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        try:
            text = self._tokenizer.apply_chat_template([_SOMETHING], **variables)
        except Exception as error:
            logger.info("the chat template failed", exc_info=error)
            return False
        return self.thinking.is_open(str(text), None)

    @property
    def marks_text(self) -> bool:
        """Whether markers may stand in an answer that calls nothing."""
        return self.thinks or bool(self._tokenizer.structural_markers)

    @property
    def has_calls(self) -> bool:
        """Whether the model's calls can be read."""
        return self.is_harmony or self.calls is not None

    @property
    def answer_start_ids(self) -> tuple[int, ...]:
        """Harmony's tokens in front of the answer itself, which is its last message."""
        parts = (harmony.CHANNEL, harmony.ANSWER_CHANNEL, harmony.MESSAGE)
        return tuple(token for part in parts for token in self._ids(part))

    def reader(
        self,
        prompt: str,
        *,
        continued: str | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> Reader:
        """A reader for one answer.

        Args:
            prompt: its text; its end may have begun to think.
            continued: the message in the prompt that the answer goes on with.
            tools: in OpenAI's shape; None leaves calls as text.
        """
        if self.is_harmony:
            return HarmonyReader(harmony.begun_channel(prompt), tools is not None)
        markers = self.thinking
        think = None if markers is None else (markers.start, markers.end)
        opened = markers is not None and markers.is_open(prompt, continued)
        dropped = tuple(self._tokenizer.structural_markers)
        calls = None if tools is None else self.calls
        return AnswerReader(think, opened, calls, tools or [], dropped)

    def thought_counter(self, prompt: str, continued: str | None = None) -> ThoughtCounter | None:
        """A counter for one answer; None for a model that does not think."""
        if self.is_harmony:
            opened = harmony.begun_channel(prompt) == harmony.THINKING_CHANNEL
            return self._harmony_counter(opened)
        markers = self.thinking
        if markers is None:
            return None
        opened = markers.is_open(prompt, continued)
        return MarkedThoughts(markers.start_ids, markers.end_ids, opened)

    def call_grammar(self, wanted: Wanted) -> str:
        """The grammar of an answer with these calls, as call_grammar() makes it.

        Raises:
            UnsupportedError: the model's calls have no grammar here.
            InvalidRequestError: something that they cannot be held to.
        """
        if self.calls is None:
            calls = "calls, messages in a channel," if self.is_harmony else "calls"
            raise UnsupportedError(
                f"This model's {calls} have no grammar here: only tool_choice none and auto are "
                "supported, without strict.",
                param="tool_choice",
            )
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        ids = {token.content: int(number) for number, token in added.items()}
        return call_grammar(self.calls, wanted, ids)

    def shown_tokens(self, with_calls: bool) -> Mapping[int, str]:
        """Special tokens whose text the reader needs, by id.

        Args:
            with_calls: calls are read too.
        """
        return self._call_tokens if with_calls else self._other_tokens

    @cached_property
    def _call_tokens(self) -> Mapping[int, str]:
        if self.calls is None:
            return self._other_tokens
        inside = self._special_in((self.calls.start, self.calls.end, *self.calls.tokens))
        return {**self._other_tokens, **inside}

    @cached_property
    def _other_tokens(self) -> Mapping[int, str]:
        texts = list(harmony.TOKENS) if self.is_harmony else []
        if self.thinking is not None:
            texts += [self.thinking.start, self.thinking.end]
        return self._special_in((*texts, *self._tokenizer.structural_markers))

    def _special_in(self, texts: Iterable[str]) -> dict[int, str]:
        special = set(getattr(self._tokenizer, "all_special_ids", ()))
        ids = {token for text in texts if text for token in self._ids(text)}
        return {token: self._tokenizer.convert_ids_to_tokens(token) for token in ids & special}

    def _harmony_counter(self, opened: bool) -> ThoughtCounter:
        known = self._vocabulary
        return HarmonyThoughts(
            known[harmony.CHANNEL],
            known[harmony.MESSAGE],
            [known[token] for token in (harmony.START, harmony.CHANNEL, *harmony.ENDS)],
            self._ids(harmony.THINKING_CHANNEL),
            opened,
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        if text in self._vocabulary:
            return (self._vocabulary[text],)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def _thinking_of(tokenizer: Any, vocabulary: Mapping[str, int]) -> Thinking | None:
    if tokenizer.has_thinking:
        return Thinking(
            tokenizer.think_start,
            tokenizer.think_end,
            tuple(tokenizer.think_start_tokens),
            tuple(tokenizer.think_end_tokens),
        )
    for start, end in _MORE_MARKERS:
        if start in vocabulary and end in vocabulary:
            return Thinking(start, end, (vocabulary[start],), (vocabulary[end],))
    return None
