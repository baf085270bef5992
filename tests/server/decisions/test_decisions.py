"""/v1/decisions and /v1/systemone on the bundled model: shapes, and that the numbers are right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.server.main import create_app
from mlx_parallm.server.schemas.decisions import DecisionsResponse, SystemOneResponse
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S

DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
STATE = "The key is under the red mat. The cat sleeps on the roof."
PREDICATE = {"type": "predicate", "instructions": "Is the key under the mat?", "name": "mat"}
CHOICE = {
    "type": "choice",
    "instructions": "Where is the cat?",
    "choices": [{"value": "roof", "description": "up"}, {"value": "mat"}, {"value": True}],
}
SCORE = {
    "type": "score",
    "instructions": "How sure is that?",
    "levels": [{"label": "not"}, {"label": "a bit"}, {"label": "very", "description": "much"}],
}
QUESTIONS = [PREDICATE, CHOICE, SCORE]


def test_the_documented_shape(bundled: Any) -> None:
    answer = bundled.ok(DECISIONS, model="bundled", input=STATE, questions=QUESTIONS)
    DecisionsResponse.model_validate(answer, strict=True)
    assert set(answer) == {"model", "answers", "usage"}
    predicate, choice, score = answer["answers"]
    assert set(predicate) == {"type", "name", "probability"}
    assert (predicate["type"], predicate["name"]) == ("predicate", "mat")
    assert set(choice) == {"type", "name", "choice", "probabilities", "confidence"}
    assert [entry["value"] for entry in choice["probabilities"]] == ["roof", "mat", True]
    best = max(choice["probabilities"], key=lambda entry: entry["probability"])
    assert choice["choice"] == best["value"]
    assert set(score) == {"type", "name", "score", "probabilities", "confidence"}
    assert [(e["value"], e["label"]) for e in score["probabilities"]] == [
        (0, "not"),
        (1, "a bit"),
        (2, "very"),
    ]
    mean = sum(entry["value"] * entry["probability"] for entry in score["probabilities"])
    assert score["score"] == pytest.approx(mean, abs=3e-4)
    for one in (choice, score):
        total = sum(entry["probability"] for entry in one["probabilities"])
        assert total == pytest.approx(1, abs=5e-4)


def test_usage(bundled: Any) -> None:
    body = {"input": STATE * 40, "questions": QUESTIONS}
    first = bundled.ok(DECISIONS, **body)["usage"]
    assert set(first) == {
        "input_tokens",
        "input_tokens_details",
        "output_tokens",
        "output_tokens_details",
        "total_tokens",
    }
    assert first["total_tokens"] == first["input_tokens"] + first["output_tokens"]
    # The state is computed for one question and found by the others.
    details = first["input_tokens_details"]
    assert details["cached_tokens"] > 0.6 * first["input_tokens"]
    assert details["cached_tokens"] + details["cache_write_tokens"] == first["input_tokens"]
    again = bundled.ok(DECISIONS, **body)["usage"]["input_tokens_details"]["cached_tokens"]
    assert again > 0.9 * first["input_tokens"]
    salted = bundled.ok(DECISIONS, **body, cache_salt="s")["usage"]["input_tokens_details"]
    assert 0.6 * first["input_tokens"] < salted["cached_tokens"] < again


def test_messages_are_joined(bundled: Any) -> None:
    parts = [{"type": "input_text", "text": text} for text in STATE.split("\n")]
    whole = bundled.ok(DECISIONS, input=STATE, questions=QUESTIONS)
    message = {"role": "user", "content": parts}
    assert (
        bundled.ok(DECISIONS, input=[message], questions=QUESTIONS)["answers"] == (whole["answers"])
    )


def test_system_one(bundled: Any) -> None:
    questions = {
        "mat": {"type": "noul", "instructions": "Is the key under the mat?"},
        "cat": {
            "type": "choice",
            "instructions": "Where is the cat?",
            "criteria": {"roof": "up there", "mat": None},
        },
        "sure": {
            "type": "score",
            "instructions": "How sure is that?",
            "criteria": ["not", {"what": "much"}],
        },
    }
    state = {"note": STATE, "pages": [1, None]}
    answer = bundled.ok(SYSTEM_ONE, state=state, questions=questions, instructions="Be exact.")
    SystemOneResponse.model_validate(answer, strict=True)
    assert (answer["object"], answer["model"]) == ("structured_decision", "bundled")
    assert list(answer["answers"]) == list(questions) == list(answer["diagnostics"])
    mat = answer["answers"]["mat"]
    assert set(mat) == {"type", "noul", "probabilities", "confidence"}
    assert mat["noul"] == mat["probabilities"]["yes"]
    for key, told in answer["diagnostics"].items():
        found = answer["answers"][key]
        likeliest = max(found["probabilities"].values())
        assert found["confidence"] == pytest.approx(likeliest * told["label_mass"], abs=2e-4)
    cat = answer["answers"]["cat"]
    assert set(cat) == {"type", "choice", "probabilities", "confidence"}
    assert cat["choice"] == max(cat["probabilities"], key=cat["probabilities"].get)
    sure = answer["answers"]["sure"]
    assert set(sure) == {"type", "score", "probabilities", "legend", "confidence"}
    assert sure["legend"] == {"0": "not", "1": {"what": "much"}}
    assert set(sure["probabilities"]) == {"0", "1"}
    for told in answer["diagnostics"].values():
        assert 0 <= told["label_mass"] <= 1
        assert type(told["argmax_is_label"]) is bool


# Against the model alone


class Direct:
    """mlx-lm's own forward of the served model, on the engine's thread."""

    def __init__(self, served: Any) -> None:
        self._engine = served.engine
        self.tokenizer = served.engine.loaded.tokenizer

    def option(self, text: str, option: str, *, ends: bool = False) -> float:
        """Log-probability of a reply to a message."""
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        before = self.tokenizer.encode(prompt, add_special_tokens=False)
        ids = self.tokenizer.encode(prompt + option, add_special_tokens=False)
        assert ids[: len(before)] == before
        ids += [self.tokenizer.eos_token_id] if ends else []
        table = self._engine.call(lambda: self._table(ids)).result(PATIENCE_S)
        places = range(len(before), len(ids))
        return float(sum(table[place - 1, ids[place]] for place in places))

    def _table(self, ids: list[int]) -> np.ndarray:
        model = self._engine.loaded.model
        logits = model(mx.array([ids]), cache=make_prompt_cache(model))[0].astype(mx.float32)
        wide = np.array(logits).astype(np.float64)
        return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def softmax(values: list[float]) -> np.ndarray:
    weights = np.exp(np.array(values) - max(values))
    return np.asarray(weights / weights.sum())


def test_probabilities_are_the_models_own(bundled: Any) -> None:
    direct = Direct(bundled)
    answer = bundled.ok(DECISIONS, input=STATE, questions=QUESTIONS)["answers"]
    yes_no = f"{STATE}\n\nIs the key under the mat?\nAnswer yes or no."
    wanted = softmax([direct.option(yes_no, word) for word in ("yes", "no")])
    assert answer[0]["probability"] == pytest.approx(wanted[0], abs=1e-4)
    which = (
        f"{STATE}\n\nWhere is the cat?\nA: roof - up\nB: mat\nC: true\n"
        "Answer with the letter of one of these only."
    )
    wanted = softmax([direct.option(which, letter) for letter in "ABC"])
    found = [entry["probability"] for entry in answer[1]["probabilities"]]
    assert found == pytest.approx(wanted, abs=1e-4)


def test_any_text_as_an_option(bundled: Any) -> None:
    direct = Direct(bundled)
    values = ["on the roof", "on the roof of the house", "under the mat"]
    question = {
        "type": "choice",
        "instructions": "Where is the cat?",
        "choices": [
            *({"value": value} for value in values[:2]),
            {"value": values[2], "description": "where the key is"},
        ],
        "read": "sequence",
    }
    answer = bundled.ok(DECISIONS, input=STATE, questions=[question])["answers"][0]
    text = f"{STATE}\n\nWhere is the cat?\n- under the mat - where the key is"
    wanted = softmax([direct.option(text, value, ends=True) for value in values])
    found = [entry["probability"] for entry in answer["probabilities"]]
    assert found == pytest.approx(wanted, abs=1e-4)


def test_more_choices_than_letters(bundled: Any) -> None:
    direct = Direct(bundled)
    names = [f"x{place}" for place in range(1, 111)]
    question = {
        "type": "choice",
        "instructions": "Which box?",
        "choices": [{"value": name} for name in names],
    }
    answer = bundled.ok(DECISIONS, input="It is in x31.", questions=[question])["answers"][0]
    found = {entry["value"]: entry["probability"] for entry in answer["probabilities"]}
    assert sum(found.values()) == pytest.approx(1, abs=110 * 5e-5)
    text = "It is in x31.\n\nWhich box?\n"
    text += "".join(f"{place:03}: {name}\n" for place, name in enumerate(names, start=1))
    text += "Answer with the number of one of these only."
    some = [0, 30, 99, 104, 109]
    wanted = [direct.option(text, f"{place + 1:03}") for place in some]
    # The ratio of two probabilities needs no sum over all options.
    best = max(some, key=lambda place: found[names[place]])
    for place, value in zip(some, wanted, strict=True):
        ratio = math.exp(value - wanted[some.index(best)])
        told = found[names[place]] / found[names[best]]
        assert told == pytest.approx(ratio, abs=2e-4 / found[names[best]])


# Law 1


@contextmanager
def streams(served: Any, count: int) -> Iterator[None]:
    """So many other requests, streaming, one after another in each of as many threads."""
    over = Event()

    def talk(place: int) -> None:
        asked = 0
        while not over.is_set():
            asked += 1
            served.events(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": f"What is {place} plus {asked}?"}],
                max_tokens=5 + place,
                temperature=1.0,
                ignore_eos=True,
            )

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(talk, place) for place in range(count)]
        try:
            yield
        finally:
            over.set()
    for one in running:
        one.result()


def test_the_same_answers_under_load(bundled: Any) -> None:
    """Bit by bit; and without what was told before, to a unit of the last digit."""
    bodies = [
        {"input": f"Note {place}. {STATE}", "questions": QUESTIONS * (1 + place % 3)}
        for place in range(6)
    ]
    # Another client's answers are not known to us.
    others = [{**body, "cache_salt": "other"} for body in bodies]

    def answers(body: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = bundled.ok(DECISIONS, **body)["answers"]
        return found

    alone = [answers(body) for body in bodies]
    with streams(bundled, 32), ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            assert json.dumps(list(pool.map(answers, bodies))) == json.dumps(alone)
        apart = list(pool.map(answers, others))
    pairs = zip(numbers(alone), numbers(apart), strict=True)
    assert max(abs(one - other) for one, other in pairs) < 2.5e-4


def numbers(found: Any) -> list[float]:
    """Every number in it, in order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return [number for one in found for number in numbers(one)]
    return [float(found)] if isinstance(found, (int, float)) else []


