"""The laws as properties: random mixes of requests on tiny real models and on the mock.

1. batch == alone: tokens, log-probabilities and ends are those of a run alone, and
   greedy ones those of mlx_lm. Also where prefixes are shared (law 3) and tokens are
   guessed ahead (law 2).
4. nothing leaks. 5. one answer each. (6, nothing runs alone, is in test_engine.py.)
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import (
    LOGPROBS_MODES,
    FinishReason,
    Output,
    SamplingParams,
    Sequence,
    TokenLogprob,
)
from tests.conftest import assert_no_leaks
from tests.engine import mock
from tests.engine.driver import Driver, copy_of, greedy, oracle
from tests.models import architectures
from tests.waiting import PATIENCE_S

TOLERANCE = 1e-4
VOCAB = architectures.VOCAB
ROOMY = {"max_batch_size": 32, "prefill_chunk": 256, "kv_tokens": 1 << 30}

pytestmark = pytest.mark.usefixtures("no_compile")


@dataclass(frozen=True)
class Request:
    """What a client asks for, and when it comes and goes; times in steps."""

    length: int
    tokens_seed: int
    params: SamplingParams
    n: int
    arrives: int
    leaves: int | None

    @property
    def prompt(self) -> list[int]:
        rng = np.random.default_rng(self.tokens_seed)
        return [int(t) for t in rng.integers(1, VOCAB, self.length)]

    def sequences(self) -> list[Sequence]:
        seed = self.params.seed or 0
        return [
            Sequence(
                self.prompt,
                replace(self.params, seed=seed + i),
                group=id(self) if self.n > 1 else None,
            )
            for i in range(self.n)
        ]


some_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 12),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 1, 5]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4, -0.3]),
    logit_bias=st.sampled_from([{}, {}, {5: 3.0, 9: -100.0}]),
    seed=st.integers(0, (1 << 63) - 9),
    stop_token_ids=st.sampled_from([frozenset(), frozenset(range(0, VOCAB, 11))]),
    eos_token_ids=st.just(frozenset(range(3, VOCAB, 17))),
    ignore_eos=st.booleans(),
    min_tokens=st.sampled_from([0, 0, 3]),
    logprobs=st.sampled_from([None, 0, 3]),
    logprobs_mode=st.sampled_from(LOGPROBS_MODES),
    logprob_token_ids=st.sampled_from([(), (), (4, 9)]),
    allowed_token_ids=st.sampled_from([(), (), (), tuple(range(3, 30))]),
    prompt_logprobs=st.sampled_from([None, None, 2]),
)
some_requests = st.lists(
    st.builds(
        Request,
        length=st.one_of(st.integers(1, 6), st.integers(1, 45)),
        tokens_seed=st.integers(0, 3),  # prompts of one seed begin alike
        params=some_params,
        n=st.sampled_from([1, 1, 1, 2, 3]),
        arrives=st.integers(0, 9),
        leaves=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 14)),
    ),
    min_size=2,
    max_size=6,
)
some_bounds = st.fixed_dictionaries(
    {
        "max_batch_size": st.sampled_from([2, 5, 32]),
        "prefill_chunk": st.sampled_from([1, 5, 256]),
        "idle_prefill_tokens": st.sampled_from([3, 16, 1024]),
        "kv_tokens": st.sampled_from([96, 128, 1 << 30]),
    }
)


# What an engine may do besides, and must not be seen in what it gives. A page of the
# tiny Llama's prefix cache has 6 KiB: three pages are fought for.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_cache_memory": 0},
    "prefixes": {"prefix_cache_memory": 1 << 20},
    "few pages": {"prefix_cache_memory": 3 * 6144},
    "guesses": {"prefix_cache_memory": 1 << 18, "speculative": "ngram"},
}


def start(model: Any, vocab_size: int, **config: Any) -> Engine:
    engine = Engine(lambda: mock.loaded(model(), vocab_size=vocab_size), EngineConfig(**config))
    engine.start()
    engine.wait_ready(PATIENCE_S)
    return engine


def bound(engine: Engine, **bounds: Any) -> None:
    """Change bounds that are fixed at start in a server, and forget all prefixes."""

    def apply() -> None:
        engine.scheduler.configure(**bounds)
        if engine.runner.prefixes is not None:
            engine.runner.prefixes.tree.clear()

    engine.call(apply).result(PATIENCE_S)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    started: dict[str, Engine] = {}
    yield started
    for engine in started.values():
        engine.stop()


def engine_for(engines: dict[str, Engine], name: str, kind: str = "plain") -> Engine:
    key = f"{name}, {kind}"
    if key not in engines:
        engines[key] = start(
            lambda: architectures.build(name), architectures.vocab_size(name), **KINDS[kind]
        )
    return engines[key]


# Law 1


def run_mix(engine: Engine, mix: list[Request]) -> tuple[Driver, list[tuple[Request, Sequence]]]:
    """Run a mix; every request comes and goes at its own step."""
    driver = Driver(engine)
    parts = [(request, request.sequences()) for request in mix]
    first, rest = parts[0], parts[1:]
    for request, sequences in rest:
        driver.at_step(request.arrives, partial(driver.submit, *sequences))
    for request, sequences in parts:
        if request.leaves is not None:
            ids = [s.id for s in sequences]
            driver.at_step(request.arrives + request.leaves, partial(engine.abort, ids))
    driver.run(*first[1])
    return driver, [(request, s) for request, sequences in parts for s in sequences]


def same(
    one: TokenLogprob | None,
    other: TokenLogprob | None,
    tolerance: float = TOLERANCE,
    *,
    named: bool = False,
) -> bool:
    """Equal entries; the order of alternatives that are as likely is free.

    named: they are those that the request named, in its order, and not the likeliest.
    """
    if one is None or other is None:
        return one is other
    mine, theirs = ([value for _, value in entry.top] for entry in (one, other))
    return (
        one.token_id == other.token_id
        and one.logprob == pytest.approx(other.logprob, abs=tolerance)
        and mine == pytest.approx(theirs, abs=tolerance)
        and (named or mine == sorted(mine, reverse=True))
    )


def all_same(ones: list[Any] | None, others: list[Any] | None, *args: Any, **kw: Any) -> bool:
    if ones is None or others is None:
        return ones is others
    return all(same(a, b, *args, **kw) for a, b in zip(ones, others, strict=True))


def check_same(batch: Driver, sequence: Sequence, alone: Driver, twin: Sequence) -> None:
    """A sequence got in a batch what its twin got alone, or a part of it if it was aborted."""
    ended, expected = batch.end(sequence), alone.tokens(twin)
    assert ended.error is None
    if ended.finish_reason is FinishReason.ABORT:
        expected = expected[: len(batch.tokens(sequence))]
    else:
        assert ended.finish_reason is alone.end(twin).finish_reason
        assert all_same(batch.prompt_logprobs(sequence), alone.prompt_logprobs(twin))
    assert batch.tokens(sequence) == expected
    scores = alone.logprobs(twin)
    params = sequence.params
    # Logits are divided by the temperature, and so is what they differ by.
    processed = params.logprobs_mode.startswith("processed") and not params.is_greedy
    tolerance = TOLERANCE / min(1.0, params.temperature) if processed else TOLERANCE
    named = bool(params.logprob_token_ids)
    assert all_same(batch.logprobs(sequence), scores[: len(expected)], tolerance, named=named)
    assert (sequence.params.logprobs is None) == (not scores) or not expected


def check_batch_equals_alone(
    engine: Engine, plain: Engine, mix: list[Request], bounds: dict[str, int]
) -> None:
    bound(engine, **bounds)
    batch, parts = run_mix(engine, mix)
    bound(plain, **ROOMY, idle_prefill_tokens=1024)
    for _, sequence in parts:
        twin = copy_of(sequence)
        check_same(batch, sequence, Driver(plain).run(twin), twin)
    assert_no_leaks(engine)


@pytest.mark.parametrize("kind", KINDS)
@given(mix=some_requests, bounds=some_bounds)
@settings(max_examples=12)
def test_batch_equals_alone_llama(
    engines: dict[str, Engine], kind: str, mix: list[Request], bounds: dict[str, int]
) -> None:
    engine, plain = engine_for(engines, "llama", kind), engine_for(engines, "llama")
    check_batch_equals_alone(engine, plain, mix, bounds)


@pytest.mark.parametrize("name", ["gemma3_text", "mamba2", "falcon_h1"])
@given(mix=some_requests, bounds=some_bounds)
@settings(max_examples=10)
def test_batch_equals_alone_windows_and_states(
    engines: dict[str, Engine], name: str, mix: list[Request], bounds: dict[str, int]
) -> None:
    engine, plain = engine_for(engines, name, "prefixes"), engine_for(engines, name)
    check_batch_equals_alone(engine, plain, mix, bounds)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "falcon_h1"])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    seed=st.integers(0, 1 << 16),
    bounds=some_bounds,
)
@settings(max_examples=5)
def test_greedy_equals_mlx_lm(
    engines: dict[str, Engine], name: str, lengths: list[int], seed: int, bounds: dict[str, int]
) -> None:
    engine = engine_for(engines, name)
    bound(engine, **bounds)
    rng = np.random.default_rng(seed)
    prompts = [[int(t) for t in rng.integers(1, VOCAB, n)] for n in lengths]
    rows = [greedy(prompt, 10, logprobs=0) for prompt in prompts]
    driver = Driver(engine)
    driver.at_step(3, lambda: driver.submit(*rows[1:]))
    driver.run(rows[0])
    for row in rows:
        tokens, logprobs = oracle(engine, row.prompt, 10)
        assert driver.tokens(row) == tokens
        found = [entry.logprob for entry in driver.logprobs(row)]
        assert found == pytest.approx(logprobs, abs=TOLERANCE)


def test_prompt_logprobs_equal_a_direct_computation(engines: dict[str, Engine]) -> None:
    engine = engine_for(engines, "llama")
    bound(engine, **(ROOMY | {"prefill_chunk": 7}), idle_prefill_tokens=16)
    rng = np.random.default_rng(3)
    rows = [
        greedy([int(t) for t in rng.integers(1, VOCAB, n)], m, prompt_logprobs=3)
        for n, m in ((30, 0), (1, 2), (2, 2), (45, 3))
    ]
    driver = Driver(engine).run(*rows)

    def direct(prompt: list[int]) -> np.ndarray:
        assert engine.loaded is not None
        logits = engine.loaded.model(mx.array([prompt]))[0].astype(mx.float32)
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    for row in rows:
        scores, table = driver.prompt_logprobs(row), engine.call(partial(direct, row.prompt))
        assert scores is not None and scores[0] is None
        assert len(scores) == len(row.prompt)
        for place, (token, entry) in enumerate(zip(row.prompt[1:], scores[1:], strict=True)):
            line = table.result(PATIENCE_S)[place]
            assert entry is not None and entry.token_id == token
            assert entry.logprob == pytest.approx(line[token], abs=TOLERANCE)
            assert [v for _, v in entry.top] == pytest.approx(sorted(line)[:-4:-1], abs=TOLERANCE)
            assert [v for _, v in entry.top] == pytest.approx(
                [line[i] for i, _ in entry.top], abs=TOLERANCE
            )


# Law 5, with faults: the mock is exact, and chokes on one token


def expected_by_mock(request: Request) -> list[int]:
    return mock.expected(request.prompt, request.params.max_tokens)


@pytest.fixture(scope="module")
def choking_engine() -> Iterator[Engine]:
    pages = 5 * 16 * 8  # bytes: a token of the mock has 8
    engine = start(
        lambda: mock.MockModel(poison=mock.POISON), mock.VOCAB, prefix_cache_memory=pages
    )
    yield engine
    engine.stop()


some_exact_requests = st.lists(
    st.builds(
        Request,
        length=st.integers(1, 40),
        tokens_seed=st.integers(0, 9),
        params=st.builds(SamplingParams, max_tokens=st.integers(0, 40), temperature=st.just(0.0)),
        n=st.sampled_from([1, 1, 1, 3]),
        arrives=st.integers(0, 12),
        leaves=st.one_of(st.none(), st.integers(0, 30)),
    ),
    min_size=3,
    max_size=10,
)


@given(mix=some_exact_requests, bounds=some_bounds)
@settings(max_examples=30)
def test_one_answer_each_whatever_fails(
    choking_engine: Engine, mix: list[Request], bounds: dict[str, int]
) -> None:
    engine = choking_engine
    bound(engine, **bounds)
    before = engine.stats()
    driver, parts = run_mix(engine, mix)
    assert_no_leaks(engine)
    for request, sequence in parts:
        tokens, right = driver.tokens(sequence), expected_by_mock(request)
        reason = driver.end(sequence).finish_reason  # exactly one end
        assert tokens == right[: len(tokens)]
        if reason is FinishReason.ERROR:
            # It had sampled the token that its next step would have choked on.
            assert tokens[-1] == mock.POISON
        elif reason is FinishReason.LENGTH:
            assert tokens == right
        else:
            assert reason is FinishReason.ABORT and request.leaves is not None
        assert mock.POISON not in tokens[:-1]
    after = engine.stats()
    ends = [driver.end(s).finish_reason for _, s in parts]
    assert after.accepted - before.accepted == len(parts)
    assert after.aborted - before.aborted == ends.count(FinishReason.ABORT)
    assert after.failed - before.failed == ends.count(FinishReason.ERROR)
    assert after.finished - before.finished == ends.count(FinishReason.LENGTH)


# Law 4


@pytest.mark.parametrize("kind", ["plain", "few pages"])
def test_memory_is_back_at_its_level(
    engines: dict[str, Engine], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of long and aborted requests leave no array behind."""
    engine = engine_for(engines, "llama", kind)
    # Chunks that follow the clock would make other shapes in every round.
    monkeypatch.setattr(engine.scheduler, "budget", None)
    bound(engine, **ROOMY, idle_prefill_tokens=1024)

    def active() -> int:
        gc.collect()
        mx.clear_cache()
        return int(mx.get_active_memory())

    def one_round(seed: int) -> int:
        rng = np.random.default_rng(seed)
        rows = [
            Sequence(
                [int(t) for t in rng.integers(1, VOCAB, int(rng.integers(1, 300)))],
                SamplingParams(
                    max_tokens=20, seed=i, logprobs=3, prompt_logprobs=1, repetition_penalty=1.1
                ),
            )
            for i in range(8)
        ]
        driver = Driver(engine)
        driver.at_step(4, lambda: engine.abort([s.id for s in rows[:3]]))
        driver.run(*rows)
        assert_no_leaks(engine)
        return engine.call(active).result(PATIENCE_S)

    # The same shapes again: MLX and its kernels keep something for each shape.
    level = max(one_round(seed) for seed in (0, 1))
    assert max(one_round(seed) for seed in (0, 1, 0, 1)) <= level + (64 << 10)


def test_outputs_hold_no_device_memory(engines: dict[str, Engine]) -> None:
    """What clients are given is plain Python: it may be kept as long as they like."""
    engine = engine_for(engines, "llama")
    row = Sequence([5, 6, 7], SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=2, seed=1))
    driver = Driver(engine).run(row)

    def plain(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(plain(item) for item in value)
        if isinstance(value, TokenLogprob):
            return plain([value.token_id, value.logprob, value.top])
        return value is None or type(value) in (int, float)

    outputs: list[Output] = driver.outputs[row.id]
    assert all(plain([o.token_ids, o.logprobs, o.prompt_logprobs]) for o in outputs)
