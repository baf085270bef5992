"""Grammars in the batch. Law 7: a constrained row's tokens are those of masked plain decoding
alone, whatever is guessed or runs beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from mlx_lm.models.cache import make_prompt_cache

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.grammar import Compiler, Constraint, Gate, Grammar
from mlx_parallm.engine.sampling.sampler import uniforms
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.loader import load_model
from tests.engine.driver import Driver
from tests.waiting import PATIENCE_S

MAX_TOKENS = 24
# Of a sum of probabilities in float32.
_NOISE = 2e-5
GRAMMARS = [
    Grammar.json_object(),
    Grammar.json_schema(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
    Grammar.regex("(yes|no), [a-z]{3,12}\\."),
    Grammar.choice(["the code of Mira", "the code of Tom", "nothing"]),
    Grammar.lark('start: "a"+ ("b" | "c")* "."'),
]
PROMPTS = ["The code of Mira is", "What is 34 plus 25?", "x", "Say yes or no. " * 12]
# name -> what an engine is made with
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ngram": {"speculative": "ngram", "num_draft_tokens": 6},
    "preempting": {"max_batch_size": 6},
    "late": {},
}


@dataclass
class House:
    """The bundled model's engines and its compiler."""

    engines: dict[str, Engine]
    compiler: Compiler

    def constraint(self, grammar: Grammar, gate: Gate | None = None) -> Constraint:
        return self.compiler.constraint(grammar, gate, param="x").result(PATIENCE_S)

    @property
    def loaded(self) -> Any:
        return self.engines["plain"].loaded

    def ids(self, text: str) -> list[int]:
        return [int(token) for token in self.loaded.tokenizer.encode(text)]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    engines = {}
    for name, settings_ in ENGINES.items():
        engine = Engine(lambda: load_model("bundled"), EngineConfig(**settings_))
        engine.start()
        engine.wait_ready(PATIENCE_S)
        engines[name] = engine
    small = engines["preempting"].scheduler
    small.config = replace(small.config, kv_tokens=192)
    # The order of a GPU: the forward is on its way before the tokens of the one before are read.
    late = engines["late"].runner
    late.must_read_first = lambda sequences, predicts=False: False  # type: ignore[method-assign]
    loaded = engines["plain"].loaded
    assert loaded is not None
    compiler = Compiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
    yield House(engines, compiler)
    for engine in engines.values():
        engine.stop()
    compiler.close()


def masked_alone(
    house: House, sequence: Sequence, matcher: LLMatcher, heard: list[int]
) -> list[int]:
    """Tokens by mlx-lm's model and llguidance's masks, one after the other, in float64.

    heard: the tokens of the engine; one that is as right as rounding can tell is followed.
    """
    params = sequence.params

    def run() -> list[int]:
        model = house.loaded.model
        cache = make_prompt_cache(model)
        said: list[int] = []
        tokens = list(sequence.prompt)
        while len(said) < params.max_tokens:
            logits = np.array(model(mx.array([tokens]), cache=cache)[0, -1].astype(mx.float32))
            place = len(said)
            other = heard[place] if place < len(heard) else -1
            token = _pick(logits, matcher.compute_bitmask(), params, place, other)
            said.append(token)
            assert matcher.consume_token(token), matcher.get_error()
            if matcher.is_stopped():
                break
            tokens = [token]
        return said

    return house.engines["plain"].call(run).result(PATIENCE_S)


def _pick(logits: np.ndarray, mask: bytes, params: SamplingParams, place: int, heard: int) -> int:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(logits)]
    allowed = np.where(bits == 1, logits, -np.inf)
    if params.temperature == 0:
        return int(allowed.argmax())
    p = np.exp((allowed - allowed.max()) / np.float32(params.temperature)).astype(np.float32)
    total = np.cumsum(p, dtype=np.float64)
    u = uniforms(np.array([params.seed]), np.array([place]))[0]
    # Where hundreds of unlikely tokens lie side by side, float32 cannot tell neighbours apart.
    edge, noise = u * total[-1], _NOISE * total[-1]
    near = (total > edge - noise) & (total - p <= edge + noise) & (p > 0)
    return heard if heard >= 0 and near[heard] else int(((total > edge) & (p > 0)).argmax())


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, float, int]:
    """Grammar (the last is none), prompt, temperature and seed of a row."""
    return (
        draw(st.integers(0, len(GRAMMARS))),
        draw(st.integers(0, len(PROMPTS) - 1)),
        draw(st.sampled_from([0.0, 0.0, 0.7, 1.5])),
        draw(st.integers(0, 3)),
    )