def test_two_hundred_questions(bundled: Any) -> None:
    questions = [
        {"type": "predicate", "name": f"q{i}", "instructions": f"Is {i} a number?"}
        for i in range(200)
    ]
    answers = bundled.ok(DECISIONS, input=STATE, questions=questions)["answers"]
    assert [answer["name"] for answer in answers] == [f"q{i}" for i in range(200)]
    some = bundled.ok(DECISIONS, input=STATE, questions=questions[150:153])["answers"]
    assert some == answers[150:153]


def test_a_model_without_a_chat_template(llama_factory: Any, helpers: Any) -> None:
    """The reply begins behind "Answer:"."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=8))
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    try:
        served.wait_ready()
        loaded = engine.loaded
        assert loaded is not None
        loaded.tokenizer.has_chat_template = False
        answer = served.ok(DECISIONS, input="ab", questions=[PREDICATE])["answers"][0]
        text = "ab\n\nIs the key under the mat?\nAnswer yes or no.\nAnswer:"
        before = loaded.tokenizer.encode(text, add_special_tokens=False)
        found = []
        for word in (" yes", " no"):
            ids = before + loaded.tokenizer.encode(word, add_special_tokens=False)
            choice = served.ok("/v1/completions", prompt=ids, max_tokens=0, echo=True, logprobs=0)[
                "choices"
            ][0]
            found.append(sum(choice["logprobs"]["token_logprobs"][len(before) :]))
        assert answer["probability"] == pytest.approx(softmax(found)[0], abs=1e-4)
    finally:
        served.stop()
        served.join()


# Refused


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("colour", {"colour": 1}),
        ("input", {"input": None}),
        ("input", {"input": ""}),
        ("input.0.role", {"input": [{"role": "system", "content": "x"}]}),
        ("input.0.content.0.type", {"input": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("questions", {"questions": []}),
        ("questions", {"questions": [PREDICATE] * 201}),
        ("questions.0", {"questions": [{"type": "guess", "instructions": "?"}]}),
        ("questions.0.instructions", {"questions": [{**PREDICATE, "instructions": ""}]}),
        ("questions.0.hint", {"questions": [{**PREDICATE, "hint": "x"}]}),
        ("questions.0.choices", {"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}),
        (
            "questions.0.choices",
            {"questions": [{**CHOICE, "choices": [{"value": "a"}, {"value": "a"}]}]},
        ),
        (
            "questions.0.choices",
            {"questions": [{**CHOICE, "choices": [{"value": str(i)} for i in range(256)]}]},
        ),
        (
            "questions.0.levels",
            {"questions": [{**SCORE, "levels": [{"label": str(i)} for i in range(11)]}]},
        ),
        ("model", {"model": "other"}),
    ],
)
def test_refused(bundled: Any, param: str, changes: dict[str, Any]) -> None:
    body = {"input": STATE, "questions": [PREDICATE], **changes}
    response = bundled.post(DECISIONS, **body)
    assert response.status_code == (404 if param == "model" else 400), response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("temperature", {"temperature": 0}),
        ("state", {"state": None}),
        ("questions", {"questions": {}}),
        (
            "questions",
            {"questions": {str(i): {"type": "noul", "instructions": "?"} for i in range(65)}},
        ),
        (
            "questions.q.criteria",
            {"questions": {"q": {"type": "score", "instructions": "?", "criteria": ["a"] * 11}}},
        ),
    ],
)
def test_system_one_refuses(bundled: Any, param: str, changes: dict[str, Any]) -> None:
    question = {"q": {"type": "noul", "instructions": "?"}}
    response = bundled.post(SYSTEM_ONE, **{"state": STATE, "questions": question, **changes})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_more_rows_than_the_server_takes(bundled: Any) -> None:
    choices = [{"value": f"the box with number {i} on the long shelf"} for i in range(255)]
    question = {**CHOICE, "choices": choices, "read": "sequence"}
    response = bundled.post(DECISIONS, input=STATE, questions=[question] * 8)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "questions"
