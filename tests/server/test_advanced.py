"""/v1/generate, /v1/generate_batch, /v1/stats and /v1/configure on a real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.engine import mock
from tests.engine.brake import braked
from tests.models import architectures

PROMPTS = ["First prompt", "Second prompt", "Third prompt"]


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A server that speculates, so that everything can be configured."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=8, speculative="ngram"))
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


def test_generate(real: Any) -> None:
    body = {"prompt": PROMPTS[0], "max_tokens": 9, "temperature": 0, "ignore_eos": True}
    answer = real.ok("/v1/generate", **body, top_p=0.95, stream=False, use_speculative=True)
    completion = real.ok("/v1/completions", **body)
    assert answer["text"] == completion["choices"][0]["text"]
    assert answer["finish_reason"] == "length"
    assert (answer["prompt_tokens"], answer["generated_tokens"]) == (len(PROMPTS[0]), 9)
    assert len(answer["tokens"]) == 9
    assert answer["latency"] > 0
    status = real.http.get(f"/status/{answer['request_id']}").json()
    assert status["tokens_generated"] == 9


def test_use_speculative_false_never_guesses(real: Any) -> None:
    before = real.http.get("/v1/stats").json()["speculative_stats"]["drafted_tokens"]
    body = {"prompt": "abcabcabcabcabc", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    off = real.ok("/v1/generate", **body, use_speculative=False)
    after = real.http.get("/v1/stats").json()["speculative_stats"]["drafted_tokens"]
    assert before == after
    assert real.ok("/v1/generate", **body)["text"] == off["text"]


def test_a_stream_is_the_whole(real: Any) -> None:
    body = {"prompt": PROMPTS[1], "max_tokens": 9, "seed": 5, "ignore_eos": True}
    whole = real.ok("/v1/generate", **body)
    events = real.events("/v1/generate", **body)
    assert "".join(event["text"] for event in events) == whole["text"]
    assert events[-1]["finish_reason"] == "length"


def test_a_batch_is_its_prompts_alone(real: Any) -> None:
    body = {"max_tokens": 7, "temperature": 0, "ignore_eos": True}
    answer = real.ok("/v1/generate_batch", prompts=PROMPTS, **body)
    alone = [real.ok("/v1/generate", prompt=prompt, **body) for prompt in PROMPTS]
    assert [r["text"] for r in answer["results"]] == [a["text"] for a in alone]
    assert [r["tokens"] for r in answer["results"]] == [a["tokens"] for a in alone]
    assert answer["total_tokens"] == sum(len(p) + 7 for p in PROMPTS)


def test_each_text_of_a_batch_has_its_own_id(real: Any) -> None:
    answer = real.ok("/v1/generate_batch", prompts=PROMPTS, max_tokens=5, ignore_eos=True)
    ids = [result["request_id"] for result in answer["results"]]
    assert len({answer["request_id"], *ids}) == 4
    whole = real.http.get(f"/status/{answer['request_id']}").json()
    assert whole == {"status": "completed", "tokens_generated": 15, "tokens_remaining": 0}
    for one in ids:
        status = real.http.get(f"/status/{one}").json()
        assert status == {"status": "completed", "tokens_generated": 5, "tokens_remaining": 0}
    assert real.http.get(f"/status/{answer['request_id']}-3").status_code == 404
    refused = real.http.delete(f"/status/{ids[0]}")
    assert refused.status_code == 400
    assert answer["request_id"] in refused.json()["error"]["message"]
    # A request of one text has no parts.
    alone = real.ok("/v1/generate", prompt="x", max_tokens=2)["request_id"]
    assert real.http.get(f"/status/{alone}-0").status_code == 404


def test_the_mean_batch_is_of_steps_that_gave_tokens(helpers: Any) -> None:
    """Steps that compute a long prompt's chunks only are no batches of less than one row."""
    engine = Engine(
        lambda: mock.loaded(mock.MockModel(), mock.byte_tokenizer()), EngineConfig(prefill_chunk=16)
    )
    served = helpers.Served(create_app(Settings(), engine), engine, 0.5)
    try:
        served.wait_ready()
        engine.call(lambda: None).result()
        served.ok("/v1/generate", prompt="long " * 60, max_tokens=2, ignore_eos=True)
        batching = served.http.get("/v1/stats").json()["batching_stats"]
        assert (batching["total_batches"], batching["avg_batch_size"]) == (2, 1.0)
        served.ok("/v1/generate_batch", prompts=PROMPTS, max_tokens=4, ignore_eos=True)
        batching = served.http.get("/v1/stats").json()["batching_stats"]
        assert 1 < batching["avg_batch_size"] <= 3
    finally:
        served.stop()
        served.join()


