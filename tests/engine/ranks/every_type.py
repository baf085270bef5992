"""Every architecture that mlx-lm can divide: two ranks must answer as one process does.

    python -m tests.engine.ranks.every_type                        # all, a line each
    python -m tests.engine.ranks.every_type llama qwen3            # some
    python -m tests.engine.ranks.every_type --ranks 4 llama qwen3  # wider ones, over four
    python -m tests.engine.ranks.every_type --in-stages            # layers divided, not heads

Ranks are processes, and their engines the server's. Prompts are answered with and without an
adapter of all layers that can have one; those that cannot are named. Ends with 1 where one differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.ranks.launch import LocalRanks, end_with_leader
from mlx_parallm.engine.ranks.meet import meet
from mlx_parallm.engine.ranks.met import OnEnd
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.errors import ModelLoadError, UnsupportedError
from mlx_parallm.models.adapting.adapt import NEEDS_METAL, adapt
from mlx_parallm.models.adapting.shards import divided_part, shard
from mlx_parallm.models.adapting.stages import divide
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.models.lora.check import check
from mlx_parallm.models.lora.delta import AdapterWeights, Delta
from mlx_parallm.models.lora.modules import Modules, width_of
from tests.engine.driver import Driver
from tests.models import architectures
from tests.models.test_architectures import load
from tests.models.test_shards import group

TOLERANCE = 1e-4
RANK = 3  # of the adapter
# What the wider models have more of, so that each of four ranks has one.
WIDER = (
    *("num_attention_heads", "num_key_value_heads", "linear_num_key_heads"),
    *("linear_num_value_heads", "index_n_heads", "vocab_size"),
)
Answers = list[tuple[list[int], list[float]]]


@dataclass(frozen=True, slots=True)
class Division:
    """Over how many ranks, and whether each has some layers or a part of all."""

    ranks: int = 1
    in_stages: bool = False

    def apply(self, model: Any, ranks: mx.distributed.Group, name: str) -> None:
        (divide if self.in_stages else shard)(model, ranks, architectures.config(name))


WHOLE = Division()


def divisible(division: Division) -> list[str]:
    """The types whose model says how it is divided, or has layers."""
    runs = sorted(architectures.TINY.keys() - (() if mx.metal.is_available() else NEEDS_METAL))
    return [name for name in runs if division.in_stages or _says_how(name)]


def _says_how(name: str) -> bool:
    return divided_part(architectures.build(name)) is not None


def widen(config: dict[str, Any]) -> None:
    """Twice as many heads as the tiny models have."""
    for place in (config, config.get("text_config") or {}):
        for name in WIDER:
            if isinstance(place.get(name), int):
                place[name] *= 2


def refused(name: str, division: Division) -> str | None:
    """Why the tiny model cannot be divided; None where it can."""
    try:
        division.apply(architectures.build(name), group(0, division.ranks), name)
    except ModelLoadError as error:
        return str(error)
    return None


@contextmanager
def running(name: str, division: Division = WHOLE) -> Iterator[Engine]:
    """An engine with a tiny model of this type, or with a rank's part of it."""

    def load_part() -> LoadedModel:
        loaded = load(name)
        if division.ranks > 1:
            loaded.model = architectures.build(name)
            division.apply(loaded.model, mx.distributed.init(), name)
            adapt(loaded.model)
        return loaded

    config = EngineConfig(max_batch_size=8, prefill_chunk=16)

    def join(on_end: OnEnd) -> Ranks:
        return meet(division.ranks, name, 0, on_end, in_stages=division.in_stages)

    engine = Engine(load_part, config, meet=join if division.ranks > 1 else None)
    engine.on_failure = lambda reason: os._exit(1)
    engine.start()
    try:
        engine.wait_ready()
        yield engine
        if engine.ranks.rank:
            engine.thread.join()
    finally:
        engine.stop()


def adapter_of(modules: Modules) -> tuple[Adapter, list[str]]:
    """A random adapter of all layers that can have one, and the paths of those that cannot."""
    rng = np.random.default_rng(4)
    deltas: dict[str, Delta] = {}
    without = []
    for number, path in enumerate(modules.paths):
        if not (modules.is_linear(path) or modules.is_experts(path)):
            continue
        delta = _delta(rng, width_of(modules[path]), number)
        try:
            check(AdapterWeights({path: delta}, ""), modules, RANK)
        except UnsupportedError:
            without.append(path)
        else:
            deltas[path] = delta
    return Adapter("adapter", 1, AdapterWeights(deltas, "digest")), without


