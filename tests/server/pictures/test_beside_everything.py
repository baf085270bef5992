"""Chats with a picture and whatever else a request can have: all at once, each as it is alone.

The bundled model that sees; guesses are made, and its memory is too small for all rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models.lora.adapters import mlx_lm_adapter
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
Image = pytest.importorskip("PIL.Image")
TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"],
        },
    },
}
NAMED = {"type": "function", "function": {"name": "note"}}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
LISTED = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}}
REMEMBERED = {"collections": ["notes"], "topk": 4}
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TOOL]},
    "a tool by name": {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 60},
    "some tool": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
    "a schema": {"response_format": LISTED, "max_tokens": 80},
    "a regex": {"structured_outputs": {"regex": "(red|blue) [0-9]{2}"}},
    "a grammar": {"structured_outputs": {"grammar": 'root ::= "it is " ("red" | "blue")'}},
    "an adapter": {"model": "other"},
    "an adapter and a grammar": {"model": "other", "structured_outputs": {"choice": ["a", "b"]}},
    "memories": {"memory": REMEMBERED},
    "citations": {"memory": {**REMEMBERED, "citations": "span"}},
    "choices and seeds": {"n": 3, "seed": 7, "temperature": 1.0},
    "likely tokens": {"top_logprobs": 3},
    "the prompt's": {"prompt_logprobs": 1},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "priority": {"priority": -5},
    "biased": {"logit_bias": {"300": 4.0}, "min_p": 0.05, "temperature": 0.7, "seed": 3},
}


@pytest.fixture(scope="module")
def seen(helpers: Any, tmp_path_factory: Any) -> Iterator[Any]:
    adapter = mlx_lm_adapter(
        tmp_path_factory.mktemp("adapters") / "other",
        load_model("bundled/vision", dtype="float32").model.language_model,
        1,
        keys=["self_attn.q_proj", "self_attn.v_proj"],
    )
    config = EngineConfig(
        max_batch_size=6, kv_cache_memory=3 << 18, speculative="ngram", max_loras=2
    )
    engine = Engine(lambda: load_model("bundled/vision"), config)
    settings = Settings(served_model_name=("sees",), lora_modules=(f"other={adapter}",))
    server = helpers.Served(create_app(settings, engine), engine, 0.5)
    server.wait_ready()
    path, notes = "/v1/models/sees/memories", {"collection": "notes"}
    assert server.post(path, **notes, text="The sky over the sea is blue.").status_code == 202
    wait_until(lambda: bool(server.http.get(path, params=notes).json().get("data")))
    yield server
    server.stop()
    server.join()


def body_of(files: Any, place: int, fields: dict[str, Any]) -> dict[str, Any]:
    picture = Image.new("RGB", (48, 48), (90 + 9 * place, 20, 220 - 9 * place))
    parts = [
        {"type": "image_url", "image_url": {"url": files.url(files.encoded(picture))}},
        {"type": "text", "text": "What colour is it?"},
    ]
    own = {"model": "sees", "messages": [{"role": "user", "content": parts}]}
    return {"max_tokens": 12, "temperature": 0, "logprobs": True, **own, **fields}


def said(answer: dict[str, Any]) -> list[Any]:
    """What has to be equal, but for log-probabilities and ids."""
    calls = [choice["message"].get("tool_calls") or [] for choice in answer["choices"]]
    return [
        [choice["message"]["content"] for choice in answer["choices"]],
        [choice.get("citations") for choice in answer["choices"]],
        [[call["function"] for call in one] for one in calls],
        [choice["finish_reason"] for choice in answer["choices"]],
        {**answer["usage"], "prompt_tokens_details": None},
    ]


def scores(answer: dict[str, Any]) -> list[float]:
    found = [one["logprob"] for c in answer["choices"] for one in c["logprobs"]["content"]]
    return [*found, *prompt_scores(answer)]


def prompt_scores(answer: dict[str, Any]) -> list[float]:
    rows = answer.get("prompt_logprobs") or []
    return [entry["logprob"] for row in rows if row for entry in row.values()]


def test_all_at_once_is_as_each_alone(seen: Any, files: Any) -> None:
    asked = [body_of(files, place, fields) for place, fields in enumerate(ASKED.values())]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda body: seen.ok(CHAT, **body), asked))
    for name, body, answer in zip(ASKED, asked, together, strict=True):
        alone = seen.ok(CHAT, **body)
        assert said(answer) == said(alone), name
        assert scores(answer) == pytest.approx(scores(alone), abs=1e-3), name
    by_name = dict(zip(ASKED, together, strict=True))

    def content(name: str) -> str:
        return str(by_name[name]["choices"][0]["message"]["content"])

    for name in ("a tool by name", "some tool"):
        call = by_name[name]["choices"][0]["message"]["tool_calls"][0]["function"]
        assert call["name"] == "note"
        assert json.loads(call["arguments"])["colour"] in ("red", "blue")
    assert json.loads(content("a schema"))["n"] in (1, 2)
    assert re.fullmatch("(red|blue) [0-9]{2}", content("a regex"))
    assert content("a grammar") in ("it is red", "it is blue")
    assert content("an adapter and a grammar") in ("a", "b")
    assert len(by_name["choices and seeds"]["choices"]) == 3
    assert len(prompt_scores(by_name["the prompt's"])) >= 9
    assert by_name["citations"]["choices"][0]["citations"] is not None
    assert scores(by_name["an adapter"]) != scores(by_name["plain"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            "continue_final_message",
        ),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
def test_what_is_refused_is_named(
    seen: Any, files: Any, fields: dict[str, Any], param: str
) -> None:
    refused = seen.post(CHAT, **body_of(files, 0, fields))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"].startswith(param)
    assert error["message"]
