"""What every request passes: ids, keys, CORS, metrics and the log."""

from __future__ import annotations

import re
from typing import Any

import pytest

COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/nope"),
        ("PUT", "/health"),
        ("POST", COMPLETIONS),
        ("GET", "/metrics"),
        ("GET", "/debug/metrics"),
        ("GET", "/docs"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
    ],
)
def test_every_answer_has_an_id(server: Any, method: str, path: str) -> None:
    first, second = (server.http.request(method, path).headers["x-request-id"] for _ in "ab")
    assert re.fullmatch(r"req-[0-9a-f]{32}", first)
    assert first != second


def test_a_stream_has_an_id(server: Any) -> None:
    assert server.post(COMPLETIONS, prompt="x", stream=True).headers["x-request-id"]


def test_the_clients_id_is_kept_if_it_is_sane(server: Any) -> None:
    def answered(given: str) -> str:
        headers = {"x-request-id": given}
        return str(server.http.get("/health", headers=headers).headers["x-request-id"])

    assert answered("my-id_7.a:b") == "my-id_7.a:b"
    for insane in ("a b", "x" * 129, "<script>", '"', ""):
        assert answered(insane).startswith("req-")


@pytest.fixture(scope="module")
def locked(helpers: Any) -> Any:
    """A server with two keys."""
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    engine = helpers.ParrotEngine()
    settings = Settings(api_key=("key-1", "schlüssel"), cors_origin=("https://a.example",))
    served = helpers.Served(create_app(settings, engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.mark.parametrize(
    "header",
    [None, "", "key-1", "Bearer", "Bearer key-2", "Basic key-1", "Bearer key-1x"],
)
def test_wrong_keys(locked: Any, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    for method, path in (("GET", "/v1/models"), ("POST", COMPLETIONS), ("GET", "/metrics")):
        response = locked.http.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]


@pytest.mark.parametrize("header", ["Bearer key-1", "bearer key-1", "Bearer schlüssel".encode()])
def test_right_keys(locked: Any, header: str | bytes) -> None:
    assert locked.http.get("/v1/models", headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_open_without_a_key(locked: Any, path: str) -> None:
    assert locked.http.get(path).status_code == 200


def test_the_document_says_that_a_key_is_needed(locked: Any, server: Any) -> None:
    assert locked.http.get("/openapi.json").json()["security"]
    assert "security" not in server.http.get("/openapi.json").json()


def test_cors(locked: Any, server: Any) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    preflight = locked.http.options(COMPLETIONS, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    refused = locked.http.post(COMPLETIONS, headers={"origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    other = locked.http.get("/health", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    # Off unless it is asked for.
    closed = server.http.get("/health", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in closed.headers


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("http://localhost:3000", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:5173", True),
        ("http://localhost.evil.example", False),
        ("http://evil.example", False),
        ("https://127.0.0.1.evil.example", False),
        ("null", False),
    ],
)
def test_pages_of_this_machine_may_call_without_an_option(
    server: Any, origin: str, allowed: bool
) -> None:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
    }
    preflight = server.http.options(COMPLETIONS, headers=asked)
    answer = server.http.get("/health", headers={"origin": origin})
    assert preflight.headers["x-request-id"]
    if allowed:
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-origin"] == origin
    else:
        assert preflight.status_code == 400
        assert preflight.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in preflight.headers
        assert "access-control-allow-origin" not in answer.headers


def test_the_log_has_one_line_a_request(
    server: Any, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mlx_parallm.access")
    request_id = server.http.get("/v1/models/none").headers["x-request-id"]

    def lines() -> list[str]:
        return [message for message in caplog.messages if request_id in message]

    # It is written after the answer.
    helpers.wait_until(lambda: bool(lines()))
    (line,) = lines()
    assert line.startswith("GET /v1/models/none 404 ")


@pytest.mark.parametrize("key", ["key-1", ""])
def test_a_url_cannot_write_into_the_log(
    locked: Any, helpers: Any, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level("INFO", "mlx_parallm.access")
    path = "/x%0A2026-01-01%20INFO%20forged%1b[31m%0d%e2%80%a8%c3%a9" + "y" * 10_000
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = locked.http.get(path, headers=headers)
    assert answer.status_code == (404 if key else 401)
    assert len(answer.json()["error"]["message"]) < 300
    helpers.wait_until(lambda: any("%0A2026" in message for message in caplog.messages))
    (line,) = [message for message in caplog.messages if "%0A2026" in message]
    assert line.isprintable() and line.isascii()
    assert len(line) < 600
    assert re.search(r"\.\.\. \(100\d\d characters\)", line)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/ping", "/version", "/health"])
def test_what_probes_and_people_ask_first(locked: Any, method: str, path: str) -> None:
    answer = locked.http.request(method, path)
    assert answer.status_code == 200
    assert bool(answer.content) == (method == "GET")
    if method == "GET" and path in ("/", "/version"):
        from mlx_parallm import __version__

        assert answer.json()["version"] == __version__


def test_keys_that_are_not_ascii(serve: Any) -> None:
    """Both keys match in the two ways that clients write them, and in no other."""
    server = serve(api_key=("clé",), admin_key=("schlüssel",))
    for right in ("clé".encode(), "clé".encode("latin-1")):
        sent = {"authorization": b"Bearer " + right}
        assert server.http.get("/v1/models", headers=sent).status_code == 200
        for admin, status in (
            # 400: the key is right, and the body is wrong.
            ("schlüssel".encode(), 400),
            ("schlüssel".encode("latin-1"), 400),
            (b"schl\xc3ssel", 401),
            (b"schlussel", 401),
            (b"", 401),
        ):
            both = sent | {"x-admin-key": admin}
            answer = server.http.post("/v1/configure", headers=both, json={"nope": 1})
            assert answer.status_code == status
    sent = {"authorization": b"Bearer cl\xc3"}
    assert server.http.get("/v1/models", headers=sent).status_code == 401


def test_metrics(serve: Any) -> None:
    server = serve()
    server.ok(COMPLETIONS, prompt="hello")
    server.post(COMPLETIONS, prompt="hello", stream=True)
    server.post(COMPLETIONS)
    server.http.request("ODD-METHOD", "/odd-path")
    text = server.http.get("/metrics").text
    route = 'method="POST",model_name="parrot",route="/v1/completions"'
    assert f'mlx_parallm:http_requests_total{{{route},status="200"}} 2.0' in text
    assert f'mlx_parallm:http_requests_total{{{route},status="400"}} 1.0' in text
    # Names that clients make up do not become labels.
    assert "odd-path" not in text
    assert "ODD" not in text
    mine = '{model_name="parrot"}'
    for name in ("time_to_first_token", "request_time_per_output_token", "request_decode_time"):
        assert f"mlx_parallm:{name}_seconds_count{mine} 2.0" in text
    assert 'request_success_total{finished_reason="stop",model_name="parrot"} 2.0' in text
    assert "# TYPE mlx_parallm:num_requests_running gauge" in text
    assert "# TYPE mlx_parallm:generation_tokens_total counter" in text
    reason = '{model_name="parrot",reason="pays"}'
    assert f"mlx_parallm:speculation_reasons_total{reason} 0.0" in text
    figures = server.http.get("/debug/metrics").json()
    assert figures["engine"]["running"] == 0
    assert figures["engine"]["speculation_reasons"]["does_not_pay"] == 0
    assert figures["queued_requests"] == 0
    assert figures["server"]["mlx_parallm:time_to_first_token_seconds_count"] == 2


def test_models(server: Any) -> None:
    listed = server.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["parrot", "org/parrot-2"]
    card = server.http.get("/v1/models/org/parrot-2").json()
    assert card == listed["data"][1]
    assert card["object"] == "model"
    assert card["status"] == "ready"
    assert card["max_model_len"] == 512
    assert card["capabilities"] == {"vision": False, "video": False}
    assert card["parent"] is None
    assert isinstance(card["created"], int)


def test_tokenize_and_back(server: Any) -> None:
    text = "hé<|user|>"
    answer = server.ok("/tokenize", prompt=text, return_token_strs=True)
    assert answer["tokens"] == [107, 198, 172, 1]
    assert answer["count"] == 4
    assert answer["max_model_len"] == 512
    assert answer["token_strs"][0] == "h"
    assert len(answer["token_strs"]) == 4
    assert server.ok("/detokenize", tokens=answer["tokens"]) == {"prompt": text, "content": text}
    assert server.ok("/detokenize", tokens=[]) == {"prompt": "", "content": ""}


def test_tokenize_messages(server: Any) -> None:
    answer = server.ok("/tokenize", messages=[{"role": "user", "content": "h"}])
    assert answer["tokens"] == [1, 107, 2]
    short = server.ok(
        "/tokenize", messages=[{"role": "user", "content": "h"}], add_generation_prompt=False
    )
    assert short["tokens"] == [1, 107]


def test_the_document_has_what_there_is(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize"} <= set(document["paths"])
    post = document["paths"]["/v1/completions"]["post"]
    assert {"200", "400", "401", "404", "408", "413", "429", "500", "503"} <= set(post["responses"])
    assert "422" not in post["responses"]
    reference = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[-1]]
    assert schema["required"] == ["prompt"]
    assert {"type": "null"} in schema["properties"]["seed"]["anyOf"]
    assert schema["additionalProperties"] is False


def test_every_reference_in_the_document_exists(server: Any) -> None:
    text = server.http.get("/openapi.json").text
    document = server.http.get("/openapi.json").json()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names
    assert names <= set(document["components"]["schemas"])
