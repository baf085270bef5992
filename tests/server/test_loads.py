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
