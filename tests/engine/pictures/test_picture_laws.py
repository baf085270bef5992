"""The laws, for rows with pictures among rows with text.

1. batch == alone. 2. speculative == plain. 3. radix == naive: and never another picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from tests.conftest import assert_no_leaks
from tests.engine.driver import Driver, copy_of
from tests.engine.pictures.seeing import PICTURE, engine_of, sequence_of
from tests.engine.test_laws import all_same, bound
from tests.models.vision.tiny_vision import picture

FAMILIES = ("idefics3", "qwen3_vl")
TOLERANCE = 1e-3
ROOMY = {"max_batch_size": 32, "prefill_chunk": 256, "idle_prefill_tokens": 1024}
# What an engine may do besides, and must not be seen in what it gives.
KINDS: dict[str, dict[str, Any]] = {
    "prefixes": {"prefix_cache_memory": 1 << 20},
    "few pages": {"prefix_cache_memory": 1 << 14},
    "guesses": {"prefix_cache_memory": 1 << 18, "speculative": "ngram"},
}

pytestmark = pytest.mark.usefixtures("no_compile")


@dataclass(frozen=True)
class Request:
    """A conversation with pictures among its pieces of text, and when it comes."""

    pieces: tuple[str | int, ...]  # a number is the picture of that seed
    params: SamplingParams
    n: int
    arrives: int

    def sequences(self, engine: Engine, family: str) -> list[Sequence]:
        text = "".join(PICTURE if isinstance(piece, int) else piece for piece in self.pieces)
        pictures = [picture(seed) for seed in self.pieces if isinstance(seed, int)]
        first = sequence_of(engine, family, f"user: {text}\nassistant:", pictures)
        first.params = self.params
        rest = [copy_of(first) for _ in range(self.n - 1)]
        for place, sequence in enumerate([first, *rest]):
            sequence.params = replace(self.params, seed=(self.params.seed or 0) + place)
            sequence.group = first.id if self.n > 1 else None
        return [first, *rest]


some_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 10),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 1 << 40),
    ignore_eos=st.just(True),
    logprobs=st.just(0),
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
)
some_requests = st.lists(
    st.builds(
        Request,
        pieces=st.lists(
            st.one_of(st.integers(0, 3), st.sampled_from(["Look: ", "the red one, ", "and " * 9])),
            min_size=1,
            max_size=4,
        ).map(tuple),
        params=some_params,
        n=st.sampled_from([1, 1, 2]),
        arrives=st.integers(0, 8),
    ),
    min_size=2,
    max_size=6,
)
some_bounds = st.fixed_dictionaries(
    {
        "max_batch_size": st.sampled_from([2, 32]),
        "prefill_chunk": st.sampled_from([3, 16, 256]),
        "idle_prefill_tokens": st.sampled_from([5, 1024]),
        "kv_tokens": st.sampled_from([256, 1 << 30]),
    }
)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[tuple[str, str], Engine]]:
    started: dict[tuple[str, str], Engine] = {}
    yield started
    for engine in started.values():
        engine.stop()


def engine_for(engines: dict[tuple[str, str], Engine], family: str, kind: str) -> Engine:
    if (family, kind) not in engines:
        settings = KINDS.get(kind, {"prefix_cache_memory": 0})
        engines[family, kind] = engine_of(family, max_batch_size=32, **settings)
    return engines[family, kind]


def check_same(batch: Driver, sequence: Sequence, alone: Driver, twin: Sequence) -> None:
    assert batch.end(sequence).error is None
    assert batch.tokens(sequence) == alone.tokens(twin)
    assert all_same(batch.logprobs(sequence), alone.logprobs(twin), TOLERANCE)
    assert all_same(batch.prompt_logprobs(sequence), alone.prompt_logprobs(twin), TOLERANCE)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("gemma3", "prefixes"),  # pictures are computed as a whole, in sliding windows too
        ("gemma4", "guesses"),  # embeddings by layer, layers that share K and V
        ("gemma4:larger", "prefixes"),  # pictures that are wider than the windows
        ("idefics3", "prefixes"),
        ("idefics3", "guesses"),
        ("lfm2_vl", "prefixes"),  # recurrent, and two padded forwards a step
        ("qwen3_vl", "prefixes"),
        ("qwen3_vl", "few pages"),
        ("qwen3_vl", "guesses"),
    ],
)
@given(mix=some_requests, bounds=some_bounds)
@settings(max_examples=6, deadline=None)
def test_rows_with_pictures_are_rows(
    engines: dict[tuple[str, str], Engine],
    family: str,
    kind: str,
    mix: list[Request],
    bounds: dict[str, int],
) -> None:
    engine, plain = engine_for(engines, family, kind), engine_for(engines, family, "plain")
    bound(engine, **bounds)
    batch = Driver(engine)
    parts = [(request, request.sequences(engine, family)) for request in mix]
    for request, sequences in parts[1:]:
        batch.at_step(request.arrives, partial(batch.submit, *sequences))
    batch.run(*parts[0][1])
    bound(plain, **ROOMY, kv_tokens=1 << 30)
    for sequence in (s for _, sequences in parts for s in sequences):
        twin = copy_of(sequence)
        check_same(batch, sequence, Driver(plain).run(twin), twin)
    assert_no_leaks(engine)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_text_with_other_pictures_never_gets_the_wrong_one(
    engines: dict[tuple[str, str], Engine], family: str
) -> None:
    """Forty pictures under one text, twice each and mixed, against an engine without a cache."""
    engine, plain = engine_for(engines, family, "prefixes"), engine_for(engines, family, "plain")
    for one in (engine, plain):
        bound(one, **ROOMY, kv_tokens=1 << 30)
    text = f"user: {'Look closely. ' * 6}{PICTURE} What is it?\nassistant:"

    def ask(one: Engine, seeds: list[int]) -> np.ndarray:
        """(pictures, 4) log-probabilities of the answers' tokens."""
        scored = {"max_tokens": 4, "ignore_eos": True, "logprobs": 0}
        asked = [sequence_of(one, family, text, [picture(seed)], **scored) for seed in seeds]
        driver = Driver(one).run(*asked)
        assert all(driver.end(sequence).error is None for sequence in asked)
        return np.array([[s.logprob for s in driver.logprobs(sequence)] for sequence in asked])

    seeds = list(range(40))
    expected = ask(plain, seeds)
    apart = np.abs(expected[:, None] - expected[None]).max(axis=2) + np.eye(len(seeds))
    assert apart.min() > 2 * TOLERANCE, "or nothing is shown here"
    assert np.abs(ask(engine, seeds) - expected).max() < TOLERANCE
    again = [*seeds[::2], *seeds[1::2]]
    before = engine.stats().cached_tokens
    assert np.abs(ask(engine, again) - expected[again]).max() < TOLERANCE
    assert engine.stats().cached_tokens - before > 40 * 32  # whole pages of text and picture
