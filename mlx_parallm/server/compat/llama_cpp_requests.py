"""llama.cpp's completions as completions of ours."""

from __future__ import annotations

from mlx_parallm.server.compat.translation import (
    answer_limit,
    seed_of,
    translated,
)
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import completion_tracks
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.schemas.compat.llama_cpp import LlamaCompletionRequest, Parts
from mlx_parallm.server.schemas.completions import CompletionRequest

_NAMES = {
    "repetition_penalty": "repeat_penalty",
    "n": "n_cmpl",
}


async def completion(
    body: LlamaCompletionRequest, prompts: Prompts, namespace: Namespace
) -> list[Track]:
    """n_cmpl tracks for each prompt, in the prompts' order.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    off = body.repeat_last_n == 0
    fields = {
        "prompt": [await _prompt(parts, prompts) for parts in body.prompt],
        "n": body.n_cmpl,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "seed": seed_of(body.seed),
        "stop": body.stop,
        "repetition_penalty": 1.0 if off else body.repeat_penalty,
        "presence_penalty": 0.0 if off else body.presence_penalty,
        "frequency_penalty": 0.0 if off else body.frequency_penalty,
        "logit_bias": await _biases(body, prompts),
        "ignore_eos": body.ignore_eos,
        "logprobs": body.n_probs or None,
        "json_schema": body.json_schema,
        "grammar": body.grammar,
    }
    request = translated(CompletionRequest, fields, _NAMES)
    return await completion_tracks(
        request,
        prompts,
        prompts.tokenizer,
        namespace=namespace,
        default_max_tokens=None,
        at_most=answer_limit(body.n_predict),
    )


async def _prompt(parts: Parts, prompts: Prompts) -> list[int]:
    """Token ids; a BOS is added where the prompt begins with a text."""
    if isinstance(parts, str):
        parts = [parts]
    ids: list[int] = []
    for place, part in enumerate(parts):
        ids += [part] if isinstance(part, int) else await prompts.tokenize(part, place == 0)
    return ids


async def _biases(body: LlamaCompletionRequest, prompts: Prompts) -> dict[str, float]:
    """By token id, as OpenAI writes it; a text's bias is that of each of its tokens."""
    biases: dict[str, float] = {}
    for token, bias in body.logit_bias:
        ids = [token] if isinstance(token, int) else await prompts.tokenize(token, False)
        biases.update({str(token_id): bias for token_id in ids})
    return biases
