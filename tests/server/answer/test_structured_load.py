"""Structured answers under load: hostile schemas beside streams, and schemas made at random."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import schema_maker

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.grammar.trial import Trial
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module", params=[None, "ngram"])
def real(request: pytest.FixtureRequest, helpers: Any) -> Iterator[Any]:
    """A server on the bundled model, with and without speculation."""
    config = EngineConfig(max_batch_size=32, speculative=request.param)
    engine = Engine(lambda: load_model("bundled"), config)
    served = helpers.Served(create_app(Settings(served_model_name=("b",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


def test_answers_are_valid_or_too_long(real: Any) -> None:
    """Random schemas at a high temperature; scripts/schema_maker.py makes many more."""

    def ask(seed: int) -> str:
        return schema_maker.ask(real.http, schema_maker.make(seed), seed)

    with ThreadPoolExecutor(16) as pool:
        kinds = list(pool.map(ask, range(24)))
    assert set(kinds) <= {"valid", "length", "refused"}
    assert kinds.count("valid") > 12


def test_a_random_model_keeps_to_schemas(
    helpers: Any, llama_factory: Callable[..., LoadedModel]
) -> None:
    """It says anything, and its guesses are mostly wrong."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=16, speculative="ngram"))
    served = helpers.Served(create_app(Settings(served_model_name=("r",)), engine), engine, 0.5)
    served.wait_ready()
    with ThreadPoolExecutor(16) as pool:
        asked = pool.map(
            lambda n: schema_maker.ask(served.http, schema_maker.make(n), n), range(32)
        )
        kinds = list(asked)
    served.stop()
    served.join()
    assert set(kinds) <= {"valid", "length", "refused"}
    assert kinds.count("valid") > 4


def test_a_hostile_schema_does_not_stop_the_streams(real: Any, helpers: Any) -> None:
    """Eight streams decode; a schema that compiles for minutes is refused beside them."""
    gaps: list[float] = []
    stop = threading.Event()

    def stream(seed: int) -> None:
        body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "seed": seed, "stream": True}
        last = None
        with real.http.stream("POST", COMPLETIONS, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
                if stop.is_set():
                    return

    def hostile(place: int) -> None:
        schema: Any = {"patternProperties": {f"^{i}a.*b": {} for i in range(900 - place)}}
        response = real.post(COMPLETIONS, prompt="x", json_schema=schema)
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "too expensive" in message and "'patternProperties'" in message

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, seed) for seed in range(8)]
        helpers.wait_until(lambda: len(gaps) > 8)
        for place in range(2):
            hostile(place)
        stop.set()
        for one in streams:
            one.result()
    # A compiler in the way would hold all for minutes.
    assert max(gaps) < PATIENCE_S / 2


def test_others_go_on_while_a_grammar_is_compiled(
    real: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling hangs, for as long as the test wants; everything else is answered meanwhile."""
    known = {"type": "integer", "maximum": 9}
    asked: dict[str, Any] = {"prompt": "x", "json_schema": known, "max_tokens": 8}
    assert real.post(COMPLETIONS, **asked).status_code == 200
    began, goes_on = threading.Event(), threading.Event()

    def hang(trial: Trial, source: str) -> None:
        began.set()
        goes_on.wait(PATIENCE_S)

    monkeypatch.setattr(Trial, "error", hang)
    slow = {"type": "object", "patternProperties": {"^a": {"type": "null"}}}
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(real.post, COMPLETIONS, prompt="x", json_schema=slow)
        assert began.wait(PATIENCE_S)
        events = real.events(COMPLETIONS, prompt="x", max_tokens=40, ignore_eos=True)
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert real.post(COMPLETIONS, **asked).status_code == 200  # a grammar that is known
        assert not refused.done()
        goes_on.set()
        response = refused.result(PATIENCE_S)
    assert response.status_code == 400
    assert "'patternProperties'" in response.json()["error"]["message"]
