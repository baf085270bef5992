"""POST /v1/embeddings, /v1/score, /v1/rerank, /v1/rewards/score and /v1/classifications."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.heads import ClassificationHead
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.flow.generation import Collected, Track
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.pair_template import framing
from mlx_parallm.server.input.prefix_namespace import Namespace, prefix_namespace
from mlx_parallm.server.input.prompts import Prompt, Prompts
from mlx_parallm.server.openapi import GENERATION_ERRORS, body_of
from mlx_parallm.server.output.logprobs import finite
from mlx_parallm.server.output.responses import whole_answer
from mlx_parallm.server.pooling import normalized, pooled_tracks, require_head, vectors
from mlx_parallm.server.schemas.pooling import (
    ClassifyRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Scores and embeddings"])


@router.post(
    "/v1/embeddings",
    summary="A vector for each text",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(EmbeddingRequest),
)
async def embeddings(request: Request) -> Response:
    """Pooled hidden states of the served model, in the same batch as everything else."""
    state = state_of(request)
    prompts, loaded = state.prompts(), state.loaded()
    body = await read_body(request, EmbeddingRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    inputs = [_instructed(text, body.instruction) for text in body.input]
    made = await prompts.inputs(inputs, body.add_special_tokens)
    namespace = prefix_namespace(request, state, body.cache_salt)
    generation = Collected(
        pooled_tracks(made, prompts, body.pooling or loaded.pooling, body.priority, namespace)
    )
    use_adapter(generation.tracks, adapter)

    def answer() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": i, "embedding": _shown(vector, body)}
            for i, vector in enumerate(vectors(generation))
        ]
        return {"object": "list", "data": data, "model": model, "usage": _usage(made)}

    return await whole_answer(request, state, generation, answer)


@router.post(
    "/v1/score",
    summary="The log-likelihood of continuations",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(ScoreRequest),
)
async def score(request: Request) -> Response:
    """Sums of the continuations' token log-probabilities behind the prompt."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, ScoreRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    before = len((await prompts.inputs([body.prompt], True))[0].ids)
    made = await prompts.inputs([body.prompt + text for text in body.continuations], True)
    namespace = prefix_namespace(request, state, body.cache_salt)
    generation = Collected(
        [_scored(p, i, prompts, body.priority, namespace) for i, p in enumerate(made)]
    )
    use_adapter(generation.tracks, adapter)

    def answer() -> dict[str, Any]:
        data = [_score(track, before) for track in generation.tracks]
        return {"object": "list", "data": data, "model": model, "usage": _usage(made)}

    return await whole_answer(request, state, generation, answer)


