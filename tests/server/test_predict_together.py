"""/v1/predict in the engine's steps: requests of many clients at once, beside streams."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.server.test_predict import LSTM, MLP, lstm, lstm_weights, mlp, mlp_weights, write
from tests.waiting import PATIENCE_S, wait_until

ROWS = np.random.default_rng(5).standard_normal((24, 40, 4))


@pytest.fixture(scope="module")
def served(helpers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model with two networks beside it, for two clients."""
    folder = tmp_path_factory.mktemp("networks")
    networks = (
        write(folder / "iris", MLP, mlp_weights()),
        write(folder / "sine", LSTM, lstm_weights()),
    )
    settings = Settings(predictor=networks, api_key=("greedy", "modest"))
    found = helpers.Served(create_app(settings), None, 0.5)
    found.http.headers["authorization"] = "Bearer greedy"
    found.wait_ready()
    engine = found.engine = found.state.engine
    yield found
    wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    found.stop()
    found.join()


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """The engine takes requests in, and computes nothing."""
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(PATIENCE_S)

    held = engine.call(hold)
    try:
        assert entered.wait(PATIENCE_S)
        yield
    finally:
        go_on.set()
        held.result(PATIENCE_S)


@contextmanager
def costs(engine: Engine, seconds: float) -> Iterator[None]:
    """A time step of either network is thought to take so long."""
    line, takers = engine.scheduler.networks, engine.runner.measurements.takers
    before, taker = dict(line._costs), takers["network"]

    def use() -> None:
        line._costs.clear()
        for network in ("iris", "sine"):
            line.measured(network, 1, seconds)
        takers["network"] = lambda *measured: None

    def restore() -> None:
        line._costs.clear()
        line._costs.update(before)
        takers["network"] = taker

    engine.call(use).result(PATIENCE_S)
    yield
    engine.call(restore).result(PATIENCE_S)


def has_more(engine: Engine, than: int) -> bool:
    """Whether a request came in."""
    return engine.num_live > than


def iris(place: int) -> dict[str, Any]:
    """A request of one to three rows."""
    return {"model": "iris", "inputs": ROWS[place, : 1 + place % 3].tolist(), "receipt": True}


def sine(place: int, steps: int = 40) -> dict[str, Any]:
    """A request of one series."""
    return {"model": "sine", "inputs": [ROWS[place, :steps, :2].tolist()], "receipt": True}


def test_all_that_wait_are_one_forward(served: Any) -> None:
    engine = served.engine
    places = range(len(ROWS))
    with costs(engine, 1e-9), ThreadPoolExecutor(len(places)) as pool:
        before = engine.stats()
        with held(engine):
            asked = [pool.submit(served.ok, "/v1/predict", **iris(p)) for p in places]
            wait_until(lambda: engine.num_live == len(places))
        answers = [one.result(PATIENCE_S) for one in asked]
    after = engine.stats()
    assert after.prediction_forwards == before.prediction_forwards + 1
    rows = sum(1 + place % 3 for place in places)
    assert after.predicted_rows == before.predicted_rows + rows
    for place, answer in zip(places, answers, strict=True):
        found = [entry["outputs"] for entry in answer["data"]]
        right = [mlp(mlp_weights(), row) for row in ROWS[place, : 1 + place % 3].tolist()]
        np.testing.assert_allclose(found, right, atol=1e-5)
        assert answer["receipt"]["forwards"] == 1
        assert answer["receipt"]["mean_rows"] == rows


def test_a_long_series_takes_turns_with_a_stream(served: Any) -> None:
    """However dear its steps are thought to be, the stream gets a token between each two."""
    asked = {"prompt": "3 + 4 =", "max_tokens": 100, "temperature": 0, "ignore_eos": True}
    alone = served.ok("/v1/completions", **asked)["choices"][0]["text"]
    engine = served.engine
    with costs(engine, 1.0), ThreadPoolExecutor(2) as pool:
        with held(engine):
            text = pool.submit(served.ok, "/v1/completions", **asked)
            series = pool.submit(served.ok, "/v1/predict", **sine(0))
            wait_until(lambda: engine.num_live == 2)
        answer = series.result(PATIENCE_S)
        assert text.result(PATIENCE_S)["choices"][0]["text"] == alone
    right = lstm(lstm_weights(), ROWS[0, :, :2].tolist())
    np.testing.assert_allclose(answer["data"][0]["outputs"], right, atol=1e-5)
    assert answer["receipt"]["forwards"] == 40


