"""Loading, disconnects, deadlines, faults and shutdown: every request is answered once."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest

from mlx_parallm.engine.engine import EngineConfig
from mlx_parallm.engine.sequence import FinishReason, Output
from tests.waiting import PATIENCE_S

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENDLESS = {"prompt": "ab", "ignore_eos": True, "max_tokens": 500}
# Longer than any test waits.
LONG_MS = 10 * PATIENCE_S * 1000


def raw_request(server: Any, body: dict[str, Any], buffer: int = 0) -> socket.socket:
    """Send a completion request, keep the connection open; buffer: bytes the kernel takes."""
    payload = json.dumps(body).encode()
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", server.port))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(payload), payload)
    )
    return client


def test_loading_is_said_and_requests_are_refused(serve: Any, helpers: Any) -> None:
    server = serve(helpers.ParrotEngine(may_load=(loads := threading.Event())), ready=False)
    helpers.wait_until(lambda: server.runner.started)
    health = server.http.get("/health")
    assert health.status_code == 503
    assert health.json() == {
        "status": "loading",
        "model_loaded": False,
        "tokenizer_loaded": False,
        "scheduler_ready": False,
        "reason": "the model is loading",
    }
    assert int(health.headers["retry-after"]) > 0
    refused = server.post(COMPLETIONS, prompt="x")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "service_unavailable"
    assert int(refused.headers["retry-after"]) > 0
    (card,) = server.http.get("/v1/models").json()["data"]
    assert card["status"] == "loading"
    assert card["max_model_len"] is None
    loads.set()
    server.wait_ready()
    assert server.ok(COMPLETIONS, prompt="x")


def test_health_when_ready(server: Any) -> None:
    assert server.http.get("/health").json() == {
        "status": "healthy",
        "model_loaded": True,
        "tokenizer_loaded": True,
        "scheduler_ready": True,
    }


def test_an_engine_that_stops_is_reported(serve: Any, helpers: Any) -> None:
    server = serve()
    server.engine.state, server.engine.reason = "stopped", "the engine failed"
    health = server.http.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "stopped"
    assert health.json()["reason"] == "the engine failed"
    assert server.post(COMPLETIONS, prompt="x").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(
    server: Any, helpers: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mlx_parallm.access")
    with server.engine.held():
        client = raw_request(server, {**ENDLESS, "n": 3, "stream": stream})
        helpers.wait_until(lambda: len(server.engine.live) == 3)
        client.close()
        helpers.wait_until(lambda: not server.engine.live)
    mine = [sequence.id for sequence in server.engine.submitted[-3:]]
    assert set(mine) <= set(server.engine.aborted)
    helpers.wait_until(lambda: any(" 499 " in r.getMessage() for r in caplog.records))


def test_a_client_that_goes_away_before_its_request_is_whole(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'content-length: 100\r\n\r\n{"prompt"'
        )
    assert server.ok(COMPLETIONS, prompt="x")


def test_a_slow_reader_gets_everything_and_stops_nobody(server: Any) -> None:
    body = {**ENDLESS, "stream": True, "prompt": "ab" * 100, "max_tokens": 100, "logprobs": 20}
    client = raw_request(server, body, buffer=4096)
    assert server.ok(COMPLETIONS, prompt="quick")["choices"][0]["text"] == "quick"
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += client.recv(65536)
    client.close()
    assert received.count(b'"text":') > 10
    assert b"[DONE]" in received


def test_a_stream_that_nobody_reads_is_ended(
    serve: Any, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_parallm.server.flow import generation

    monkeypatch.setattr(generation, "_MAX_UNREAD", 100_000)
    server = serve()
    body = {**ENDLESS, "stream": True, "prompt": "ab" * 50, "max_tokens": 400, "n": 20}
    client = raw_request(server, {**body, "logprobs": 20}, buffer=4096)
    helpers.wait_until(lambda: bool(server.engine.live))
    # The kernel's buffers take a few megabytes; then the server stops.
    helpers.wait_until(lambda: not server.engine.live)
    assert len(server.engine.aborted) >= 1
    client.close()


def test_an_app_without_its_lifespan_says_so() -> None:
    import asyncio

    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(Settings()))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://x", timeout=PATIENCE_S
        ) as client:
            return await client.get("/health")

    response = asyncio.run(ask())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_one_request_is_its_own(server: Any, helpers: Any, stream: bool) -> None:
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.ok, COMPLETIONS, prompt=f"p{i}") for i in range(6)]
        response = server.post(CHAT, messages=_says(helpers.CURSE), stream=stream)
        assert [other.result()["choices"][0]["text"] for other in others] == [
            f"p{i}" for i in range(6)
        ]
    # It failed before anything was sent, so even a stream has the status of its failure.
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error"
    assert response.headers["x-request-id"] in error["message"]
    assert "matrix" not in response.text


def _says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_fault_in_the_middle_of_a_stream_is_one_event(serve: Any, helpers: Any) -> None:
    server = serve()
    body = {**ENDLESS, "stream": True}
    with (
        server.engine.held(steps=1),
        server.http.stream("POST", COMPLETIONS, json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        with server.engine._lock:
            (live,) = server.engine.live.values()
            del server.engine.live[live.sequence.id]
            output = Output(live.sequence.id, finish_reason=FinishReason.ERROR)
            output.error = RuntimeError("secret")
            live.sink([output])
        rest = [line for line in lines if line]
    assert response.status_code == 200
    last = json.loads(rest[-1].removeprefix("data: "))
    assert set(last) == {"error"}
    assert "secret" not in rest[-1]
    assert response.headers["x-request-id"] in last["error"]["message"]
    assert sum('"error"' in line for line in rest) == 1
    assert "data: [DONE]" not in rest


def test_text_that_cannot_be_made_fails_only_its_request(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_parallm.server.output import completion_format

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    server = serve()
    monkeypatch.setattr(completion_format, "completion_logprobs", broken)
    response = server.post(COMPLETIONS, prompt="x", logprobs=1, stream=True)
    assert response.status_code == 500
    assert "secret" not in response.text
    # This one fails outside of the stream, in the route.
    assert server.post(COMPLETIONS, prompt="x", logprobs=1).status_code == 500
    assert server.ok(COMPLETIONS, prompt="x")
    assert not server.engine.live


@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline(serve: Any, helpers: Any, stream: bool) -> None:
    server = serve(request_timeout=0.15)
    with server.engine.held():
        response = server.post(COMPLETIONS, **ENDLESS, stream=stream)
        assert response.status_code == 408
        assert response.json()["error"]["code"] == "request_timeout"
        helpers.wait_until(lambda: not server.engine.live)


def test_the_deadline_in_the_middle_of_a_stream(serve: Any, helpers: Any) -> None:
    for seconds in (0.2, 2, 20):  # long enough for the first token
        server = serve(request_timeout=seconds)
        with server.engine.held(steps=1):
            response = server.post(COMPLETIONS, **ENDLESS, stream=True)
        if response.status_code == 200:
            break
    first, last = helpers.parse_events(response.text, done=False)
    assert first["choices"][0]["text"]
    assert last["error"]["code"] == "request_timeout"
    helpers.wait_until(lambda: not server.engine.live)


def test_a_full_queue_is_a_429(serve: Any, helpers: Any) -> None:
    server = serve(helpers.ParrotEngine(room=2))
    with server.engine.held():
        clients = [raw_request(server, ENDLESS) for _ in range(2)]
        helpers.wait_until(lambda: len(server.engine.live) == 2)
        for stream in (False, True):
            response = server.post(COMPLETIONS, prompt="x", stream=stream)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(response.headers["retry-after"]) > 0
        for client in clients:
            client.close()
        helpers.wait_until(lambda: not server.engine.live)
    assert server.ok(COMPLETIONS, prompt="x")


def test_a_request_too_many_is_refused_before_its_body_is_read(serve: Any, helpers: Any) -> None:
    engine = helpers.ParrotEngine(config=EngineConfig(max_batch_size=2))
    server = serve(engine, max_queue=3)
    with server.engine.held():
        clients = [raw_request(server, ENDLESS) for _ in range(5)]
        helpers.wait_until(lambda: len(server.engine.live) == 5)
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 1000\r\n\r\n"
            )
            answer = HTTPResponse(client)
            answer.begin()
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert b"rate_limit_exceeded" in answer.read()
        assert server.http.get("/v1/models").status_code == 200
        for client in clients:
            client.close()
        helpers.wait_until(lambda: not server.engine.live)
    assert server.ok(COMPLETIONS, prompt="x")


def test_between_two_of_a_crowd_the_event_loop_turns() -> None:
    """So that /health is answered while a thousand requests are parsed and tokenized."""
    import asyncio

    from mlx_parallm.server.gate.turnstile import Turnstile

    events: list[str] = []

    async def crowd() -> None:
        turnstile = Turnstile()

        async def one(name: str) -> None:
            await turnstile.enter()
            events.append(name)

        async def others() -> None:
            while len(events) < 60:
                events.append("others")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one(f"request {place}")) for place in range(20)]
            group.create_task(others())
            await asyncio.sleep(0)
            asked[7].cancel()

    asyncio.run(crowd())
    requests = [event for event in events if event != "others"]
    assert requests == [f"request {place}" for place in range(20) if place != 7]
    assert all("others" in pair for pair in itertools.pairwise(events))


def test_of_a_group_that_does_not_fit_those_are_served_that_do(serve: Any, helpers: Any) -> None:
    # The sixth ends the window.
    server = serve(helpers.ParrotEngine(room=3), batch_timeout_ms=LONG_MS, max_batch_size=6)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: server.post(COMPLETIONS, prompt=f"p{i}"), range(6)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [429] * 3
    for place, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == f"p{place}"


def test_requests_that_come_together_start_together(serve: Any) -> None:
    # Eight are all that is waited for.
    server = serve(batch_timeout_ms=LONG_MS, max_batch_size=8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: server.ok(COMPLETIONS, prompt=f"p{i}"), range(8)))
    assert server.engine.groups == [8]


def test_a_busy_engine_is_not_waited_for(serve: Any, helpers: Any) -> None:
    server = serve(batch_timeout_ms=LONG_MS)
    with server.engine.held(), raw_request(server, {**ENDLESS, "stream": True}):
        helpers.wait_until(lambda: len(server.engine.live) == 1)
        with raw_request(server, ENDLESS):
            helpers.wait_until(lambda: len(server.engine.live) == 2)


def test_both_kinds_in_one_batch(server: Any) -> None:
    def one(place: int) -> str:
        text = f"request number {place}, " + "é" * (place % 5)
        if place % 2:
            events = server.events(COMPLETIONS, prompt=text, max_tokens=60)
            return "".join(event["choices"][0]["text"] for event in events) + text
        answer = server.ok(COMPLETIONS, prompt=text, max_tokens=60)
        return str(answer["choices"][0]["text"]) + text

    with ThreadPoolExecutor(16) as pool:
        for answer in pool.map(one, range(64)):
            assert answer[: len(answer) // 2] == answer[len(answer) // 2 :]


def _ask_in_background(server: Any, stream: bool, results: list[Any]) -> threading.Thread:
    def ask() -> None:
        # A client of its own: a connection that is kept open would outlive the server.
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            results.append(client.post(COMPLETIONS, json={**ENDLESS, "stream": stream}))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_shutdown_lets_requests_finish(serve: Any, helpers: Any) -> None:
    server = serve(drain_s=PATIENCE_S)
    results: list[Any] = []
    with server.engine.held():
        threads = [_ask_in_background(server, stream, results) for stream in (False, True)]
        helpers.wait_until(lambda: len(server.engine.live) == 2)
        server.stop()
        helpers.wait_until(lambda: server.engine.state == "draining")
    for thread in threads:
        thread.join()
    server.join()
    assert [result.status_code for result in results] == [200, 200]
    assert all("length" in result.text for result in results)


def test_shutdown_answers_everybody(serve: Any, helpers: Any) -> None:
    server = serve(helpers.ParrotEngine(room=6), drain_s=0.2)
    results: list[Any] = []
    with (
        server.http.stream("POST", COMPLETIONS, json={**ENDLESS, "stream": True}) as streamed,
        server.engine.held(),
    ):
        chunks = streamed.iter_text()
        next(chunks)
        threads = [_ask_in_background(server, place % 2 == 0, results) for place in range(5)]
        helpers.wait_until(lambda: len(server.engine.live) == 6)
        server.stop()
        events = helpers.parse_events("".join(chunks), done=False)
        for thread in threads:
            thread.join()
    server.join()
    assert events[-1]["error"]["code"] == "service_unavailable"
    assert [result.status_code for result in results] == [503] * 5
    for result in results:
        assert result.json()["error"]["code"] == "service_unavailable"


def test_while_draining_new_requests_are_refused(serve: Any, helpers: Any) -> None:
    server = serve()
    server.state.drain()
    response = server.post(COMPLETIONS, prompt="x")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert server.http.get("/health").json()["status"] == "draining"


def test_new_connections_are_answered_while_draining(serve: Any, helpers: Any) -> None:
    server = serve(drain_s=PATIENCE_S)
    results: list[Any] = []
    with server.engine.held():
        thread = _ask_in_background(server, False, results)
        helpers.wait_until(lambda: len(server.engine.live) == 1)
        server.stop()
        helpers.wait_until(lambda: server.engine.state == "draining")
        _is_refused_while_draining(server)
    thread.join()
    server.join()
    assert [result.status_code for result in results] == [200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", timeout=PATIENCE_S)


def _is_refused_while_draining(server: Any) -> None:
    for path in (COMPLETIONS, "/v1/models", "/v1/configure"):
        refused = httpx.post(server.url + path, json={"prompt": "x"}, timeout=PATIENCE_S)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "service_unavailable"
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
    # Also on a connection that was open before.
    assert server.post(COMPLETIONS, prompt="x").status_code == 503
    health = httpx.get(f"{server.url}/health", timeout=PATIENCE_S)
    assert health.status_code == 503
    assert health.json()["status"] == "draining"
    assert httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).status_code == 200


def test_a_load_failure_is_told(helpers: Any) -> None:
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    failures: list[Exception] = []
    engine = helpers.ParrotEngine(load_error="nowhere: there is no such folder")
    app = create_app(Settings(), engine, on_failure=failures.append)
    server = helpers.Served(app, engine, 0.5)
    helpers.wait_until(lambda: bool(failures))
    assert "no such folder" in str(failures[0])
    health = server.http.get("/health").json()
    assert health["status"] == "stopped"
    assert "no such folder" in health["reason"]
    server.stop()
    server.join()
