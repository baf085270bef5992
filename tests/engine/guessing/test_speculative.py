"""Law 2: speculation gives plain decoding's tokens, for every row of a mixed batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.cache.span import Ragged
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.guessing.length_controller import LengthController
from mlx_parallm.engine.sampling.sampler import Sampler
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import LoadedModel
from tests.conftest import assert_no_leaks
from tests.engine import mock
from tests.engine.driver import Driver, copy_of, greedy
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("no_compile")

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 5, "logprobs": 0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.9, "frequency_penalty": 0.4, "min_p": 0.05, "min_tokens": 4},
    {"temperature": 0.0, "logit_bias": {7: 2.0}, "speculative": False},
]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    """One engine that does not guess, and those that do; the drafts are right and rarely right."""
    from tests.conftest import tiny_llama

    made = {
        "plain": Engine(tiny_llama, EngineConfig(prefill_chunk=32)),
        "ngram": Engine(tiny_llama, EngineConfig(prefill_chunk=32, speculative="ngram")),
        "itself": Engine(
            tiny_llama, EngineConfig(prefill_chunk=32, speculative="draft"), tiny_llama
        ),
        "another": Engine(
            tiny_llama,
            EngineConfig(prefill_chunk=32, speculative="draft", num_draft_tokens=3),
            lambda: tiny_llama(seed=5, num_hidden_layers=1),
        ),
    }
    for engine in made.values():
        engine.start()
        engine.wait_ready(PATIENCE_S)
    yield made
    for engine in made.values():
        assert_no_leaks(engine)
        engine.stop()


def always_guess(engine: Engine, length: int) -> Callable[[], None]:
    """Take the decision whether guessing pays away from the clock; returns the undo."""
    assert engine.runner.speculation is not None
    lengths = engine.runner.speculation.lengths
    lengths.choose = lambda *_: length  # type: ignore[method-assign]
    lengths.narrow = lambda proposal: int(proposal.counts.sum())  # type: ignore[method-assign]

    def undo() -> None:
        del lengths.choose, lengths.narrow

    return undo


def some_sequences(count: int) -> list[Sequence]:
    rng = np.random.default_rng(1)
    sequences = []
    for place in range(count):
        pattern = rng.integers(1, mock.VOCAB - 1, rng.integers(1, 9)).tolist()
        prompt = (pattern * 20)[: int(rng.integers(1, 70))]
        settings = SETTINGS[place % len(SETTINGS)]
        params = SamplingParams(max_tokens=int(rng.integers(1, 24)), seed=place, **settings)
        sequences.append(Sequence(prompt, params))
    return sequences


@pytest.mark.parametrize("kind", ["ngram", "itself", "another"])
def test_speculative_equals_plain_for_200_mixed_prompts(
    engines: dict[str, Engine], kind: str
) -> None:
    sequences = some_sequences(200)
    plain = Driver(engines["plain"]).run(*sequences)
    undo = always_guess(engines[kind], 3)
    try:
        twins = [copy_of(sequence) for sequence in sequences]
        guessed = Driver(engines[kind]).run(*twins)
    finally:
        undo()
    for sequence, twin in zip(sequences, twins, strict=True):
        assert guessed.tokens(twin) == plain.tokens(sequence)
        found = [entry.logprob for entry in guessed.logprobs(twin)]
        assert found == pytest.approx(
            [entry.logprob for entry in plain.logprobs(sequence)], abs=1e-4
        )
    stats = engines[kind].speculative_stats()
    assert stats is not None and stats.drafted > 100
    if kind == "itself":  # a greedy row's own guesses are all right
        assert stats.acceptance_rate > 0.3


def test_ends_inside_accepted_guesses(engines: dict[str, Engine]) -> None:
    prompt = list(range(1, 40))
    whole = greedy(prompt, 20)
    tokens = Driver(engines["plain"]).run(whole).tokens(whole)
    undo = always_guess(engines["itself"], 4)
    try:
        for place in (1, 2, 3, 7):
            cut = greedy(prompt, place)
            driver = Driver(engines["itself"]).run(cut)
            assert driver.tokens(cut) == tokens[:place]
            assert driver.end(cut).finish_reason is FinishReason.LENGTH
            end = tokens[place]
            first = tokens.index(end) + 1
            stopped = greedy(prompt, 20, stop_token_ids=frozenset([end]))
            driver = Driver(engines["itself"]).run(stopped)
            assert driver.tokens(stopped) == tokens[:first]
            assert driver.end(stopped).finish_reason is FinishReason.STOP
    finally:
        undo()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 4},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repetition_penalty": 1.5, "frequency_penalty": 0.7},
        {"temperature": 1.0, "logit_bias": {2: 1.5, 3: -2.0}},
    ],
)
def test_verified_tokens_have_the_right_distribution(settings: dict[str, Any]) -> None:
    """Chi-square of 20,000 draws at each of three places behind guesses."""
    vocab, draws, guess = 12, 20_000, 3
    logits = mx.array(np.random.default_rng(0).normal(size=(1, 3, vocab)) * 1.5)
    seeds = np.random.default_rng(1).integers(0, 1 << 62, draws)
    sequences = [
        Sequence([1, 2], SamplingParams(max_tokens=9, seed=int(seed), **settings)) for seed in seeds
    ]
    guesses = mx.full((draws, 2), guess, dtype=mx.int32)
    layout = Ragged(np.full(draws, 3))
    repeated = mx.broadcast_to(logits, (draws, 3, vocab)).reshape(-1, vocab)
    tokens = np.array(Sampler(vocab).sample_ahead(repeated, sequences, guesses, layout).tokens)
    tokens = tokens.reshape(draws, 3)
    for place in range(3):
        # The oracle: plain sampling's distribution behind the same tokens.
        known = Sequence([1, 2], SamplingParams(max_tokens=9, seed=1, **settings))
        known.output = [guess] * place
        expected = np.array(Sampler(vocab).distribution(logits[:, place], [known]))[0] * draws
        seen = np.bincount(tokens[:, place], minlength=vocab)
        possible = expected > 1e-3
        assert not seen[~possible].any()
        statistic = (((seen - expected) ** 2)[possible] / expected[possible]).sum()
        assert statistic < 45, f"place {place}"  # p < 1e-5 at 11 degrees of freedom


def run_plainly(controller: LengthController, rows: list[Sequence]) -> None:
    """As many plain steps of a second as a decision for them holds."""
    for _ in range(8):
        controller.choose(rows)
        controller.measured(1, 0, 1.0, waited=False)


def test_guessing_stops_where_it_does_not_pay() -> None:
    controller, rows = LengthController(4), [greedy([1, 2]) for _ in range(8)]
    for _ in range(4):  # the first two of a run are not believed
        assert controller.choose(rows) == 0  # the plain step is measured first
        controller.measured(8, 0, 1.0, waited=False)
    for length in range(1, 5):
        for _ in range(3):
            controller.measured(8, length, 8.0, waited=True)
    chosen = [controller.choose(rows) for _ in range(5000)]
    assert 1 <= sum(length > 0 for length in chosen) <= 20  # it looks again now and then


@pytest.mark.parametrize("is_free", [True, False])
def test_looking_again_costs_little(is_free: bool) -> None:
    """However slow guessing is, it may take 3% of the time at most."""
    controller = LengthController(4, is_free)
    rows, spent, extra = [greedy([1, 2]) for _ in range(8)], 0.0, 0.0
    for _ in range(3000):
        length = controller.choose(rows, lambda: 0 if is_free else 100)
        seconds = 1.0 if not length else 40.0
        if length:
            controller.caught_up(100, 30.0)
            for row in rows:
                controller.verified(row, length, 0)
        controller.measured(8, length, seconds, waited=length > 0)
        spent, extra = spent + seconds, extra + seconds - 1.0
    assert extra < 0.03 * spent + 4 * 40.0


def test_guessing_goes_on_where_it_pays() -> None:
    controller, rows = LengthController(4), [greedy([1, 2])]
    run_plainly(controller, rows)
    for length in range(1, 5):
        for _ in range(3):
            controller.measured(1, length, 1.1, waited=True)
    for _ in range(30):
        controller.verified(rows[0], 4, 4)
    assert controller.choose(rows) == 4
    for _ in range(60):
        controller.verified(rows[0], 4, 0)
    assert controller.choose(rows) == 0


def test_looking_at_plain_steps_costs_little() -> None:
    """Where guessing pays it goes on, but for a few plain steps that are measured anew."""
    controller, rows = LengthController(4, is_free=True), [greedy([1, 2])]
    run_plainly(controller, rows)
    plain = 0
    for _ in range(3000):
        length = controller.choose(rows)
        plain += not length
        controller.verified(rows[0], length, length)
        controller.measured(1, length, 1.5 if length else 1.0, waited=length > 0)
    assert 40 < plain < 300


def test_guessing_stops_when_plain_steps_become_faster() -> None:
    """Of their time is known what was measured before guessing began: it is looked at again."""
    controller, rows = LengthController(4, is_free=True), [greedy([1, 2])]
    for _ in range(4):
        controller.choose(rows)
        controller.measured(1, 0, 3.0, waited=False)  # the machine was busy
    last: list[int] = []
    for _ in range(3000):
        length = controller.choose(rows)
        controller.verified(rows[0], length, min(length, 1))
        controller.measured(1, length, 3.0 if length else 1.0, waited=length > 0)
        last = [*last[-99:], length]
    assert sum(length > 0 for length in last) < 20


def test_a_draft_that_must_read_long_prompts_for_short_answers_does_not_pay() -> None:
    controller, rows = LengthController(4), [greedy([1, 2])]
    run_plainly(controller, rows)
    for _ in range(4):  # the first two of a run are not believed
        controller.measured(1, 4, 1.1, waited=True)
    for _ in range(30):
        controller.verified(rows[0], 4, 4)
    assert controller.choose(rows) == 4
    controller.caught_up(1000, 100.0)
    for _ in range(100):
        ended = greedy([1] * 100)
        ended.output = [1, 2, 3]
        controller.forget(ended)
    assert controller.choose(rows) == 0


def test_only_guesses_that_pay_are_verified() -> None:
    controller = LengthController(3, is_free=True)
    for length, seconds in ((1, 1.1), (2, 1.2), (3, 3.0)):
        controller.measured(1, length, 20 * seconds, waited=True)  # the first of its shape
        controller.measured(1, length, seconds, waited=True)
    for _ in range(3):
        controller.measured(1, 0, 1.0, waited=True)
    guesses, counts = np.zeros((1, 3), np.int32), np.array([3])
    sure = Proposal(guesses, counts, np.array([[0.9, 0.8, 0.7]]))
    assert controller.narrow(sure) == 2
    assert controller.narrow(Proposal(guesses, counts, np.full((1, 3), 0.05))) == 0
    assert controller.narrow(Proposal(guesses, np.array([0]), np.zeros((1, 3)))) == 0


def test_reasons_are_counted(engines: dict[str, Engine]) -> None:
    """One for each step that had rows to decode; a pause holds from the next step on."""
    engine = engines["ngram"]
    before = engine.stats().speculation_reasons
    Driver(engine).run(greedy([1, 2, 3], 30), greedy([4, 5], 30, speculative=False))
    after = engine.stats().speculation_reasons
    assert sum(after.values()) >= sum(before.values()) + 10
    assert after["off"] == before["off"] == 0
    engine.configure(speculate=False).result(PATIENCE_S)
    try:
        Driver(engine).run(greedy([1, 2, 3], 9))
    finally:
        engine.configure(speculate=True).result(PATIENCE_S)
    paused = engine.stats().speculation_reasons
    assert paused.pop("off") >= 8
    assert paused == {reason: n for reason, n in after.items() if reason != "off"}
    Driver(engine).run(greedy([1, 2, 3], 20, speculative=False))
    assert engine.stats().speculation_reasons["nobody_wants_it"] >= 10


def test_a_draft_with_another_tokenizer_is_refused(
    llama_factory: Callable[..., LoadedModel],
) -> None:
    def foreign() -> LoadedModel:
        loaded = llama_factory()
        vocab = {f"x{key}": value for key, value in loaded.tokenizer.get_vocab().items()}
        loaded.tokenizer = type("Other", (), {"get_vocab": lambda self: vocab})()
        return loaded

    engine = Engine(llama_factory, EngineConfig(speculative="draft"), foreign)
    engine.start()
    with pytest.raises(ModelLoadError, match="tokenizers differ"):
        engine.wait_ready(PATIENCE_S)
