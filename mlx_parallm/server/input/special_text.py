"""The text of a special token in what users say stays text: only the chat template writes tokens.

The template is rendered with masks in the place of such texts. Then its own special tokens are
written as stand-ins, the masks are taken off, and all of it is tokenised as one text by a copy of
the tokenizer that knows the stand-ins as tokens and special tokens as nothing but text.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

from mlx_parallm.errors import InvalidRequestError, UnsupportedError


class SpecialText:
    """The special tokens of one tokenizer, as they are written.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper, or one of transformers'.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = getattr(tokenizer, "_tokenizer", tokenizer)
        added: dict[int, AddedToken] = getattr(self._tokenizer, "added_tokens_decoder", {})
        self._tokens = {t.content: t for t in added.values() if t.special and t.content}
        self._ids = {token.content: number for number, token in added.items()}
        self._pattern = _any_of(self._tokens.values())
        self._starts = {text[:n] for text in self._tokens for n in range(1, len(text))}
        self._ends = {text[n:] for text in self._tokens for n in range(1, len(text))}
        self._longest = max(map(len, self._tokens), default=0)
        # Nobody can guess it. Letters and digits survive filters such as tojson.
        self._secret = f"m{secrets.token_hex(8)}x"
        self._mask = re.compile(self._secret + "([0-9a-f]+)z")

    def may_be_in(self, value: Any) -> bool:
        """Whether a string in it holds a special token's text, or could be part of one.

        Args:
            value: strings, in any depth of dicts and lists.
        """
        return bool(self._tokens) and any(
            self._pattern.search(text) or any(self._edges(text)) for text in _strings(value)
        )

    def masked(self, value: Any) -> Any:
        """The same value with masks in the place of these texts."""
        return _changed(value, self._masked)

    def ids(
        self,
        text: str,
        masked: str,
        add_special_tokens: bool,
        expand: Callable[[str], str] = str,
    ) -> list[int] | None:
        """Token ids of a rendered conversation in which no special token is the client's.

        Args:
            text: what the template made; masked: what it made of a masked conversation.
            expand: writes more of the template's own tokens, in what is masked.

        Returns:
            None where no special token is the client's already.

        Raises:
            InvalidRequestError: the template makes something else of masks.
            UnsupportedError: the tokenizer is not a fast one.
        """
        if self._count(masked) == self._count(text):
            return None
        if self._unmasked(masked) != text:
            raise InvalidRequestError(
                "The chat template changes a text of the messages that holds that of a special "
                "token, which cannot be told from the template's own then.",
                param="messages",
            )
        standing = self._pattern.sub(lambda found: self._stand_in(found.group()), expand(masked))
        ids = self._copy.encode(self._unmasked(standing), add_special_tokens=add_special_tokens)
        return [self._special_ids.get(number, number) for number in ids]

    def _count(self, text: str) -> int:
        return sum(1 for _ in self._pattern.finditer(text))

    def _unmasked(self, text: str) -> str:
        return self._mask.sub(lambda found: bytes.fromhex(found.group(1)).decode(), text)

    def _masked(self, text: str) -> str:
        start, end = self._edges(text)
        middle = text[len(start) : len(text) - len(end)]
        masked = self._pattern.sub(lambda found: self._mask_of(found.group()), middle)
        return self._mask_of(start) + masked + self._mask_of(end)

    def _mask_of(self, text: str) -> str:
        return f"{self._secret}{text.encode().hex()}z" if text else ""

    def _edges(self, text: str) -> tuple[str, str]:
        """How the text starts and ends where its neighbours could make a token of that."""
        inside, size = text.strip(), self._longest - 1
        first = next((inside[:n] for n in range(size, 0, -1) if inside[:n] in self._ends), "")
        rest = inside[len(first) :]
        last = next((rest[-n:] for n in range(size, 0, -1) if rest[-n:] in self._starts), "")
        before = text[: len(text) - len(text.lstrip()) + len(first)] if first else ""
        after = text[len(text.rstrip()) - len(last) :] if last else ""
        return before, after

    def _stand_in(self, text: str) -> str:
        return f"{self._secret[::-1]}{text.encode().hex()}z"

    @cached_property
    def _copy(self) -> Any:
        """The tokenizer that reads stand-ins as tokens and special tokens as text."""
        if getattr(self._tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedError(
                "A message holds the text of a special token, which this model's tokenizer cannot "
                "read as text; see --allow-special-tokens-in-content.",
                param="messages",
            )
        made = copy.deepcopy(self._tokenizer)
        made.split_special_tokens = True
        made.add_tokens([self._as_stand_in(token) for token in self._tokens.values()])
        return made

    def _as_stand_in(self, token: AddedToken) -> AddedToken:
        name = self._stand_in(token.content)
        return AddedToken(name, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)

    @cached_property
    def _special_ids(self) -> dict[int, int]:
        """Stand-in's id -> special token's id."""
        known = self._copy.get_vocab()
        return {known[self._stand_in(text)]: self._ids[text] for text in self._tokens}


def _any_of(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches what the tokenizer would take for one of these, the longest first."""

    def one(token: AddedToken) -> str:
        text = re.escape(token.content)
        return rf"(?<!\w){text}(?!\w)" if token.single_word else text

    return re.compile("|".join(map(one, sorted(tokens, key=lambda token: -len(token.content)))))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_changed(key, change): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change) for inner in value]
    return value
