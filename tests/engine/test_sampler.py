"""The sampler against a float64 reference, and its randomness against statistics."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.sampling.sampler import Sampler, uniforms
from mlx_parallm.engine.sampling.token_logprobs import token_logprobs
from mlx_parallm.engine.sequence import SamplingParams, Sequence

V = 40


def sequence(
    prompt: list[int] | None = None, output: list[int] | None = None, **params: Any
) -> Sequence:
    params = {"max_tokens": 1000, "seed": 1} | params
    return Sequence(prompt or [1], SamplingParams(**params), output=output or [])


# The reference


def reference_logits(
    logits: np.ndarray, prompt: list[int], output: list[int], p: SamplingParams
) -> np.ndarray:
    """Penalties as vLLM has them, bias, and end tokens before min_tokens."""
    result = logits.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        value = result[token]
        result[token] = value / p.repetition_penalty if value > 0 else value * p.repetition_penalty
    for token, count in Counter(output).items():
        result[token] -= p.frequency_penalty * count + p.presence_penalty
    for token, bias in p.logit_bias.items():
        result[token] += bias
    if len(output) < p.min_tokens:
        result[list(p.end_token_ids)] = -np.inf
    return result


def reference_distribution(logits: np.ndarray, p: SamplingParams) -> np.ndarray:
    """top_k, then top_p of what is left, then min_p; ties with the last one kept stay."""
    if p.is_greedy:
        return np.asarray(np.arange(len(logits)) == logits.argmax(), dtype=np.float64)
    kept = np.exp((logits - logits.max()) / p.temperature)
    kept /= kept.sum()
    if 0 < p.top_k < len(kept):
        kept[kept < np.sort(kept)[-p.top_k]] = 0
    if p.top_p < 1:
        best = np.sort(kept)[::-1]
        last = int(np.searchsorted(np.cumsum(best), p.top_p * kept.sum()))
        kept[kept < best[min(last, len(best) - 1)] * (1 - 2e-5)] = 0
    kept[kept < p.min_p * kept.max()] = 0
    return np.asarray(kept / kept.sum())


def reference(logits: np.ndarray, row: Sequence, output: list[int] | None = None) -> np.ndarray:
    output = row.output if output is None else output
    return reference_distribution(
        reference_logits(logits, row.prompt, output, row.params), row.params
    )


some_tokens = st.lists(st.integers(0, V - 1), max_size=12)
some_rows = st.builds(
    sequence,
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    output=some_tokens,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1, 1e-6]),
    top_k=st.sampled_from([0, 1, 3, 20, V, 10 * V]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.1, -0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.2]),
    logit_bias=st.sampled_from([{}, {}, {3: 5.0, 4: -100.0}, {0: -2.0}]),
    min_tokens=st.sampled_from([0, 0, 6]),
    stop_token_ids=st.sampled_from([frozenset(), frozenset({1, 2, 30})]),
)


@given(rows=st.lists(some_rows, min_size=1, max_size=8), seed=st.integers(0, 1 << 20))
@settings(max_examples=60)
def test_distributions_equal_the_reference(rows: list[Sequence], seed: int) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal((len(rows), V)).astype(np.float32)
    found = np.array(Sampler(V).distribution(mx.array(logits), rows))
    for line, row, probabilities in zip(logits, rows, found, strict=True):
        assert probabilities == pytest.approx(reference(line, row), abs=2e-5)


@given(rows=st.lists(some_rows, min_size=2, max_size=6), seed=st.integers(0, 1 << 20))
@settings(max_examples=30)
def test_a_row_is_what_it_is_alone(rows: list[Sequence], seed: int) -> None:
    logits = mx.array(np.random.default_rng(seed).standard_normal((len(rows), V)) * 3)
    together = np.array(Sampler(V).sample(logits, rows).tokens)
    alone = [
        Sampler(V).sample(logits[r : r + 1], [row]).tokens.item() for r, row in enumerate(rows)
    ]
    assert together.tolist() == alone


def test_token_counts_follow_the_batch() -> None:
    """Rows join, leave and move while the host lags one token behind."""
    rng = np.random.default_rng(0)
    penalised: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
    }
    rows = [sequence([i, i + 1], seed=i, **(penalised if i % 3 else {}), top_k=5) for i in range(6)]
    batches = [rows[:3]] * 3 + [rows[2:5], rows[2:5], rows[::-1][:4], rows, rows, [rows[5]], rows]
    sampler = Sampler(V)
    given_out: dict[int, list[int]] = {row.id: [] for row in rows}
    flying: list[tuple[Sequence, int]] = []
    for batch in batches:
        logits = rng.standard_normal((len(batch), V)).astype(np.float32) * 2
        found = np.array(sampler.distribution(mx.array(logits), batch))
        for line, row, probabilities in zip(logits, batch, found, strict=True):
            wanted = reference(line, row, given_out[row.id])
            assert probabilities == pytest.approx(wanted, abs=1e-5)
        tokens = np.array(sampler.sample(mx.array(logits), batch).tokens).tolist()
        for row, token in flying:  # the host reads the step before only now
            row.output.append(token)
            row.in_flight -= 1
        flying = list(zip(batch, tokens, strict=True))
        for row, token in flying:
            row.in_flight += 1
            given_out[row.id].append(token)


def test_ties_are_kept_together() -> None:
    logits = mx.array([[2.0, 1.0, 1.0, 1.0, 0.0]] * 3)
    rows = [sequence(top_k=2), sequence(top_p=0.6), sequence(min_p=math.exp(-1) * 0.999)]
    kept = np.array(Sampler(5).distribution(logits, rows)) > 0
    assert kept.tolist() == [[True, True, True, True, False]] * 3


@pytest.mark.parametrize("largest", [11, 400])  # found in blocks, and in all of the vocabulary
def test_top_k_of_a_large_vocabulary(largest: int) -> None:
    rows = [sequence(top_k=k) for k in (1, 2, 7, largest)] + [sequence()]
    rng = np.random.default_rng(largest)
    logits = rng.standard_normal((len(rows), 3017)).astype(np.float32)
    logits[:3] = logits[:3].round(1)  # many are equal, the last one kept too
    logits[3, ::47] += 9  # all likely tokens in one block
    logits[4, -5:] += 9  # behind the last block
    found = np.array(Sampler(3017).distribution(mx.array(logits), rows))
    for row, mine, distribution in zip(rows, logits, found, strict=True):
        expected = reference_distribution(mine.astype(np.float64), row.params)
        np.testing.assert_allclose(distribution, expected, atol=1e-6)
        np.testing.assert_array_equal(distribution > 0, expected > 0)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = mx.array([[0.0, 3.0, 3.0, 1.0]])
    assert Sampler(4).sample(logits, [sequence(temperature=0.0)]).tokens.tolist() == [1]


# Randomness


def chi_square_limit(degrees: int) -> float:
    """The value that chance exceeds once in 10^5 (Wilson and Hilferty)."""
    z, d = 4.265, 2 / (9 * degrees)
    return float(degrees * (1 - d + z * math.sqrt(d)) ** 3)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    expected = probabilities * counts.sum()
    assert (counts[expected == 0] == 0).all(), "a token without probability was drawn"
    some = expected > 0
    value = ((counts[some] - expected[some]) ** 2 / expected[some]).sum()
    return float(value), int(some.sum()) - 1


def draw(logits: np.ndarray, steps: int, count: int, **params: Any) -> np.ndarray:
    """(count, steps) tokens of rows that differ in nothing but their seeds."""
    rows = [sequence(seed=seed, **params) for seed in range(count)]
    sampler, array = Sampler(len(logits)), mx.array(np.tile(logits, (count, 1)))
    drawn = []
    for _ in range(steps):
        drawn.append(np.array(sampler.sample(array, rows).tokens))
        for row in rows:
            row.in_flight += 1
    return np.stack(drawn, axis=1)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.15},
    {"temperature": 1.0, "top_k": 8, "top_p": 0.9, "min_p": 0.05, "logit_bias": {2: 1.5}},
]


@pytest.mark.parametrize("params", SETTINGS)
def test_draws_have_the_right_distribution(params: dict[str, Any]) -> None:
    logits = np.random.default_rng(5).standard_normal(12).astype(np.float32) * 1.5
    drawn = draw(logits, 10, 2500, **params)
    wanted = reference(logits, sequence(**params))
    value, degrees = chi_square(np.bincount(drawn.ravel(), minlength=12), wanted)
    assert value < chi_square_limit(degrees)


def test_positions_and_seeds_are_independent() -> None:
    size = 6
    logits = np.random.default_rng(6).standard_normal(size).astype(np.float32)
    drawn = draw(logits, 12, 2500, temperature=1.0)
    single = reference(logits, sequence())
    pairs = {
        "next position": (drawn[:, :-1], drawn[:, 1:]),
        "next but three": (drawn[:, :-4], drawn[:, 4:]),
        "next seed": (drawn[:-1], drawn[1:]),
        "seed and position": (drawn[1:, :-1], drawn[:-1, 1:]),
    }
    for name, (one, other) in pairs.items():
        table = np.bincount((one * size + other).ravel(), minlength=size * size)
        value, degrees = chi_square(table, np.outer(single, single).ravel())
        assert value < chi_square_limit(degrees), name


def test_uniforms_are_uniform_and_never_0_or_1() -> None:
    seeds = np.repeat(np.arange(400, dtype=np.uint64), 100)
    positions = np.tile(np.arange(100), 400)
    for stream in range(3):
        u = uniforms(seeds, positions, stream)
        assert u.min() > 0 and u.max() < 1
        value, degrees = chi_square(np.histogram(u, 100, (0, 1))[0], np.full(100, 0.01))
        assert value < chi_square_limit(degrees)
    streams = np.stack([uniforms(seeds, positions, s) for s in range(3)])
    assert np.abs(np.corrcoef(streams) - np.eye(3)).max() < 0.02


def test_a_seed_gives_the_same_tokens_again() -> None:
    logits = np.random.default_rng(7).standard_normal(30).astype(np.float32)
    one, again = (draw(logits, 8, 5, temperature=1.5) for _ in range(2))
    assert (one == again).all()
    assert len({tuple(row) for row in one.tolist()}) == 5


@pytest.mark.parametrize("seed", [0, -1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)])
def test_any_64_bit_seed(seed: int) -> None:
    logits = mx.array(np.random.default_rng(8).standard_normal((1, V)))
    tokens = [Sampler(V).sample(logits, [sequence(seed=seed)]).tokens.item() for _ in range(2)]
    assert tokens[0] == tokens[1]
    assert tokens[0] in range(V)


# Extremes


@pytest.mark.parametrize("temperature", [1e-60, 1e-45, 1e-30, 1e-5, 0.01])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(9).standard_normal((1, V)).astype(np.float32) * 5
    found = np.array(Sampler(V).distribution(mx.array(logits), [sequence(temperature=temperature)]))
    assert found[0].argmax() == logits.argmax()
    assert found[0].max() == pytest.approx(1, abs=1e-3)
    row = sequence(temperature=temperature)
    assert Sampler(V).sample(mx.array(logits), [row]).tokens.item() == logits.argmax()


def test_a_huge_temperature_is_uniform() -> None:
    logits = np.random.default_rng(10).standard_normal(8).astype(np.float32) * 50
    for temperature in (1e6, 1e30):
        drawn = draw(logits, 1, 4000, temperature=temperature)
        value, degrees = chi_square(np.bincount(drawn.ravel(), minlength=8), np.full(8, 1 / 8))
        assert value < chi_square_limit(degrees)


@pytest.mark.parametrize("params", [{"top_p": 0.0}, {"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}])
def test_the_narrowest_settings_are_greedy(params: dict[str, Any]) -> None:
    logits = np.random.default_rng(11).standard_normal(V).astype(np.float32)
    assert (draw(logits, 3, 50, temperature=2.0, **params) == logits.argmax()).all()


INF = float("inf")
EXTREME = {
    "one infinite": [0.0, INF, 0.0, -1.0],
    "huge": [3e38, -3e38, 1e38, 0.0],
    "banned": [-INF, 1.0, -INF, -INF],
    "all banned": [-INF] * 4,
    "equal": [0.0] * 4,
    "far apart": [-1e4, 1e4, 0.0, 50.0],
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("params", [{"temperature": 0.0}, *SETTINGS])
def test_extreme_logits_give_a_token(name: str, params: dict[str, Any]) -> None:
    logits = np.array(EXTREME[name], dtype=np.float32)
    drawn = draw(logits, 4, 32, **(params | {"logit_bias": {}}))
    assert ((drawn >= 0) & (drawn < 4)).all()
    if name in ("one infinite", "banned", "far apart"):
        assert (drawn == 1).all()
    if name == "huge":
        assert (drawn == 0).all()


def test_a_broken_row_leaves_the_others_alone() -> None:
    logits = np.random.default_rng(12).standard_normal((3, V)).astype(np.float32)
    rows = [sequence(seed=i, top_p=0.9, presence_penalty=0.1) for i in range(3)]
    wanted = np.array(Sampler(V).sample(mx.array(logits), rows).tokens)
    logits[1] = np.nan
    found = np.array(Sampler(V).sample(mx.array(logits), rows).tokens)
    assert found[[0, 2]].tolist() == wanted[[0, 2]].tolist()
    assert 0 <= found[1] < V


def test_a_bias_bans_and_forces() -> None:
    logits = np.zeros(V, dtype=np.float32)
    forced = draw(logits, 2, 50, logit_bias={7: 100.0})
    assert (forced == 7).all()
    banned = draw(logits, 4, 200, logit_bias=dict.fromkeys(range(1, V), -INF))
    assert (banned == 0).all()


def test_end_tokens_come_back_after_min_tokens() -> None:
    row = sequence(min_tokens=2, stop_token_ids=frozenset({3}), temperature=0.0)
    logits = mx.array(np.eye(V, dtype=np.float32)[3:4])
    sampler, found = Sampler(V), []
    for _ in range(4):
        found.append(sampler.sample(logits, [row]).tokens.item())
        row.in_flight += 1
    assert [token == 3 for token in found] == [False, False, True, True]


def test_ids_outside_the_vocabulary_harm_nobody() -> None:
    """eos ids come from configs, and some configs name ids that the logits do not have."""
    outside = {V + 7: 50.0, -3: 50.0, 1 << 30: 50.0}
    rows = [
        sequence(min_tokens=5, stop_token_ids=frozenset({*outside, 3}), logit_bias=outside),
        sequence(seed=4),
    ]
    inside = sequence(min_tokens=5, stop_token_ids=frozenset({3}))
    logits = np.random.default_rng(13).standard_normal((2, V)).astype(np.float32)
    found = np.array(Sampler(V).distribution(mx.array(logits), rows))
    for line, row, probabilities in zip(logits, [inside, rows[1]], found, strict=True):
        assert probabilities == pytest.approx(reference(line, row), abs=2e-5)


def test_a_large_vocabulary() -> None:
    size = 150_000
    logits = np.random.default_rng(14).standard_normal((4, size)).astype(np.float32) * 2
    rows = [
        sequence(temperature=0.0, logprobs=20),
        sequence(top_p=0.9, seed=1),
        sequence(top_k=50, top_p=0.95, repetition_penalty=1.2, seed=2),
        sequence(min_p=0.05, temperature=0.8, seed=3),
    ]
    sampler = Sampler(size)
    found = np.array(sampler.distribution(mx.array(logits), rows))
    tokens = np.array(sampler.sample(mx.array(logits), rows).tokens)
    for line, row, probabilities, token in zip(logits, rows, found, tokens, strict=True):
        wanted = reference(line, row)
        # A nucleus of tens of thousands of tokens may end a few ties earlier or later.
        assert np.abs(probabilities - wanted).sum() < 1e-3
        assert wanted[token] > 0


# Log-probabilities


@pytest.mark.parametrize("top", [1, 2, 5, 20, V])
def test_logprobs(top: int) -> None:
    logits = np.random.default_rng(15).standard_normal((7, V)).astype(np.float32) * 4
    tokens = np.arange(7) * 3
    chosen, ids, values = map(np.array, token_logprobs(mx.array(logits), mx.array(tokens), top))
    wide = logits.astype(np.float64)
    table = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    assert chosen == pytest.approx(table[np.arange(7), tokens], abs=1e-4)
    order = np.argsort(-table, axis=-1)[:, :top]
    assert ids.tolist() == order.tolist()
    assert values == pytest.approx(np.take_along_axis(table, order, axis=-1), abs=1e-4)


def test_logprobs_are_of_the_raw_distribution_and_only_where_asked() -> None:
    logits = mx.array(np.random.default_rng(16).standard_normal((3, V)))
    rows = [
        sequence(logprobs=None),
        sequence(logprobs=2, temperature=0.1, logit_bias={5: 100.0}, presence_penalty=1.0),
        sequence(logprobs=0),
    ]
    sampled = Sampler(V).sample(logits, rows)
    assert sampled.logprob_rows == [1, 2]
    assert sampled.tokens[1].item() == 5
    wide = np.array(logits, dtype=np.float64)
    wanted = wide[1, 5] - np.log(np.exp(wide[1]).sum())
    assert sampled.scores is not None
    assert sampled.scores.chosen[0].item() == pytest.approx(wanted, abs=1e-5)


def test_greedy_without_logprobs_does_no_more_than_argmax() -> None:
    rows = [sequence(temperature=0.0) for _ in range(3)]
    sampled = Sampler(V).sample(mx.zeros((3, V)), rows)
    # The tokens, and the sums that show a NaN.
    assert len(sampled.arrays) == 2


def test_static_helpers() -> None:
    logits = mx.array(np.random.default_rng(17).standard_normal((5, V)) * 2)
    assert Sampler.greedy_sampling(logits).tolist() == mx.argmax(logits, axis=-1).tolist()
    assert Sampler.top_k_top_p_sampling(logits, top_k=1).tolist() == (
        mx.argmax(logits, axis=-1).tolist()
    )
    one, same, other = (
        Sampler.temperature_sampling(logits, 3.0, seed=s).tolist() for s in (1, 1, 100)
    )
    assert one == same != other
    assert replace(SamplingParams(), temperature=0.0).is_greedy
