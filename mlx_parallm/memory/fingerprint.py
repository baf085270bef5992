"""What tells one model's memories from another's."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlx_parallm.models.loader import LoadedModel

_SAMPLE = 4096  # bytes read at the start, in the middle and at the end of each file


def fingerprint_of(loaded: LoadedModel, adapter: str = "") -> str:
    """A short hash of a model's config and of samples of its weights, of what was uploaded in
    their place, and of an adapter.

    On the engine's thread, until `loaded.fingerprint` is known.

    Args:
        adapter: digest of one that takes part in making memories.
    """
    if not loaded.fingerprint:
        loaded.fingerprint = _as_loaded(loaded)
    if not (loaded.weights_digest or adapter):
        return loaded.fingerprint
    parts = [loaded.fingerprint, loaded.weights_digest, adapter]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def _as_loaded(loaded: LoadedModel) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(loaded.config, sort_keys=True, default=str).encode())
    files = sorted(loaded.folder.glob("*.safetensors"))
    if files:
        for path in files:
            size = path.stat().st_size
            with path.open("rb") as file:
                for at in (0, size // 2, max(0, size - _SAMPLE)):
                    file.seek(at)
                    digest.update(file.read(_SAMPLE))
    else:
        _add_weights(digest, loaded)
    return digest.hexdigest()[:32]


def _add_weights(digest: hashlib._Hash, loaded: LoadedModel) -> None:
    """A model that was made in memory: a few numbers of each weight."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights: dict[str, mx.array] = dict(tree_flatten(loaded.model.parameters()))
    for name, weight in sorted(weights.items()):
        sample = np.array(weight.reshape(-1)[:16].astype(mx.float32))
        digest.update(f"{name}{weight.shape}{weight.dtype}".encode() + sample.tobytes())
