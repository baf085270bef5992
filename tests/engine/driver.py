"""Drives an engine in tests, and keeps what every sequence was given.

Actions that are bound to a step run inside the sink, on the engine's thread, so that
"arrives after three steps" means the same in every run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import (
    FinishReason,
    Output,
    SamplingParams,
    Sequence,
    TokenLogprob,
)
from tests.engine import mock
from tests.waiting import PATIENCE_S
from tests.waiting import wait_until as wait_until


class Driver:
    """Submits sequences to an engine and gathers their outputs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: dict[int, list[Output]] = {}
        self.steps = 0  # sink calls
        self.on_output: Callable[[Output], None] = lambda _: None
        self._actions: dict[int, list[Callable[[], None]]] = {}
        self._open: set[int] = set()
        self._changed = threading.Condition()

    def expect(self, *sequences: Sequence) -> None:
        """Wait for these too; whoever submits them hands their outputs to `sink`."""
        with self._changed:
            for sequence in sequences:
                self.outputs[sequence.id] = []
                self._open.add(sequence.id)

    def submit(self, *sequences: Sequence) -> None:
        self.expect(*sequences)
        try:
            self.engine.submit(list(sequences), self.sink)
        except Exception:
            self._open.difference_update(s.id for s in sequences)
            raise

    def at_step(self, step: int, action: Callable[[], None]) -> None:
        """Do something after this many sink calls, or earlier where the batch runs dry."""
        self._actions.setdefault(step, []).append(action)

    def run(self, *sequences: Sequence, timeout_s: float = PATIENCE_S) -> Driver:
        """Submit, and wait until these and all that actions submit are answered."""
        self.submit(*sequences)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = PATIENCE_S) -> Driver:
        with self._changed:
            done = self._changed.wait_for(lambda: not self._open and not self._actions, timeout_s)
        assert done, f"{len(self._open)} sequences were not answered"
        return self

    def sink(self, outputs: list[Output]) -> None:
        self.steps += 1
        for output in outputs:
            self.outputs[output.sequence_id].append(output)
            self.on_output(output)
            if output.finish_reason is not None:
                self._open.discard(output.sequence_id)
        due = [step for step in sorted(self._actions) if step <= self.steps]
        while due or (self._actions and not self._open):
            step = due.pop(0) if due else min(self._actions)
            for action in self._actions.pop(step):
                action()
        with self._changed:
            self._changed.notify_all()

    # What came back

    def tokens(self, sequence: Sequence) -> list[int]:
        return [token for output in self.outputs[sequence.id] for token in output.token_ids]

    def logprobs(self, sequence: Sequence) -> list[TokenLogprob]:
        return [e for output in self.outputs[sequence.id] for e in output.logprobs or ()]

    def prompt_logprobs(self, sequence: Sequence) -> list[TokenLogprob | None] | None:
        found = [o.prompt_logprobs for o in self.outputs[sequence.id] if o.prompt_logprobs]
        assert len(found) <= 1, "prompt logprobs came twice"
        return found[0] if found else None

    def end(self, sequence: Sequence) -> Output:
        """The final output; there is exactly one, and it is the last."""
        finals = [o for o in self.outputs[sequence.id] if o.finish_reason is not None]
        assert len(finals) == 1, f"{len(finals)} final outputs"
        assert self.outputs[sequence.id][-1] is finals[0], "an output came after the end"
        return finals[0]

    def reasons(self, sequences: Iterable[Sequence]) -> list[FinishReason | None]:
        return [self.end(sequence).finish_reason for sequence in sequences]


def right(driver: Driver, sequence: Sequence) -> bool:
    """Whether the sequence was given the tokens that the mock model gives it alone."""
    tokens = driver.tokens(sequence)
    return tokens == mock.expected(sequence.prompt, sequence.params.max_tokens)


def greedy(prompt: list[int], max_tokens: int = 8, **settings: Any) -> Sequence:
    return Sequence(prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0, **settings))


def copy_of(sequence: Sequence) -> Sequence:
    """The same request, new and alone."""
    media = None if sequence.media is None else sequence.media.copy()
    return Sequence(list(sequence.prompt), replace(sequence.params), media=media)


def oracle(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities by mlx_lm, on the thread that owns MLX."""

    def run() -> tuple[list[int], list[float]]:
        assert engine.loaded is not None
        tokens, logprobs = [], []
        for token, row in generate_step(
            mx.array(prompt), engine.loaded.model, max_tokens=count, prefill_step_size=512
        ):
            tokens.append(int(token))
            logprobs.append(float(row[int(token)]))
        return tokens, logprobs

    return engine.call(run).result(PATIENCE_S)
