"""The record of one HTTP request: who asks, and what was generated for it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlx_parallm.server.gate.clients import ApiClient


class Generated(Protocol):
    """What a Generation says of itself."""

    submitted_at: float
    first_output_at: float | None

    @property
    def prompt_tokens(self) -> int:
        """Of all its prompts."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Of them, those found in the prefix cache."""
        ...

    @property
    def generated_tokens(self) -> int:
        """So far."""
        ...

    @property
    def finish_reasons(self) -> list[str]:
        """Of its sequences."""
        ...


# (method, route, status, seconds, record)
OnAnswer = Callable[[str, str, int, float, "RequestRecord"], None]


@dataclass(slots=True)
class RequestRecord:
    """One request, while it is answered.

    Attributes:
        client: None where nobody is told apart.
        traceparent: the W3C trace context that the client sent.
        on_answer: told of the answer where several servers share a gate.
        generations: what was made for it.
        audio_seconds: of the sound that it brings.
    """

    client: ApiClient | None = None
    traceparent: str = ""
    on_answer: OnAnswer | None = None
    generations: list[Generated] = field(default_factory=list)
    audio_seconds: float | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all its prompts."""
        return sum(one.prompt_tokens for one in self.generations)

    @property
    def cached_tokens(self) -> int:
        """Of them, those found in the prefix cache."""
        return sum(one.cached_tokens for one in self.generations)

    @property
    def generated_tokens(self) -> int:
        """So far."""
        return sum(one.generated_tokens for one in self.generations)

    @property
    def first_output_s(self) -> float | None:
        """Seconds from submission to the first output; None before it."""
        times = [
            one.first_output_at - one.submitted_at
            for one in self.generations
            if one.first_output_at is not None
        ]
        return min(times, default=None)

    @property
    def finish_reasons(self) -> list[str]:
        """Of all sequences."""
        return [reason for one in self.generations for reason in one.finish_reasons]

    def facts(self) -> dict[str, Any]:
        """For a log line; nothing where there is nothing to say."""
        found: dict[str, Any] = {} if self.client is None else {"client": self.client.share.name}
        if self.generations:
            found |= {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "generated_tokens": self.generated_tokens,
            }
        if self.audio_seconds is not None:
            found["audio_seconds"] = round(self.audio_seconds, 3)
        return found


# Set by the gate, read where a request's sequences are made.
current: ContextVar[RequestRecord | None] = ContextVar("current", default=None)
