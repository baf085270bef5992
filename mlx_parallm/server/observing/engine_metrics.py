"""The engine's counters for Prometheus, read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import EngineStats

PREFIX = "mlx_parallm:"
_Family = CounterMetricFamily | GaugeMetricFamily
# vLLM's name of a field of EngineStats, and what it is.
_GAUGES = {
    "running": ("num_requests_running", "Sequences that have a row."),
    "waiting": ("num_requests_waiting", "Sequences that wait for a row."),
}
_COUNTERS = {
    "preemptions": ("num_preemptions", "Rows that were taken, and computed again later."),
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "cached_tokens": ("prompt_tokens_cached", "Of them, those found in the prefix cache."),
    "generated_tokens": ("generation_tokens", "Tokens that were generated."),
    "speculative_steps": ("spec_decode_num_drafts", "Steps that verified guesses."),
    "drafted_tokens": ("spec_decode_num_draft_tokens", "Tokens guessed ahead."),
    "accepted_tokens": ("spec_decode_num_accepted_tokens", "Guesses that were right."),
}
# Ours, with a name of their own.
_OWN_GAUGES = {
    "rows": "Rows of the batch.",
    "kv_tokens_used": "Tokens of K and V that rows hold.",
    "kv_tokens_total": "Tokens of K and V that there is memory for.",
    "kv_bytes": "Bytes of the rows' K and V.",
    "memory_used": "Bytes that the process uses.",
    "memory_limit": "Bytes that it may use; see --memory-limit.",
    "memory_left": "Bytes that it can still take, with what other programs leave.",
    "prefix_pages": "Pages of cached prefixes.",
    "prefix_pages_held": "Pages of prefixes that somebody uses now, neither free nor evictable.",
    "prefix_bytes": "Bytes of cached prefixes.",
    "draft_length": "Tokens that are guessed in a step now.",
}
# The rest of EngineStats only grows.
_TEXTS = {
    "steps": "Forwards of the engine.",
    "decode_rows": "Rows that decoded, summed over the steps.",
    "predicted_rows": "Rows that plain networks were given.",
    "prediction_forwards": "Forwards of plain networks, each over rows of all who wait.",
}


class EngineCollector(Collector):
    """Families of one engine.

    Args:
        stats: gives the engine's newest counters.
        queued: gives the number of requests that wait in front of the engine.
        model: their label.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], queued: Callable[[], int], model: str
    ) -> None:
        self._stats = stats
        self._queued = queued
        self._model = model

    def collect(self) -> Iterator[_Family]:
        """Called by the registry."""
        values = asdict(self._stats())
        reasons = values.pop("speculation_reasons")
        yield self._gauge("queued_requests", "In front of the engine.", self._queued())
        used, total = values["kv_tokens_used"], values["kv_tokens_total"]
        yield self._gauge(
            "kv_cache_usage_perc",
            "Share of the memory for K and V that rows hold; 1 is full.",
            used / total if total else 0.0,
        )
        for name, value in values.items():
            yield self._one(name, value)
        family = CounterMetricFamily(
            f"{PREFIX}speculation_reasons",
            "Steps by the reason why they guessed tokens ahead or did not.",
            labels=["model_name", "reason"],
        )
        for reason, count in reasons.items():
            family.add_metric([self._model, reason], count)
        yield family

    def _one(self, name: str, value: float) -> _Family:
        if name in _GAUGES:
            return self._gauge(*_GAUGES[name], value)
        if name in _OWN_GAUGES:
            return self._gauge(name, _OWN_GAUGES[name], value)
        theirs, text = _COUNTERS.get(name, (f"engine_{name}", f"The engine's {name}."))
        family = CounterMetricFamily(PREFIX + theirs, _TEXTS.get(name, text), labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
