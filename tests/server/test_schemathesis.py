"""schemathesis makes requests from our own OpenAPI document: none may end in a 5xx.

The answers are checked against the document too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

schemathesis = pytest.importorskip("schemathesis")

DOCUMENT = create_app(Settings()).openapi()
# (path, method, whether the requests follow the document); without a body nothing is wrong.
KINDS = [
    (path, method, valid)
    for path, item in sorted(DOCUMENT["paths"].items())
    for method, operation in item.items()
    for valid in ([True, False] if "requestBody" in operation else [True])
]


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A server on a real engine with a tiny model, which has all that routes can ask for."""
    # A short context: by default an answer takes all of it.
    engine = Engine(lambda: llama_factory(max_position_embeddings=64), EngineConfig())
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.fixture(autouse=True)
def as_at_the_start(real: Any) -> Iterator[None]:
    """Undo what was asked for, such as waiting ten seconds for more requests, or for ever."""
    yield
    real.http.post("/resume")
    real.ok(
        "/v1/configure",
        use_speculative_decoding=False,
        max_batch_size=32,
        prefill_chunk=256,
        batch_timeout_ms=0,
    )


@pytest.mark.parametrize(("path", "method", "valid"), KINDS)
def test_the_document_holds(real: Any, path: str, method: str, valid: bool) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    ]
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.base_url = real.url
    operation = schema[path][method.upper()]
    mode = GenerationMode.POSITIVE if valid else GenerationMode.NEGATIVE

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=8,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        response = case.call()
        case.validate_response(response, checks=checks)
        assert response.headers["x-request-id"]

    check()
