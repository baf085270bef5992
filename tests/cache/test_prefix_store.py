"""Law 3: a prefix cache changes nothing but the time; for layers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.models.loader import LoadedModel, describe
from tests.engine import mock
from tests.engine.driver import Driver, greedy
from tests.models import architectures

pytestmark = pytest.mark.usefixtures("no_compile")
KINDS = ("llama", "gemma3_text", "gpt_oss", "deepseek_v3", "mamba2", "qwen3_next", "falcon_h1")
EngineFactory = Callable[..., Engine]


def loaded(kind: str) -> LoadedModel:
    model = architectures.build(kind, 3)
    return describe(model, mock.byte_tokenizer(), dict(architectures.TINY[kind]), kind, Path())


def requests() -> list[list[list[int]]]:
    """Groups of prompts that arrive together; most begin with the same 100 tokens."""
    rng = np.random.default_rng(0)

    def some(count: int) -> list[int]:
        return [int(token) for token in rng.integers(1, architectures.VOCAB, count)]

    system = some(100)
    groups = [[system + some(int(rng.integers(1, 40))) for _ in range(4)] for _ in range(2)]
    first, second = groups[0][0], groups[1][1]
    groups.append([[*first[:77], 5, 6, 7], first, second + [3] * 50])
    return groups


def answers(engine: Engine) -> tuple[list[list[int]], int]:
    """Tokens of all requests, and how many prompt tokens came from the cache."""
    found, cached = [], 0
    for prompts in requests():
        sequences = [greedy(prompt, 6) for prompt in prompts]
        driver = Driver(engine).run(*sequences)
        found += [driver.tokens(sequence) for sequence in sequences]
        cached += sum(sequence.num_cached for sequence in sequences)
    return found, cached


@pytest.mark.parametrize("kind", KINDS)
def test_hits_change_nothing(kind: str, make_engine: EngineFactory) -> None:
    bounds: dict[str, Any] = {"max_batch_size": 6, "prefill_chunk": 32}
    naive, none = answers(make_engine(loaded(kind), prefix_cache_memory=0, **bounds))
    shared, cached = answers(make_engine(loaded(kind), **bounds))
    assert none == 0
    assert cached > 400  # of 1,400 prompt tokens
    assert shared == naive


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_a_small_cache_changes_nothing(kind: str, make_engine: EngineFactory) -> None:
    bounds: dict[str, Any] = {"max_batch_size": 6, "prefill_chunk": 32}
    naive, _ = answers(make_engine(loaded(kind), prefix_cache_memory=0, **bounds))
    engine = make_engine(loaded(kind), prefix_cache_memory=60_000, **bounds)
    shared, _ = answers(engine)
    assert shared == naive


def test_prefixes_survive_a_restart(tmp_path: Path, make_engine: EngineFactory) -> None:
    prompt = requests()[0][0]
    cached = []
    for _ in range(2):
        engine = make_engine(loaded("llama"), prefix_cache_dir=tmp_path)
        sequence = greedy(prompt, 4)
        Driver(engine).run(sequence)
        cached.append(sequence.num_cached)
        engine.stop()
    assert cached[0] == 0
    assert cached[1] >= 96


def test_another_models_prefixes_are_not_used(tmp_path: Path, make_engine: EngineFactory) -> None:
    for kind in ("llama", "mistral"):
        engine = make_engine(loaded(kind), prefix_cache_dir=tmp_path)
        sequence = greedy(requests()[0][0], 4)
        Driver(engine).run(sequence)
        assert sequence.num_cached == 0
        engine.stop()


def test_scored_prompts_are_computed(make_engine: EngineFactory) -> None:
    engine = make_engine(loaded("llama"))
    prompt = requests()[0][0]
    Driver(engine).run(greedy(prompt, 2))
    scored = greedy(prompt, 2, prompt_logprobs=1)
    driver = Driver(engine).run(scored)
    scores = driver.prompt_logprobs(scored)
    assert scored.num_cached == 0
    assert scores is not None and len(scores) == len(prompt)
