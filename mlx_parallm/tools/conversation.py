"""A conversation with a server over /v1/chat/completions, streamed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TIMEOUT_S = 600


class ConversationError(RuntimeError):
    """What the server, or the way to it, has against a request; one line."""


@dataclass(frozen=True)
class Piece:
    """New text of an answer; logprobs: (token's text, nats) of each of its tokens."""

    text: str
    logprobs: tuple[tuple[str, float], ...] = ()


@dataclass
class Conversation:
    """Messages so far, and the server that answers.

    Attributes:
        url: of the server, without /v1; api_key: a bearer token, if it wants one.
        settings: more fields of the request, such as temperature.
        system: what the model is told before everything else.
    """

    url: str
    api_key: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)

    def model(self) -> str:
        """The name of what the server serves.

        Raises:
            ConversationError: it cannot be asked.
        """
        with self._open("/v1/models", None) as response:
            return str(json.load(response)["data"][0]["id"])

    def ask(self, text: str, *, logprobs: bool) -> Generator[Piece, None, None]:
        """Send a message; the answer as it comes.

        The answer becomes part of the conversation, also where the caller stops early. After an
        error neither it nor the message does.

        Raises:
            ConversationError: the server refuses, fails or is gone.
        """
        said = [*self.messages, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self.system}] if self.system else []
        body = {"messages": head + said, "stream": True, "logprobs": logprobs, **self.settings}
        parts: list[str] = []
        with self._open("/v1/chat/completions", body) as response:
            try:
                for piece in _pieces(response):
                    parts.append(piece.text)
                    yield piece
            except (OSError, ConversationError) as error:
                parts.clear()
                if isinstance(error, ConversationError):
                    raise
                raise ConversationError(f"the server is gone: {error}") from error
            finally:
                if parts:
                    answer = {"role": "assistant", "content": "".join(parts)}
                    self.messages = [*said, answer]

    def save(self, path: Path) -> None:
        """Write system prompt and messages as JSON, as requests have them.

        Raises:
            OSError: the file cannot be written.
        """
        head = [{"role": "system", "content": self.system}] if self.system else []
        text = json.dumps({"messages": head + self.messages}, indent=1, ensure_ascii=False)
        path.expanduser().write_text(text + "\n", encoding="utf-8")

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            raise ConversationError(_reason(error)) from error
        except (OSError, ValueError) as error:
            raise ConversationError(f"{self.url} does not answer: {error}") from error


def _pieces(response: Any) -> Iterator[Piece]:
    """The events of a stream.

    Raises:
        ConversationError: one of them is an error.
    """
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if not data or data == "[DONE]" or not line.startswith(b"data:"):
            continue
        event = json.loads(data)
        if "error" in event:
            raise ConversationError(event["error"]["message"])
        for choice in event["choices"]:
            rows = (choice.get("logprobs") or {}).get("content") or ()
            scores = tuple((row["token"], float(row["logprob"])) for row in rows)
            yield Piece(choice["delta"].get("content") or "", scores)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server says {error.code} {error.reason}"
