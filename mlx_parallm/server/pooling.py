"""Pooled sequences from texts: what embeddings, ranking, rewards and classes are made of."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.heads import ClassificationHead
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.flow.generation import Collected, Track
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompt, Prompts


def pooled_tracks(
    prompts: Items[Prompt], maker: Prompts, pooling: str, priority: int, namespace: Namespace
) -> list[Track]:
    """A track for each prompt; its sequence is pooled and samples nothing."""
    tracks = []
    for index, prompt in enumerate(prompts):
        sequence = Sequence.pooled(prompt.ids, pooling, priority, namespace)
        stream = TextStream(maker.tokenizer, sequence.params)
        tracks.append(Track(sequence, stream, index, prompt))
    return tracks


def vectors(generation: Collected) -> list[np.ndarray]:
    """(D,) float32 of each track, once the generation has ended."""
    found = [track.pooled for track in generation.tracks]
    if any(vector is None for vector in found):
        raise UnsupportedError("This model's hidden states cannot be reached.", param="model")
    return [vector for vector in found if vector is not None]


def normalized(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


def require_head(loaded: LoadedModel) -> ClassificationHead:
    """The model's classification or reward head.

    Raises:
        UnsupportedError: it has none.
    """
    if loaded.head is None:
        raise UnsupportedError(
            "The served model has no classification head; this needs a "
            "*ForSequenceClassification checkpoint.",
            param="model",
        )
    return loaded.head