def made(house: House, request: tuple[int, int, float, int]) -> Sequence:
    grammar, prompt, temperature, seed = request
    params = SamplingParams(
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        seed=seed,
        eos_token_ids=house.loaded.eos_token_ids,
    )
    sequence = Sequence(house.ids(PROMPTS[prompt]), params)
    if grammar < len(GRAMMARS):
        sequence.constraint = house.constraint(GRAMMARS[grammar])
    return sequence


@pytest.mark.parametrize("name", list(ENGINES))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(requests(), min_size=1, max_size=9))
def test_a_row_is_masked_plain_decoding_alone(
    house: House, name: str, rows: list[tuple[int, int, float, int]], caplog: Any
) -> None:
    sequences = [made(house, row) for row in rows]
    driver = Driver(house.engines[name])
    driver.run(*sequences)
    for row, sequence in zip(rows, sequences, strict=True):
        if row[0] == len(GRAMMARS):
            continue
        matcher = house.constraint(GRAMMARS[row[0]]).matcher
        assert matcher is not None
        heard = driver.tokens(sequence)
        assert heard == masked_alone(house, sequence, matcher, heard)
    assert not [record for record in caplog.records if "step failed" in record.message]


def row(house: House, grammar: Grammar | None, text: str = PROMPTS[0], **params: Any) -> Sequence:
    gate = params.pop("gate", None)
    given = {"max_tokens": MAX_TOKENS, "temperature": 0.0, **params}
    settings_ = SamplingParams(eos_token_ids=house.loaded.eos_token_ids, **given)
    sequence = Sequence(house.ids(text), settings_)
    if grammar is not None or gate is not None:
        sequence.constraint = house.constraint(grammar, gate)  # type: ignore[arg-type]
    return sequence


def text_of(house: House, driver: Driver, sequence: Sequence) -> str:
    return str(house.loaded.tokenizer.decode(driver.tokens(sequence), skip_special_tokens=True))


def test_guesses_were_verified_and_rows_preempted(house: House) -> None:
    """What the law's test relies on does happen."""
    long = Grammar.regex("[a-z ]{400}")
    rows = [row(house, long, max_tokens=150) for _ in range(4)]
    Driver(house.engines["preempting"]).run(*rows)
    assert house.engines["preempting"].stats().preemptions > 0
    for _ in range(6):
        Driver(house.engines["ngram"]).run(*[row(house, GRAMMARS[1]) for _ in range(4)])
    stats = house.engines["ngram"].speculative_stats()
    assert stats is not None
    assert stats.accepted > 0


