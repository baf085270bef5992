"""TRL's VLLMClient: its requests as completions of ours, and its answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.logprobs import finite, shown_at_most
from mlx_parallm.server.rollouts.sglang import prompts_of
from mlx_parallm.server.rollouts.token_logprobs import ranked
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.rollouts.trl import (
    SequenceLogprobsRequest,
    TrlChatRequest,
    TrlGenerateRequest,
)

_SAME = (
    "n",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "logprobs",
)
NAMES = {"prompt": "prompts", "structured_outputs": "structured_outputs_regex"}
SCORED_NAMES = {"prompt": "sequences", "prompt_logprobs": "top_logprobs"}


def completion_fields(
    body: TrlGenerateRequest | TrlChatRequest, prompt: Sequence[str | list[int]]
) -> dict[str, Any]:
    """The request as a completion of ours; what generation_kwargs say goes first."""
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    fields |= {"logprobs_mode": "processed_logprobs", **body.generation_kwargs}
    if body.structured_outputs_regex is not None:
        fields["structured_outputs"] = {"regex": body.structured_outputs_regex}
    return fields | {"prompt": list(prompt)}


def names_of(body: TrlGenerateRequest | TrlChatRequest) -> dict[str, str]:
    """Our field -> TRL's, for errors."""
    return NAMES | {name: f"generation_kwargs.{name}" for name in body.generation_kwargs}


def answer(asked: CompletionRequest, tracks: Sequence[Track]) -> dict[str, Any]:
    """Token ids of prompts and samples, and each token's candidates, the likeliest first."""
    found: dict[str, Any] = {
        "prompt_ids": prompts_of(tracks),
        "completion_ids": [track.token_ids for track in tracks],
        "logprobs": None,
        "logprob_token_ids": None,
    }
    if asked.logprobs is not None:
        top = shown_at_most(asked.logprobs)
        pairs = [[best_first(entry, top) for entry in track.logprobs] for track in tracks]
        found["logprobs"] = [[[v for _, v in token] for token in one] for one in pairs]
        found["logprob_token_ids"] = [[[i for i, _ in token] for token in one] for one in pairs]
    return found


def best_first(entry: TokenLogprob, top: int) -> list[tuple[int, float]]:
    """(token, log-probability) of a token and its alternatives."""
    pairs = [(token, value) for token, value, _ in ranked(entry, top)]
    return sorted(pairs, key=lambda pair: -pair[1])


def scored_fields(body: SequenceLogprobsRequest) -> dict[str, Any]:
    """Sequences as prompts of which nothing is generated."""
    return {
        "prompt": body.sequences,
        "max_tokens": 0,
        "prompt_logprobs": body.top_logprobs,
    }


def scores(body: SequenceLogprobsRequest, tracks: Sequence[Track]) -> dict[str, Any]:
    """Log-probabilities of the tokens behind each prompt."""
    entries = [
        track.prompt_logprobs[length:]
        for track, length in zip(tracks, body.prompt_lengths, strict=True)
    ]
    if body.response_format == "binary":
        return _binary(entries, body.top_logprobs)
    pairs = [[_pairs(entry, body.top_logprobs) for entry in one] for one in entries]
    return {
        "logprobs": [[[v for _, v in token] for token in one] for one in pairs],
        "logprob_token_ids": [[[i for i, _ in token] for token in one] for one in pairs],
    }


def _pairs(entry: TokenLogprob | None, top: int) -> list[tuple[int, float]]:
    return [] if entry is None else best_first(entry, top)


def _binary(entries: Sequence[Sequence[TokenLogprob | None]], top: int) -> dict[str, Any]:
    """float32 and int32 arrays (sequences, longest, top) as base64, filled up with -inf and 0."""
    longest = max(map(len, entries))
    values = np.full((len(entries), longest, top), -np.inf, np.float32)
    ids = np.zeros((len(entries), longest, top), np.int32)
    own_values = np.full((len(entries), longest, 1), -np.inf, np.float32)
    own_ids = np.zeros((len(entries), longest, 1), np.int32)
    for row, one in enumerate(entries):
        for place, entry in enumerate(one):
            if entry is None:
                continue  # nothing stands before the first token of all
            for column, (token, value) in enumerate(entry.top[:top]):
                values[row, place, column], ids[row, place, column] = finite(value), token
            own_values[row, place], own_ids[row, place] = finite(entry.logprob), entry.token_id
    arrays = {
        "logprobs_b64": values,
        "token_ids_b64": ids,
        "actual_logprobs_b64": own_values,
        "actual_token_ids_b64": own_ids,
    }
    coded = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    return {**coded, "shape": list(values.shape), "completion_lengths": [len(o) for o in entries]}
