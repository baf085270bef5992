"""Tokens and log-probabilities: against mlx_lm, alone against together, and how fast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import SamplingParams
from mlx_parallm.tools.checks.answers import Answer, score_served, served
from mlx_parallm.tools.checks.report import Finding

# Nats that two ways to compute the same may differ by.
_TOLERANCE = {"float32": 2e-3}
_HALF_TOLERANCE = 0.15


@dataclass(frozen=True)
class Size:
    """How much is looked at."""

    prompts: int
    tokens: int
    batches: tuple[int, ...]
    speed: bool


FULL = Size(32, 24, (8, 32), True)
QUICK = Size(4, 8, (4,), False)


@dataclass(frozen=True)
class Reference:
    """What mlx_lm alone computed: continuations of the prompts, and a text's mean score."""

    prompts: list[list[int]]
    answers: list[Answer]
    text: list[int]
    score: float


def number_findings(engine: Engine, reference: Reference, size: Size) -> Iterator[Finding]:
    """One finding each."""
    assert engine.loaded is not None
    ends = engine.loaded.eos_token_ids
    params = SamplingParams(max_tokens=size.tokens, temperature=0, eos_token_ids=ends, logprobs=0)
    tolerance = _TOLERANCE.get(engine.loaded.dtype, _HALF_TOLERANCE)
    alone = served(engine, reference.prompts, params, 1)
    yield _compare("against mlx_lm", alone, reference.answers, reference.answers, tolerance)
    for rows in size.batches:
        together = served(engine, reference.prompts, params, rows)
        name = f"{rows} rows against 1"
        yield _compare(name, together, alone, reference.answers, tolerance)
    yield _perplexity(engine, reference, tolerance)
    if size.speed:
        endless = replace(params, ignore_eos=True, logprobs=None, max_tokens=48)
        for rows in (1, 8):
            yield _speed(engine, reference.prompts[:rows], endless)


def _compare(
    name: str,
    found: Items[Answer],
    expected: Items[Answer],
    reference: Items[Answer],
    tolerance: float,
) -> Finding:
    """Whether tokens agree, except where the two likeliest ones are nearly tied."""
    worst, wrong, ties = 0.0, 0, 0
    for ours, theirs, known in zip(found, expected, reference, strict=True):
        same = _same(ours.tokens, theirs.tokens)
        pairs = zip(ours.logprobs[:same], theirs.logprobs[:same], strict=True)
        worst = max([worst, *(abs(a - b) for a, b in pairs)])
        if same < max(len(ours.tokens), len(theirs.tokens)):
            tie = same < len(known.leads) and known.leads[same] < 2 * tolerance
            ties, wrong = ties + tie, wrong + (not tie)
    text = f"{len(found) - wrong - ties} of {len(found)} prompts give the same tokens"
    text += f", {ties} part where two are as likely" if ties else ""
    text += f"; log-probabilities differ by {worst:.1e} at most"
    values = {"prompts": len(found), "different": wrong, "ties": ties, "largest": worst}
    return Finding(name, text, wrong == 0 and worst <= tolerance, values)


def _same(left: Items[int], right: Items[int]) -> int:
    """How many tokens two answers begin with alike."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)


def _perplexity(engine: Engine, reference: Reference, tolerance: float) -> Finding:
    score = score_served(engine, reference.text)
    ours, theirs = math.exp(-score), math.exp(-reference.score)
    text = f"{ours:.2f} of {len(reference.text)} tokens of prose; mlx_lm {theirs:.2f}"
    values = {"perplexity": ours, "mlx_lm": theirs, "tokens": len(reference.text)}
    return Finding("perplexity", text, abs(score - reference.score) <= tolerance, values)


def _speed(engine: Engine, prompts: Items[list[int]], params: SamplingParams) -> Finding:
    answers = served(engine, prompts, params, len(prompts))
    first = max(answer.first_s for answer in answers)
    rates = [(len(a.tokens) - 1) / max(a.last_s - a.first_s, 1e-9) for a in answers]
    text = f"first token after {1000 * first:.0f} ms, then {sum(rates):.0f} tokens a second"
    values = {"first_token_ms": 1000 * first, "tokens_per_s": sum(rates)}
    return Finding(f"speed, {len(prompts)} row{'s' * (len(prompts) > 1)}", text, None, values)
