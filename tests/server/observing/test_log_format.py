"""Log lines as JSON objects, one a request."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from mlx_parallm.server.observing.log_format import JsonFormatter


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "mlx_parallm.access")
    caplog.handler.setFormatter(JsonFormatter())
    return lambda: [json.loads(caplog.handler.format(record)) for record in caplog.records]


def test_one_object_a_request(serve: Any, helpers: Any, lines: Any) -> None:
    server = serve(api_key=("k",), log_level="info")
    sent = {"authorization": "Bearer k", "x-request-id": "mine"}
    server.http.post("/v1/completions", headers=sent, json={"prompt": "hello", "max_tokens": 3})
    helpers.wait_until(lambda: any(line.get("request_id") == "mine" for line in lines()))
    (line,) = [line for line in lines() if line.get("request_id") == "mine"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert line["client"] == "key-1" and line["generated_tokens"] == 3
    assert line["prompt_tokens"] > 0 and line["ms"] > 0 and line["level"] == "info"
    assert line["time"].endswith("+00:00") and "k" not in line.values()


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("odd\nmessage")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord("mlx_parallm", logging.ERROR, "", 0, "it %s", ("broke",), caught)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "it broke"
    assert "ValueError" in json.loads(text)["exception"]
