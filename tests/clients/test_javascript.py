"""The JavaScript SDKs against a real server, where there is node and they are installed.

    npm install --prefix tests/clients/javascript

installs them; what it makes there is not part of the repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.weather import ANSWER, THOUGHT

FOLDER = Path(__file__).with_name("javascript")
WEATHER = {"city": "Paris", "degrees": 21}
LIMIT_S = 120


def run(program: str, url: str) -> Any:
    """What a program of the folder prints, as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    if not (FOLDER / "node_modules").is_dir():
        pytest.skip("not installed: npm install --prefix tests/clients/javascript")
    done = subprocess.run(
        [node, str(FOLDER / program), url],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai(scripted_url: str) -> None:
    answers = run("openai.mjs", scripted_url)
    assert answers["models"] == ["scripted"]
    assert answers["chat"] == {"whole": ANSWER, "streamed": ANSWER, "parsed": WEATHER}
    assert answers["chatTools"] == {"asked": ["Paris"], "final": ANSWER}
    responses = answers["responses"]
    assert responses["parsed"] == WEATHER
    assert responses["call"] == ["get_weather", {"city": "Paris"}]
    assert responses["after"] == ANSWER
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= set(
        responses["events"]
    )
    failure = {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert answers["failure"] == failure


def test_anthropic(scripted_url: str) -> None:
    answers = run("anthropic.mjs", scripted_url)
    message = answers["message"]
    assert message["whole"] == message["streamed"] == [THOUGHT, ANSWER]
    assert message["isCounted"]
    assert message["kinds"][0] == "message_start" and message["kinds"][-1] == "message_stop"
    assert answers["parsed"] == WEATHER
    assert answers["tools"] == {"cities": ["Paris"], "final": ANSWER}
    assert answers["failure"] == {"name": "NotFoundError", "status": 404}


def test_ai(scripted_url: str) -> None:
    answers = run("ai.mjs", scripted_url)
    assert list(answers) == ["compatible", "anthropic", "chat", "responses"]
    for provider, answer in answers.items():
        assert "error" not in answer, (provider, answer)
        assert answer["text"] == answer["final"] == ANSWER, provider
        assert answer["structured"] == WEATHER, provider
        assert (answer["cities"], answer["steps"], answer["tokens"]) == (["Paris"], 2, True)
        assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(answer["parts"])
        assert "error" not in answer["parts"], provider
    for provider in ("compatible", "anthropic", "responses"):
        assert answers[provider]["thought"] == THOUGHT
