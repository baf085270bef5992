"""Requests that use the server's memories."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mlx_parallm.errors import InvalidRequestError, NotFoundError, NotMadeYetError
from mlx_parallm.memory.backends.store_errors import DamagedMemoriesError
from mlx_parallm.memory.manager import MemorySettings
from mlx_parallm.server.schemas.collections import MemoryFields
from mlx_parallm.server.state import ServerState

if TYPE_CHECKING:
    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.memory.request import MemoryRequest

T = TypeVar("T")


async def in_thread(state: ServerState, work: Callable[[], T]) -> T:
    """Do something that waits for a disk, a store or the engine."""
    return await asyncio.get_running_loop().run_in_executor(state.memory_executor, work)


async def memory_of(
    state: ServerState, fields: MemoryFields | None, adapter: Adapter | None = None
) -> MemoryRequest | None:
    """The memories of a request's `memory`, pinned.

    Args:
        adapter: of the request, where it names one; memories were made with the same.

    Raises:
        NotFoundError: an unknown collection.
        NotMadeYetError: one that is still being made.
        InvalidRequestError: one of another model, or a layer that there is not.
        DamagedMemoriesError: one that was lost or changed on the disk.
    """
    if fields is None:
        return None
    return await pinned(state, fields, adapter)


async def pinned(
    state: ServerState,
    fields: MemoryFields,
    adapter: Adapter | None = None,
    prefix: str = "memory.",
) -> MemoryRequest:
    """The same for fields that are there; `prefix` of their names in errors."""
    settings = MemorySettings(
        topk=fields.topk,
        sim_threshold=fields.sim_threshold,
        layers=None if fields.layers is None else tuple(fields.layers),
        position=fields.position,
        local_offset=fields.local_offset,
        citations=fields.citations,
    )
    names, used = fields.collections, adapter or state.dispatcher.default_adapter
    try:
        manager = await in_thread(state, state.memories)
        ready = manager.ready_request(names, settings, used)
        if ready is not None:
            return ready
        return await in_thread(state, lambda: manager.request(names, settings, used))
    except (
        InvalidRequestError,
        NotFoundError,
        NotMadeYetError,
        DamagedMemoriesError,
    ) as error:
        if error.param is not None:
            error.param = prefix + error.param.removeprefix("memory.")
        raise
