"""Adapters in the engine: one batch mixes them, and nobody's tokens change by it.

The oracle is mlx-lm's unfused layers, each adapter alone, over the whole text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_folder
from tests.engine import mock
from tests.engine.driver import Driver
from tests.models import architectures
from tests.models.lora.adapters import ALL, mlx_lm_adapter, with_mlx_lm
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("no_compile")

COUNT = 8
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_cache_memory": 0},
    "prefixes": {"prefix_cache_memory": 1 << 20},
    "guesses": {"prefix_cache_memory": 1 << 18, "speculative": "ngram"},
    "few slots": {"prefix_cache_memory": 1 << 18, "max_loras": 3},
}
Bench = tuple[dict[str, Engine], list[Adapter], list[Any]]


@pytest.fixture(scope="module")
def bench(
    llama_factory: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """An engine of each kind, adapters of two formats' kinds, and the models of the oracle."""
    folder = tmp_path_factory.mktemp("adapters")
    engines = {
        kind: Engine(llama_factory, EngineConfig(**config)) for kind, config in KINDS.items()
    }
    for engine in engines.values():
        engine.start()
        engine.wait_ready(PATIENCE_S)
    folders = [
        mlx_lm_adapter(
            folder / str(number),
            llama_factory().model,
            number,
            keys=list(ALL if number % 2 else ALL[:3]),
            rank=1 + number,
            kind="dora" if number % 3 == 0 else "lora",
        )
        for number in range(COUNT)
    ]
    modules = Modules(llama_factory().model)
    adapters = [
        Adapter(str(number), 1, read_folder(f, modules, 16)) for number, f in enumerate(folders)
    ]
    oracles = [with_mlx_lm(llama_factory().model, f) for f in folders]
    yield engines, adapters, [*oracles, llama_factory().model]
    for engine in engines.values():
        engine.stop()


def fresh(adapters: list[Adapter]) -> list[Adapter | None]:
    """The same adapters for an engine of their own; the last one is the base model."""
    return [*(Adapter(a.name, a.version, a.weights) for a in adapters), None]


def check(driver: Driver, sequence: Sequence, oracle: Any) -> None:
    """Tokens are those of the oracle where it is sure, log-probabilities its own to 1e-4."""
    tokens = driver.tokens(sequence)
    assert len(tokens) == sequence.params.max_tokens
    text = mx.array([sequence.prompt + tokens])
    logits = oracle(text)[0, len(sequence.prompt) - 1 : -1]
    table = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for line, token, entry in zip(table, tokens, driver.logprobs(sequence), strict=True):
        assert entry.logprob == pytest.approx(line[token], abs=1e-4)
        if sequence.params.temperature == 0:
            assert line[token] == pytest.approx(line.max(), abs=1e-4)


requests = st.lists(
    st.tuples(
        st.integers(0, COUNT),  # adapter; the last is none
        st.integers(1, 60),  # length of the prompt
        st.integers(0, 2),  # which text it begins with
        st.sampled_from([0.0, 1.0]),
        st.integers(0, 6),  # the step at which it arrives
    ),
    min_size=4,
    max_size=14,
)


@pytest.mark.parametrize("kind", KINDS)
@given(mix=requests)
@settings(max_examples=8)
def test_mixed_rows_equal_unfused_models(bench: Bench, kind: str, mix: list[Any]) -> None:
    engines, adapters, oracles = bench
    engine, mine = engines[kind], fresh(adapters)
    rows = [(a, _sequence(mine[a], *rest[:-1]), rest[-1]) for a, *rest in mix]
    rows += [(a, _sequence(mine[a], 20, 0, 0.0), 1) for a in range(COUNT + 1)]  # all at once
    driver = Driver(engine)
    for _, sequence, arrives in rows[1:]:
        driver.at_step(arrives, partial(driver.submit, sequence))
    driver.run(rows[0][1])
    for number, sequence, _ in rows:
        check(driver, sequence, oracles[number])


def _sequence(adapter: Adapter | None, length: int, text: int, temperature: float) -> Sequence:
    prompt = [int(t) for t in np.random.default_rng(text).integers(3, 120, length)]
    params = SamplingParams(
        max_tokens=8, temperature=temperature, seed=length, logprobs=0, ignore_eos=True
    )
    return Sequence(prompt, params, adapter=adapter)


