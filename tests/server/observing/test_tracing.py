"""A span for each request that generates, in the trace that the client began."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_parallm.server.observing import tracing

pytest.importorskip("opentelemetry.sdk")


def test_a_span_of_each_request(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing.Tracer, "to", lambda endpoint: tracing.Tracer(exporter))
    server = serve(otlp_traces_endpoint="http://127.0.0.1:9/v1/traces")
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    body = {"prompt": "hello", "max_tokens": 3}
    server.http.post("/v1/completions", headers=sent, json=body)
    server.http.post("/v1/completions", json={**body, "stream": True})
    server.http.get("/v1/models")
    server.stop()
    server.join()
    spans: list[Any] = list(exporter.get_finished_spans())
    first, second = sorted(spans, key=lambda span: span.start_time)
    assert first.name == "POST /v1/completions" and f"{first.context.trace_id:032x}" == trace
    assert f"{second.context.trace_id:032x}" != trace
    for span in (first, second):
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert span.attributes["gen_ai.usage.input_tokens"] > 0
        assert span.attributes["http.response.status_code"] == 200
        assert span.attributes["gen_ai.response.finish_reasons"]
        assert span.end_time > span.start_time
