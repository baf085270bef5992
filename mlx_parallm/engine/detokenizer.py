"""From tokens to text, a step at a time, never decoding all of it again.

Byte-level tokens are held until they make whole characters, and text that may
be the start of a stop string until it is known not to be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams, TokenLogprob

REPLACEMENT = "\ufffd"
_CONTEXT = 6  # prompt tokens that decide how the first new one is spaced
_PENDING = 16  # tokens that may wait for a whole character
_LONGEST = 3  # tokens that a character which is not whole may consist of


@dataclass(slots=True)
class TextDelta:
    """What one engine output adds to a text.

    Attributes:
        text: safe to show; what may begin a stop string is held back.
        token_ids: the new tokens, also those whose text is held back.
        token_texts: each token's own text, where logprobs were asked for.
        stop_reason: the stop string or stop token id that ended it; None for EOS.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    token_texts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class TextStream:
    """The text of one sequence.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper or a Hugging Face tokenizer.
        params: the sequence's own.
        stop: strings that end the text.
        include_stop: keep the stop string or stop token in the text.
        skip_special_tokens: leave special tokens out of the text.
        prompt: the sequence's prompt; its end decides the first token's spacing.
        shown: texts of special tokens that are not left out, by id.
    """

    def __init__(
        self,
        tokenizer: Any,
        params: SamplingParams,
        *,
        stop: Items[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        prompt: Items[int] = (),
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown if skip_special_tokens and shown else {}
        self._params = params
        self._stop = tuple(s for s in stop if s)
        self._include_stop = include_stop
        self._decoder = _Decoder(tokenizer, prompt, skip_special_tokens)
        self._held = ""
        self._parts: list[str] = []
        self.finished = False

    @property
    def text(self) -> str:
        """All text so far that is safe to show."""
        return "".join(self._parts)

    def push(self, output: Output) -> TextDelta:
        """Add an engine output.

        A stop string found gives finish_reason STOP; the caller then aborts the
        sequence in the engine and ignores what still comes.
        """
        delta = TextDelta(
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            finish_reason=output.finish_reason,
        )
        if output.logprobs is not None:
            delta.token_texts = [token_text(self._tokenizer, i) for i in output.token_ids]
        for place, token in enumerate(output.token_ids):
            if self._is_end(token, place, output):
                if token in self._params.stop_token_ids:
                    delta.stop_reason = token
                if not self._include_stop:
                    continue
            literal = self._shown.get(token)
            if literal is None:
                self._held += self._decoder.step(token)
            else:
                self._held += self._decoder.literal(token, literal)
            if self._stop and self._cut(delta):
                self._forget_rest(delta, place + 1)
                break
        self._release(delta)
        return delta

    def _is_end(self, token: int, place: int, output: Output) -> bool:
        return (
            output.finish_reason is FinishReason.STOP
            and place == len(output.token_ids) - 1
            and token in self._params.end_token_ids
        )

    def _cut(self, delta: TextDelta) -> bool:
        """Look for the first stop string; what follows it is dropped."""
        found = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if not found:
            return False
        at, stop = min(found, key=lambda pair: (pair[0], -len(pair[1])))
        self._held = self._held[: at + len(stop)] if self._include_stop else self._held[:at]
        delta.finish_reason, delta.stop_reason = FinishReason.STOP, stop
        self.finished = True
        return True

    @staticmethod
    def _forget_rest(delta: TextDelta, count: int) -> None:
        delta.token_ids = delta.token_ids[:count]
        delta.token_texts = delta.token_texts[:count]
        if delta.logprobs is not None:
            delta.logprobs = delta.logprobs[:count]

    def _release(self, delta: TextDelta) -> None:
        """Show what cannot be the start of a stop string any more."""
        if delta.finish_reason is not None:
            if not self.finished:
                self._held += self._decoder.flush()
                if self._stop:
                    self._cut(delta)
            keep = 0
            self.finished = True
        else:
            keep = _possible_start(self._held, self._stop)
        delta.text = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        if delta.text:
            self._parts.append(delta.text)


def _possible_start(text: str, stops: Items[str]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


class _Decoder:
    """Text of tokens that come one by one, decoded in a window of a few of them.

    The window is what was read last, which decides how the next token is spaced,
    and behind it what has no whole character yet.
    """

    def __init__(self, tokenizer: Any, context: Items[int], skip: bool) -> None:
        inner = getattr(tokenizer, "_tokenizer", tokenizer)
        self._tokenizer = getattr(inner, "backend_tokenizer", None) or inner
        self._skip = skip
        self._window = list(context[-_CONTEXT:])
        self._read = len(self._window)
        self._before = self._decode(self._window)

    def step(self, token: int) -> str:
        """New text; none while the last character is not whole."""
        self._window.append(token)
        after = self._decode(self._window)
        if len(after) <= len(self._before) or after.endswith(REPLACEMENT):
            return self._skip_over() if len(self._window) - self._read > _PENDING else ""
        return self._advance(len(self._window), after)

    def literal(self, token: int, text: str) -> str:
        """New text: what is held, and this token as it is written."""
        held = self.flush()
        self._window = [*self._window, token][-_CONTEXT:]
        self._read = len(self._window)
        self._before = self._decode(self._window)
        return held + text

    def flush(self) -> str:
        """What is held because its last character is not whole."""
        return self._decode(self._window)[len(self._before) :]

    def _skip_over(self) -> str:
        """Nothing whole for long: broken bytes or tokens without text; not worth waiting for."""
        stop = len(self._window) - _LONGEST
        after = self._decode(self._window[:stop])
        if len(after) > len(self._before):
            return self._advance(stop, after)
        del self._window[self._read : stop]
        return ""

    def _advance(self, stop: int, after: str) -> str:
        text = after[len(self._before) :]
        self._window = self._window[self._read :]
        self._read = stop - self._read
        self._before = self._decode(self._window[: self._read])
        return text

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip))


# One token alone


class _TokenBytes:
    """The bytes of every token of a tokenizer, made on first use."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = getattr(tokenizer, "_tokenizer", tokenizer)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        self._byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
        self._special = set(getattr(self._tokenizer, "all_special_ids", ()))
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        if token_id not in self._known:
            self._known[token_id] = self._make(token_id)
        return self._known[token_id]

    def _make(self, token_id: int) -> bytes:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if isinstance(token, bytes):
            return token
        if token_id in self._special:
            return str(token).encode()
        if self._byte_level and all(c in _BYTES for c in token):
            return bytes(_BYTES[c] for c in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("\u2581", " ").encode()


def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    return table | {chr(256 + place): b for place, b in enumerate(others)}


_BYTES = _byte_table()
_known: WeakKeyDictionary[Any, _TokenBytes] = WeakKeyDictionary()


def _table(tokenizer: Any) -> _TokenBytes:
    table = _known.get(tokenizer)
    if table is None:
        table = _known[tokenizer] = _TokenBytes(tokenizer)
    return table


def token_bytes(tokenizer: Any, token_id: int) -> list[int]:
    """The UTF-8 bytes of one token; part of a character is possible."""
    return list(_table(tokenizer)[token_id])


def token_text(tokenizer: Any, token_id: int) -> str:
    """One token's text; bytes that are no whole character as "bytes:\\xNN..."."""
    raw = _table(tokenizer)[token_id]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
