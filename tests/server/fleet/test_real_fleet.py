"""Two real engines in one process: each answers as it does alone, and gives its memory back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlx_parallm.server.fleet.app import create_fleet_app
from mlx_parallm.settings import Settings
from tests.server.conftest import Served

COMPLETIONS = "/v1/completions"


def test_two_models_at_once_answer_as_alone() -> None:
    settings = Settings(also_serve=("bundled/draft",), log_level="warning")
    server = Served(create_fleet_app(settings), None, 0.5)
    try:
        server.wait_ready()

        def ask(place: int) -> Any:
            model = "bundled/draft" if place % 2 else "bundled"
            body = {"max_tokens": 24, "temperature": 1.0, "seed": place, "logprobs": 1}
            choice = server.ok(COMPLETIONS, model=model, prompt=f"What is {place}?", **body)
            return choice["choices"][0]["text"]

        alone = [ask(place) for place in range(12)]
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(ask, range(12))) == alone
        server.http.post("/v1/models/bundled/draft/unload")
        assert [ask(place) for place in range(2)] == alone[:2]
    finally:
        server.stop()
        server.join()
