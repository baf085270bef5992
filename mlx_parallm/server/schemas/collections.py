"""Extended Mind memories: collections, jobs, and the `memory` field of requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_parallm.server.schemas.base import MAX_TOKEN_ID, RequestModel, wrong

MAX_DOCUMENTS = 1024
MAX_COLLECTIONS = 16
MAX_LAYERS = 1024

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
_TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


class MemoryFields(RequestModel):
    """Memories that a request attends to, and how."""

    collections: list[Name] = Field(min_length=1, max_length=MAX_COLLECTIONS)
    topk: int = Field(10, ge=1, le=65536, description="Memories per query token and head.")
    sim_threshold: float | None = Field(
        None, ge=-1, le=2, description="Memories with a cosine similarity up to this are left out."
    )
    layers: list[Annotated[int, Field(ge=0, le=MAX_LAYERS)]] | None = Field(
        None, max_length=MAX_LAYERS, description="Layers that use memories; default: all."
    )
    position: Literal["zero", "contiguous"] = Field(
        "zero", description="zero: memory keys are not rotated; contiguous: they come first."
    )
    local_offset: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKEN_ID,
        description="Added to the positions of the request's tokens. Default: the model's, or 0.",
    )
    citations: Literal["none", "token", "span"] = Field(
        "none", description="Report what was used, by token or merged into spans."
    )


class NewMemory(RequestModel):
    """One document: a text or token ids."""

    id: Name | None = Field(None, description="Takes the place of one with the same id.")
    text: str | None = None
    tokens: list[_TokenId] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_both(self) -> NewMemory:
        if (self.text is None) == (self.tokens is None):
            raise wrong("exactly one of text and tokens is needed", "text")
        return self


class AddMemoriesRequest(RequestModel):
    """One document (`text` or `tokens`), or several (`documents`)."""

    collection: Name = "default"
    text: str | None = None
    tokens: list[_TokenId] | None = None
    id: Name | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    documents: list[NewMemory] = Field(default_factory=list, max_length=MAX_DOCUMENTS)
    window: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKEN_ID,
        description="Default: the model's own, or 3072; cut to its context.",
    )
    stride: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Default: the model's own, or 512."
    )

    @model_validator(mode="after")
    def _one_shape(self) -> AddMemoriesRequest:
        given = [self.text is not None, self.tokens is not None, bool(self.documents)]
        if sum(given) != 1:
            raise wrong("exactly one of text, tokens and documents is needed", "documents")
        if self.documents and (self.id is not None or self.metadata):
            raise wrong("with documents, id and metadata belong to each of them", "id")
        ids = [document.id for document in self.documents if document.id is not None]
        if len(set(ids)) < len(ids):
            raise wrong("two documents have the same id", "documents")
        return self

    @property
    def all_documents(self) -> list[NewMemory]:
        """The documents, in either shape."""
        if self.documents:
            return self.documents
        return [NewMemory(id=self.id, text=self.text, tokens=self.tokens, metadata=self.metadata)]


class SearchMemoriesRequest(MemoryFields):
    """A text whose tokens search memories as a request's would."""

    model: str = ""
    query: str = Field(min_length=1)
    citations: Literal["span"] = "span"


class MemoryJobResponse(BaseModel):
    """Documents on their way into a collection; counts are tokens."""

    id: str
    object: Literal["memory.job"]
    collection: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: int
    total_tokens: int
    done_tokens: int
    progress: float
    document_ids: list[str]
    documents_done: int
    durable: bool = Field(description="Whether it goes on after a crash of the server.")
    version: int | None
    error: dict[str, Any] | None


class MemoryDocument(BaseModel):
    """One document of a collection."""

    id: str
    num_tokens: int
    num_memories: int
    bytes: int
    characters: int
    created: int
    metadata: dict[str, Any]


class MemoryCollection(BaseModel):
    """A collection's newest version. problem: why this model cannot use it."""

    id: str
    object: Literal["memory.collection"]
    version: int
    num_memories: int
    bytes: int
    window: int | None
    stride: int | None
    dtype: str | None
    documents: list[MemoryDocument]
    problem: str | None


class MemoryList(BaseModel):
    """Everything there is. loaded_bytes: of memories held ready; budget_bytes: their limit."""

    model_config = ConfigDict(protected_namespaces=())

    object: Literal["list"]
    backend: str
    loaded_bytes: int
    budget_bytes: int | None
    data: list[MemoryCollection]
    jobs: list[MemoryJobResponse]


class MemoryDeleted(BaseModel):
    """What was removed."""

    object: Literal["memory.deleted"]
    collections: list[str]
    document_id: str | None
    deleted: bool


class Citation(BaseModel):
    """A stretch of a document; start and end are characters, weight a share of attention."""

    collection: str
    document_id: str
    metadata: dict[str, Any]
    start: int
    end: int
    text: str
    weight: float


class MemorySearchResponse(BaseModel):
    """What the query's tokens retrieve, the heaviest first."""

    object: Literal["list"]
    data: list[Citation]
