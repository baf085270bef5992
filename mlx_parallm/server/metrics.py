"""What /metrics and /debug/metrics report.

Per-request figures are observed once, when a request ends: nothing here runs per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlx_parallm.server.flow.generation import Generation

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import EngineStats

_PREFIX = "mlx_parallm"
# Everything else in EngineStats only grows.
_GAUGES = frozenset(
    {"running", "waiting", "rows", "kv_tokens_used", "kv_tokens_total", "kv_bytes"}
    | {"prefix_pages", "prefix_bytes", "draft_length"}
)
# Where a name does not say it. Decoding rows over steps is how full the batch is.
_TEXTS = {
    "steps": "Forwards of the engine.",
    "decode_rows": "Rows that decoded, summed over the steps.",
    "speculation_reasons": "Steps by the reason why they guessed tokens ahead or did not.",
}
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2)


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    Args:
        stats: gives the engine's newest counters.
        queued: gives the number of requests that wait in front of the engine.

    Attributes:
        latencies: generations that ended, and the sum of their seconds.
    """

    def __init__(self, stats: Callable[[], EngineStats], queued: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._stats = stats
        self._queued = queued
        self.registry.register(_EngineCollector(stats, queued))
        self.latencies = (0, 0.0)
        self._requests = Counter(
            f"{_PREFIX}_http_requests",
            "Answered HTTP requests; 499 is a client that went away.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = self._histogram("http_request", "Time to the end of the answer.", _SECONDS)
        self._first = self._histogram("time_to_first_token", "From submission.", _SECONDS)
        self._between = self._histogram(
            "time_per_output_token", "Mean time between a request's steps.", _TOKEN_SECONDS
        )

    def on_answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one HTTP answer."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.observe(seconds)

    def on_generation(self, generation: Generation) -> None:
        """Observe a generation that has ended."""
        first, ended = generation.first_output_at, generation.ended_at
        if ended is not None:
            count, seconds = self.latencies
            self.latencies = (count + 1, seconds + ended - generation.submitted_at)
        if first is None or ended is None:
            return
        self._first.observe(first - generation.submitted_at)
        longest = max(len(track.token_ids) for track in generation.tracks)
        if longest > 1:
            self._between.observe((ended - first) / (longest - 1))

    def prometheus(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON: the engine's counters, and sums of ours by name and labels."""
        ours = {
            sample.name + _labels(sample.labels): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created")) and "engine" not in sample.name
        }
        return {"engine": asdict(self._stats()), "queued_requests": self._queued(), "server": ours}

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}_seconds", text, buckets=buckets, registry=self.registry)


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f"{name}={value}" for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


class _EngineCollector(Collector):
    """The engine's counters, read when somebody asks."""

    def __init__(self, stats: Callable[[], EngineStats], queued: Callable[[], int]) -> None:
        self._stats = stats
        self._queued = queued

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        yield GaugeMetricFamily(
            f"{_PREFIX}_queued_requests", "In front of the engine.", value=self._queued()
        )
        for name, value in asdict(self._stats()).items():
            kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            text = _TEXTS.get(name, f"The engine's {name}.")
            if isinstance(value, dict):
                yield _by_label(name, text, "reason", value)
            else:
                yield kind(f"{_PREFIX}_engine_{name}", text, value=value)


def _by_label(name: str, text: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{_PREFIX}_engine_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
