"""Several models behind one address: found by name, loaded on use, unloaded for room."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.fleet.catalog import entries_of, settings_for
from mlx_parallm.server.fleet.slot import Slot
from mlx_parallm.settings import Settings, SettingsError
from tests.models.tiny_hub import TinyHub
from tests.server.fleet.conftest import fleet_of, status
from tests.waiting import wait_until

COMPLETIONS = "/v1/completions"
PULL = "/v1/models/pull"


def test_a_request_gets_the_model_that_it_names(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10, b=20)))
    assert status(server) == {"first": "ready", "a": "unloaded", "b": "unloaded"}
    for name in ("a", "b", "first"):
        assert server.ok(COMPLETIONS, model=name, prompt="x")["model"] == name
    assert server.ok(COMPLETIONS, prompt="x")["model"] == "first"
    messages = [{"role": "user", "content": "x"}]
    assert server.ok("/api/chat", model="a:latest", messages=messages, stream=False)["done"]
    assert status(server) == {"first": "ready", "a": "ready", "b": "ready"}
    assert {name: len(made) for name, made in server.engine.items()} == {
        "first": 1,
        "a": 1,
        "b": 1,
    }


def test_an_unknown_model_is_a_404_that_names_those_there_are(
    serve_fleet: Any, models: Any
) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    answer = server.post(COMPLETIONS, model="nope", prompt="x")
    assert answer.status_code == 404 and answer.headers["x-request-id"]
    assert answer.json()["error"]["param"] == "model" and "'a'" in answer.json()["error"]["message"]
    answer = server.post("/v1/messages", model="nope", max_tokens=2, messages=[])
    assert answer.status_code == 404 and answer.json()["type"] == "error"


def test_streams_and_many_clients_of_two_models(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    with ThreadPoolExecutor(8) as pool:
        asked = [("a" if place % 2 else "first", f"text {place}") for place in range(24)]
        texts = pool.map(
            lambda one: "".join(
                event["choices"][0]["text"]
                for event in server.events(COMPLETIONS, model=one[0], prompt=one[1])
            ),
            asked,
        )
        alone = [
            server.ok(COMPLETIONS, model=name, prompt=prompt)["choices"][0]["text"]
            for name, prompt in asked
        ]
    assert list(texts) == alone


def test_a_model_for_sounds_is_beside_the_first_one(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)), transcription_model="ears=/ears")
    assert {card["id"] for card in server.http.get("/v1/models").json()["data"]} >= {"a", "ears"}
    card = server.http.get("/v1/models/ears").json()
    assert card["root"] == "/ears" and card["capabilities"]["transcription"]
    settings = Settings(also_serve=("other",), transcription_model="ears=/ears")
    given = [settings_for(settings, entry).transcription_model for entry in entries_of(settings)]
    assert given == ["ears=/ears", None]


def test_load_and_unload_by_hand(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    assert server.http.post("/v1/models/a/load").json()["status"] == "ready"
    assert server.http.get("/v1/models/a").json()["status"] == "ready"
    assert server.http.post("/v1/models/a/unload").json()["status"] == "unloaded"
    assert server.http.post("/v1/models/nope/load").status_code == 404
    assert server.ok(COMPLETIONS, model="a", prompt="x")["model"] == "a"
    assert len(server.engine["a"]) == 2


def test_a_model_in_use_stays(serve_fleet: Any, models: Any, helpers: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    server.ok(COMPLETIONS, model="a", prompt="x")
    body = {"model": "a", "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with (
        server.engine["a"][-1].held(steps=1),
        server.http.stream("POST", COMPLETIONS, json=body) as stream,
    ):
        lines = stream.iter_lines()  # kept: its end would close the stream
        assert next(lines)
        assert server.http.post("/v1/models/a/unload").status_code == 409
    helpers.wait_until(lambda: server.http.post("/v1/models/a/unload").status_code == 200)


def test_the_least_recently_used_goes_where_memory_is_short(
    serve_fleet: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "nbytes", property(lambda slot: slot.entry.bytes_on_disk))
    folder = models(a=400, b=400, c=400)
    options = {"model_path": "org/first", "models_dir": str(folder), "pin_model": ("b",)}
    server = serve_fleet(models_memory=900, **options)
    assert status(server) == {"first": "ready", "a": "unloaded", "b": "ready", "c": "unloaded"}
    for name in ("a", "first"):
        server.ok(COMPLETIONS, model=name, prompt="x")
    server.ok(COMPLETIONS, model="c", prompt="x")
    assert status(server) == {"first": "ready", "a": "unloaded", "b": "ready", "c": "ready"}


def test_an_idle_model_is_unloaded(serve_fleet: Any, models: Any, helpers: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10, b=10)), model_ttl=0.05, pin_model=("b",))
    server.ok(COMPLETIONS, model="a", prompt="x")
    helpers.wait_until(
        lambda: status(server) == {"first": "unloaded", "a": "unloaded", "b": "ready"}, 120
    )
    assert server.http.get("/health").status_code == 200
    assert server.ok(COMPLETIONS, prompt="x")["model"] == "first"


def test_requests_wait_for_a_model_that_loads_and_none_is_lost(
    serve_fleet: Any, models: Any
) -> None:
    server = serve_fleet(load_s={"a": 0.3}, models_dir=str(models(a=10)))
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda i: server.post(COMPLETIONS, model="a", prompt=f"{i}"), range(6))
        )
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len(server.engine["a"]) == 1


def test_or_they_are_refused_until_it_is_there(serve_fleet: Any, models: Any, helpers: Any) -> None:
    options = {"models_dir": str(models(a=10)), "while_loading": "refuse"}
    server = serve_fleet(load_s={"a": 0.3}, **options)
    first = server.post(COMPLETIONS, model="a", prompt="x")
    assert first.status_code == 503 and int(first.headers["retry-after"]) >= 1
    assert "loading" in first.json()["error"]["message"]
    helpers.wait_until(lambda: status(server)["a"] == "ready")
    assert server.ok(COMPLETIONS, model="a", prompt="x")["model"] == "a"


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_requests(
    serve_fleet: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(models(a=10))
    server = serve_fleet(models_dir=folder, admin_key=("boss",))
    slot = fleet_of(server).get("a")
    made = slot._make_app

    def broken(entry: Any, *hooks: Any) -> Any:
        app = made(entry, *hooks)
        server.engine["a"][-1].load_error = f"{folder}/a: no such layer"
        return app

    monkeypatch.setattr(slot, "_make_app", broken)
    answer = server.post(COMPLETIONS, model="a", prompt="x")
    assert answer.status_code == 503 and "no such layer" in answer.json()["error"]["message"]
    assert folder not in answer.text  # it is the operator's business
    for path in ("/v1/models", "/v1/models/a"):
        assert folder not in server.http.get(path).text
        assert folder in server.http.get(path, headers={"x-admin-key": "boss"}).text
    assert status(server) == {"first": "ready", "a": "failed"}
    assert server.ok(COMPLETIONS, prompt="x")["model"] == "first"
    monkeypatch.undo()
    assert server.ok(COMPLETIONS, model="a", prompt="x")["model"] == "a"


def test_keys_come_first(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)), api_key=("k",), admin_key=("admin",))
    assert server.post(COMPLETIONS, model="a", prompt="x").status_code == 401
    sent = {"authorization": "Bearer k"}
    assert server.http.post("/v1/models/a/load", headers=sent).status_code == 401
    assert server.http.get("/v1/models/a", headers=sent).json()["status"] == "unloaded"
    body = {"model": "a", "prompt": "x"}
    assert server.http.post(COMPLETIONS, headers=sent, json=body).status_code == 200


def test_bad_bodies_are_answered_by_the_route(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)), max_body_size=2000)
    assert server.http.post(COMPLETIONS, content=b"{").status_code == 400
    assert server.post(COMPLETIONS, model=3, prompt="x").status_code == 400
    assert server.post(COMPLETIONS, model="a", prompt="x" * 3000).status_code == 413
    assert server.post(COMPLETIONS, model="a", nope=1).json()["error"]["param"]
    assert server.http.get("/v1/nope").status_code == 404


def test_a_header_names_the_model_where_no_body_can(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    info = server.http.get("/model_info", headers={"x-model": "a"})
    assert info.status_code == 200 and "a" in server.engine
    assert server.http.get("/model_info", headers={"x-model": "nope"}).status_code == 404


def test_metrics_and_health_of_all_models(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    for name in ("a", "first"):
        server.ok(COMPLETIONS, model=name, prompt="x")
    text = server.http.get("/metrics").text
    for name in ("a", "first"):
        labels = f'method="POST",model_name="{name}",route="/v1/completions",status="200"'
        assert f"mlx_parallm:http_requests_total{{{labels}}} 1.0" in text
        count = f'mlx_parallm:time_to_first_token_seconds_count{{model_name="{name}"}} 1.0'
        assert count in text
    assert text.count("# TYPE mlx_parallm:num_requests_running gauge") == 1
    health = server.http.get("/health").json()
    assert health == {"status": "healthy", "models": {"first": "ready", "a": "ready"}}


def test_a_pull_tells_how_far_it_is(serve_fleet: Any, models: Any) -> None:
    folder = models(a=10)
    server = serve_fleet()
    events = server.http.post(PULL, json={"model": str(folder / "a")}).text
    assert '"status":"success"' in events and events.endswith("data: [DONE]\n\n")
    assert status(server)[str(folder / "a")] == "unloaded"
    failed = server.http.post(PULL, json={"model": str(folder / "none")}).text
    assert '"status":"error"' in failed and "none" in failed
    assert server.http.post(PULL, json={"modle": "x"}).status_code == 400


def test_a_pull_is_joined_cancelled_and_continued(serve_fleet: Any, hub: TinyHub) -> None:
    server = serve_fleet()
    hub.gate["model.safetensors"] = gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(server.http.post, PULL, json={"model": "a/b"}) for _ in range(2)]
        half = len(hub.files["model.safetensors"]) // 2
        wait_until(lambda: any(one["completed"] > half for one in pulls(server)))
        (card,) = pulls(server)
        assert card["total"] == sum(map(len, hub.files.values()))
        assert server.http.delete(PULL, params={"model": "a/c"}).status_code == 404
        assert server.http.delete(PULL, params={"model": "a/b"}).json()["status"] == "cancelled"
        for one in looking:
            assert '"status":"cancelled"' in one.result().text
    assert pulls(server) == [] and "a/b" not in status(server)
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.part"))
    gate.set()
    assert '"status":"success"' in server.http.post(PULL, json={"model": "a/b"}).text
    assert status(server)["a/b"] == "unloaded"


def pulls(server: Any) -> Any:
    """Those on their way."""
    return server.http.get(PULL).json()["data"]


def test_to_look_is_no_reason_to_load_a_model(serve_fleet: Any, models: Any, helpers: Any) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    assert server.http.post("/v1/models/first/unload").status_code == 200
    page = server.http.get("/", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert server.http.get("/page/js/main.js").status_code == 200
    assert server.http.get("/").json()["name"] == "mlx_parallm"
    figures = "/debug/metrics"
    refused = server.http.get(figures)
    assert refused.status_code == 503 and "'first' is not loaded" in refused.text
    assert server.http.get(figures, headers={"x-model": "nope"}).status_code == 404
    assert status(server) == {"first": "unloaded", "a": "unloaded"}
    server.ok(COMPLETIONS, model="a", prompt="x")
    assert server.http.get(figures, headers={"x-model": "a"}).json()["engine"]
    listed = server.http.get("/v1/models").json()
    assert listed["memory"]["used"] == sum(card["bytes"] for card in listed["data"][1:])


def test_loading_says_how_far_it_is(
    serve_fleet: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_fleet(models_dir=str(models(a=10)))
    slot = fleet_of(server).get("a")
    gate, made = threading.Event(), slot._make_app

    def held(entry: Any, *hooks: Any) -> Any:
        app = made(entry, *hooks)
        server.engine["a"][-1].may_load = gate
        return app

    monkeypatch.setattr(slot, "_make_app", held)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(server.http.post, "/v1/models/a/load")
        wait_until(lambda: slot.state is not None)
        assert server.http.get("/v1/models/a").json()["progress"] is None
        slot.loaded_state.progress.tell("reading", 1, 4)
        told = server.http.get("/v1/models/a").json()
        assert (told["status"], told["progress"]["completed"]) == ("loading", 1)
        gate.set()
        done = loading.result().json()
    assert (done["status"], done["progress"]) == ("ready", None)


def test_stopping_answers_those_who_wait_for_a_model(serve_fleet: Any, models: Any) -> None:
    server = serve_fleet(load_s={"a": 600.0}, models_dir=str(models(a=10)))
    answers: list[int] = []

    def ask() -> None:
        answers.append(server.post(COMPLETIONS, model="a", prompt="x").status_code)

    waiting = threading.Thread(target=ask)
    waiting.start()
    while status(server)["a"] != "loading":
        pass
    server.stop()
    waiting.join(60)
    assert answers == [503]


def test_models_are_named_by_flags() -> None:
    two = load_settings(["--model-path", "a", "--model-path", "b"], {})
    assert (two.model_path, two.also_serve) == ("a", ("b",))
    with pytest.raises(SettingsError, match="--model-path A --model-path B"):
        load_settings(["a", "b"], {})
    assert load_settings(["a", "--also-serve", "b"], {}).also_serve == ("b",)
    assert load_settings([], {"MLX_PARALLM_ALSO_SERVE": "a,b"}).also_serve == ("a", "b")


def test_what_cannot_be_is_said_at_the_start(models: Any) -> None:
    folder = str(models(a=1))
    for options, told in (
        ({"models_dir": folder, "pin_model": ("b",)}, "--pin-model b"),
        ({"models_dir": f"{folder}/none"}, "no such folder"),
        ({"model_path": "a", "also_serve": ("a",)}, "the same name"),
    ):
        with pytest.raises(SettingsError, match=told):
            entries_of(Settings(**options))
