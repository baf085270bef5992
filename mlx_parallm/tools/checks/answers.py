"""Continuations of prompts: by mlx_lm alone, and by the engine that serves."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import Output, SamplingParams, Sequence, TokenLogprob


@dataclass
class Answer:
    """A greedy continuation.

    Attributes:
        tokens: ids; logprobs: of each, in nats.
        leads: how far each was ahead of the second likeliest token, where known.
        first_s, last_s: seconds from the start to the first and the last token.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    first_s: float = 0.0
    last_s: float = 0.0


def alone(model: Any, prompt: list[int], count: int, ends: frozenset[int]) -> Answer:
    """What mlx_lm's own generate_step says, without anything of this package."""
    answer = Answer()
    for token, row in generate_step(mx.array(prompt), model, max_tokens=count):
        best = np.partition(np.array(row.astype(mx.float32)).reshape(-1), -2)[-2:]
        answer.tokens.append(int(token))
        answer.logprobs.append(float(best[1]))
        answer.leads.append(float(best[1] - best[0]))
        if token in ends:
            break
    return answer


def score_alone(model: Any, ids: list[int]) -> float:
    """Mean log-probability of a text's tokens after the first, in one forward."""
    logits = model(mx.array([ids[:-1]]))[0].astype(mx.float32)
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(scores, mx.array(ids[1:])[:, None], axis=-1)
    return float(np.array(chosen).mean())


def served(
    engine: Engine, prompts: Items[list[int]], params: SamplingParams, rows: int
) -> list[Answer]:
    """What the engine says, `rows` prompts at once."""
    found = []
    for start in range(0, len(prompts), rows):
        found += _together(engine, [Sequence(ids, params) for ids in prompts[start : start + rows]])
    return found


def score_served(engine: Engine, ids: list[int]) -> float:
    """As score_alone, by the engine."""
    sequence = Sequence(ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
    scores: list[TokenLogprob | None] = []
    for output in _outputs(engine, [sequence]):
        scores += output.prompt_logprobs or []
    return float(np.mean([score.logprob for score in scores if score is not None]))


def _together(engine: Engine, sequences: list[Sequence]) -> list[Answer]:
    answers = {sequence.id: Answer() for sequence in sequences}
    began = time.perf_counter()
    for output in _outputs(engine, sequences):
        answer, now = answers[output.sequence_id], time.perf_counter() - began
        if output.token_ids:
            answer.first_s = answer.first_s or now
            answer.last_s = now
        answer.tokens += output.token_ids
        answer.logprobs += [score.logprob for score in output.logprobs or []]
    return list(answers.values())


def _outputs(engine: Engine, sequences: list[Sequence]) -> Iterator[Output]:
    """All outputs of sequences that start together, until the last has ended."""
    arrived: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    engine.submit(sequences, arrived.put)
    waiting = len(sequences)
    while waiting:
        for output in arrived.get():
            if output.error is not None:
                raise output.error
            waiting -= output.finish_reason is not None
            yield output