def test_stats_count(real: Any) -> None:
    before = real.http.get("/v1/stats").json()
    real.ok("/v1/generate_batch", prompts=PROMPTS, max_tokens=8, ignore_eos=True)
    after = real.http.get("/v1/stats").json()
    assert after["total_requests"] > before["total_requests"]
    assert after["average_latency"] > 0
    batching = {n: v - before["batching_stats"][n] for n, v in after["batching_stats"].items()}
    assert batching["total_tokens"] == sum(map(len, PROMPTS)) + 3 * 8
    assert batching["total_batches"] >= 3
    assert 1 <= after["batching_stats"]["avg_batch_size"] <= 8
    assert 0 <= after["speculative_stats"]["acceptance_rate"] <= 1
    assert {"total_requests", "average_latency", "batching_stats"} <= set(after)


def test_configure_from_the_document(real: Any) -> None:
    query = {"use_speculative_decoding": "true", "max_batch_size": 16}
    answer = real.http.post("/v1/configure", params=query).json()
    assert answer["status"] == "configured"
    assert answer["config"]["use_speculative_decoding"] is True
    assert answer["config"]["max_batch_size"] == 16
    # What is not named stays.
    answer = real.http.post("/v1/configure", params={"batch_timeout_ms": 5}).json()
    assert answer["config"]["max_batch_size"] == 16
    assert answer["config"]["batch_timeout_ms"] == pytest.approx(5)
    off = real.http.post("/v1/configure", params={"use_speculative_decoding": "false"}).json()
    assert off["config"]["use_speculative_decoding"] is False
    body = {"prompt": "abababab", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    before = real.engine.stats().drafted_tokens
    plain = real.ok("/v1/generate", **body)["text"]
    assert real.engine.stats().drafted_tokens == before
    real.http.post("/v1/configure", params={"use_speculative_decoding": "true"})
    assert real.ok("/v1/generate", **body)["text"] == plain


def test_a_smaller_batch_holds_for_what_follows(helpers: Any) -> None:
    model = mock.MockModel()
    engine = Engine(
        lambda: mock.loaded(model, mock.byte_tokenizer()), EngineConfig(max_batch_size=8)
    )
    served = helpers.Served(create_app(Settings(), engine), engine, 0.5)
    try:
        served.wait_ready()
        assert served.http.post("/v1/configure?max_batch_size=1").status_code == 200
        body = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
        model.forwards.clear()
        answer = served.ok("/v1/generate_batch", prompts=PROMPTS, **body)
        assert {rows for rows, _ in model.forwards} == {1}
        for prompt, result in zip(PROMPTS, answer["results"], strict=True):
            ids = mock.byte_tokenizer().encode(prompt)
            assert result["tokens"] == mock.expected(ids, 20)
    finally:
        served.stop()
        served.join()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"max_batch_size": "0"}, "max_batch_size"),
        ({"max_batch_size": "many"}, "max_batch_size"),
        ({"use_speculative_decoding": "perhaps"}, "use_speculative_decoding"),
        ({"batch_timeout_ms": "-1"}, "batch_timeout_ms"),
        ({"batch_timeout_ms": "nan"}, "batch_timeout_ms"),
        ({"max_draft_tokens": "99"}, "max_draft_tokens"),
        ({"prefill_chunk": "0"}, "prefill_chunk"),
        ({"temperature": "1"}, "temperature"),
    ],
)
def test_configure_refuses(real: Any, query: dict[str, str], param: str) -> None:
    before = real.engine.config
    response = real.http.post("/v1/configure", params=query)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert real.engine.config == before


