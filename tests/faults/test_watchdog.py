"""A step that does not end is told by /health and the log; HTTP answers meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mlx_parallm.engine.guard.watchdog import Watchdog
from tests.conftest import EngineFactory, tiny_llama
from tests.engine.driver import Driver, greedy
from tests.faults.conftest import ServeFactory
from tests.server.conftest import wait_until

ASKED = {"prompt": "x", "max_tokens": 12, "seed": 5, "ignore_eos": True}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds whoever waits for it; open at the end of the test, whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def test_a_blocked_engine_is_told_and_http_answers(
    serve: ServeFactory, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(tiny_llama, step_timeout=0.5)
    right = served.ok("/v1/completions", **ASKED)["choices"][0]["text"]
    begin = served.engine.runner.begin

    def blocked(*arguments: Any) -> Any:
        gate.wait(120)
        return begin(*arguments)

    served.engine.runner.begin = blocked
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(served.ok, "/v1/completions", **ASKED)
        wait_until(lambda: served.http.get("/health").status_code == 503, 120)
        health = served.http.get("/health")
        assert health.json()["status"] == "stalled"
        assert "--step-timeout is 0.5 s" in health.json()["reason"]
        assert "retry-after" in health.headers
        assert served.http.get("/v1/models").status_code == 200
        assert served.http.get("/metrics").status_code == 200
        wait_until(lambda: "in blocked" in caplog.text, 120)  # the stack says where
        gate.set()
        assert answer.result()["choices"][0]["text"] == right
    wait_until(lambda: served.http.get("/health").status_code == 200, 120)


def test_a_call_that_blocks_is_told_too(make_engine: EngineFactory, gate: threading.Event) -> None:
    engine = make_engine(tiny_llama, step_timeout=1)  # longer than the others ever take
    reasons: list[str] = []
    engine.on_failure = reasons.append
    blocked = engine.call(lambda: gate.wait(120))
    wait_until(lambda: bool(reasons), 120)
    assert "busy with a call" in (engine.stalled or "")
    gate.set()
    blocked.result(120)
    assert engine.call(lambda: 1).result(120) == 1
    wait_until(lambda: engine.stalled is None, 120)
    assert len(reasons) == 1


def test_rest_is_not_a_stall_and_zero_watches_nothing(make_engine: EngineFactory) -> None:
    engine = make_engine(tiny_llama, step_timeout=1e-6)
    Driver(engine).run(greedy([5, 6], 4))
    wait_until(lambda: engine.stalled is None, 120)  # it waits for work
    unwatched = Watchdog(0, lambda reason: None)
    unwatched.begin("a step")
    assert unwatched.stalled is None


_EXITS = """
import sys, threading
from mlx_parallm import cli
from mlx_parallm.engine.model_runner import ModelRunner

begin, steps = ModelRunner.begin, []

def failing(self, plan, *more):
    steps.append(plan)
    if len(steps) > 3:
        if sys.argv[1] == "stalls":
            threading.Event().wait()
        sys.exit("not an Exception: it ends the loop")
    return begin(self, plan, *more)

ModelRunner.begin = failing
sys.exit(cli.main(["--port", "0", "--step-timeout", "1", "--exit-on-engine-failure",
                   "--drain-timeout", "100"]))
"""


@pytest.mark.parametrize("how", ["stalls", "breaks"])
def test_the_process_ends_with_an_error_after_everybody_was_answered(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _EXITS, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http"))
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(httpx.post, f"{url}/v1/completions", json=one, timeout=120)
                for one in (body, {**body, "stream": True})
            ]
            whole, stream = (one.result() for one in asked)
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "service_unavailable")
        events = [part for part in stream.text.split("\n\n") if part]
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["error"]["code"] == "service_unavailable"
        assert process.wait(120) == 1
        assert "engine failed" in process.communicate()[1]
    finally:
        process.kill()
        process.communicate()
