"""The metrics of several models as one text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlx_parallm.server.observing.metrics import Metrics


class _Merged(Collector):
    """Families of the same name become one, which the format demands."""

    def __init__(self, metrics: Iterable[Metrics]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        families: dict[str, Metric] = {}
        for family in (f for one in self._metrics for f in one.families()):
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples.extend(family.samples)
        yield from families.values()


def fleet_metrics(metrics: Iterable[Metrics]) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Merged(metrics))
    return generate_latest(registry)