def _delta(rng: np.random.Generator, width: tuple[int, ...], number: int) -> Delta:
    """Of experts low rank; of other layers that, DoRA, or a whole weight, in turn."""
    *experts, out, inputs = width

    def drawn(*shape: int) -> np.ndarray:
        noise: np.ndarray = rng.normal(size=shape) / shape[-1] ** 0.5
        return noise.astype(np.float32)

    if not experts and number % 3 == 0:
        return Delta(replaced={"weight": drawn(out, inputs)})
    low = Delta(0.3 * drawn(*experts, inputs, RANK), 0.3 * drawn(*experts, RANK, out))
    if not experts and number % 3 == 1:
        low.magnitude = 1 + np.abs(drawn(out))
        low.added = 0.1 * drawn(out)
    return low


def answers(engine: Engine, adapter: Adapter | None) -> Answers:
    """Of prompts of several lengths, greedy and drawn, together and again from prefixes."""
    rng = np.random.default_rng(3)
    found: Answers = []
    prompts = [rng.integers(1, architectures.VOCAB, size).tolist() for size in (3, 9, 21, 40)]
    for temperature, added in ((0.0, None), (0.8, None), (0.0, None), (0.0, adapter)):
        params = SamplingParams(max_tokens=8, temperature=temperature, seed=5, logprobs=1)
        sequences = [Sequence(list(prompt), params, adapter=added) for prompt in prompts]
        driver = Driver(engine).run(*sequences)
        found += [
            (driver.tokens(one), [entry.logprob for entry in driver.logprobs(one)])
            for one in sequences
        ]
    return found


def difference(one: Answers, other: Answers) -> float:
    """The largest of log-probabilities; infinite where a token differs."""
    if [tokens for tokens, _ in one] != [tokens for tokens, _ in other]:
        return float("inf")
    pairs = zip(one, other, strict=True)
    return max(float(np.abs(np.subtract(a, b)).max()) for (_, a), (_, b) in pairs)


def lead(names: list[str], division: Division, *, adapted: bool) -> int:
    """Compare every type as rank 0; returns how many differ."""
    wrong = 0
    for name in names:
        if (refusal := refused(name, division)) is not None:
            sys.stdout.write(f"{name}: {refusal}\n")
            continue
        with running(name, division) as engine:
            adapter, without = adapter_of(engine.adapter_modules()) if adapted else (None, [])
            divided = answers(engine, adapter)
        with running(name) as engine:
            fresh = None if adapter is None else Adapter("adapter", 1, adapter.weights)
            apart = difference(answers(engine, fresh), divided)
        wrong += apart > TOLERANCE
        names_of = sorted({path.rpartition(".")[2] for path in without})
        no_adapter = f" (no adapter of {', '.join(names_of)})" if names_of else ""
        differs = "" if apart <= TOLERANCE else " DIFFERS"
        sys.stdout.write(f"{name}: {apart:.1e}{differs}{no_adapter}\n")
        sys.stdout.flush()
    return wrong


def follow(names: list[str], division: Division) -> None:
    """Compute them as another rank."""
    for name in names:
        if refused(name, division) is None:
            with running(name, division):
                pass


def main() -> int:
    """Start the other ranks, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--in-stages", action="store_true")
    parser.add_argument("--without-adapters", action="store_true")
    options = parser.parse_args()
    division = Division(options.ranks, options.in_stages)
    mx.disable_compile()
    names = options.names or divisible(division)
    if options.ranks > 2 and not options.in_stages:
        for name in names:
            widen(architectures.TINY[name])
    if os.environ.get("MLX_RANK", "0") != "0":
        end_with_leader()
        follow(names, division)
        return 0
    command = [sys.executable, "-m", "tests.engine.ranks.every_type", *sys.argv[1:]]
    with LocalRanks(command, options.ranks, lambda reason: os._exit(1)):
        return int(lead(names, division, adapted=not options.without_adapters) > 0)


if __name__ == "__main__":
    sys.exit(main())
