"""The Compiler: grammars of requests, compiled beside the engine and tried before admission."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from mlx_parallm.engine.grammar.constraint import Constraint
from mlx_parallm.engine.grammar.gate import Gate
from mlx_parallm.engine.grammar.grammar import Grammar
from mlx_parallm.engine.grammar.limits import largest_keyword
from mlx_parallm.engine.grammar.trial import Trial
from mlx_parallm.engine.grammar.trial_worker import compiled
from mlx_parallm.errors import InvalidRequestError, UnsupportedError

log = logging.getLogger(__name__)

# CPU time to compile a grammar and to make its first mask. Later masks take less.
MAX_SECONDS = 0.15
_KEPT = 256  # compiled grammars, and reasons why others were refused
_WORKERS = 2


class Compiler:
    """Makes constraints for one model.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper, or a fast tokenizer of Hugging Face.
        vocab_size: columns of the model's logits.
        end_token_ids: every token that ends an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: Iterable[int]) -> None:
        self._kept: OrderedDict[Grammar, LLMatcher | str] = OrderedDict()
        self._running: dict[Grammar, Future[LLMatcher | str]] = {}
        self._lock = threading.Lock()
        self._own = threading.local()
        self._trials: list[Trial] = []
        self._special = _special(tokenizer, vocab_size)
        self._vocab_size = vocab_size
        ends = sorted(token for token in end_token_ids if token < vocab_size)
        self._pool = ThreadPoolExecutor(
            _WORKERS, thread_name_prefix="grammar", initializer=self._start_worker
        )
        self._words = self._pool.submit(_words, tokenizer, vocab_size, ends)

    def constraint(
        self, grammar: Grammar | None, gate: Gate | None = None, *, param: str
    ) -> Future[Constraint]:
        """A new sequence's constraint; there at once for a grammar that was seen before.

        Args:
            grammar: None allows everything behind the gate.
            gate: free text that may come before.
            param: the request's field, for errors.

        Returns:
            raises InvalidRequestError where the grammar is wrong, cannot be enforced or is
            too expensive, and UnsupportedError where the tokenizer does not serve.
        """
        made: Future[Constraint] = Future()
        if grammar is None:
            made.set_result(Constraint(None, gate))
        else:
            self._find(grammar).add_done_callback(
                lambda found: _make(made, found, grammar, gate, param)
            )
        return made

    def compiled(self, grammar: Grammar | None, gate: Gate | None) -> Constraint:
        """A new sequence's constraint, at once; another process has tried the grammar."""
        if grammar is None:
            return Constraint(None, gate)
        with self._lock:
            kept = self._kept.get(grammar)
            if not isinstance(kept, LLMatcher) or _is_spent(kept):
                kept = self._kept[grammar] = compiled(self._words.result(), grammar.source)
            self._kept.move_to_end(grammar)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return Constraint(kept.deep_copy(), gate, grammar)

    def start(self) -> None:
        """Start the processes now, and not with the first grammar."""
        for _ in range(_WORKERS):
            self._pool.submit(self._start_trial)

    def close(self) -> None:
        """End the threads and their processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for trial in self._trials:
            trial.close()

    def _find(self, grammar: Grammar) -> Future[LLMatcher | str]:
        """The compiled grammar, or why there is none."""
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None and not _is_spent(kept):
                self._kept.move_to_end(grammar)
                found: Future[LLMatcher | str] = Future()
                found.set_result(kept)
                return found
            if grammar not in self._running:
                self._running[grammar] = self._pool.submit(self._compile, grammar)
            return self._running[grammar]

    # Workers' threads

    def _start_worker(self) -> None:
        self._own.trial = Trial(self._vocab_size, self._special, MAX_SECONDS)
        self._trials.append(self._own.trial)

    def _start_trial(self) -> None:
        self._own.trial.start()

    def _compile(self, grammar: Grammar) -> LLMatcher | str:
        found: LLMatcher | str | None = None
        try:
            found = self._tried(grammar)
            return found
        finally:
            with self._lock:
                self._running.pop(grammar, None)
                if found is not None:
                    self._kept[grammar] = found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)

    def _tried(self, grammar: Grammar) -> LLMatcher | str:
        words = self._words.result()
        error = self._own.trial.error(grammar.source)
        if error is None:
            return (
                f"this {grammar.noun} is too expensive: compiling it and computing what may "
                f"come first takes over {MAX_SECONDS * 1000:.0f} ms.{_look_at(grammar)}"
            )
        if not error:
            matcher = compiled(words, grammar.source)
            if not matcher.is_error():
                return matcher
            error = matcher.get_error()
        return f"this {grammar.noun} cannot be enforced: {_plain(error)}"


def _special(tokenizer: Any, vocab_size: int) -> list[tuple[int, str]]:
    """The special tokens that a grammar may name."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return [(token, str(name)) for token, name in added.items() if token < vocab_size]


def _words(tokenizer: Any, vocab_size: int, ends: list[int]) -> LLTokenizer:
    """The model's vocabulary as llguidance wants it; takes a second for a large one.

    Raises:
        UnsupportedError: the tokenizer is not one of Hugging Face's fast ones.
    """
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    inner = tokenizer if fast else getattr(tokenizer, "_tokenizer", tokenizer)
    try:
        return from_tokenizer(inner, n_vocab=vocab_size, eos_token=ends or None)
    except ValueError as error:
        log.warning("answers cannot be constrained by grammars: %s", error)
        raise UnsupportedError("This model's tokenizer cannot be used with grammars.") from None


def _is_spent(kept: LLMatcher | str) -> bool:
    """Whether a compiled grammar's lexer, which all its copies share, has come to its limits."""
    if isinstance(kept, str):
        return False
    trial = kept.deep_copy()
    trial.compute_bitmask()
    return bool(trial.is_error())


def _look_at(grammar: Grammar) -> str:
    """Where a schema's writer may look first."""
    keyword = largest_keyword(json.loads(grammar.source))
    return "" if keyword is None else f" It is mostly {keyword!r}."


def _plain(error: str) -> str:
    return error.replace("<non-verbose/>", "").strip()


def _make(
    made: Future[Constraint],
    found: Future[LLMatcher | str],
    grammar: Grammar,
    gate: Gate | None,
    param: str,
) -> None:
    """Answer one who waits for a constraint."""
    error = found.exception()
    if isinstance(error, UnsupportedError):
        error = UnsupportedError(error.message, param=param)
    if error is not None:
        made.set_exception(error)
        return
    matcher = found.result()
    if isinstance(matcher, str):
        message = f"Invalid value for '{param}': {matcher}"
        made.set_exception(InvalidRequestError(message, param=param))
    else:
        made.set_result(Constraint(matcher.deep_copy(), gate, grammar))
