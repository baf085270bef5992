"""Citations: which memories a generated token was made from, and where they are in the text."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlx_parallm.cache.extended_mind import Cited
    from mlx_parallm.memory.request import MemoryRequest
    from mlx_parallm.memory.view import MemoryView

_PER_TOKEN = 16  # memories reported of one token at most
_SPANS = 16  # spans reported of one answer at most
_GAP = 2  # memories between two cited ones that still are one span
# Every memory that was searched for has some weight. A span has one of at least half the
# heaviest's, and goes on over neighbours of at least a third.
_WORTH_A_SPAN = 0.5
_WORTH_GOING_ON = 0.3


@dataclass(frozen=True, slots=True)
class TokenCitation:
    """What one generated token used.

    Attributes:
        memories: (memory's place in the view, weight), the heaviest first. A weight
            is the memory's share of the attention, averaged over heads and layers.
    """

    memories: tuple[tuple[int, float], ...]


def read(cited: Iterable[Cited]) -> dict[int, list[TokenCitation]]:
    """A forward's citations by row, one for each of its tokens."""
    found: dict[int, list[TokenCitation]] = {}
    for part in cited:
        ids, weights = np.array(part.ids), np.array(part.weights) / max(1, part.heads)
        for place, row in enumerate(part.rows):
            found[row] = [_of_token(i, w) for i, w in zip(ids[place], weights[place], strict=True)]
    return found


def _of_token(ids: np.ndarray, weights: np.ndarray) -> TokenCitation:
    unique, places = np.unique(ids, return_inverse=True)
    sums = np.bincount(places.reshape(-1), weights=weights)
    best = np.argsort(-sums)[:_PER_TOKEN]
    pairs = zip(unique[best].tolist(), sums[best].tolist(), strict=True)
    return TokenCitation(tuple((memory, weight) for memory, weight in pairs if weight > 0))


class CitedAnswer:
    """What one answer has used so far, as its request wants it shown."""

    def __init__(self, request: MemoryRequest | None) -> None:
        self._request = request if request is not None and request.citations != "none" else None
        self._tokens: list[int] = []
        self._citations: list[TokenCitation] = []

    def add(self, token_ids: Items[int], citations: Items[TokenCitation] | None) -> None:
        """Take a step's tokens and what they used."""
        if self._request is not None:
            self._tokens.extend(token_ids)
            self._citations.extend(citations or ())

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """For a response; None where nothing was asked for."""
        if self._request is None:
            return None
        if self._request.citations == "token":
            return by_token(self._request.view, self._citations, self._tokens)
        return by_span(self._request.view, self._citations)


def by_token(
    view: MemoryView, citations: Items[TokenCitation], token_ids: Items[int]
) -> list[dict[str, Any]]:
    """For each generated token the memories it used, for a response."""
    return [
        {
            "index": index,
            "token_id": token,
            "memories": [
                _entry(view, memory, memory, weight) for memory, weight in citation.memories
            ],
        }
        for index, (token, citation) in enumerate(zip(token_ids, citations, strict=False))
    ]


def by_span(view: MemoryView, citations: Items[TokenCitation]) -> list[dict[str, Any]]:
    """The spans that an answer used, the heaviest first, for a response.

    Neighbours are merged, and what counts for little is left out. A span's weight is that of
    its memories together, averaged over the answer's tokens.
    """
    weights: dict[int, float] = {}
    for citation in citations:
        for memory, weight in citation.memories:
            weights[memory] = weights.get(memory, 0.0) + weight / len(citations)
    heaviest = max(weights.values(), default=0.0)
    spans: list[list[int]] = []
    for memory in sorted(m for m, w in weights.items() if w >= _WORTH_GOING_ON * heaviest):
        if spans and _joins(view, spans[-1][-1], memory):
            spans[-1].append(memory)
        else:
            spans.append([memory])
    used = [
        (span[0], span[-1], sum(weights[memory] for memory in span))
        for span in spans
        if max(weights[memory] for memory in span) >= _WORTH_A_SPAN * heaviest
    ]
    used.sort(key=lambda span: -span[2])
    return [_entry(view, *span) for span in used[:_SPANS]]


def _joins(view: MemoryView, last: int, memory: int) -> bool:
    return memory - last <= _GAP and view.place(last)[0] == view.place(memory)[0]


def _entry(view: MemoryView, first: int, last: int, weight: float) -> dict[str, Any]:
    """Memories first..last of one document, as a response shows them."""
    place, begin = view.place(first)
    document, (_, end) = view.documents[place], view.place(last)
    start, stop = int(document.offsets[begin][0]), int(document.offsets[end][1])
    return {
        "collection": document.collection,
        "document_id": document.id,
        "metadata": document.metadata,
        "start": start,
        "end": stop,
        "text": document.text[start:stop],
        "weight": round(weight, 6),
    }
