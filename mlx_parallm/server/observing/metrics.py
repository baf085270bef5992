"""What /metrics and /debug/metrics report.

Names and meanings are vLLM's where it has the figure, with our prefix; see
https://docs.vllm.ai/en/latest/design/metrics. Per-request figures are observed once, when a
request ends: nothing here runs per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from mlx_parallm.server.flow.generation import Generation
from mlx_parallm.server.observing.engine_metrics import PREFIX, EngineCollector

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import EngineStats

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_CHOICES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    Args:
        stats: gives the engine's newest counters.
        queued: gives the number of requests that wait in front of the engine.
        model: label of all that concerns the model.

    Attributes:
        latencies: generations that ended, and the sum of their seconds.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], queued: Callable[[], int], model: str = ""
    ) -> None:
        self._stats = stats
        self._queued = queued
        self._model = model
        self._engine = CollectorRegistry()
        self._engine.register(EngineCollector(stats, queued, model))
        self._server = CollectorRegistry()
        self.latencies = (0, 0.0)
        self._requests = Counter(
            f"{PREFIX}http_requests",
            "Answered HTTP requests; 499 is a client that went away.",
            ("model_name", "method", "route", "status"),
            registry=self._server,
        )
        self._answered = self._histogram(
            "http_request_seconds", "Time to the end of the answer.", _SECONDS
        )
        self._ends = Counter(
            f"{PREFIX}request_success",
            "Sequences that ended, by the reason.",
            ("model_name", "finished_reason"),
            registry=self._server,
        )
        self._first = self._histogram(
            "time_to_first_token_seconds", "From submission to the first output.", _SECONDS
        )
        self._between = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time between a request's tokens.",
            _TOKEN_SECONDS,
        )
        self._whole = self._histogram(
            "e2e_request_latency_seconds", "From submission to the last output.", _SECONDS
        )
        self._waited = self._histogram("request_queue_time_seconds", "Without a row.", _SECONDS)
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "From a row to the first output.", _SECONDS
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From the first output to the last one.", _SECONDS
        )
        self._prompts = self._histogram(
            "request_prompt_tokens", "Tokens of a request's prompts.", _TOKENS
        )
        self._outputs = self._histogram(
            "request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self._choices = self._histogram("request_params_n", "Sequences of a request.", _CHOICES)
        self._sounds = self._counter("transcriptions", "Sounds that were written down.")
        self._sound_seconds = self._counter("transcribed_seconds", "How long these sounds were.")

    def on_answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one HTTP answer."""
        method = method if method in _METHODS else "other"
        self._requests.labels(self._model, method, route, str(status)).inc()
        self._answered.observe(seconds)

    def on_generation(self, generation: Generation) -> None:
        """Observe a generation that has ended."""
        first, ended = generation.first_output_at, generation.ended_at
        submitted = generation.submitted_at
        if ended is None:
            return
        count, seconds = self.latencies
        self.latencies = (count + 1, seconds + ended - submitted)
        for track in generation.tracks:
            if track.finish_reason is not None:
                self._ends.labels(self._model, track.finish_reason).inc()
        if first is None:
            return
        self._first.observe(first - submitted)
        self._whole.observe(ended - submitted)
        self._decode.observe(ended - first)
        begun = [t.sequence.begun for t in generation.tracks if t.sequence.begun is not None]
        if begun:
            self._waited.observe(max(0.0, min(begun) - submitted))
            self._prefill.observe(max(0.0, first - min(begun)))
        self._prompts.observe(generation.prompt_tokens)
        self._outputs.observe(generation.generated_tokens)
        self._choices.observe(len(generation.tracks))
        longest = max(len(track.token_ids) for track in generation.tracks)
        if longest > 1:
            self._between.observe((ended - first) / (longest - 1))

    def on_transcription(self, seconds: float) -> None:
        """Count a sound of this length that was written down."""
        self._sounds.inc()
        self._sound_seconds.inc(seconds)

    def families(self) -> Iterator[Metric]:
        """All families, for those who merge them."""
        yield from self._engine.collect()
        yield from self._server.collect()

    def prometheus(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._engine) + generate_latest(self._server)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON: the engine's counters, and sums of ours by name and labels."""
        ours = {
            sample.name + _labels(sample.labels): sample.value
            for family in self._server.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }
        return {"engine": asdict(self._stats()), "queued_requests": self._queued(), "server": ours}

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(PREFIX + name, text, ("model_name",), registry=self._server)
        return made.labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(
            PREFIX + name, text, ("model_name",), buckets=buckets, registry=self._server
        )
        return made.labels(self._model)


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f"{name}={value}" for name, value in labels.items() if name != "model_name")
    return f"{{{pairs}}}" if pairs else ""
