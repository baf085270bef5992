"""Whatever is sent, the answer is a 4xx in OpenAI's envelope, and the next one is served."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.waiting import PATIENCE_S

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HUGE = 10**400


def values(param: str, *wrong: Any) -> list[tuple[str, Any]]:
    """Pairs of a field and a value that it cannot have."""
    return [(param, value) for value in wrong]


def check(server: Any, response: Any, status: int = 400, param: str | None = None) -> None:
    """The envelope, the request id, and that the server still works."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    assert response.headers["x-request-id"]
    if param is not None:
        # Or a place within it, such as an item of a list.
        assert error["param"] == param or error["param"].startswith(f"{param}.")
    assert server.ok(COMPLETIONS, prompt="ok")["choices"][0]["text"] == "ok"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        *values("prompt", None, 5, 1.5, True, {}, [], [[]], [None], ["a", 1], [1, "a"]),
        *values("prompt", [1.5], [True], [-1], [2**31], [2**70], [259], [[1], [259]]),
        *values("prompt", "", ["a", ""], [["a"]], ["a"] * 129, "x" * 513, [5] * 513),
        *values("max_tokens", -1, "5", 1.5, True, HUGE, 2**31, [], 1000),
        *values("temperature", -0.1, 2.1, "hot", True, HUGE, []),
        *values("top_p", -0.1, 1.1, HUGE, "x"),
        *values("top_k", -2, 1.5, HUGE, "x"),
        *values("min_p", -0.1, 1.1),
        *values("repetition_penalty", 0, -1, 11),
        *values("presence_penalty", -2.1, 2.1),
        *values("frequency_penalty", -2.1, 2.1),
        *values("n", 0, -1, 129, HUGE, "2", 1.5),
        *values("best_of", 0, 129, "2"),
        *values("logprobs", -1, 21, True, "1", HUGE),
        *values("prompt_logprobs", -1, 21, True),
        *values("stop", 5, [5], "", [""], ["a"] * 17, {}),
        *values("stop_token_ids", "a", [-1], [259], [1.5], 5),
        *values("logit_bias", [], "x", {"a": 1}, {"-1": 1}, {"259": 1}, {"1": 101}),
        *values("logit_bias", {"1": "x"}, {"1": True}, {"1": HUGE}, {"9" * 30: 1}),
        *values("seed", 2**63, -(2**63) - 1, 1.5, "x", HUGE),
        *values("min_tokens", -1, 17, HUGE),
        *values("stream", "yes", 1, 0),
        *values("echo", "yes", 1),
        *values("stream_options", {"include_usage": True}, [], "x"),
        *values("user", 5, []),
        *values("model", 5, []),
        *values("priority", HUGE, "x"),
        *values("suffix", "x", 5),
        *values("no_such_field", 1, {}),
    ],
)  # fmt: skip
def test_wrong_values_of_a_completion(server: Any, param: str, value: Any) -> None:
    response = server.post(COMPLETIONS, **{"prompt": "x", param: value})
    check(server, response, param=param)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("stream_options.foo", {"stream": True, "stream_options": {"foo": 1}}),
        ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
        ("best_of", {"n": 3, "best_of": 2}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        ("n", {"prompt": ["a", "b"], "n": 65}),
        ("max_tokens", {"prompt": "x" * 500, "max_tokens": 13}),
        ("max_tokens", {"prompt": "x" * 512}),
    ],
)
def test_wrong_together(server: Any, param: str, body: dict[str, Any]) -> None:
    check(server, server.post(COMPLETIONS, **{"prompt": "x", **body}), param=param)


@pytest.mark.parametrize(
    ("param", "messages"),
    [
        ("messages", None),
        ("messages", []),
        ("messages", "hello"),
        ("messages", {}),
        ("messages.0", ["hello"]),
        ("messages.0.role", [{}]),
        ("messages.0.role", [{"content": "x"}]),
        ("messages.0.role", [{"role": "king", "content": "x"}]),
        ("messages.0.content", [{"role": "user"}]),
        ("messages.0.content", [{"role": "user", "content": None}]),
        ("messages.0.content", [{"role": "user", "content": 5}]),
        ("messages.0.content", [{"role": "user", "content": {}}]),
        ("messages.0.content.0", [{"role": "user", "content": ["x"]}]),
        ("messages.0.content.0", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages.0.content.0.text", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages.0.name", [{"role": "user", "content": "x", "name": 5}]),
        ("messages.0.audio", [{"role": "user", "content": "x", "audio": {"id": "a"}}]),
        ("messages.0.tool_calls", [{"role": "assistant", "tool_calls": {}}]),
        ("messages.0.tool_calls.0.function", [{"role": "assistant", "tool_calls": [{}]}]),
        ("messages", [{"role": "user", "content": "x" * 600}]),
        ("messages", [{"role": "user", "content": "x" * 1_000_000}]),
    ],
)
def test_wrong_messages(server: Any, param: str, messages: Any) -> None:
    check(server, server.post(CHAT, messages=messages), param=param)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 1, "max_tokens": 2}),
        ("max_tokens", {"max_tokens": 511}),
        ("logprobs", {"logprobs": 1}),
        ("top_logprobs", {"top_logprobs": 1}),
        ("top_logprobs", {"top_logprobs": 21, "logprobs": True}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        ("tools", {"tools": {}}),
        ("tools.0.function", {"tools": [{"type": "function"}]}),
        ("tools.0.type", {"tools": [{"type": "custom", "function": {"name": "x"}}]}),
        ("tools.0.function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tool_choice", {"tool_choice": "maybe"}),
        ("response_format", {"response_format": "text"}),
        ("chat_template_kwargs", {"chat_template_kwargs": []}),
        (
            "continue_final_message",
            {"continue_final_message": True, "add_generation_prompt": True},
        ),
        ("stream_options", {"stream_options": {}}),
        ("nonsense", {"nonsense": None}),
    ],
)
def test_wrong_values_of_a_chat(server: Any, param: str, body: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "x"}]
    check(server, server.post(CHAT, messages=messages, **body), param=param)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b'"prompt"',
        b"[]",
        b'{"prompt": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "temperature": 1e999, "messages": 1, "tokens": "x"}',
        b'{"prompt": "x", "temperature": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
        b'{"prompt": "x"} trailing',
        b"prompt=x",
        b"\x00" * 100,
    ],
)
def test_bodies_that_are_no_request(server: Any, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    check(server, server.http.post(path, content=body, headers=headers))


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/xml"])
def test_other_content_types(server: Any, kind: str) -> None:
    headers = {"content-type": kind}
    response = server.http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=headers)
    check(server, response)