@router.post(
    "/v1/rerank",
    summary="Documents by how well they fit a query",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(RerankRequest),
)
async def rerank(request: Request) -> Response:
    """With a head of one label its score of query and document; else cosine similarity."""
    state = state_of(request)
    prompts, loaded = state.prompts(), state.loaded()
    body = await read_body(request, RerankRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    head = loaded.head if loaded.head is not None and len(loaded.head.labels) == 1 else None
    frame = framing(loaded)
    texts: list[str | list[int]] = (
        [body.query, *body.documents]
        if head is None
        else [frame(body.query, document) for document in body.documents]
    )
    made = await prompts.inputs(texts, True)
    namespace = prefix_namespace(request, state, body.cache_salt)
    generation = Collected(
        pooled_tracks(made, prompts, body.pooling or loaded.pooling, body.priority, namespace)
    )
    use_adapter(generation.tracks, adapter)

    def answer() -> dict[str, Any]:
        found = vectors(generation)
        if head is None:
            query, *others = [normalized(vector) for vector in found]
            scores = [float(query @ other) for other in others]
        else:
            scores = [float(head.probabilities(vector)[0]) for vector in found]
        results = _ranked(scores, body)
        return {"model": model, "results": results, "usage": _usage(made)}

    return await whole_answer(request, state, generation, answer)


@router.post(
    "/v1/rewards/score",
    summary="A scalar reward for each text",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(ClassifyRequest),
)
async def rewards(request: Request) -> Response:
    """The reward head's value; needs a checkpoint with one label."""
    state = state_of(request)
    body, model, head = await _classify_request(request, state)
    if len(head.labels) != 1:
        raise InvalidRequestError(
            f"The served model has {len(head.labels)} labels; use /v1/classifications.",
            param="model",
        )
    made, generation = await _classified(request, body, state)

    def answer() -> dict[str, Any]:
        scores = [float(head.logits(vector)[0]) for vector in vectors(generation)]
        data = [{"object": "reward", "index": i, "score": s} for i, s in enumerate(scores)]
        return {"object": "list", "data": data, "model": model, "usage": _usage(made)}

    return await whole_answer(request, state, generation, answer)


@router.post(
    "/v1/classifications",
    summary="Class probabilities of each text",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(ClassifyRequest),
)
async def classifications(request: Request) -> Response:
    """The classification head's softmax, and its likeliest label."""
    state = state_of(request)
    body, model, head = await _classify_request(request, state)
    made, generation = await _classified(request, body, state)

    def answer() -> dict[str, Any]:
        data = []
        for index, vector in enumerate(vectors(generation)):
            probs = head.probabilities(vector)
            data.append(
                {
                    "object": "classification",
                    "index": index,
                    "label": head.labels[int(probs.argmax())],
                    "probs": [float(p) for p in probs],
                    "num_classes": len(probs),
                }
            )
        labels = list(head.labels)
        return {
            "object": "list",
            "data": data,
            "labels": labels,
            "model": model,
            "usage": _usage(made),
        }

    return await whole_answer(request, state, generation, answer)


async def _classify_request(
    request: Request, state: ServerState
) -> tuple[ClassifyRequest, str, ClassificationHead]:
    """The body, the served model's name, and its head."""
    loaded = state.loaded()
    body = await read_body(request, ClassifyRequest, state.settings.max_body_size)
    model, _ = await state.model_of(body.model)
    return body, model, require_head(loaded)


async def _classified(
    request: Request, body: ClassifyRequest, state: ServerState
) -> tuple[list[Prompt], Collected]:
    """The inputs as prompts, and the generation that pools the token that the head reads."""
    prompts = state.prompts()
    made = await prompts.inputs(body.input, True)
    namespace = prefix_namespace(request, state, body.cache_salt)
    pooling = "cls" if state.loaded().is_encoder else "last"
    generation = Collected(pooled_tracks(made, prompts, pooling, body.priority, namespace))
    use_adapter(generation.tracks, (await state.model_of(body.model))[1])
    return made, generation


def _instructed(text: str | list[int], instruction: str) -> str | list[int]:
    if not instruction:
        return text
    if not isinstance(text, str):
        raise InvalidRequestError("An instruction needs texts, not token ids.", param="instruction")
    return f"Instruct: {instruction}\nQuery:{text}"


def _shown(vector: np.ndarray, body: EmbeddingRequest) -> list[float] | str:
    if body.dimensions is not None:
        if body.dimensions > len(vector):
            raise InvalidRequestError(
                f"The model's embeddings have {len(vector)} dimensions.", param="dimensions"
            )
        vector = vector[: body.dimensions]
    if body.normalize:
        vector = normalized(vector)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]


def _usage(prompts: list[Prompt]) -> dict[str, int]:
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _scored(
    prompt: Prompt, index: int, prompts: Prompts, priority: int, namespace: Namespace
) -> Track:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    sequence = Sequence(prompt.ids, params, priority=priority, namespace=namespace)
    return Track(sequence, TextStream(prompts.tokenizer, params), index, prompt)


def _score(track: Track, before: int) -> dict[str, Any]:
    own = [entry for entry in track.prompt_logprobs[before:] if entry is not None]
    total = sum(finite(entry.logprob) for entry in own)
    return {
        "object": "score",
        "index": track.index,
        "score": total,
        "mean": total / len(own) if own else 0.0,
        "tokens": len(own),
        "token_logprobs": [finite(entry.logprob) for entry in own],
    }


def _ranked(scores: list[float], body: RerankRequest) -> list[dict[str, Any]]:
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results: list[dict[str, Any]] = []
    for index in order:
        entry: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            entry["document"] = {"text": body.documents[index]}
        results.append(entry)
    return results
