"""Rows for plain networks: those that wait at the same time are computed together."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mlx_parallm.errors import QueueFullError
from mlx_parallm.models.predictor import Predictor

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine


@dataclass(slots=True)
class _Job:
    predictor: Predictor
    rows: list[np.ndarray]
    future: Future[np.ndarray] = field(default_factory=Future)


class PredictionQueue:
    """Hands rows to the engine's thread, between two steps of its batch.

    Args:
        most: requests that may wait; one more is refused.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._waiting: deque[_Job] = deque()

    def put(self, predictor: Predictor, rows: list[np.ndarray]) -> Future[np.ndarray]:
        """Rows as the predictor takes them; the future is (len(rows), output_size).

        Raises:
            QueueFullError: too many requests wait.
            UnavailableError: the engine has stopped.
        """
        if len(self._waiting) >= self._most:
            raise QueueFullError(f"{len(self._waiting)} requests are waiting already")
        job = _Job(predictor, rows)
        self._waiting.append(job)
        self._engine.call(self._run)
        return job.future

    def _run(self) -> None:
        """Compute all that waits: one forward a network. On the engine's thread."""
        jobs = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for predictor in {id(job.predictor): job.predictor for job in jobs}.values():
            mine = [job for job in jobs if job.predictor is predictor]
            try:
                outputs = predictor([row for job in mine for row in job.rows])
            except Exception as error:  # noqa: BLE001 - handed to those who asked
                for job in mine:
                    job.future.set_exception(error)
                continue
            ends = np.cumsum([len(job.rows) for job in mine])[:-1]
            for job, part in zip(mine, np.split(outputs, ends), strict=True):
                job.future.set_result(part)
