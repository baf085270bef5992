"""What a route does not declare is refused, not ignored."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.testclient import TestClient

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.gate.undeclared import IGNORES_UNKNOWN, refuse_undeclared

ROUTES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/parrot"),
    ("GET", "/v1/stats"),
    ("GET", "/metrics"),
    ("GET", "/model_info"),
    ("GET", "/status/x"),
    ("DELETE", "/status/x"),
    ("GET", "/v1/models/parrot/memories"),
    ("DELETE", "/v1/models/parrot/memories"),
    ("GET", "/v1/memories/jobs/x"),
    ("POST", "/v1/configure"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_unknown_query_parameter_is_named(server: Any, method: str, path: str) -> None:
    response = server.http.request(method, path, params={"collections": "a"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == "collections"
    assert error["code"] == "unknown_parameter"


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[0] != "POST"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_where_none_is_read(server: Any, method: str, path: str, chunked: bool) -> None:
    body: Any = b'{"collection": "a"}'
    response = server.http.request(method, path, content=iter([body]) if chunked else body)
    assert response.status_code == 400, response.text
    assert "takes no body" in response.json()["error"]["message"]


def test_an_empty_body_is_none(server: Any) -> None:
    assert server.http.request("GET", "/health", headers={"content-length": "0"}).is_success


def test_a_route_may_say_that_it_ignores_what_it_does_not_know() -> None:
    router = APIRouter()

    @router.get("/strict")
    @router.get("/lenient", openapi_extra=IGNORES_UNKNOWN)
    async def answer(request: Request, limit: int = 1) -> int:
        return limit

    app = FastAPI()
    app.include_router(router, dependencies=[Depends(refuse_undeclared)])
    client = TestClient(app)
    assert client.get("/lenient?limit=2&beta=true").json() == 2
    assert client.get("/strict?limit=2").json() == 2
    with pytest.raises(InvalidRequestError, match="beta; it has limit"):
        client.get("/strict?limit=2&beta=true")