@pytest.mark.parametrize("kind", [None, ";", "application/x-www-form-urlencoded"])
def test_json_without_its_type_is_read_but_not_from_a_web_page(
    server: Any, kind: str | None
) -> None:
    """`curl -d` sends a form's type; so can any page in a browser, which sends its origin."""
    headers = {"content-type": kind} if kind else {}
    response = server.http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 200, response.text
    for origin in ("https://evil.example", "http://localhost:3000", "null"):
        headers["origin"] = origin
        check(server, server.http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=headers))


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.x+json"])
def test_json_content_types(server: Any, kind: str) -> None:
    headers = {"content-type": kind}
    response = server.http.post(COMPLETIONS, content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 200


def test_the_message_of_a_too_long_request_has_both_numbers(server: Any) -> None:
    response = server.post(COMPLETIONS, prompt="x" * 500, max_tokens=100)
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]
    assert "600" in error["message"]
    prompt_alone = server.post(COMPLETIONS, prompt="x" * 700).json()["error"]
    assert prompt_alone["code"] == "context_length_exceeded"
    assert "512" in prompt_alone["message"]
    assert "700" in prompt_alone["message"]


def test_unknown_fields_are_named(server: Any) -> None:
    error = server.post(COMPLETIONS, prompt="x", foo=1).json()["error"]
    assert error["message"] == "Unrecognized request argument supplied: foo"
    assert error["param"] == "foo"


@pytest.mark.parametrize("megabytes", [10, 17])
def test_large_bodies(server: Any, megabytes: int) -> None:
    body = json.dumps({"prompt": "x" * (megabytes * 1024**2)}).encode()
    headers = {"content-type": "application/json"}
    response = server.http.post(COMPLETIONS, content=body, headers=headers)
    check(server, response, 413 if megabytes > 16 else 400)


def test_a_large_body_without_its_length(server: Any) -> None:
    headers = {"content-type": "application/json"}
    chunks = (b" " * 1024**2 for _ in range(20))
    check(server, server.http.post(COMPLETIONS, content=chunks, headers=headers), 413)


def test_a_body_that_only_claims_to_be_large(server: Any) -> None:
    import socket

    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 99999999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(head)
        # Answered without waiting for a body.
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/completions/", 404),
        ("POST", "/v1/engines/x/completions", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("POST", "/health", 405),
        ("BREW", "/tokenize", 405),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/a/b/c", 404),
        ("GET", "/v1/models/%00%ff", 404),
    ],
)
def test_unknown_routes_and_methods(server: Any, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    check(server, response, status)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_unknown_models(server: Any, path: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    bodies: dict[str, dict[str, Any]] = {
        COMPLETIONS: {"prompt": "x"},
        CHAT: {"messages": messages},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [1]},
    }
    response = server.post(path, model="gpt-9", **bodies[path])
    check(server, response, 404, "model")
    assert response.json()["error"]["code"] == "model_not_found"
    assert server.post(path, model="org/parrot-2", **bodies[path]).status_code == 200


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}),
        ("prompt", {"prompt": ["x"]}),
        ("messages.0.role", {"messages": [{}]}),
        ("add_special_tokens", {"prompt": "x", "add_special_tokens": "no"}),
    ],
)
def test_wrong_tokenize(server: Any, param: str, body: dict[str, Any]) -> None:
    check(server, server.post("/tokenize", **body), param=param)


@pytest.mark.parametrize(
    ("param", "tokens"),
    [
        ("tokens", None),
        ("tokens", "x"),
        ("tokens.0", ["x"]),
        ("tokens.0", [-1]),
        ("tokens.1", [1, 1.5]),
        ("tokens.0", [HUGE]),
        ("tokens", [259]),
    ],
)
def test_wrong_detokenize(server: Any, param: str, tokens: Any) -> None:
    check(server, server.post("/detokenize", tokens=tokens), param=param)
