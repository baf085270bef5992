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
    """A short hash of a model's config and of samples of its weights, or of what was uploaded
    in their place.

    Args:
        adapter: name and version of one that took part in making memories.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(loaded.config, sort_keys=True, default=str).encode())
    digest.update(adapter.encode())
    digest.update(loaded.weights_digest.encode())
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
