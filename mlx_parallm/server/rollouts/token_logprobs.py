"""Log-probabilities by token id, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.output.logprobs import finite


def ranked(entry: TokenLogprob, top: int) -> Iterator[tuple[int, float, int | None]]:
    """(token, log-probability, rank): the token itself, then the others, best first.

    The rank of a token that is below the alternatives is not known: None.
    """
    ranks = {token: place + 1 for place, (token, _) in enumerate(entry.top[:top])}
    yield entry.token_id, finite(entry.logprob), ranks.get(entry.token_id)
    for token, value in entry.top[:top]:
        if token != entry.token_id:
            yield token, finite(value), ranks[token]


def content(entry: TokenLogprob, top: int) -> dict[str, Any]:
    """One token of `logprobs.content`: its id, and "token_id:17" for older clients."""
    alternatives = [_shown(*one) for one in ranked(entry, top)]
    return {**alternatives[0], "top_logprobs": alternatives}


def by_id(entry: TokenLogprob | None, top: int) -> dict[str, float] | None:
    """{id: log-probability}, the token itself first; None for a first prompt token."""
    if entry is None:
        return None
    return {str(token): value for token, value, _ in ranked(entry, top)}


def prompt_by_id(entry: TokenLogprob | None, top: int) -> dict[str, Any] | None:
    """{id: {logprob, rank}}, the token itself first; None for a first prompt token."""
    if entry is None:
        return None
    return {
        str(token): {"logprob": value, "rank": rank, "decoded_token": None}
        for token, value, rank in ranked(entry, top)
    }


def _shown(token: int, value: float, rank: int | None) -> dict[str, Any]:
    return {
        "token": f"token_id:{token}",
        "token_id": token,
        "logprob": value,
        "rank": rank,
        "bytes": None,
    }


def spans(versions: list[int]) -> list[dict[str, Any]]:
    """Versions of tokens as vLLM's and SGLang's spans, [start, end)."""
    found: list[dict[str, Any]] = []
    for place, version in enumerate(versions):
        if not found or found[-1]["version"] != str(version):
            found.append({"version": str(version), "start": place, "end": place})
        found[-1]["end"] = place + 1
    return found