def test_a_row_ends_with_its_grammar(house: House) -> None:
    driver = Driver(house.engines["plain"])
    sequence = row(house, Grammar.regex("[a-z]{4}"))
    driver.run(sequence)
    assert driver.end(sequence).finish_reason is FinishReason.STOP
    assert len(text_of(house, driver, sequence)) == 4


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("settings_", [{"min_tokens": 20}, {"ignore_eos": True}])
def test_the_end_of_a_grammar_beats_min_tokens_and_ignore_eos(
    house: House, name: str, settings_: dict[str, Any]
) -> None:
    driver = Driver(house.engines[name])
    fixed = row(house, Grammar.choice(["nothing"]), **settings_)
    open_ended = row(house, Grammar.regex("(ab)+"), **settings_)
    driver.run(fixed, open_ended)
    assert text_of(house, driver, fixed) == "nothing"
    assert driver.end(fixed).finish_reason is FinishReason.STOP
    least = 20 if "min_tokens" in settings_ else MAX_TOKENS
    assert len(driver.tokens(open_ended)) >= least


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_grammar_that_fails_is_its_rows_alone(
    house: House, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(house.engines[name])
    rows = [row(house, Grammar.json_object(), text) for text in PROMPTS]
    faulty = row(house, Grammar.json_object())
    assert faulty.constraint is not None and faulty.constraint.matcher is not None
    faulty.constraint.matcher.consume_token(house.ids("x")[0])
    driver.run(*rows, faulty)
    end = driver.end(faulty)
    assert isinstance(end.error, InvalidRequestError)
    assert driver.tokens(faulty) == []
    for sequence in rows:
        assert driver.end(sequence).error is None
    assert "a step failed" not in caplog.text


def test_log_probabilities_stay_raw(house: House) -> None:
    driver = Driver(house.engines["plain"])
    free = row(house, None, logprobs=3, max_tokens=1)
    held = row(house, Grammar.regex("[0-9]{9}"), logprobs=3, max_tokens=1)
    driver.run(free, held)
    assert driver.logprobs(free)[0].top == driver.logprobs(held)[0].top
    assert driver.logprobs(held)[0].logprob < driver.logprobs(free)[0].logprob


def test_several_of_one_prompt_with_penalties(house: House) -> None:
    """n > 1: each follows its own copy; and the mask comes behind penalties and bias."""
    driver = Driver(house.engines["plain"])
    constraint = house.constraint(Grammar.choice(["yes", "no", "never"]))
    rows = []
    for seed in range(6):
        bias = dict.fromkeys(house.ids(" Mira"), 100.0)
        sequence = row(house, None, temperature=1.5, seed=seed, logit_bias=bias)
        sequence.params = replace(sequence.params, repetition_penalty=1.3, presence_penalty=0.5)
        sequence.group, sequence.constraint = 77, constraint.copy()
        rows.append(sequence)
    driver.run(*rows)
    assert {text_of(house, driver, one) for one in rows} <= {"yes", "no", "never"}


@pytest.mark.parametrize("name", list(ENGINES))
def test_structure_after_free_text(house: House, name: str) -> None:
    """The free text is that of a row without a grammar; then the grammar holds."""
    driver = Driver(house.engines[name])
    never = dict.fromkeys(house.loaded.eos_token_ids, -100.0)
    drawn = {"temperature": 1.2, "seed": 5, "logit_bias": never}
    free = row(house, None, "What is 34 plus 25?", **drawn)
    driver.run(free)
    said = driver.tokens(free)
    marker = next(t for t in said[3:] if said.index(t) >= 3)
    gate = Gate((marker,))
    held = row(house, Grammar.choice(["yes", "no"]), "What is 34 plus 25?", gate=gate, **drawn)
    budget = row(house, Grammar.choice(["yes", "no"]), "x", gate=Gate((9,), budget=3))
    driver.run(held, budget)
    place = said.index(marker) + 1
    assert driver.tokens(held)[:place] == said[:place]
    tail = house.loaded.tokenizer.decode(driver.tokens(held)[place:], skip_special_tokens=True)
    assert tail in ("yes", "no")
    assert driver.tokens(budget)[3] == 9


def test_what_has_to_come_is_guessed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long fixed text takes few steps where guesses are made."""
    text = "the code of Mira and of Tom and of Anna is one and the same as it was before"
    engine = house.engines["ngram"]
    speculation = engine.runner.speculation
    assert speculation is not None
    # Whether guessing pays is measured, and of so small a model it may not.
    monkeypatch.setattr(speculation.lengths, "choose", lambda *_: 12)
    monkeypatch.setattr(speculation.lengths, "narrow", lambda guesses: int(guesses.counts.sum()))
    driver = Driver(engine)
    rows = [row(house, Grammar.choice([text]), max_tokens=100) for _ in range(2)]
    driver.run(*rows)
    assert {text_of(house, driver, one) for one in rows} == {text}
    assert driver.steps < len(driver.tokens(rows[0])) / 2
