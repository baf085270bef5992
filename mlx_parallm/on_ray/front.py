"""The front: an ASGI application that hands each request to a replica, and tries again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_parallm.errors import BodyTooLargeError, NotOfferedError, ParallmError, UnavailableError
from mlx_parallm.on_ray.scale import Scale
from mlx_parallm.server.handlers import error_response
from mlx_parallm.settings import Settings

_TRIES = 3
# Of these a second try leaves nothing behind that the first one has not.
_REPEATABLE = (
    *("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"),
    *("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/decisions", "/tokenize", "/detokenize"),
    *("/api/chat", "/api/generate", "/completion", "/generate"),
)
# What a prompt begins with, in the order in which templates write it.
_PROMPT = ("model", "instructions", "system", "tools", "messages", "prompt", "input")
_MOST_OF_A_PROMPT = 65_536  # characters that the router looks at


class Front:
    """What clients talk to.

    Args:
        replicas: Replica.answer() of all of them.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, scale: Scale) -> None:
        self._replicas = replicas.options(stream=True)
        self._settings = settings
        self._scale = scale

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray."""
        return Starlette(routes=[Mount("/", app=self._answer)])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = _Sender(send)
        try:
            self._refuse(scope)
            body = await _whole(receive, self._settings.max_body_size)
            await self._hand_over(scope, body, receive, sender)
        except ParallmError as error:
            if sender.begun:
                await sender.end_with(error)
            else:
                await error_response(error, scope)(scope, receive, send)

    def _refuse(self, scope: Scope) -> None:
        """Refuse what one replica would keep for itself.

        Raises:
            NotOfferedError: it is.
        """
        shared = self._scale.max_replicas == 1 or self._settings.memory_store is not None
        if "/memories" in scope["path"] and not shared:
            raise NotOfferedError(
                "Memories of several replicas need a store that all of them reach: --memory-store."
            )

    async def _hand_over(
        self, scope: Scope, body: bytes, receive: Receive, sender: _Sender
    ) -> None:
        """Send a replica's answer on; ask another one where it ends before it has begun.

        Raises:
            UnavailableError: no replica answers.
        """
        model, beginning = _read(body)
        name = model if model in self._scale.adapters else ""
        replicas = self._replicas.options(multiplexed_model_id=name)
        repeatable = scope["method"] == "GET" or scope["path"] in _REPEATABLE
        for left in reversed(range(_TRIES if repeatable else 1)):
            answer = replicas.answer.remote(_plain(scope), body, beginning)
            try:
                async with _cancelled_when_gone(answer, receive):
                    async for message in answer:
                        await sender.send(message)
                return
            except BackPressureError:
                raise UnavailableError("All replicas have as much as they take.") from None
            except RayActorError:
                if sender.begun or not left:
                    raise UnavailableError("The replica that answered has ended.") from None


class _Sender:
    """Sends an answer, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send

    async def send(self, message: Message) -> None:
        self.begun = True
        await self._send(message)

    async def end_with(self, error: ParallmError) -> None:
        """The last event of a stream."""
        data = f"data: {json.dumps(error.envelope())}\n\ndata: [DONE]\n\n".encode()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


@asynccontextmanager
async def _cancelled_when_gone(answer: Any, receive: Receive) -> AsyncIterator[None]:
    """A client that leaves ends its answer, so that its row is free."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answer.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not watcher.done():
            raise  # not by the client
    finally:
        watcher.cancel()


async def _whole(receive: Receive, limit: int) -> bytes:
    """A request's body.

    Raises:
        BodyTooLargeError: longer than the limit.
    """
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message["type"] == "http.request" and message.get("more_body", False)
        if size > limit:
            raise BodyTooLargeError(f"The body is longer than {limit} bytes.")
    return b"".join(parts)


def _read(body: bytes) -> tuple[str, str]:
    """The `model` of a request and the beginning of its prompt; empty where there is none."""
    try:
        fields = from_json(body) if body else None
    except ValueError:
        fields = None  # the replica says what is wrong with it
    if not isinstance(fields, dict):
        return "", ""
    prompt = json.dumps([fields.get(name) for name in _PROMPT], ensure_ascii=False)
    return str(fields.get("model") or ""), prompt[:_MOST_OF_A_PROMPT]


def _plain(scope: Scope) -> dict[str, Any]:
    """What another process needs of a scope."""
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string")
    kept = {name: scope[name] for name in (*names, "headers", "client", "server") if name in scope}
    return {**kept, "asgi": {"version": "3.0"}, "root_path": ""}
