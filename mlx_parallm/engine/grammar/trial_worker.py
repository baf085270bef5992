"""The program of a trial's process: compiles grammars, one a line, each in a child of its own.

It reads a vocabulary, {"size": n, "special": [[id, name], ...]}, and then sources; it answers
each with its error, "" for none, null where it takes too long: the kernel ends the child where
a grammar takes more CPU time than the argument says. A fork of this small process takes a
millisecond; a new one would take the server's time, and hold its threads up. It imports nothing
of the package, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# What takes more than some tens of milliseconds ends with an error; see LLParserLimits.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    verbose_errors=False,
)


class _Bytes:
    """A tokenizer whose words are bytes, behind the model's special tokens.

    Args:
        size: of the model's vocabulary.
        special: its special tokens, id and name.
    """

    bos_token_id = None

    def __init__(self, size: int, special: list[tuple[int, str]]) -> None:
        self.tokens = [b"\xff%d" % token for token in range(size)]
        for token, name in special:
            self.tokens[token] = name.encode()
        self.special_token_ids = [token for token, _ in special]
        self.tokens += [bytes([byte]) for byte in range(256)]
        self.tokens.append(b"<end>")
        self.eos_token_id = len(self.tokens) - 1
        self._first = size

    def __call__(self, text: str | bytes) -> list[int]:
        return [self._first + byte for byte in (text.encode() if isinstance(text, str) else text)]


def compiled(words: LLTokenizer, source: str) -> LLMatcher:
    """A matcher that has made its first mask, or has an error."""
    matcher = LLMatcher(words, source, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def _answer(words: LLTokenizer, source: str, seconds: float) -> str:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    matcher = compiled(words, source)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return str(matcher.get_error())


def _say(answer: str | None) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201


def _try(words: LLTokenizer, source: str, seconds: float) -> None:
    """Compile in a child, which answers if it gets so far."""
    child = os.fork()
    if child == 0:
        _say(_answer(words, source, seconds))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        _say(None)


def main() -> None:
    """Read and answer lines until there are no more."""
    vocabulary: dict[str, Any] = json.loads(sys.stdin.readline())
    words = LLTokenizer(TokenizerWrapper(_Bytes(**vocabulary)))
    for line in sys.stdin:
        _try(words, json.loads(line), float(sys.argv[1]))


if __name__ == "__main__":
    main()