@pytest.mark.parametrize("where", ["params", "json"])
def test_ngrams_can_be_switched_on(llama_factory: Any, serve: Any, where: str) -> None:
    """The document's call, on a server that was started without speculation."""
    served = serve(Engine(llama_factory, EngineConfig()))
    body = {"prompt": "abababababab", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    plain = served.ok("/v1/generate", **body)
    options = {"use_speculative_decoding": True, "max_batch_size": 16}
    asked: Any = {where: options}
    answer = served.http.post("/v1/configure", **asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["config"] | options == answer.json()["config"]
    for _ in range(200):  # when guesses are made is decided by the clock
        assert served.ok("/v1/generate", **body)["tokens"] == plain["tokens"]
        stats = served.http.get("/v1/stats").json()["speculative_stats"]
        if stats["drafted_tokens"]:
            break
    assert stats["drafted_tokens"] > 0


def test_switched_on_while_sequences_run(helpers: Any) -> None:
    def load() -> LoadedModel:
        return mock.loaded(mock.MockModel(), mock.byte_tokenizer())

    engine = Engine(load, EngineConfig(max_batch_size=4))
    served = helpers.Served(create_app(Settings(), engine), engine, 0.5)
    try:
        served.wait_ready()
        body = {"max_tokens": 150, "temperature": 0, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool, braked(engine, steps=10) as brake:
            answer = pool.submit(served.ok, "/v1/generate_batch", prompts=PROMPTS, **body)
            brake.wait()
            options = {"use_speculative_decoding": True}
            assert served.http.post("/v1/configure", json=options).status_code == 200
            brake.release()
            for prompt, result in zip(PROMPTS, answer.result()["results"], strict=True):
                ids = mock.byte_tokenizer().encode(prompt)
                assert result["tokens"] == mock.expected(ids, 150)
        helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
        assert engine.stats().failed == 0
    finally:
        served.stop()
        served.join()


def test_configure_changes_all_or_nothing(real: Any) -> None:
    before = real.engine.config, real.engine.speculating
    for asked in (
        {"json": {"max_batch_size": 3, "prefill_chunk": 0}},
        {"json": {"max_batch_size": 3, "prefill_chunk": "7"}},
        {"params": {"max_batch_size": 3}, "json": {"prefill_chunk": 0}},
        {"params": {"max_batch_size": 3, "prefill_chunk": 0}},
    ):
        response = real.http.post("/v1/configure", **asked)
        assert response.status_code == 400, asked
        assert response.json()["error"]["param"] == "prefill_chunk"
        assert (real.engine.config, real.engine.speculating) == before
    for wrong, param in (({"max_batch": 3}, "max_batch"), ([], None), ("x", None)):
        response = real.http.post("/v1/configure", json=wrong)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    both = real.http.post("/v1/configure", params={"max_batch_size": 3}, json={"max_batch_size": 4})
    assert both.json()["error"]["param"] == "max_batch_size"
    assert (real.engine.config, real.engine.speculating) == before


def test_configure_needs_the_admin_key(llama_factory: Any, serve: Any) -> None:
    served = serve(Engine(llama_factory, EngineConfig()), admin_key=("secret",))
    query = "/v1/configure?max_batch_size=2"
    for headers in ({}, {"x-admin-key": "wrong"}):
        response = served.http.post(query, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"
    response = served.http.post(query, headers={"x-admin-key": "secret"})
    assert response.json()["config"]["max_batch_size"] == 2


def test_a_model_that_cannot_take_guesses_back(helpers: Any) -> None:
    """A recurrent state has no way back: everything in the same call stays as it was."""

    def load() -> LoadedModel:
        return mock.loaded(architectures.build("mamba2"), mock.byte_tokenizer())

    engine = Engine(load, EngineConfig(max_batch_size=4))
    served = helpers.Served(create_app(Settings(), engine), engine, 0.5)
    try:
        served.wait_ready()
        options = {"use_speculative_decoding": True, "max_batch_size": 2}
        response = served.http.post("/v1/configure", json=options)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "use_speculative_decoding"
        assert engine.config.max_batch_size == 4
        with pytest.raises(UnsupportedError):
            engine.configure(speculate=True)
    finally:
        served.stop()
        served.join()


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("/v1/generate", {"prompt": 5}, "prompt"),
        ("/v1/generate", {"prompt": "x", "n": 2}, "n"),
        ("/v1/generate", {"prompt": "x", "max_tokens": 10_000}, "max_tokens"),
        ("/v1/generate_batch", {"prompts": []}, "prompts"),
        ("/v1/generate_batch", {"prompts": ["x"] * 129}, "prompts"),
        ("/v1/generate_batch", {"prompts": ["x"], "stream": True}, "stream"),
        ("/v1/generate_batch", {"prompt": "x"}, None),
    ],
)
def test_wrong_input(real: Any, path: str, change: dict[str, Any], param: str | None) -> None:
    response = real.post(path, **change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
