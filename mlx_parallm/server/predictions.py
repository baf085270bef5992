"""Rows for plain networks as sequences of the engine, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.networks.prediction import Prediction
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.predictor import Predictor
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.input.prompts import Prompt
from mlx_parallm.server.state import ServerState

_PART = 1 << 24  # weights times rows of one sequence: about a millisecond of a CPU


def prediction_tracks(
    network: Predictor, rows: Items[np.ndarray], priority: int, state: ServerState
) -> list[Track]:
    """A track for each part of the rows that a step takes whole.

    Args:
        rows: (T, input_size) float32 each.
    """
    most = max(1, _PART // network.size)
    of_a_token = network.size / state.loaded().num_parameters
    tracks = []
    for index, first in enumerate(range(0, len(rows), most)):
        part = list(rows[first : first + most])
        prediction = Prediction(network.signature.name, part, len(part) * of_a_token)
        sequence = Sequence.predicting(prediction, priority)
        stream = TextStream(state.prompts().tokenizer, sequence.params)
        tracks.append(Track(sequence, stream, index, Prompt([], None)))
    return tracks


def outputs_of(tracks: Items[Track]) -> np.ndarray:
    """(rows, output_size), once all have ended."""
    return np.concatenate([track.predicted for track in tracks if track.predicted is not None])


def receipt_of(tracks: Items[Track]) -> dict[str, Any]:
    """What a request was given: how long it waited, and with how many rows it was computed."""
    sequences = [track.sequence for track in tracks]
    forwards = sum(sequence.ledger.steps for sequence in sequences)
    waits = [
        1e3 * max(0.0, track.sequence.begun - track.begun_at)
        for track in tracks
        if track.sequence.begun is not None
    ]
    return {
        "queue_ms": max(waits, default=None),
        "forwards": forwards,
        "mean_rows": sum(s.ledger.rows for s in sequences) / forwards if forwards else None,
    }
