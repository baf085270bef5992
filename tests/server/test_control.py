"""Pause, resume, abort and sleep, as trainers call them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from tests.engine.brake import braked
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def served(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    engine = Engine(llama_factory, EngineConfig(prefix_cache_memory=1 << 20))
    app = create_app(Settings(served_model_name=("base",)), engine)
    running = helpers.Served(app, engine, 0.5)
    running.wait_ready()
    yield running
    running.stop()
    running.join()


class Asked:
    """A request that is answered some time."""

    def __init__(self, served: Any, max_tokens: int) -> None:
        self.answer: Any = None

        def ask() -> None:
            body = {"prompt": "ab" * 20, "max_tokens": max_tokens, "ignore_eos": True}
            self.answer = served.post(COMPLETIONS, temperature=0, **body)

        self.thread = threading.Thread(target=ask)
        self.thread.start()

    def wait(self) -> Any:
        self.thread.join(PATIENCE_S)
        return self.answer


def test_keep_goes_on_where_it_was(served: Any) -> None:
    wanted = Asked(served, 400).wait().json()["choices"]
    with braked(served.engine) as brake:
        first = Asked(served, 400)
        brake.wait()
        assert served.http.post("/pause?mode=keep").json() == {"status": "paused"}
    assert served.http.get("/is_paused").json() == {"is_paused": True}
    second = Asked(served, 2)
    before = served.engine.stats().generated_tokens
    time.sleep(0.1)
    assert served.engine.stats().generated_tokens - before <= 1  # the step that was in flight
    assert first.thread.is_alive() and second.thread.is_alive()
    assert served.http.post("/resume").json() == {"status": "resumed"}
    assert first.wait().json()["choices"] == wanted
    assert second.wait().status_code == 200


def test_wait_finishes_what_runs(served: Any) -> None:
    with braked(served.engine) as brake, ThreadPoolExecutor(1) as pool:
        first = Asked(served, 300)
        brake.wait()
        pause = pool.submit(served.http.post, "/pause?mode=wait")
        wait_until(lambda: not served.engine.scheduler.admits)
        brake.release()
    assert pause.result().status_code == 200
    assert first.wait().status_code == 200
    late = Asked(served, 2)
    time.sleep(0.05)
    assert late.thread.is_alive()
    served.http.post("/resume")
    assert late.wait().status_code == 200


def test_abort_ends_what_runs(served: Any) -> None:
    for call in ("/pause", "/abort_requests"):
        with braked(served.engine) as brake:
            first = Asked(served, 450)
            brake.wait()
            assert served.http.post(call).status_code == 200
        assert first.wait().status_code == 409
        served.http.post("/resume")
    unknown = served.post("/abort_requests", request_ids=["nobody"])
    assert unknown.status_code == 404


def test_sleep_gives_prefixes_back(served: Any) -> None:
    Asked(served, 30).wait()
    assert served.engine.prefix_stats().cached_pages > 0
    assert served.http.post("/sleep?level=2").status_code == 400
    assert served.http.post("/sleep").json() == {"status": "sleeping"}
    assert served.http.get("/is_sleeping").json() == {"is_sleeping": True}
    assert served.engine.prefix_stats().cached_pages == 0
    late = Asked(served, 2)
    served.http.post("/wake_up")
    assert late.wait().status_code == 200
    assert served.http.get("/is_sleeping").json() == {"is_sleeping": False}
    assert served.http.post("/reset_prefix_cache").status_code == 200


def test_what_is_served(served: Any) -> None:
    info = served.http.get("/server_info?config_format=json").json()["vllm_config"]
    assert info["lora_config"]["max_lora_rank"] == 64
    assert info["parallel_config"]["world_size"] == 1
    assert isinstance(served.http.get("/server_info").json()["vllm_config"], str)
    assert served.http.get("/get_world_size").json() == {"world_size": 1}
    assert len(served.http.get("/weight_checker").json()["model"]) == 32
