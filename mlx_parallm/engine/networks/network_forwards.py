"""NetworkForwards: rows of all requests for a plain network, in one forward. One thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.guard.row_faults import fault_for
from mlx_parallm.engine.networks.network_line import prediction_of
from mlx_parallm.engine.networks.prediction import Prediction
from mlx_parallm.engine.pacing.measurements import Measurements
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step import Result
from mlx_parallm.models.predictor import Predictor

log = logging.getLogger(__name__)
Planned = list[tuple[Sequence, int]]


class NetworkForwards:
    """Computes what a plan says of plain networks.

    Args:
        networks: by name.
        measurements: told how long their time steps take.

    Attributes:
        forwards: how many there were.
    """

    def __init__(self, networks: Mapping[str, Predictor], measurements: Measurements) -> None:
        self.forwards = 0
        self._networks = networks
        self._measurements = measurements
        self._stream: mx.Stream | None = None

    def compute(self, planned: Planned) -> list[Result]:
        """Compute time steps, and wait for them.

        Args:
            planned: (sequence, time steps), the steps counted as computed already.

        Returns:
            one result for each sequence that is through, or has failed.
        """
        by_network: dict[str, Planned] = {}
        for sequence, count in planned:
            by_network.setdefault(prediction_of(sequence).network, []).append((sequence, count))
        return [result for mine in by_network.values() for result in self._together(mine)]

    def _together(self, planned: Planned) -> list[Result]:
        try:
            return self._forward(planned)
        except Exception as error:
            log.warning("a plain network failed", exc_info=error)
            if len(planned) == 1:
                return [Result(planned[0][0], error=fault_for(error))]
        return [result for one in planned for result in self._together([one])]

    def _forward(self, planned: Planned) -> list[Result]:
        began = time.perf_counter()
        predictions = [prediction_of(sequence) for sequence, _ in planned]
        network = self._networks[predictions[0].network]
        steps, counts = _padded(planned, network.signature.input_size)
        states = _states(predictions, network)
        with self._own_stream():
            outputs, states = network(steps, counts, states)
        self.forwards += 1
        seconds = (time.perf_counter() - began) / steps.shape[1]
        self._measurements.note("network", predictions[0].network, len(steps), seconds)
        ends = np.cumsum([0, *(len(one.rows) for one in predictions)]).tolist()
        results = []
        for (sequence, _), own, (start, stop) in zip(
            planned, predictions, pairwise(ends), strict=True
        ):
            own.states = None if states is None else states[start:stop]
            if sequence.num_pending <= 1:
                results.append(Result(sequence, complete=True, predicted=outputs[start:stop]))
        return results

    def _own_stream(self) -> AbstractContextManager[object]:
        """On a GPU they do not wait for the model's step, which is in flight."""
        if mx.default_device().type == mx.DeviceType.cpu:
            return nullcontext()
        if self._stream is None:
            self._stream = mx.new_stream(mx.default_device())
        return mx.stream(self._stream)


def _padded(planned: Planned, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, T, size), the steps of all rows, zeros behind their ends; (B,) how many each has."""
    parts = []
    for sequence, count in planned:
        stop = sequence.num_computed
        parts += [row[stop - count : stop] for row in prediction_of(sequence).rows]
    counts = np.array([len(part) for part in parts], dtype=np.int32)
    steps = np.zeros((len(parts), int(counts.max()), size), np.float32)
    for place, part in enumerate(parts):
        steps[place, : len(part)] = part
    return steps, counts


def _states(predictions: list[Prediction], network: Predictor) -> np.ndarray | None:
    """(B, ...) of all rows; None where none has begun."""
    if all(one.states is None for one in predictions):
        return None
    return np.concatenate(
        [
            network.new_states(len(one.rows)) if one.states is None else one.states
            for one in predictions
        ]
    )
