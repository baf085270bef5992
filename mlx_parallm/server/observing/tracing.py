"""OpenTelemetry: a span for each request that generates, with its times and token counts.

The attributes follow the semantic conventions for generative AI;
https://opentelemetry.io/docs/specs/semconv/gen-ai/. Needs the extra `otel`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlx_parallm import __version__
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.server.observing.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


class Tracer:
    """Makes spans and sends them in the background.

    Args:
        exporter: where they go.
        service: the name of this server in the traces.
    """

    def __init__(self, exporter: SpanExporter, service: str = "mlx_parallm") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mlx_parallm", __version__)

    @classmethod
    def to(cls, endpoint: str) -> Tracer:
        """Spans go to an OTLP collector (HTTP with protobuf), such as http://host:4318/v1/traces.

        Raises:
            UnsupportedError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise UnsupportedError(
                "--otlp-traces-endpoint needs the extra: pip install 'mlx_parallm[otel]'"
            ) from None
        return cls(OTLPSpanExporter(endpoint=endpoint))

    def on_answer(
        self, method: str, route: str, status: int, seconds: float, record: RequestRecord
    ) -> None:
        """A request was answered."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ended = time.time_ns()
        context = TraceContextTextMapPropagator().extract({"traceparent": record.traceparent})
        span = self._tracer.start_span(
            f"{method} {route}",
            context,
            SpanKind.SERVER,
            self._attributes(method, route, status, record),
            start_time=ended - int(seconds * 1e9),
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    @staticmethod
    def _attributes(method: str, route: str, status: int, record: RequestRecord) -> dict[str, Any]:
        found: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        if record.client is not None:
            found["enduser.id"] = record.client.share.name
        if not record.generations:
            return found
        found |= {
            "gen_ai.provider.name": "mlx_parallm",
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.response.finish_reasons": record.finish_reasons,
        }
        if record.first_output_s is not None:
            found["gen_ai.server.time_to_first_token"] = record.first_output_s
        return found

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
