"""POST /v1/chat/completions: shapes, messages, and what streams."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_parallm.server.schemas.chat import ChatCompletionResponse

PATH = "/v1/chat/completions"


def user(content: Any) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": content}]


def test_answers_with_the_documented_shape(server: Any) -> None:
    answer = server.ok(PATH, model="parrot", messages=user("hello"))
    ChatCompletionResponse.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_the_whole_context_may_be_used_by_default(server: Any) -> None:
    answer = server.ok(PATH, messages=user("x"), ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_max_tokens(server: Any, name: str) -> None:
    answer = server.ok(PATH, messages=user("hello"), **{name: 2})
    assert answer["choices"][0]["message"]["content"] == "he"
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "a\nb"),
        ([{"role": "developer", "content": "be kind"}, *user("x")], "x"),
        ([{"role": "system", "content": "be kind"}, *user("x")], "x"),
        ([*user("x"), {"role": "assistant", "content": "y"}, *user("z")], "z"),
        ([*user("x"), {"role": "assistant"}, *user("z")], "z"),
        ([*user("x"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
         "xno"),
        ([{"role": "user", "content": "x", "name": "bob", "extra": {"a": None}}], "x"),
        (user(""), ""),
    ],
)  # fmt: skip
def test_messages(server: Any, messages: Any, text: str) -> None:
    answer = server.ok(PATH, messages=messages)
    assert answer["choices"][0]["message"]["content"] == text


def test_what_the_sdk_returned_can_be_sent_back(server: Any) -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "y",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    answer = server.ok(PATH, messages=[*user("x"), message, *user("z")])
    assert answer["choices"][0]["message"]["content"] == "z"


def test_n_answers(server: Any) -> None:
    answer = server.ok(PATH, messages=user("ab"), n=3, seed=3)
    assert [c["message"]["content"] for c in answer["choices"]] == ["ab"] * 3
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 9


def test_logprobs_with_bytes(server: Any) -> None:
    request = {"messages": user("é"), "logprobs": True, "top_logprobs": 2, "seed": 1}
    answer = server.ok(PATH, **request)
    ChatCompletionResponse.model_validate(answer, strict=True)
    content = answer["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "bytes:\\xc3",
        "logprob": -0.2,
        "bytes": [0xC3],
        "top_logprobs": [
            {"token": "bytes:\\xc3", "logprob": -0.2, "bytes": [0xC3]},
            {"token": "bytes:\\xc4", "logprob": -1.2, "bytes": [0xC4]},
        ],
    }
    assert content[2]["token"] == "<|end|>"
    events = server.events(PATH, **request)
    streamed = [e["choices"][0]["logprobs"] for e in events if e["choices"][0]["logprobs"]]
    assert [entry for piece in streamed for entry in piece["content"]] == content


def test_logprobs_without_alternatives(server: Any) -> None:
    content = server.ok(PATH, messages=user("a"), logprobs=True)["choices"][0]["logprobs"]
    assert content["content"][0]["top_logprobs"] == []
    assert server.ok(PATH, messages=user("a"))["choices"][0]["logprobs"] is None


def test_prompt_logprobs(server: Any) -> None:
    answer = server.ok(PATH, messages=user("a"), prompt_logprobs=1)
    assert len(answer["prompt_logprobs"]) == 3
    assert answer["prompt_logprobs"][0] is None


def test_a_stream(server: Any) -> None:
    events = server.events(PATH, messages=user("hé!"), stream_options={"include_usage": True})
    usage = events.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == "hé!"
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_a_stream_of_several_answers(server: Any) -> None:
    events = server.events(PATH, messages=user("abc"), n=3, logprobs=True, stop="c")
    for index in range(3):
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in mine) == "ab"
        assert mine[-1]["finish_reason"] == "stop"
        assert mine[-1]["stop_reason"] == "c"


def test_variables_for_the_template(server: Any) -> None:
    answer = server.ok(PATH, messages=user("a"), chat_template_kwargs={"suffix": "zz"})
    assert answer["choices"][0]["message"]["content"] == "azz"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "tools", "max_length"])
def test_variables_that_are_not_the_clients(server: Any, name: str) -> None:
    response = server.post(PATH, messages=user("a"), chat_template_kwargs={name: "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == f"chat_template_kwargs.{name}"


def test_continue_the_final_message(server: Any) -> None:
    messages = [*user("x"), {"role": "assistant", "content": "yes, "}]
    server.ok(PATH, messages=messages, continue_final_message=True, max_tokens=1)
    prompt = server.engine.submitted[-1].prompt
    assert server.state.prompts().text_of(prompt, False) == "<|user|>x<|assistant|>yes, "


def test_a_prompt_without_its_ending(server: Any) -> None:
    server.ok(PATH, messages=user("x"), add_generation_prompt=False, max_tokens=1)
    assert server.engine.submitted[-1].prompt[0] == 1
    assert len(server.engine.submitted[-1].prompt) == 2


def test_the_template_refuses(server: Any) -> None:
    response = server.post(PATH, messages=user("forbidden"))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages"
    assert "this word is forbidden" in error["message"]


def test_what_cannot_matter_is_accepted(server: Any) -> None:
    answer = server.ok(
        PATH,
        messages=user("a"),
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        response_format={"type": "text"},
        modalities=["text"],
        verbosity="medium",
        logprobs=None,
        seed=None,
        tools=None,
        tool_choice=None,
        stop=None,
        logit_bias=None,
    )
    assert answer["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("moderation", {}),
        ("verbosity", "low"),
        ("reasoning_effort", "high"),
        ("guided_json", {}),
        ("best_of", 2),
        ("suffix", "x"),
        ("chat_template", "{{ 1 }}"),
    ],
)
def test_what_is_known_and_not_supported_is_named(server: Any, name: str, value: Any) -> None:
    response = server.post(PATH, messages=user("a"), **{name: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"


def test_a_model_that_reads_text_refuses_images_by_their_path(server: Any) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    response = server.post(PATH, messages=user(parts))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.1.image_url"
    assert "does not see pictures" in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "unsupported_parameter"
