"""POST /v1/embeddings, /v1/score, /v1/rerank, /v1/rewards/score and /v1/classifications."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlx_parallm.server.schemas.base import MAX_TOKEN_ID, CacheSalt, RequestModel
from mlx_parallm.server.schemas.completions import PromptList
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES

_MAX_DIMENSIONS = 1 << 20

Pooling = Annotated[
    Literal["last", "mean", "cls"] | None,
    Field(description="Which hidden states count; default: as the checkpoint says, else last."),
]


class PoolingFields(RequestModel):
    """What all of them share."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    user: str = Field("", description="Accepted; has no effect.")
    cache_salt: CacheSalt = None
    priority: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Lower is served first.")


class EmbeddingRequest(PoolingFields):
    """Texts or token ids in, a vector for each out."""

    input: PromptList = Field(description="String, token ids, or a list of either.")
    dimensions: int | None = Field(
        None, ge=1, le=_MAX_DIMENSIONS, description="Keep the first so many (Matryoshka)."
    )
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = None
    normalize: bool = Field(True, description="Scale each vector to length 1.")
    instruction: str = Field("", description='Put before each text as "Instruct: ...\\nQuery:".')
    add_special_tokens: bool = True


class ScoreRequest(PoolingFields):
    """The log-likelihood of continuations."""

    prompt: str = Field(min_length=1, description="What comes before.")
    continuations: list[str] = Field(min_length=1, max_length=MAX_SEQUENCES)


class RerankRequest(PoolingFields):
    """Documents, ranked by how well they answer a query."""

    query: str = Field(min_length=1)
    documents: list[str] = Field(min_length=1, max_length=MAX_SEQUENCES)
    top_n: int | None = Field(None, ge=1, le=MAX_TOKEN_ID)
    return_documents: bool = True
    pooling: Pooling = None


class ClassifyRequest(PoolingFields):
    """Texts for the model's classification or reward head."""

    input: PromptList = Field(description="String, token ids, or a list of either.")
