"""A receipt: what a request was given, so that nothing is downgraded silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.server.flow.generation import Track


def receipts_of(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """One receipt for each choice, in their order; times in milliseconds."""
    return [_receipt(track) for track in tracks]


def _receipt(track: Track) -> dict[str, Any]:
    sequence, ledger = track.sequence, track.sequence.ledger
    begun, memory = sequence.begun, sequence.memory
    collections = set() if memory is None else {d.collection for d in memory.view.documents}
    return {
        "index": track.index,
        "seed": sequence.params.seed,
        "queue_ms": None if begun is None else 1e3 * max(0.0, begun - track.begun_at),
        "first_token_ms": 1e3 * track.prefill_s,
        "prompt_tokens": len(track.prompt.ids),
        "cached_tokens": track.cached_tokens,
        "cached_tokens_from_disk": min(ledger.from_disk, track.cached_tokens),
        "prompt_chunks": ledger.chunks,
        "generated_tokens": len(track.token_ids),
        "steps": ledger.steps,
        "mean_batch_rows": ledger.rows / ledger.steps if ledger.steps else None,
        "guessed_tokens": ledger.guessed,
        "accepted_tokens": ledger.accepted,
        "preemptions": ledger.preemptions,
        "constrained": sequence.constraint is not None,
        "adapter": None if sequence.adapter is None else sequence.adapter.name,
        "weight_versions": sorted(set(track.weight_versions)),
        "memories": sorted(collections),
    }
