"""Reported log-probabilities against a float64 reference, and against what is really drawn."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.sampling.sampler import Sampler
from mlx_parallm.engine.sequence import LOGPROBS_MODES, SamplingParams, Sequence, TokenLogprob
from mlx_parallm.engine.step import read_logprobs
from tests.engine.test_sampler import (
    V,
    chi_square,
    chi_square_limit,
    reference_distribution,
    reference_logits,
    sequence,
)


def reported(logits: np.ndarray, rows: list[Sequence]) -> dict[int, TokenLogprob]:
    sampled = Sampler(V).sample(mx.array(logits), rows)
    return read_logprobs(sampled, np.array(sampled.tokens).tolist(), rows)


def wanted(logits: np.ndarray, row: Sequence, mode: str) -> np.ndarray:
    """(V,) in float64 what `mode` should report of each token."""
    p = row.params
    values = logits.astype(np.float64)
    if mode.startswith("processed"):
        values = reference_logits(logits, row.prompt, row.output, p)
        if p.allowed_token_ids:
            values[np.setdiff1d(np.arange(V), p.allowed_token_ids)] = -np.inf
        if not p.is_greedy:
            kept = reference_distribution(values, p) > 0
            values = np.where(kept, values / p.temperature, -np.inf)
    if mode.endswith("logits"):
        return values
    best = values.max()
    return np.asarray(values - best - np.log(np.exp(values - best).sum()))


some_rows = st.builds(
    sequence,
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    output=st.lists(st.integers(0, V - 1), max_size=12),
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    top_k=st.sampled_from([0, 3, 20]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.sampled_from([{}, {3: 5.0, 4: -100.0}]),
    allowed_token_ids=st.sampled_from([(), (), (1, 5, 9, 30)]),
    logprobs=st.sampled_from([0, 3, V]),
    logprobs_mode=st.sampled_from(LOGPROBS_MODES),
    logprob_token_ids=st.sampled_from([(), (), (7,), (30, 2, 9)]),
    processed_logprobs=st.booleans(),
)


@given(rows=st.lists(some_rows, min_size=1, max_size=6), seed=st.integers(0, 1 << 20))
@settings(max_examples=60)
def test_every_mode_reports_what_the_reference_says(rows: list[Sequence], seed: int) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(rows), V)).astype(np.float32)
    found = reported(logits, rows)
    for place, row in enumerate(rows):
        table = wanted(logits[place], row, row.params.logprobs_mode)
        entry = found[place]
        for token, value in [(entry.token_id, entry.logprob), *entry.top]:
            assert value == pytest.approx(table[token], abs=2e-4)
        assert (entry.processed is not None) == row.params.processed_logprobs
        if entry.processed is not None:
            drawn_from = wanted(logits[place], row, "processed_logprobs")
            assert entry.processed == pytest.approx(drawn_from[entry.token_id], abs=2e-4)
        if row.params.logprob_token_ids:
            assert tuple(token for token, _ in entry.top) == row.params.logprob_token_ids
        else:
            best = np.sort(table)[::-1][: row.params.logprobs]
            assert [value for _, value in entry.top] == pytest.approx(best, abs=2e-4)


@given(rows=st.lists(some_rows, min_size=2, max_size=6), seed=st.integers(0, 1 << 20))
@settings(max_examples=20)
def test_a_row_reports_what_it_reports_alone(rows: list[Sequence], seed: int) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(rows), V)).astype(np.float32)
    together = reported(logits, rows)
    for place, row in enumerate(rows):
        alone = reported(logits[place : place + 1], [row])[0]
        assert together[place].token_id == alone.token_id
        assert together[place].logprob == pytest.approx(alone.logprob, abs=1e-5)
        assert together[place].processed == pytest.approx(alone.processed, abs=1e-5)
        # Tokens that cannot be drawn tie, and stand in any order.
        pairs = zip(together[place].top, alone.top, strict=True)
        assert all(one == pytest.approx(other, abs=1e-5) or one[1] < -1e9 for one, other in pairs)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 9},
    {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3},
    {"min_p": 0.08, "presence_penalty": 0.8, "logit_bias": {4: 1.5}},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": 0.5},
    {"allowed_token_ids": (1, 2, 3, 5, 8, 13, 21), "temperature": 1.3},
]


@pytest.mark.parametrize("given_settings", SETTINGS)
def test_tokens_are_drawn_from_what_processed_logprobs_report(
    given_settings: dict[str, Any],
) -> None:
    """Chi-square of 8,000 draws against the probabilities that one row reports."""
    draws = 8000
    line = np.random.default_rng(3).standard_normal(V).astype(np.float32) * 1.5
    history: dict[str, Any] = {"prompt": [1, 2, 3], "output": [4, 4, 9], **given_settings}
    row = sequence(logprobs=V, logprobs_mode="processed_logprobs", **history)
    top = reported(line[None], [row])[0].top
    probability = np.zeros(V)
    probability[[token for token, _ in top]] = [math.exp(value) for _, value in top]
    assert probability.sum() == pytest.approx(1, abs=1e-4)

    rows = [sequence(seed=1000 + i, **history) for i in range(draws)]
    tokens = Sampler(V).sample(mx.array(np.tile(line, (draws, 1))), rows).tokens
    counts = np.bincount(np.array(tokens), minlength=V)
    value, degrees = chi_square(counts, probability / probability.sum())
    assert value < chi_square_limit(degrees)


def test_only_allowed_tokens_are_sampled() -> None:
    logits = np.random.default_rng(5).standard_normal((64, V)).astype(np.float32)
    rows = [
        sequence(seed=i, temperature=float(i % 2) * 2, allowed_token_ids=(3, 17) if i % 4 else ())
        for i in range(64)
    ]
    tokens = np.array(Sampler(V).sample(mx.array(logits), rows).tokens)
    assert {int(t) for i, t in enumerate(tokens) if i % 4} == {3, 17}
    assert len({int(t) for i, t in enumerate(tokens) if i % 4 == 0}) > 2


def test_a_row_without_logprobs_costs_nothing_more() -> None:
    rows = [Sequence([1], SamplingParams(seed=i)) for i in range(3)]
    assert Sampler(V).sample(mx.zeros((3, V)), rows).scores is None