def test_a_waiting_adapter_lets_others_pass(bench: Bench) -> None:
    """Three slots, all in use: the fourth adapter waits, the base model's rows do not."""
    engines, adapters, oracles = bench
    engine, mine = engines["few slots"], fresh(adapters)
    long = [_sequence(mine[n], 5, n, 0.0) for n in range(3)]
    for sequence in long:
        sequence.params = SamplingParams(max_tokens=60, temperature=0, logprobs=0, ignore_eos=True)
    late, base = _sequence(mine[3], 5, 0, 0.0), _sequence(None, 5, 0, 0.0)
    driver, ended = Driver(engine), []
    driver.on_output = lambda output: (
        ended.append(output.sequence_id) if output.finish_reason else None
    )
    driver.at_step(3, lambda: driver.submit(late, base))
    driver.run(*long)
    assert ended[0] == base.id and ended[-1] == late.id
    for number, sequence in enumerate([*long, late]):
        check(driver, sequence, oracles[number])
    pool = engine.runner.adapters
    assert pool is not None and len(pool.resident) == 3


def test_prefixes_belong_to_one_version(bench: Bench) -> None:
    """The same text: found again with the same version only."""
    engines, adapters, _ = bench
    engine = engines["prefixes"]
    first, other = fresh(adapters)[0], Adapter("0", 2, adapters[1].weights)
    cached = []
    for adapter in (first, first, other, None):
        sequence = _sequence(adapter, 59, 77, 0.0)
        Driver(engine).run(sequence)
        cached.append(sequence.num_cached)
    assert cached[0] == cached[2] == cached[3] == 0 < cached[1]


@pytest.mark.parametrize("name", ["gemma3_text", "falcon_h1"])
def test_windows_and_states(name: str, tmp_path: Path) -> None:
    """Padded grids too: the adapter is a row's, whatever the width of its chunk."""
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    build = partial(architectures.build, name)
    folders = [mlx_lm_adapter(tmp_path / str(n), build(), n, keys=keys) for n in range(3)]
    model = build()
    engine = Engine(
        lambda: mock.loaded(model, vocab_size=architectures.vocab_size(name)), EngineConfig()
    )
    engine.start()
    engine.wait_ready(PATIENCE_S)
    modules = Modules(build())
    adapters = [Adapter(str(n), 1, read_folder(f, modules, 16)) for n, f in enumerate(folders)]
    driver, rows = Driver(engine), []
    for length in (3, 30):
        rows += [(n, _sequence(a, length, n, 0.0)) for n, a in enumerate([*adapters, None])]
    driver.run(*(row for _, row in rows))
    engine.stop()
    oracles = [*(with_mlx_lm(build(), folder) for folder in folders), build()]
    for number, sequence in rows:
        check(driver, sequence, oracles[number])


@pytest.mark.parametrize("kind", ["prefixes", "guesses", "few slots"])
@pytest.mark.parametrize("recompute", [True, False])
def test_a_new_version_in_mid_answer(bench: Bench, kind: str, recompute: bool) -> None:
    """Recomputed, every token is exact under its version; kept K and V are nobody's prefix."""
    engines, adapters, oracles = bench
    engine = engines[kind]
    old, new = Adapter("p", 1, adapters[0].weights), Adapter("p", 2, adapters[1].weights)
    rows = [_sequence(old, 20, text, float(text % 2)) for text in range(40, 43)]
    for row in rows:
        row.params = SamplingParams(
            max_tokens=30, temperature=row.params.temperature, logprobs=0, ignore_eos=True, seed=1
        )
    other = _sequence(fresh(adapters)[2], 20, 40, 0.0)
    driver = Driver(engine)
    switched: list[Any] = []
    driver.at_step(8, lambda: switched.append(engine.switch_adapter(new, recompute=recompute)))
    driver.run(*rows, other)
    assert switched[0].result(PATIENCE_S) == len(rows)
    check(driver, other, oracles[2])
    for row in rows:
        assert row.versions == sorted(row.versions) and set(row.versions) == {1, 2}
        tokens, change = driver.tokens(row), row.versions.index(2)
        text = mx.array([row.prompt + tokens])
        tables = []
        for number in (0, 1):
            logits = oracles[number](text)[0, len(row.prompt) - 1 : -1]
            tables.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
        for place, (token, entry) in enumerate(zip(tokens, driver.logprobs(row), strict=True)):
            if place < change or recompute:
                expected = tables[int(place >= change)][place][token]
                assert entry.logprob == pytest.approx(expected, abs=1e-4)
    for adapter, number in ((new, 1), (old, 0)):  # prefixes that the rows left are right
        again = _sequence(adapter, 20, 40, 0.0)
        check(Driver(engine).run(again), again, oracles[number])
