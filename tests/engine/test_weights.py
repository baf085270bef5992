"""The whole model's weights change while rows run: every token belongs to one version.

The oracle is mlx-lm's model with the weights of that version, over the whole text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.engine.weights import RUNNING, Running, Weights
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_folder
from tests.engine import mock
from tests.engine.driver import Driver
from tests.engine.versions import check_by_version, checkpoint_of, fitted, putting
from tests.models import architectures
from tests.models.lora.adapters import ALL, mlx_lm_adapter, with_mlx_lm
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("no_compile")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_cache_memory": 0},
    "prefixes": {"prefix_cache_memory": 1 << 20},
    "guesses": {"prefix_cache_memory": 1 << 18, "speculative": "ngram"},
}


class Bench:
    """Engines, three versions of their model, and an adapter on each."""

    def __init__(self, make: Callable[..., LoadedModel], folder: Path) -> None:
        self.engines = {
            kind: Engine(make, EngineConfig(**config)) for kind, config in KINDS.items()
        }
        for engine in self.engines.values():
            engine.start()
            engine.wait_ready(PATIENCE_S)
        self.oracles = [make(seed).model for seed in range(3)]
        data = [checkpoint_of(oracle, folder) for oracle in self.oracles]
        self.versions: dict[str, list[Weights]] = {
            kind: [engine.weights, fitted(engine, data[1], 1), fitted(engine, data[2], 2)]
            for kind, engine in self.engines.items()
        }
        # DoRA: its gains depend on the weights that it is added to.
        settings = {"keys": list(ALL), "kind": "dora", "rank": 4}
        adapter = mlx_lm_adapter(folder / "adapter", make().model, 5, **settings)
        self.adapter = read_folder(adapter, Modules(make().model), 16)
        self.adapted = [with_mlx_lm(make(seed).model, adapter) for seed in range(3)]

    def check(self, driver: Driver, sequence: Sequence, *, kept: bool = False) -> None:
        oracles = self.oracles if sequence.adapter is None else self.adapted
        check_by_version(driver, sequence, oracles, kept=kept)


@pytest.fixture(scope="module")
def bench(
    llama_factory: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    made = Bench(llama_factory, tmp_path_factory.mktemp("weights"))
    yield made
    for engine in made.engines.values():
        engine.stop()


def row(
    text: int, *, length: int = 20, tokens: int = 24, adapter: Adapter | None = None
) -> Sequence:
    prompt = [3 + (text * 31 + place * place) % 117 for place in range(length)]
    params = SamplingParams(
        max_tokens=tokens, temperature=float(text % 2), seed=text, logprobs=0, ignore_eos=True
    )
    return Sequence(prompt, params, adapter=adapter)


changes = st.lists(
    st.tuples(st.integers(2, 20), st.integers(0, 2), st.sampled_from(RUNNING[::2])), max_size=3
)
rows = st.lists(
    st.tuples(
        st.integers(0, 3),  # text
        st.integers(1, 60),  # its length
        st.integers(0, 18),  # the step at which it arrives
        st.booleans(),  # with the adapter
    ),
    min_size=2,
    max_size=10,
)


@pytest.mark.parametrize("kind", KINDS)
@given(mix=rows, changes=changes)
@settings(max_examples=8)
def test_every_token_is_of_its_version(
    bench: Bench, kind: str, mix: list[Any], changes: list[tuple[int, int, Running]]
) -> None:
    """Weights change forth and back at any step; rows finish on theirs, or are recomputed."""
    engine, versions = bench.engines[kind], bench.versions[kind]
    adapter = Adapter("a", 1, bench.adapter)
    driver = Driver(engine)
    made = [(row(t, length=n, adapter=adapter if a else None), s) for t, n, s, a in mix]
    made.insert(0, (row(0, tokens=40), 0))
    for sequence, arrives in made[1:]:
        driver.at_step(arrives, partial(driver.submit, sequence))
    for step, version, running in changes:
        driver.at_step(step, putting(engine, versions[version], running))
    driver.run(made[0][0])
    for sequence, _ in made:
        bench.check(driver, sequence)
    engine.put_weights(versions[0], "recompute").result(PATIENCE_S)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("running", RUNNING)
def test_rows_that_run(bench: Bench, kind: str, running: Running) -> None:
    """They finish, keep or recompute; new rows begin with the new weights; no prefix is stale."""
    engine, versions = bench.engines[kind], bench.versions[kind]
    adapter = Adapter("a", 1, bench.adapter)
    driver, put = Driver(engine), list[Future[int]]()
    # Longer than all that can be guessed before the switch.
    old = [row(text, tokens=60, adapter=adapter if text == 2 else None) for text in range(4)]
    late = [row(text, tokens=8) for text in range(2)]
    driver.at_step(3, putting(engine, versions[1], running, put))
    driver.at_step(4, lambda: driver.submit(*late))
    driver.run(*old)
    assert put[0].result(PATIENCE_S) == (0 if running == "finish" else len(old))
    for sequence in old:
        assert set(sequence.base_versions) == ({0} if running == "finish" else {0, 1})
        bench.check(driver, sequence, kept=running == "keep")
    for sequence in late:
        assert set(sequence.base_versions) == {1}
        bench.check(driver, sequence)
    again = row(0, tokens=8)
    bench.check(Driver(engine).run(again), again)
    # The version before again: what its rows have left is found, and is right.
    engine.put_weights(versions[0], "finish").result(PATIENCE_S)
    back = row(0, tokens=8)
    bench.check(Driver(engine).run(back), back)
    assert kind == "plain" or back.num_cached > 0
    assert len(engine.runner.forwards_by_version.all) == 1


@pytest.mark.parametrize("name", ["gemma3_text", "falcon_h1"])
@pytest.mark.parametrize("running", RUNNING)
def test_windows_and_states(name: str, running: Running, tmp_path: Path) -> None:
    """Models whose forwards are padded keep their rows apart by version, too."""
    models = [architectures.build(name) for _ in range(3)]
    models[1].update(tree_map(lambda array: array * 1.5, models[1].parameters()))
    engine = Engine(
        lambda: mock.loaded(models[2], vocab_size=architectures.vocab_size(name)), EngineConfig()
    )
    engine.start()
    engine.wait_ready(PATIENCE_S)
    new = fitted(engine, checkpoint_of(models[1], tmp_path), 1)
    driver = Driver(engine)
    old, late = [row(text, tokens=12) for text in range(3)], row(5, tokens=6)
    driver.at_step(4, putting(engine, new, running))
    driver.at_step(5, lambda: driver.submit(late))
    driver.run(*old)
    engine.stop()
    for sequence in [*old, late]:
        # mlx-lm's own cache of a state cannot be handed from model to model.
        if running != "keep" or sequence is late:
            check_by_version(driver, sequence, models)


def test_packed_weights_are_packed_again(
    llama_factory: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    """Plain weights for a quantised model become what loading them with --quantize makes."""

    def fits(_: str, module: Any) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0

    def packed(seed: int) -> LoadedModel:
        loaded = llama_factory(seed)
        nn.quantize(
            loaded.model,
            32,
            4,
            class_predicate=lambda _, m: (
                hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0
            ),
        )
        mx.eval(loaded.model.parameters())
        return loaded

    engine = Engine(lambda: packed(0), EngineConfig())
    engine.start()
    engine.wait_ready(PATIENCE_S)
    wanted = packed(1).model
    for donor in (llama_factory(1).model, wanted):  # plain, and packed as they are
        new = fitted(engine, checkpoint_of(donor, tmp_path), 1)
        arrays: dict[str, mx.array] = dict(tree_flatten(wanted.parameters()))
        for path, array in arrays.items():
            assert new.parameters[path].dtype == array.dtype
            assert mx.array_equal(new.parameters[path], array).item(), path
    engine.put_weights(new, "finish").result(PATIENCE_S)
    sequence = row(1)
    driver = Driver(engine).run(sequence)
    engine.stop()
    check_by_version(driver, sequence, [packed(0).model, wanted])


def test_prefixes_on_disk_belong_to_weights(
    llama_factory: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    """After a restart those of what is loaded are found, and those of an upload once it is there
    again; never the others."""
    oracles = [llama_factory(seed).model for seed in range(2)]
    data = checkpoint_of(oracles[1], tmp_path)
    config = EngineConfig(prefix_cache_memory=1 << 20, prefix_cache_dir=tmp_path / "prefixes")
    cached = []
    for _ in range(2):
        engine = Engine(llama_factory, config)
        engine.start()
        engine.wait_ready(PATIENCE_S)
        for version in range(2):
            if version:
                engine.put_weights(fitted(engine, data, 1), "finish").result(PATIENCE_S)
            sequence = row(2, length=60)
            check_by_version(Driver(engine).run(sequence), sequence, oracles)
            cached.append(sequence.num_cached)
        engine.stop()
    assert cached[:2] == [0, 0] and min(cached[2:]) > 0
