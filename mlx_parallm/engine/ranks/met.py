"""MetRanks: what rank 0 and the others have in common."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from mlx_parallm.engine.guard.memory_guard import MemoryGuard
from mlx_parallm.engine.pacing.measurements import Measurements
from mlx_parallm.engine.ranks.group import from_leader
from mlx_parallm.engine.ranks.links import Link
from mlx_parallm.engine.ranks.pulse import Pulse
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.errors import RankLostError

OnEnd = Callable[[str], None]
# Its pulse tells of a rank's end as soon as MLX does.
_TOLD_WITHIN_S = 0.5


class MetRanks(Ranks):
    """What rank 0 and the others have in common."""

    def __init__(
        self,
        group: mx.distributed.Group,
        links: list[Link],
        limit_s: float,
        on_end: OnEnd,
        *,
        in_stages: bool = False,
    ) -> None:
        super().__init__()
        self.in_stages = in_stages
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._links = links
        self._pulses = [
            Pulse(link.pulse, f"rank {link.rank}", limit_s, self._end) for link in links
        ]
        self._on_end = on_end
        self._lost: str | None = None
        self._is_lost = threading.Event()
        for pulse in self._pulses:
            pulse.start()

    def share(self, array: mx.array) -> mx.array:
        """See Ranks."""
        return from_leader(self._group, array)

    def verdict(self, error: Exception) -> Exception | None:
        """See Ranks; a rank that has ended is why MLX could not send to it."""
        found = super().verdict(error)
        if found is None or isinstance(found, RankLostError):
            return found
        self._is_lost.wait(_TOLD_WITHIN_S)
        return self._lose(found) if self._lost else found

    def close(self, failure: str | None = None) -> None:
        """See Ranks."""
        for pulse in self._pulses:
            if failure is not None:
                pulse.say_failure(failure)
            pulse.expect_end()

    def attach(self, measurements: Measurements, guard: MemoryGuard, engine: Any) -> None:
        """See Ranks."""
        super().attach(measurements, guard, engine)
        guard.shared = True
        measurements.kept = []
        measurements.measures = self.leads
        self._measurements = measurements

    def _end(self, reason: str, silent: bool) -> None:
        """Another rank has ended, or is silent."""
        self._lost = reason
        self._is_lost.set()
        self._on_end(reason)

    def _lose(self, error: Exception) -> RankLostError:
        return RankLostError(self._lost or f"a rank has ended: {type(error).__name__}")


def facts_of(more: str) -> tuple[str, ...]:
    """What has to be the same on all ranks."""
    names = ("mlx_parallm", "mlx", "mlx-lm")
    kind = "a CPU" if mx.default_device().type == mx.DeviceType.cpu else "a GPU"
    python = f"Python {'.'.join(platform.python_version_tuple()[:2])}"
    return (*(f"{name} {version(name)}" for name in names), kind, python, more)
