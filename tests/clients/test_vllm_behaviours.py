"""Behaviours that vLLM's own HTTP tests ask for and no other test here shows; see README.md.

Asked through the SDKs, of real servers with a random model and a scripted one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.weather import ANSWER, CITY, QUESTION, THOUGHT
from tests.waiting import PATIENCE_S

README = Path(__file__).with_name("README.md").read_text(encoding="utf8")
PROMPT = " bapi bahi becu bana bide"
ASKED: Any = [{"role": "user", "content": QUESTION}]
FUNCTION = {"name": "get_weather", "parameters": CITY}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def tiny(server_url: str) -> Iterator[openai.OpenAI]:
    with _client(server_url) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def scripted(scripted_url: str) -> Iterator[openai.OpenAI]:
    with _client(scripted_url) as sdk:
        yield sdk


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, **fields}
    return client.completions.create(**asked)


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "scripted", "messages": ASKED, **fields})


def test_the_list_of_behaviours_names_tests_that_exist() -> None:
    """README.md beside this file."""
    tests = Path(__file__).parents[1]
    folders = ("clients", "engine", "server", "server/*")
    files = [path for folder in folders for path in tests.glob(f"{folder}/test_*.py")]
    texts = "".join(path.read_text(encoding="utf8") for path in files)
    cells = [line.split("|")[3] for line in README.splitlines() if line.count("|") == 4]
    named = re.findall(r"`(?:[\w/]+/)?(\w+\.py)?(?:::)?(test_\w+)?`", " ".join(cells))
    names = {path.name for path in files}
    missing = [file for file, _ in named if file and file not in names]
    missing += [name for _, name in named if name and f"def {name}(" not in texts]
    assert len(named) > 60
    assert missing == []


# Completions


def test_text_offsets_are_the_same_in_a_stream_that_holds_text_back(tiny: openai.OpenAI) -> None:
    fields: Any = {"logprobs": 0, "stop": ["zzzzzz"]}
    whole = complete(tiny, **fields).choices[0]
    chunks = [c.choices[0] for c in complete(tiny, **fields, stream=True) if c.choices]
    reports = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    offsets = [offset for report in reports for offset in report.text_offset]
    assert offsets == whole.logprobs.text_offset
    assert "".join(chunk.text for chunk in chunks) == whole.text


@pytest.mark.parametrize("fields", [{"include_usage": None}, {"include_usage": True}])
def test_stream_options_need_a_stream(tiny: openai.OpenAI, fields: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        complete(tiny, stream_options=fields)


def test_the_last_piece_of_a_stream_has_text_and_the_only_reason(tiny: openai.OpenAI) -> None:
    chunks = list(complete(tiny, stream=True))
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].choices[0].text


@pytest.mark.parametrize(
    "structure",
    [
        {"json": {"type": "object", "properties": {"foo": "bar"}, "required": ["foo"]}},
        {"regex": "[.*"},
        {"regex": {"1": "Python", "2": "C++"}},
        {"grammar": "root ::= select_statementinvalidsyntax\n"},
        {"choice": []},
        {"json": {"type": "object"}, "regex": "a"},
    ],
)
def test_a_wrong_structure_is_a_bad_request(tiny: openai.OpenAI, structure: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(tiny, extra_body={"structured_outputs": structure})
    assert (caught.value.param or "").startswith("structured_outputs")


def test_beam_search_is_a_bad_request_that_says_so(tiny: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="use_beam_search"):
        complete(tiny, n=2, extra_body={"use_beam_search": True})


def test_many_logprobs_are_a_bad_request_in_a_stream_too(tiny: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        complete(tiny, logprobs=21, stream=True)
    assert complete(tiny).choices


# Chat


def test_log_probabilities_under_a_choice_are_numbers(tiny: openai.OpenAI) -> None:
    answer: Any = tiny.chat.completions.create(
        model="tiny",
        messages=ASKED,
        logprobs=True,
        top_logprobs=5,
        extra_body={"structured_outputs": {"choice": ["Python", "Java", "Rust"]}},
    )
    assert answer.choices[0].message.content in ("Python", "Java", "Rust")
    for entry in answer.choices[0].logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert all(math.isfinite(value) and value >= -9999 for value in values)


def test_fields_of_a_message_that_are_not_known(tiny: openai.OpenAI) -> None:
    message: Any = {"role": "user", "content": "bapi", "extra_field": "0"}
    answer = tiny.chat.completions.create(model="tiny", messages=[message], max_tokens=4)
    assert answer.choices[0].message.content is not None


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
def test_a_seed_that_is_too_long(tiny: openai.OpenAI, seed: int) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.chat.completions.create(model="tiny", messages=ASKED, seed=seed)
    assert caught.value.param == "seed"


@pytest.mark.parametrize(
    ("bias", "said"),
    [({"99999": 1}, "99999"), ({"not_a_token": 50}, "not_a_token"), ({"1": "much"}, "logit_bias")],
)
def test_a_wrong_bias_is_named(tiny: openai.OpenAI, bias: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        tiny.chat.completions.create(model="tiny", messages=ASKED, logit_bias=bias)
    assert (caught.value.param or "").startswith("logit_bias")


def test_a_tool_choice_of_null_is_none_given(scripted: openai.OpenAI) -> None:
    answer = chat(scripted, tools=TOOLS, tool_choice=None)
    assert answer.choices[0].finish_reason == "tool_calls"
    structure = {"json": {"const": {"city": "Paris", "degrees": 21}}}
    fields = {"structured_outputs": structure, "tool_choice": None}
    assert json.loads(chat(scripted, extra_body=fields).choices[0].message.content)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": TOOLS, "tool_choice": {}},
        {"tools": TOOLS, "tool_choice": "bogus"},
        {"tool_choice": "required"},
    ],
)
def test_a_tool_choice_that_does_not_fit(scripted: openai.OpenAI, fields: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(scripted, **fields)
    assert (caught.value.param or "").startswith("tool_choice")


@pytest.mark.parametrize("choice", ["required", {"type": "function"}])
def test_a_forced_call_without_room_is_no_call(scripted: openai.OpenAI, choice: Any) -> None:
    if isinstance(choice, dict):
        choice = choice | {"function": {"name": "get_weather"}}
    answer = chat(scripted, tools=TOOLS, tool_choice=choice, max_completion_tokens=1).choices[0]
    assert answer.finish_reason == "length"
    assert not answer.message.tool_calls


@pytest.mark.parametrize("arguments", ["{}", ""])
def test_a_call_without_arguments_can_be_sent_back(scripted: openai.OpenAI, arguments: str) -> None:
    function = {"name": "get_weather", "arguments": arguments}
    messages: Any = [
        *ASKED,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    assert chat(scripted, messages=messages).choices[0].message.content == ANSWER


def test_a_named_call_is_streamed_without_text(scripted: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    chunks = list(chat(scripted, tools=TOOLS, tool_choice=choice, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert not any(delta.content for delta in deltas)
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"city": "Paris"}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert [reason for reason in reasons if reason] == ["tool_calls"]


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_that_is_left_out_is_counted(scripted: openai.OpenAI, stream: bool) -> None:
    fields: Any = {"extra_body": {"include_reasoning": False}, "stream": stream}
    if stream:
        chunks = list(chat(scripted, **fields, stream_options={"include_usage": True}))
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        usage = chunks[-1].usage
        shown = [c.choices[0].delta.model_dump() for c in chunks if c.choices]
    else:
        answer = chat(scripted, **fields)
        said, usage = answer.choices[0].message.content, answer.usage
        shown = [answer.choices[0].message.model_dump()]
    assert said == ANSWER
    assert usage.completion_tokens_details.reasoning_tokens > 0
    assert not any(one.get("reasoning") or one.get("reasoning_content") for one in shown)


@pytest.mark.parametrize("budget", [10, -1])
def test_a_budget_of_thinking(scripted: openai.OpenAI, budget: int) -> None:
    answer = chat(scripted, extra_body={"thinking_token_budget": budget})
    message: Any = answer.choices[0].message
    assert message.reasoning_content == THOUGHT


@pytest.mark.parametrize("budget", [-2, 0.6])
def test_a_wrong_budget_of_thinking(scripted: openai.OpenAI, budget: float) -> None:
    with pytest.raises(openai.BadRequestError, match="thinking_token_budget"):
        chat(scripted, extra_body={"thinking_token_budget": budget})


@pytest.mark.parametrize("body", ['"text"', '["a"]', "42", "null", "{{{"])
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
def test_a_body_that_is_no_object(server_url: str, path: str, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(
        f"{server_url}/v1/{path}", content=body, headers=headers, timeout=PATIENCE_S
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


# Responses


def test_earlier_items_without_what_the_server_had_added(scripted: openai.OpenAI) -> None:
    said = {"type": "output_text", "text": "Yes."}
    items: Any = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
        {"type": "message", "role": "assistant", "content": [said]},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"role": "user", "content": QUESTION},
    ]
    assert scripted.responses.create(model="scripted", input=items).output_text == ANSWER


def test_two_answers_go_on_from_one(scripted: openai.OpenAI) -> None:
    first = scripted.responses.create(model="scripted", input=QUESTION)
    fields: Any = {"model": "scripted", "previous_response_id": first.id}
    second, third = (scripted.responses.create(**fields, input=text) for text in ("A", "B"))
    assert second.previous_response_id == third.previous_response_id == first.id
    assert second.usage is not None and third.usage is not None
    assert second.usage.input_tokens == third.usage.input_tokens


def test_to_store_is_the_default_where_null_is_sent(scripted: openai.OpenAI) -> None:
    response = scripted.responses.create(model="scripted", input=QUESTION, store=None)
    assert scripted.responses.retrieve(response.id).output_text == ANSWER


def test_a_forced_call_of_a_response_without_room(scripted: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **FUNCTION}]
    response = scripted.responses.create(
        model="scripted", input=QUESTION, tools=tools, tool_choice="required", max_output_tokens=4
    )
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert not [item for item in response.output if item.type == "function_call"]


def test_sampling_fields_of_a_response(tiny: openai.OpenAI) -> None:
    fields: Any = {"model": "tiny", "input": QUESTION, "max_output_tokens": 12}
    extra = {"top_k": 40, "repetition_penalty": 1.2, "seed": 42}
    texts = [
        tiny.responses.create(**fields, extra_body={**extra, "seed": seed}).output_text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.responses.create(**fields, extra_body={"top_k": "many"})
    assert caught.value.param == "top_k"


def test_each_event_of_a_response_closes_what_was_opened(scripted: openai.OpenAI) -> None:
    opened = {
        "response.completed": "response.created",
        "response.output_item.done": "response.output_item.added",
        "response.output_text.done": "response.output_text.delta",
        "response.content_part.done": "response.content_part.added",
        "response.reasoning_text.done": "response.reasoning_text.delta",
        "response.function_call_arguments.done": "response.function_call_arguments.delta",
    }
    for tools in ([], [{"type": "function", **FUNCTION}]):
        open_: list[str] = []
        given: Any = tools
        stream = scripted.responses.create(
            model="scripted", input=QUESTION, tools=given, stream=True
        )
        for event in stream:
            if event.type in opened:
                assert open_.pop() == opened[event.type]
            elif event.type in opened.values() and open_[-1:] != [event.type]:
                open_.append(event.type)
        assert open_ == []


# Messages


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "text"}, "text"),
        ({"type": "thinking", "signature": "x"}, "thinking"),
        ({"type": "redacted_thinking"}, "data"),
        ({"type": "tool_use", "id": "a", "input": {}}, "name"),
        ({"type": "tool_use", "id": "a", "name": "f"}, "input"),
        ({"type": "tool_result"}, "tool_use_id"),
        ({"type": "tool_result", "tool_use_id": ""}, "tool_use_id"),
        ({"type": "image", "source": {"type": "url", "url": "x"}}, "source"),
    ],
)
def test_a_wrong_block_is_named(scripted_url: str, block: Any, param: str) -> None:
    role = "assistant" if block["type"] in ("thinking", "tool_use") else "user"
    messages = [{"role": role, "content": [block]}, {"role": "user", "content": "Hi"}]
    body = {"model": "scripted", "max_tokens": 8, "messages": messages}
    answer = httpx.post(f"{scripted_url}/v1/messages", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert f"messages.0.content.0.{param}" in answer.json()["error"]["message"]


@pytest.mark.parametrize("choice", ["any", "tool"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_of_a_message_without_room(
    scripted_url: str, choice: str, stream: bool
) -> None:
    named = {"name": "get_weather"} if choice == "tool" else {}
    body = {
        "model": "scripted",
        "max_tokens": 12,
        "messages": ASKED,
        "tools": [{"name": "get_weather", "input_schema": CITY}],
        "tool_choice": {"type": choice, **named},
        "stream": stream,
    }
    answer = httpx.post(f"{scripted_url}/v1/messages", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert "max_tokens" in answer.text


# Decisions


def test_one_option_is_sure_and_its_confidence_is_the_models(scripted_url: str) -> None:
    question = {"type": "choice", "instructions": "Which?", "criteria": {"billing": None}}
    body = {"model": "scripted", "state": "Team: billing.", "questions": {"team": question}}
    answer = httpx.post(f"{scripted_url}/v1/systemone", json=body, timeout=PATIENCE_S).json()
    team, told = answer["answers"]["team"], answer["diagnostics"]["team"]
    assert (team["choice"], team["probabilities"]) == ("billing", {"billing": 1.0})
    assert team["confidence"] == pytest.approx(told["label_mass"])


@pytest.mark.parametrize(
    "question",
    [
        {"type": "choice", "criteria": {"a": None, "b": None}, "depends_on": ["x"]},
        {"type": "noul", "criteria": ["yes", "no"]},
        {"type": "score", "criteria": ["calm"]},
    ],
)
def test_a_wrong_question_is_named(scripted_url: str, question: Any) -> None:
    body = {"model": "scripted", "state": "x", "questions": {"q": question}}
    answer = httpx.post(f"{scripted_url}/v1/systemone", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("questions.q")


def test_thinking_before_a_decision_is_refused(scripted_url: str) -> None:
    question = {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": None}}
    body = {"model": "scripted", "state": "x", "questions": {"q": question}}
    variables = {"chat_template_kwargs": {"enable_thinking": True}}
    answer = httpx.post(f"{scripted_url}/v1/systemone", json=body | variables, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert "thinking" in answer.json()["error"]["message"]
