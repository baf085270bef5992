"""/v1/models/{id}/memories and /v1/memories: Extended Mind collections."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import InvalidRequestError, NotFoundError
from mlx_parallm.memory.backends.backend import StoredCollection
from mlx_parallm.memory.job import MemoryJob
from mlx_parallm.memory.manager import MemoryManager
from mlx_parallm.memory.submission import Source
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.memories import in_thread, pinned
from mlx_parallm.server.openapi import ERRORS, body_of
from mlx_parallm.server.output.responses import json_answer, to_json
from mlx_parallm.server.schemas.collections import (
    AddMemoriesRequest,
    MemoryDeleted,
    MemoryJobResponse,
    MemoryList,
    MemorySearchResponse,
    SearchMemoriesRequest,
)
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Memories"])
_PATH = "/v1/models/{model_id:path}/memories"


@router.post(
    _PATH,
    summary="Make memories of documents",
    status_code=202,
    response_model=MemoryJobResponse,
    responses=ERRORS,
    openapi_extra=body_of(AddMemoriesRequest),
)
async def add_memories(request: Request, model_id: str) -> Response:
    """Start to make memories; the job's progress is in the list.

    With an adapter's id they are made with it, and serve its requests only.
    """
    state = state_of(request)
    _, adapter = await state.model_of(model_id)
    used = adapter or state.dispatcher.default_adapter
    manager = await in_thread(state, state.memories)
    body = await read_body(request, AddMemoriesRequest, state.settings.max_body_size)
    sources = []
    for document in body.all_documents:
        if document.tokens is not None:
            state.prompts().check_ids(document.tokens, "tokens")
        content = document.tokens if document.text is None else document.text
        sources.append(Source(content or "", document.id, document.metadata))
    job = await in_thread(
        state, lambda: manager.add(sources, body.collection, body.window, body.stride, used)
    )
    return Response(to_json(job_answer(job)), 202, media_type="application/json")


@router.get(
    _PATH, summary="Collections, documents and jobs", response_model=MemoryList, responses=ERRORS
)
async def list_memories(request: Request, model_id: str, collection: str | None = None) -> Response:
    """Everything there is; `?collection=` shows one."""
    state = state_of(request)
    state.check_known(model_id)
    manager = await in_thread(state, state.memories)
    name = collection
    # The jobs as they are before the collections are looked at: one that ends meanwhile is
    # still shown as running, never as done beside a list without what it made.
    jobs = [job_answer(job) for job in manager.jobs.jobs if name in (None, job.collection)]
    if name is None:
        found = manager.collections()
    elif jobs and all(one.name != name for one in manager.collections()):
        found = []  # on its way
    else:
        found = [_collection(manager, name)]
    data = await in_thread(state, lambda: [_shown(manager, one) for one in found])
    return json_answer(
        {
            "object": "list",
            "backend": manager.backend.name,
            "loaded_bytes": manager.views.nbytes,
            "budget_bytes": manager.views.budget,
            "data": data,
            "jobs": jobs,
        }
    )


@router.delete(
    _PATH,
    summary="Remove a document, a collection or all",
    response_model=MemoryDeleted,
    responses=ERRORS,
)
async def delete_memories(
    request: Request,
    model_id: str,
    collection: str | None = None,
    document_id: str | None = None,
    all: bool = False,
) -> Response:
    """`?collection=` removes one, with `&document_id=` one document of it; `?all=true` all."""
    state = state_of(request)
    state.check_known(model_id)
    manager = await in_thread(state, state.memories)
    _check_removal(request, collection, document_id, all)
    name, document = collection, document_id
    if name is not None:
        _collection(manager, name)
    names = [one.name for one in manager.collections()] if name is None else [name]
    for one in names:
        await in_thread(state, lambda one=one: manager.delete(one, document))  # type: ignore[misc]
    answer = {"object": "memory.deleted", "collections": names, "document_id": document}
    return json_answer({**answer, "deleted": bool(names)})


@router.post(
    "/v1/memories/search",
    summary="What a text would retrieve",
    response_model=MemorySearchResponse,
    responses=ERRORS,
    openapi_extra=body_of(SearchMemoriesRequest),
)
async def search_memories(request: Request) -> Response:
    """Run a text through the model and show which memories its tokens attend to."""
    state = state_of(request)
    manager = await in_thread(state, state.memories)
    body = await read_body(request, SearchMemoriesRequest, state.settings.max_body_size)
    _, adapter = await state.model_of(body.model)
    used = adapter or state.dispatcher.default_adapter
    memory = await pinned(state, body, adapter, prefix="")
    found = await in_thread(state, lambda: manager.search(body.query, memory, used))
    return json_answer({"object": "list", "data": found})


@router.get(
    "/v1/memories/jobs/{job_id}",
    summary="A job's progress",
    response_model=MemoryJobResponse,
    responses=ERRORS,
)
async def get_job(request: Request, job_id: str) -> Response:
    """One job."""
    state = state_of(request)
    manager = await in_thread(state, state.memories)
    job = manager.jobs.job(job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id[:200]!r}.", code="job_not_found")
    return json_answer(job_answer(job))


def _check_removal(
    request: Request, collection: str | None, document_id: str | None, everything: bool
) -> None:
    """Refuse what does not say clearly what is to go.

    Raises:
        InvalidRequestError: nothing is named, too much, or the same parameter twice.
    """
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequestError(f"{name} is given more than once.", param=name)
    if collection is None and document_id is not None:
        raise InvalidRequestError("A document is removed from a collection.", param="collection")
    if collection is None and not everything:
        raise InvalidRequestError(
            "Say which collection to remove (?collection=), or ?all=true to remove all of them.",
            param="collection",
        )
    if collection is not None and everything:
        raise InvalidRequestError("collection and all=true exclude each other.", param="all")


def _collection(manager: MemoryManager, name: str) -> StoredCollection:
    try:
        return manager.collection(name)
    except NotFoundError as error:
        raise NotFoundError(error.message, param="collection", code=error.code) from None


def job_answer(job: MemoryJob) -> dict[str, Any]:
    """A job as a response shows it."""
    return {
        "id": job.id,
        "object": "memory.job",
        "collection": job.collection,
        "status": job.status,
        "created": job.created,
        "total_tokens": job.total,
        "done_tokens": job.done,
        "progress": round(job.done / job.total, 4) if job.total else 1.0,
        "document_ids": job.document_ids,
        "documents_done": len(job.stored),
        "durable": job.durable,
        "version": job.version,
        "error": None if job.error is None else job.error.envelope()["error"],
    }


def _shown(manager: MemoryManager, collection: StoredCollection) -> dict[str, Any]:
    documents = collection.documents
    first = documents[0] if documents else None
    return {
        "id": collection.name,
        "object": "memory.collection",
        "version": collection.version,
        "num_memories": sum(document.num_memories for document in documents),
        "bytes": sum(document.nbytes for document in documents),
        "window": first and first.window,
        "stride": first and first.stride,
        "dtype": first and first.dtype,
        "documents": [
            {
                "id": document.id,
                "num_tokens": document.num_tokens,
                "num_memories": document.num_memories,
                "bytes": document.nbytes,
                "characters": len(document.text),
                "created": document.created,
                "metadata": document.metadata,
            }
            for document in documents
        ],
        "problem": manager.problem(collection),
    }
