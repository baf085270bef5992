"""Law 1 with adapters: in one batch of adapters, memories, grammars, guesses and chunks of prompts
every row is what it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.grammar import Compiler, Grammar
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.memory.backends.faiss_backend import FAISSBackend
from mlx_parallm.memory.manager import MemoryManager, MemorySettings
from mlx_parallm.memory.submission import Source
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_folder
from tests.engine.driver import Driver
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("no_compile")

COUNT = 3
GRAMMAR = Grammar.regex("(ab|cd)[e-h]{2,9}\\.")
SETTINGS = MemorySettings(topk=3)
Row = tuple[int, int, int, float, bool, bool]


class House:
    """An engine that guesses, its adapters, and memories that each of them has made."""

    def __init__(self, make: Callable[..., LoadedModel], folder: Any) -> None:
        config = EngineConfig(prefix_cache_memory=1 << 18, speculative="ngram", max_loras=2)
        self.engine = Engine(make, config)
        self.engine.start()
        self.engine.wait_ready(PATIENCE_S)
        modules = Modules(make().model)
        self.adapters: list[Adapter | None] = [None]
        for n in range(COUNT):
            settings = {"keys": list(ALL), "kind": "dora" if n == 1 else "lora", "rank": 2 + n}
            path = mlx_lm_adapter(folder / str(n), make().model, n, **settings)
            self.adapters.append(Adapter(str(n), 1, read_folder(path, modules, 16)))
        self.manager = MemoryManager(self.engine, FAISSBackend())
        for n, adapter in enumerate(self.adapters):
            job = self.manager.add([Source("Mira's code is 57. " * 3)], str(n), adapter=adapter)
            job.wait(PATIENCE_S)
        loaded = self.engine.loaded
        assert loaded is not None
        self.compiler = Compiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
        self._alone: dict[Row, Any] = {}

    def sequence(self, row: Row) -> Sequence:
        number, text, length, temperature, remembers, keeps = row
        adapter = self.adapters[number]
        memory = self.manager.request([str(number)], SETTINGS, adapter) if remembers else None
        constraint = (
            self.compiler.constraint(GRAMMAR, None, param="x").result(PATIENCE_S) if keeps else None
        )
        prompt = np.random.default_rng(text).integers(3, 120, length).tolist()
        params = SamplingParams(max_tokens=10, temperature=temperature, seed=length, logprobs=0)
        return Sequence(prompt, params, adapter=adapter, memory=memory, constraint=constraint)

    def alone(self, row: Row) -> Any:
        if row not in self._alone:
            sequence = self.sequence(row)
            self._alone[row] = answer(Driver(self.engine).run(sequence), sequence)
        return self._alone[row]


def answer(driver: Driver, sequence: Sequence) -> tuple[list[int], list[float]]:
    return driver.tokens(sequence), [entry.logprob for entry in driver.logprobs(sequence)]


@pytest.fixture(scope="module")
def house(
    llama_factory: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    made = House(llama_factory, tmp_path_factory.mktemp("laws"))
    yield made
    made.manager.close()
    made.compiler.close()
    made.engine.stop()


rows = st.lists(
    st.tuples(
        st.tuples(
            st.integers(0, COUNT),  # adapter; the first is none
            st.integers(0, 1),  # text
            st.sampled_from([1, 17, 50]),  # its length
            st.sampled_from([0.0, 1.0]),
            st.booleans(),  # memories
            st.booleans(),  # a grammar
        ),
        st.integers(0, 5),  # the step at which it arrives
    ),
    min_size=4,
    max_size=12,
)


@given(mix=rows)
@settings(max_examples=10)
def test_every_row_is_what_it_is_alone(house: House, mix: list[tuple[Row, int]]) -> None:
    """More adapters than slots, too: who waits for one is told the same."""
    wanted = [house.alone(row) for row, _ in mix]
    driver = Driver(house.engine)
    sequences = [house.sequence(row) for row, _ in mix]
    for sequence, (_, arrives) in zip(sequences[1:], mix[1:], strict=True):
        driver.at_step(arrives, partial(driver.submit, sequence))
    driver.run(sequences[0])
    for sequence, (tokens, logprobs) in zip(sequences, wanted, strict=True):
        found = answer(driver, sequence)
        assert found[0] == tokens
        assert found[1] == pytest.approx(logprobs, abs=1e-4)
