"""Every architecture that mlx-lm can divide: two ranks must answer as one process does.

    python -m tests.engine.ranks.every_type              # all, a line each
    python -m tests.engine.ranks.every_type llama qwen3  # some

Both ranks are processes, and their engines the server's. Ends with 1 where one differs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.ranks.launch import LocalRanks, end_with_leader
from mlx_parallm.engine.ranks.meet import meet
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.adapting.adapt import NEEDS_METAL, adapt
from mlx_parallm.models.adapting.shards import shard
from mlx_parallm.models.loader import LoadedModel
from tests.engine.driver import Driver
from tests.models import architectures
from tests.models.test_architectures import load
from tests.models.test_shards import group

RANKS = 2
TOLERANCE = 1e-4
Answers = list[tuple[list[int], list[float]]]


def divisible() -> list[str]:
    """The types whose model says how it is divided."""
    runs = sorted(architectures.TINY.keys() - (() if mx.metal.is_available() else NEEDS_METAL))
    return [name for name in runs if hasattr(architectures.build(name), "shard")]


def refused(name: str) -> str | None:
    """Why the tiny model cannot be divided; None where it can."""
    try:
        shard(architectures.build(name), group(0, RANKS), name)
    except ModelLoadError as error:
        return str(error)
    return None


@contextmanager
def running(name: str, *, divided: bool) -> Iterator[Engine]:
    """An engine with a tiny model of this type."""

    def load_part() -> LoadedModel:
        loaded = load(name)
        if divided:
            loaded.model = architectures.build(name)
            shard(loaded.model, mx.distributed.init(), name)
            adapt(loaded.model)
        return loaded

    config = EngineConfig(max_batch_size=8, prefill_chunk=16)
    join = (lambda on_end: meet(RANKS, name, 0, on_end)) if divided else None
    engine = Engine(load_part, config, meet=join)
    engine.on_failure = lambda reason: os._exit(1)
    engine.start()
    try:
        engine.wait_ready()
        yield engine
        if engine.ranks.rank:
            engine.thread.join()
    finally:
        engine.stop()


def answers(engine: Engine) -> Answers:
    """Of prompts of several lengths, greedy and drawn, together and again from prefixes."""
    rng = np.random.default_rng(3)
    found: Answers = []
    prompts = [rng.integers(1, architectures.VOCAB, size).tolist() for size in (3, 9, 21, 40)]
    for temperature in (0.0, 0.8, 0.0):
        params = SamplingParams(max_tokens=8, temperature=temperature, seed=5, logprobs=1)
        sequences = [Sequence(list(prompt), params) for prompt in prompts]
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


def lead(names: list[str]) -> int:
    """Compare every type as rank 0; returns how many differ."""
    wrong = 0
    for name in names:
        if (refusal := refused(name)) is not None:
            sys.stdout.write(f"{name}: {refusal}\n")
            continue
        with running(name, divided=False) as engine:
            expected = answers(engine)
        with running(name, divided=True) as engine:
            apart = difference(expected, answers(engine))
        wrong += apart > TOLERANCE
        sys.stdout.write(f"{name}: {apart:.1e}{'' if apart <= TOLERANCE else ' DIFFERS'}\n")
        sys.stdout.flush()
    return wrong


def follow(names: list[str]) -> None:
    """Compute them as another rank."""
    for name in names:
        if refused(name) is None:
            with running(name, divided=True):
                pass


def main(names: list[str]) -> int:
    """Start the other rank, and compare."""
    mx.disable_compile()
    names = names or divisible()
    if os.environ.get("MLX_RANK", "0") != "0":
        end_with_leader()
        follow(names)
        return 0
    command = [sys.executable, "-m", "tests.engine.ranks.every_type", *names]
    with LocalRanks(command, RANKS, lambda reason: os._exit(1)):
        return int(lead(names) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