def test_series_of_all_requests_go_on_side_by_side(served: Any) -> None:
    """Those that begin in the middle of others' are computed with them."""
    lengths = [40, 7, 1, 23, 12]
    with costs(served.engine, 1e-9):
        alone = [served.ok("/v1/predict", **sine(p, n)) for p, n in enumerate(lengths)]
    with costs(served.engine, 2e-3), ThreadPoolExecutor(len(lengths)) as pool:
        asked = [pool.submit(served.ok, "/v1/predict", **sine(p, n)) for p, n in enumerate(lengths)]
        together = [one.result(PATIENCE_S) for one in asked]
    for mine, other in zip(alone, together, strict=True):
        found, right = (answer["data"][0]["outputs"] for answer in (other, mine))
        np.testing.assert_allclose(found, right, atol=1e-6)
    assert together[0]["receipt"]["forwards"] > 1


def test_a_client_with_many_requests_does_not_hold_another_one_up(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, order = served.engine, list[Any]()
    predict = engine.runner.predict

    def noted(predictions: Any) -> Any:
        order.extend(sequence.client.name for sequence, _ in predictions)
        return predict(predictions)

    monkeypatch.setattr(engine.runner, "predict", noted)
    with costs(engine, 1.0), ThreadPoolExecutor(21) as pool:
        with held(engine):
            asked = [pool.submit(served.ok, "/v1/predict", **iris(p)) for p in range(20)]
            wait_until(lambda: engine.num_live == 20)
            other = {"authorization": "Bearer modest"}
            post = served.http.post
            modest = pool.submit(post, "/v1/predict", json=iris(20), headers=other)
            wait_until(lambda: engine.num_live == 21)
        assert modest.result(PATIENCE_S).status_code == 200
        assert all(one.result(PATIENCE_S)["data"] for one in asked)
    assert len(order) == 21 and len(set(order)) == 2
    modest_one = min(set(order), key=order.count)
    assert order.index(modest_one) < 3


def test_lower_priority_numbers_first(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, order = served.engine, list[Any]()
    predict = engine.runner.predict

    def noted(predictions: Any) -> Any:
        order.extend(sequence.priority for sequence, _ in predictions)
        return predict(predictions)

    monkeypatch.setattr(engine.runner, "predict", noted)
    with costs(engine, 1.0), ThreadPoolExecutor(3) as pool, held(engine):
        for priority in (3, 1, 2):
            live = engine.num_live
            pool.submit(served.ok, "/v1/predict", priority=priority, **iris(0))
            wait_until(partial(has_more, engine, live))
    wait_until(lambda: engine.num_live == 0)
    assert order == [1, 2, 3]


def test_who_leaves_is_not_computed(served: Any) -> None:
    engine = served.engine
    before = engine.stats()
    request = httpx.Request("POST", served.url + "/v1/predict", json=iris(2))
    head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer greedy\r\n"
    head += f"Content-Length: {len(request.content)}\r\n\r\n"
    with held(engine):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(head.encode() + request.content)
            wait_until(lambda: engine.num_live == 1)
        wait_until(lambda: served.state.dispatcher.idle)
    wait_until(lambda: engine.num_live == 0)
    after = engine.stats()
    assert after.aborted == before.aborted + 1
    assert after.predicted_rows == before.predicted_rows


def test_a_full_queue_refuses(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.engine
    full = replace(engine.config, max_queue=1, max_batch_size=1)
    monkeypatch.setattr(engine, "config", full)
    with ThreadPoolExecutor(2) as pool:
        with held(engine):
            waiting = [pool.submit(served.ok, "/v1/predict", **iris(p)) for p in range(2)]
            wait_until(lambda: engine.num_live == 2)
            refused = served.post("/v1/predict", **iris(2))
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert all(one.result(PATIENCE_S)["data"] for one in waiting)


def test_a_network_that_fails_takes_nobody_with_it(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served.engine
    network = engine.loaded.predictors["iris"]
    forward = network._mlp

    def choking(x: Any) -> Any:
        if (np.array(x) == 77.0).any():
            raise RuntimeError("secret: a matrix broke")
        return forward(x)

    monkeypatch.setattr(network, "_mlp", choking)
    bad = {"model": "iris", "inputs": [[77.0, 0, 0, 0]]}
    with costs(engine, 1e-9), ThreadPoolExecutor(4) as pool:
        with held(engine):
            good = [pool.submit(served.ok, "/v1/predict", **iris(p)) for p in range(3)]
            failing = pool.submit(served.post, "/v1/predict", **bad)
            wait_until(lambda: engine.num_live == 4)
        assert all(one.result(PATIENCE_S)["data"] for one in good)
        response = failing.result(PATIENCE_S)
    assert response.status_code == 500 and "secret" not in response.text
    assert served.http.get("/health").is_success


def test_metrics_tell_of_rows_and_forwards(served: Any) -> None:
    served.ok("/v1/predict", **iris(0))
    text = served.http.get("/metrics").text
    for name in ("predicted_rows", "prediction_forwards"):
        line = next(t for t in text.splitlines() if t.startswith(f"mlx_parallm:engine_{name}"))
        assert float(line.split()[-1]) >= 1
