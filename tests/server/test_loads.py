"""GET /v1/loads, which routers poll."""

from __future__ import annotations

from typing import Any


def test_loads_are_the_engines(serve: Any) -> None:
    server = serve()
    server.ok("/v1/completions", prompt="hello")
    answer = server.http.get("/v1/loads").json()
    (load,) = answer["loads"]
    stats = server.engine.stats()
    assert answer["dp_rank_count"] == 1
    assert load["num_running_reqs"] == stats.running == answer["aggregate"]["total_running_reqs"]
    assert load["max_running_requests"] == server.engine.config.max_batch_size
    assert 0 <= load["token_usage"] <= 1 and 0 <= load["utilization"] <= 1
    assert server.http.get("/loads").json()["loads"][0]["dp_rank"] == 0


def test_what_routers_ask_for_is_understood(serve: Any) -> None:
    """smg sends these queries, and believes that a replica is idle where they are refused."""
    http = serve().http
    name = http.get("/v1/models").json()["data"][0]["id"]
    queries = ("?include=core,disagg,queues,memory", "?include=core&include=all", f"?model={name}")
    for query in queries:
        assert len(http.get("/v1/loads" + query).json()["loads"]) == 1
    wrong = http.get("/v1/loads?include=core,nonsense")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "include")
    assert http.get("/loads?model=unknown").status_code == 404
