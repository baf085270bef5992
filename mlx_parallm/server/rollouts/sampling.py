"""What every rollout endpoint does between its request and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request

from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.compat.translation import named
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import completion_tracks
from mlx_parallm.server.input.body import validate
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.memories import memory_of
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.state import ServerState


def completion_of(
    state: ServerState, fields: Mapping[str, Any], names: Mapping[str, str]
) -> CompletionRequest:
    """`fields` as a completion of ours, with the server's defaults.

    Args:
        names: our field -> the client's name of it, for errors.

    Raises:
        InvalidRequestError: with the client's name as `param`.
    """
    with named(names):
        given = with_defaults(dict(fields), CompletionRequest, state.settings)
        return validate(CompletionRequest, given)


async def sampled_tracks(
    request: Request,
    state: ServerState,
    body: CompletionRequest,
    names: Mapping[str, str] | None = None,
    default_max_tokens: int | None = None,
) -> tuple[str, list[Track]]:
    """The served model's or adapter's name, and n tracks for each prompt, in order.

    Args:
        names: as in completion_of().
        default_max_tokens: where the body has no max_tokens; None is what is left of the
            context.

    Raises:
        InvalidRequestError, NotFoundError, ContextLengthError: the request cannot be served.
    """
    with named(names or {}):
        model, adapter = await state.model_of(body.model)
        tracks = await completion_tracks(
            body,
            state.prompts(),
            state.loaded().tokenizer,
            memory=await memory_of(state, body.memory, adapter),
            namespace=prefix_namespace(request, state, body.cache_salt),
            default_max_tokens=default_max_tokens,
        )
    use_adapter(tracks, adapter)
    return model, tracks
