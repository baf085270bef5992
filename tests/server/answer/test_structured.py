"""Structured answers over HTTP on the bundled model: each door, each kind, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Mira", "Tom"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Who is it, and how old?"}]


@pytest.fixture(scope="module")
def real(helpers: Any) -> Iterator[Any]:
    """A server on the bundled model."""
    engine = Engine(lambda: load_model("bundled"), EngineConfig(max_batch_size=32))
    served = helpers.Served(
        create_app(Settings(served_model_name=("bundled",)), engine), engine, 0.5
    )
    served.wait_ready()
    yield served
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


def valid(text: str, schema: Any = SCHEMA) -> bool:
    return bool(jsonschema_rs.is_valid(schema, json.loads(text)))


def of_schema(schema: Any, *, strict: bool = True) -> dict[str, Any]:
    named = {"name": "person", "schema": schema, "strict": strict}
    return {"type": "json_schema", "json_schema": named}


WHITESPACE = "structured_outputs.whitespace_pattern"
WAYS: list[dict[str, Any]] = [
    {"response_format": of_schema(SCHEMA)},
    {"response_format": of_schema(SCHEMA, strict=False)},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    {"json_schema": SCHEMA},
]


@pytest.mark.parametrize("fields", WAYS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_schema_holds_whoever_sends_it(real: Any, path: str, fields: dict[str, Any]) -> None:
    ask = {"messages": MESSAGES} if path == CHAT else {"prompt": "A person: "}
    answer = real.ok(path, **ask, **fields, temperature=1.5, seed=3, n=3, max_tokens=200)
    for choice in answer["choices"]:
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert choice["finish_reason"] == "stop"
        assert valid(text), text
    assert len({json.dumps(choice) for choice in answer["choices"]}) == 3


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, ["red", "green"]),
        ({"structured_outputs": {"regex": "[ab]{2}"}}, ["aa", "ab", "ba", "bb"]),
        ({"structured_outputs": {"grammar": 'root ::= "x" | "y"'}}, ["x", "y"]),
        ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, ["x", "y"]),
        ({"grammar": 'root ::= ("x" | "y") "!"'}, ["x!", "y!"]),
    ],
)
def test_other_kinds(real: Any, fields: dict[str, Any], allowed: list[str]) -> None:
    chat = real.ok(CHAT, messages=MESSAGES, **fields)
    text = real.ok(COMPLETIONS, prompt="x", **fields)
    assert chat["choices"][0]["message"]["content"] in allowed
    assert text["choices"][0]["text"] in allowed


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_a_json_object(real: Any, fields: dict[str, Any]) -> None:
    answer = real.ok(CHAT, messages=MESSAGES, max_tokens=300, temperature=0, **fields)
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].lstrip().startswith("{")


def test_a_stream_says_the_same(real: Any) -> None:
    body = {"messages": MESSAGES, "response_format": of_schema(SCHEMA), "seed": 5, "n": 2}
    whole = real.ok(CHAT, **body)
    events = real.events(CHAT, **body)
    texts = ["", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


def test_tags_begin_structures_in_free_text(real: Any) -> None:
    tag = {
        "structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}],
        "triggers": ["<f>"],
    }
    for fields in (
        {"response_format": {"type": "structural_tag", **tag}},
        {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", **tag})}},
    ):
        answer = real.ok(COMPLETIONS, prompt="<f>1</f> <f>2</f> <f>", max_tokens=12, **fields)
        assert answer["choices"][0]["text"]


def test_it_goes_with_everything_else(real: Any) -> None:
    answer = real.ok(
        COMPLETIONS,
        prompt=["A person: ", "Another one: "],
        json_schema=SCHEMA,
        n=2,
        best_of=3,
        logprobs=2,
        echo=True,
        presence_penalty=1,
        repetition_penalty=1.2,
        logit_bias={"7": 50},
        top_p=0.9,
        min_tokens=4,
        ignore_eos=True,
        max_tokens=200,
    )
    assert len(answer["choices"]) == 4
    for place, choice in enumerate(answer["choices"]):
        prompt = ["A person: ", "Another one: "][place // 2]
        assert valid(choice["text"].removeprefix(prompt))
        assert choice["finish_reason"] == "stop"


class Person(BaseModel):
    name: str
    likes: list[str]


def test_the_openai_sdk_parses(real: Any) -> None:
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none")
    for seed in range(2):
        try:
            made = client.chat.completions.parse(
                model="bundled",
                messages=[{"role": "user", "content": "Who?"}],
                response_format=Person,
                temperature=1.5,
                seed=seed,
                max_tokens=400,
            )
        except openai.LengthFinishReasonError:
            continue
        assert isinstance(made.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": of_schema({"not": {}})}, "response_format.json_schema.schema", "not"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema", "uniqueItems"),
        ({"structured_outputs": {"json": {"if": {}}}}, "structured_outputs.json", "if"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar", ""),
        ({"grammar": "start: x"}, "grammar", "x"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, WHITESPACE, ""),
        ({"structured_outputs": {"unknown": 1}}, "structured_outputs.unknown", ""),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "JSON schema"),
        ({"grammar": "start: x", "json_schema": {}}, "grammar", "together"),
        ({"guided_json": {"type": "object"}}, "guided_json", "structured_outputs"),
        ({"guided_regex": "a"}, "guided_regex", "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ""),
        ({"response_format": {"type": "xml"}}, "response_format.type", ""),
        (
            {"json_schema": {"properties": {f"{i}": {} for i in range(1001)}}},
            "json_schema",
            "1001",
        ),
        (
            {"json_schema": {"patternProperties": {f"^{i}a.*b": {} for i in range(900)}}},
            "json_schema",
            "too expensive",
        ),
    ],
)
def test_what_is_wrong_is_named(real: Any, fields: dict[str, Any], param: str, says: str) -> None:
    for path, ask in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x"})):
        response = real.post(path, **ask, **fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert says in error["message"]


def test_ollamas_and_llama_cpps_doors(real: Any) -> None:
    asked = {"model": "bundled", "stream": False, "options": {"num_predict": 200, "temperature": 1}}
    chat = real.ok("/api/chat", messages=MESSAGES, format=SCHEMA, **asked)
    # So small a model may write digits until it has no tokens left.
    assert chat["done_reason"] == "length" or valid(chat["message"]["content"])
    assert chat["message"]["content"].startswith("{")
    generated = real.ok("/api/generate", prompt="Who?", format=SCHEMA, **asked)
    assert generated["done_reason"] == "length" or valid(generated["response"])
    assert generated["response"].startswith("{")
    refused = real.post("/api/chat", messages=MESSAGES, format={"not": {}}, **asked)
    assert refused.status_code == 400
    assert "not" in refused.json()["error"]
    completed = real.ok("/completion", prompt="A person: ", json_schema=SCHEMA, n_predict=200)
    assert completed["stop_type"] == "limit" or valid(completed["content"])
    assert completed["content"].startswith("{")
    named = real.ok("/completion", prompt="x", grammar='root ::= "yes"', n_predict=20)
    assert named["content"] == "yes"
    wrong = real.post("/completion", prompt="x", json_schema={"not": {}})
    assert wrong.status_code == 400


def test_many_at_once_each_with_its_own(real: Any) -> None:
    """Rows join and leave; each keeps to its own grammar (mlx-vlm #1451)."""

    def ask(place: int) -> None:
        choices = [f"choice {place}", f"other {place}"]
        fields = {"structured_outputs": {"choice": choices}} if place % 3 else {"max_tokens": 5}
        answer = real.ok(COMPLETIONS, prompt=f"{place}", temperature=1.5, **fields)
        if place % 3:
            assert answer["choices"][0]["text"] in choices

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(60)))
