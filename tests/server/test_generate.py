"""/generate, /status and /model_info: the shapes of their documents, with measured figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.flow.registry import KEPT, Registry
from mlx_parallm.server.main import create_app
from mlx_parallm.server.memory_meter import MemoryMeter
from mlx_parallm.server.output.json_text import compact
from mlx_parallm.settings import Settings
from tests.engine import mock
from tests.engine.brake import braked
from tests.waiting import PATIENCE_S

PROMPT = "Mamba is a type of snake that"
STATM = Path("/proc/self/statm")
# The example request of the document.
REQUEST = {
    "prompt": PROMPT,
    "max_tokens": 12,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
}
SHAPE: dict[str, Any] = {
    "statistics": {"prompt_length": int, "generated_tokens": int, "total_tokens": int},
    "speed_metrics": {
        "prefill_time": float,
        "prefill_speed": float,
        "decode_time": float,
        "decode_speed": float,
        "avg_latency": float,
        "total_time": float,
    },
    "memory_usage": {
        "device_type": str,
        "initial_memory": float,
        "current_memory": float,
        "peak_memory": float,
        "memory_used": float,
        "tracking_available": bool,
        "resident_memory": float if STATM.exists() else type(None),
        "scope": str,
    },
    "quality_metrics": {
        "avg_log_prob": float,
        "perplexity": float,
        "num_repeats": int,
        "most_repeated": list,
    },
    "parameters": {
        "temperature": float,
        "top_k": int,
        "top_p": float,
        "repetition_penalty": float,
        "max_tokens": int,
    },
}
STEP = {"step": int, "token_id": int, "token_text": str, "log_probability": float}
CANDIDATE = {"token_id": int, "token_text": str, "probability": float, "log_probability": float}


@pytest.fixture(scope="module")
def model(llama_factory: Callable[..., LoadedModel]) -> LoadedModel:
    """The model that the engine runs too, for direct computations."""
    return llama_factory()


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A server on a real engine."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=8))
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


@pytest.fixture
def single(helpers: Any) -> Iterator[Any]:
    """A server with one row."""

    def load() -> LoadedModel:
        return mock.loaded(mock.MockModel(), mock.byte_tokenizer())

    engine = Engine(load, EngineConfig(max_batch_size=1))
    served = helpers.Served(create_app(Settings(), engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


def assert_shape(value: dict[str, Any], shape: dict[str, Any]) -> None:
    """Every name of the document, with its type."""
    for name, kind in shape.items():
        assert name in value, name
        if isinstance(kind, dict):
            assert set(value[name]) == set(kind)
            assert_shape(value[name], kind)
        else:
            # JSON has one kind of number.
            assert isinstance(value[name], (int, float) if kind is float else kind), name


def logprobs_of(model: LoadedModel, ids: list[int]) -> np.ndarray:
    """(T, V): of every next token, by one forward without a cache."""
    logits = model.model(mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def test_the_documents_answer(real: Any) -> None:
    answer = real.ok("/generate", **REQUEST, include_top_k_candidates=True, ignore_eos=True)
    assert_shape(answer, SHAPE)
    assert answer["prompt"] == PROMPT
    assert answer["generated_text"] == PROMPT + answer["generated_only"]
    assert answer["parameters"] == {n: v for n, v in REQUEST.items() if n != "prompt"}
    prompt, generated = len(PROMPT.encode()), len(answer["tokens"])
    assert answer["statistics"] == {
        "prompt_length": prompt,
        "generated_tokens": generated,
        "total_tokens": prompt + generated,
    }
    assert answer["total_tokens"] == prompt + generated
    assert generated == REQUEST["max_tokens"]
    assert len(answer["generation_steps"]) == generated
    for place, step in enumerate(answer["generation_steps"]):
        assert_shape(step, STEP)
        assert set(step) == {*STEP, "top_k_candidates"}
        assert step["step"] == place
        assert step["token_id"] == answer["tokens"][place]
        assert len(step["top_k_candidates"]) == 50
        for candidate in step["top_k_candidates"]:
            assert_shape(candidate, CANDIDATE)
            assert set(candidate) == set(CANDIDATE)
            probability = math.exp(candidate["log_probability"])
            assert candidate["probability"] == pytest.approx(probability)


def test_defaults_are_the_documents(real: Any) -> None:
    answer = real.ok("/generate", prompt="x", top_k=None, top_p=None, ignore_eos=True)
    assert answer["parameters"] == {
        "temperature": 0.7,
        "top_k": None,
        "top_p": None,
        "repetition_penalty": 1.0,
        "max_tokens": 50,
    }
    assert "generation_steps" not in answer
    assert answer["statistics"]["generated_tokens"] == 50


def test_the_figures_are_the_models(real: Any, model: LoadedModel) -> None:
    body = {"prompt": PROMPT, "max_tokens": 10, "temperature": 0, "ignore_eos": True}
    answer = real.ok("/generate", **body, include_top_k_candidates=True, top_k=5)
    ids = [*model.tokenizer.encode(PROMPT), *answer["tokens"]]
    table = logprobs_of(model, ids)[-len(answer["tokens"]) - 1 : -1]
    own = [float(row[token]) for row, token in zip(table, answer["tokens"], strict=True)]
    steps = answer["generation_steps"]
    assert [step["log_probability"] for step in steps] == pytest.approx(own, abs=1e-4)
    for step, row in zip(steps, table, strict=True):
        best = np.argsort(-row)[:5].tolist()
        assert [c["token_id"] for c in step["top_k_candidates"]] == best
    quality = answer["quality_metrics"]
    assert quality["avg_log_prob"] == pytest.approx(sum(own) / len(own), abs=1e-4)
    assert quality["perplexity"] == pytest.approx(math.exp(-sum(own) / len(own)), rel=1e-4)
    repeats = len(answer["tokens"]) - len(set(answer["tokens"]))
    assert quality["num_repeats"] == repeats
    speed = answer["speed_metrics"]
    total = speed["total_time"]
    assert total > 0
    assert speed["prefill_time"] + speed["decode_time"] == pytest.approx(total)
    assert speed["avg_latency"] == pytest.approx(1e3 * total / 10)
    memory = answer["memory_usage"]
    assert 0 < memory["current_memory"] <= memory["peak_memory"]


@pytest.mark.parametrize(
    ("top_k", "shown"), [(None, 10), (1, 1), (50, 50), (200, 200), (1000, mock.VOCAB)]
)
def test_as_many_candidates_as_top_k(real: Any, top_k: int | None, shown: int) -> None:
    body = {"prompt": "x", "max_tokens": 2, "top_k": top_k, "ignore_eos": True}
    for step in real.ok("/generate", **body, include_top_k_candidates=True)["generation_steps"]:
        candidates = step["top_k_candidates"]
        assert len(candidates) == len({c["token_id"] for c in candidates}) == shown
        odds = [c["log_probability"] for c in candidates]
        assert odds == sorted(odds, reverse=True)
        assert shown < mock.VOCAB or sum(c["probability"] for c in candidates) == pytest.approx(1)


def test_memory_figures_are_of_the_requests_own_time(real: Any) -> None:
    mib = 1 << 20
    real.engine.call(lambda: mx.eval(mx.ones((64 * mib,), mx.uint8) + 1)).result()
    memory = real.ok("/generate", prompt="x", max_tokens=2)["memory_usage"]
    assert memory["scope"] == "process"
    # What was used before this request is not in its peak.
    assert memory["peak_memory"] < memory["initial_memory"] + 64
    assert 0 < memory["initial_memory"] <= memory["peak_memory"]
    assert 0 <= memory["memory_used"] <= memory["current_memory"] <= memory["peak_memory"]
    assert memory["tracking_available"] is True
    if not STATM.exists():
        return
    with STATM.with_name("status").open() as status:
        kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert memory["resident_memory"] == pytest.approx(kilobytes * 1.024e-3, rel=0.2)


def test_a_meter_keeps_its_peak_when_another_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    first = MemoryMeter()
    large = mx.zeros((32 << 20,), mx.uint8) + 1
    mx.eval(large)
    del large
    second = MemoryMeter()
    assert first.read()["peak_memory"] > second.read()["peak_memory"] + 30
    assert first.read()["memory_used"] >= 0
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    assert first.read()["tracking_available"] is False
    assert first.read()["memory_used"] == 0


def test_a_stream_is_the_whole(real: Any) -> None:
    body = REQUEST | {"seed": 3, "include_top_k_candidates": True, "ignore_eos": True}
    whole = real.ok("/generate", **body)
    *events, last = real.events("/generate", **body)
    assert "".join(event["text"] for event in events) == whole["generated_only"]
    assert [token for event in events for token in event["tokens"]] == whole["tokens"]
    steps = [step for event in events for step in event["generation_steps"]]
    assert [s["token_id"] for s in steps] == whole["tokens"]
    assert [s["step"] for s in steps] == list(range(len(steps)))
    assert last["generated_text"] == whole["generated_text"]
    for name, value in whole["quality_metrics"].items():
        same = value if isinstance(value, list) else pytest.approx(value, abs=1e-4)
        assert last["quality_metrics"][name] == same
    assert_shape(last, SHAPE)
    assert events[-1]["finish_reason"] == "length"


def test_status_after_the_end(real: Any) -> None:
    answer = real.ok("/generate", prompt="x", max_tokens=4, ignore_eos=True)
    status = real.http.get(f"/status/{answer['request_id']}")
    assert status.json() == {"status": "completed", "tokens_generated": 4, "tokens_remaining": 0}


def test_an_unknown_request(real: Any) -> None:
    response = real.http.get("/status/nobody")
    assert response.status_code == 404
    assert response.json()["status"] == "not_found"
    assert response.json()["error"]["param"] == "request_id"
    response = real.http.delete("/status/nobody")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("stream", [False, True])
def test_cancel_frees_the_row_and_answers(single: Any, helpers: Any, stream: bool) -> None:
    long = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": stream}

    def progress() -> dict[str, Any]:
        found: dict[str, Any] = single.http.get("/status/mine").json()
        return found

    with ThreadPoolExecutor(2) as pool:
        headers = {"x-request-id": "mine"}
        with braked(single.engine):
            running = pool.submit(single.http.post, "/generate", json=long, headers=headers)
            helpers.wait_until(lambda: progress().get("tokens_generated", 0) > 2)
            status = progress()
            assert status["status"] == "processing"
            assert status["tokens_generated"] + status["tokens_remaining"] == 400
            short = {"prompt": "y", "max_tokens": 2, "ignore_eos": True}
            waiting = pool.submit(single.post, "/generate", **short)
            helpers.wait_until(lambda: single.engine.num_live == 2)
            assert single.http.delete("/status/mine").json()["status"] == "cancelled"
            assert progress()["status"] == "cancelled"
        answer = running.result(PATIENCE_S)
        if stream:
            assert answer.status_code == 200
            *_, last = helpers.parse_events(answer.text, done=False)
            assert last["error"]["code"] == "request_cancelled"
        else:
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "request_cancelled"
        # The row is free: who waited for it is served.
        assert waiting.result(PATIENCE_S).json()["statistics"]["generated_tokens"] == 2
    helpers.wait_until(lambda: single.engine.num_live == 0 and single.engine.stats().rows == 0)
    assert single.engine.stats().aborted == 1
    # Once more is no error, and changes nothing.
    assert single.http.delete("/status/mine").json() == progress()


def test_cancel_before_the_start(single: Any, helpers: Any) -> None:
    long = {"prompt": "x", "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(2) as pool, braked(single.engine):
        pool.submit(single.http.post, "/generate", json=long, headers={"x-request-id": "first"})
        helpers.wait_until(lambda: single.engine.stats().running == 1)
        second = pool.submit(
            single.http.post, "/generate", json=long, headers={"x-request-id": "second"}
        )
        helpers.wait_until(lambda: single.http.get("/status/second").status_code == 200)
        assert single.http.delete("/status/second").status_code == 200
        assert second.result(PATIENCE_S).status_code == 409
        assert single.http.get("/status/first").json()["status"] == "processing"
        assert single.http.delete("/status/first").status_code == 200
    helpers.wait_until(lambda: single.engine.num_live == 0)


def test_the_registry_is_bounded() -> None:
    class Ended:
        ended, ended_at = True, math.inf  # never too old

    class Running:
        ended, ended_at = False, None

    registry = Registry()
    running: Any = Running()
    registry.add("running", running)
    for place in range(KEPT + 50):
        ended: Any = Ended()
        registry.add(f"{place}", ended)
    assert registry.find("0") is None
    assert registry.find(f"{KEPT + 49}") is not None
    assert registry.find("running") is running
    assert len(registry._entries) <= KEPT + 1


def test_model_info_of_a_config_with_infinity(
    serve: Any, llama_factory: Callable[..., LoadedModel]
) -> None:
    """As checkpoints of mamba_ssm have it: JSON has no infinity."""
    server = serve()
    server.engine.loaded.config.update(
        time_step_limit=(0.0, float("inf")), other={"nan": float("nan"), "layers": [1, 2.5]}
    )
    response = server.http.get("/model_info")
    assert response.status_code == 200, response.text
    config = json.loads(response.text, parse_constant=lambda name: pytest.fail(name))["config"]
    assert config["time_step_limit"] == [0.0, None]
    assert config["other"] == {"nan": None, "layers": [1, 2.5]}


def test_events_are_finite_too() -> None:
    assert compact({"a": [float("-inf"), 1.5], float("nan"): 1}) == '{"a":[null,1.5],"nan":1}'


def test_model_info(real: Any, model: LoadedModel) -> None:
    info = real.http.get("/model_info").json()
    assert info["config"] == model.config
    assert info["device"] == str(mx.default_device())
    assert info["dtype"] == "float32"
    assert info["quantization"] is None
    assert info["num_parameters"] == model.num_parameters
    assert info["max_model_len"] == mock.CONTEXT
    assert set(info["blas"]) == {"name", "path", "source"}
    assert info["cache"]["kv_tokens"] > 0


def test_the_documents_ranges_are_served(real: Any) -> None:
    body = {"prompt": "x", "ignore_eos": True}
    for change in ({"max_tokens": 1}, {"max_tokens": 500}, {"repetition_penalty": 2}):
        answer = real.ok("/generate", **body, **({"max_tokens": 2} | change))
        assert answer["parameters"] | change == answer["parameters"]
    assert len(real.ok("/generate", **body, max_tokens=500)["tokens"]) == 500


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"n": 2}, "n"),
        ({"include_top_k_candidates": "yes"}, "include_top_k_candidates"),
        ({"surprise": 1}, "surprise"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"repetition_penalty": 11}, "repetition_penalty"),
        ({"top_k": 1001, "include_top_k_candidates": True}, "top_k"),
    ],
)
def test_wrong_input(real: Any, change: dict[str, Any], param: str) -> None:
    response = real.post("/generate", **(REQUEST | change))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
