"""Log-probabilities of given texts over HTTP: `echo` with `logprobs` and no new tokens."""

from __future__ import annotations

import argparse
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bench_models

from benchlib.servers import our_command, spawn


class ScoringError(RuntimeError):
    """The server did not give log-probabilities; the message says why."""


@dataclass(frozen=True)
class Scores:
    """One prompt's tokens as text and their log-probabilities in nats.

    The first token has none: nothing stands before it.
    """

    tokens: list[str]
    logprobs: list[float | None]


class Scorer:
    """Scores token ids with a server.

    Args:
        url: root of the server, such as http://127.0.0.1:8000.
        model: the `model` field; None takes the first of /v1/models.
        api_key: sent as a bearer token.

    Raises:
        ScoringError: the server cannot be reached.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        entry = self._model_entry(model)
        self.model: str = entry["id"]
        self.max_model_len: int | None = entry.get("max_model_len")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens included as for any prompt."""
        ids: list[int] = self._call("/tokenize", {"model": self.model, "prompt": text})["tokens"]
        return ids

    def score(self, prompts: Sequence[list[int]]) -> list[Scores]:
        """Score prompts of at least one token id each, in one request."""
        body = {
            "model": self.model,
            "prompt": list(prompts),
            "max_tokens": 0,
            "echo": True,
            "logprobs": 0,
            "temperature": 0,
        }
        choices = sorted(self._call("/v1/completions", body)["choices"], key=lambda c: c["index"])
        found = [Scores(c["logprobs"]["tokens"], c["logprobs"]["token_logprobs"]) for c in choices]
        for prompt, scores in zip(prompts, found, strict=True):
            if len(scores.logprobs) != len(prompt):
                raise ScoringError(
                    f"{len(prompt)} tokens were sent, {len(scores.logprobs)} came back scored"
                )
        return found

    def _model_entry(self, name: str | None) -> dict[str, Any]:
        entries = self._call("/v1/models")["data"]
        if name is None and entries:
            return dict(entries[0])
        return next((e for e in entries if e["id"] == name), {"id": name or ""})

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            raise ScoringError(f"{path}: status {error.code}: {text}") from error
        except (OSError, ValueError) as error:
            raise ScoringError(f"{self._url}{path}: {error}") from error


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which scripts name a server or have one started."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server, such as http://127.0.0.1:8000")
    where.add_argument("--model-path", help="start a server on this model: bundled, folder, hub id")
    parser.add_argument("--model", help="`model` field of requests; default: the first served")
    parser.add_argument("--api-key", help="sent as a bearer token")


@contextlib.contextmanager
def scorer(args: argparse.Namespace) -> Iterator[Scorer]:
    """A Scorer on the server that the arguments name, started here where asked.

    Raises:
        ScoringError: it cannot be reached; SpawnError: it did not start.
    """
    if args.url:
        yield Scorer(args.url, args.model, args.api_key)
        return
    path = args.model_path
    model = bench_models.ensure(path) if path in bench_models.SHAPES else path
    with spawn("mlx_parallm", our_command(model)) as server:
        yield Scorer(server.url, args.model)
