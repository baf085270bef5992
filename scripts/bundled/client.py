"""A plain HTTP client of the server, and the server process itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .checks import Answer, parse_calls
from .sample import Message, Tool

_START_TIMEOUT_S = 120
_REQUEST_TIMEOUT_S = 600


class Client:
    """Requests to one OpenAI-compatible server, all of them greedy."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.model = self._get("/v1/models")["data"][0]["id"]

    def chat(
        self, messages: list[Message], tools: list[Tool], max_tokens: int, **options: Any
    ) -> Answer:
        """The answer to a chat; options are further fields of the request."""
        body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": max_tokens}
        if tools:
            body["tools"] = tools
        response = self._post("/v1/chat/completions", body | options)
        choice = response["choices"][0]
        message = choice["message"]
        content, calls = parse_calls(message.get("content") or "")
        for call in message.get("tool_calls") or []:
            function = call["function"]
            calls.append((function["name"], _arguments(function["arguments"])))
        details = response["usage"].get("completion_tokens_details") or {}
        thought = message.get("reasoning") or ""
        counted = details.get("reasoning_tokens") or 0
        return Answer(content, calls, choice["finish_reason"], thought, counted)

    def prompt_logprobs(self, prompt: str | list[int]) -> dict[str, list[Any]]:
        """The logprobs object of the prompt itself (echo, nothing generated)."""
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        logprobs: dict[str, list[Any]] = self._post("/v1/completions", body)["choices"][0][
            "logprobs"
        ]
        return logprobs

    def decisions(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response of /v1/decisions."""
        response: dict[str, Any] = self._post("/v1/decisions", body)
        return response

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path,
            json.dumps({"model": self.model, **body}).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise RuntimeError(f"{path} answered {error.code}: {detail}") from error


def _arguments(text: str) -> Any:
    """Arguments of a call; text that is no JSON stays text and so equals nothing expected."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@contextmanager
def serve(model: Path) -> Iterator[str]:
    """Run the server on `model` on a free port of this machine; yields its URL when it is ready.

    Raises:
        RuntimeError: it ended or was not ready in two minutes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_parallm.cli", "--model-path", str(model)]
    command += ["--log-level", "warning"]
    process = subprocess.Popen([*command, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server was not ready in time")
