"""The HTTP side on a real engine: what goes over the wire is what the model says alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.engine.brake import braked
from tests.waiting import PATIENCE_S

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def model(llama_factory: Callable[..., LoadedModel]) -> LoadedModel:
    """A tiny random Llama. The engine's thread makes its own: arrays belong to a thread."""
    return llama_factory()


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A server on a real engine."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=8))
    app = create_app(Settings(served_model_name=("tiny",)), engine)
    served = helpers.Served(app, engine, 0.5)
    served.wait_ready()
    yield served
    # Law 4: nothing is left in the engine.
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


def logprobs_of(model: LoadedModel, ids: list[int]) -> mx.array:
    """(T - 1, V): of every next token, by one forward without a cache."""
    logits: mx.array = model.model(mx.array([ids]))[0, :-1].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def direct_score(model: LoadedModel, ids: list[int]) -> list[float]:
    """The logprob of every token but the first."""
    if len(ids) == 1:
        return []
    table = np.array(logprobs_of(model, ids))
    return [float(table[place, token]) for place, token in enumerate(ids[1:])]


_ids = st.lists(st.integers(3, 258), min_size=1, max_size=40)


@given(prompts=st.lists(_ids, min_size=1, max_size=8), top=st.integers(0, 5))
@settings(max_examples=8)
def test_echoed_logprobs_are_the_models(
    real: Any, model: LoadedModel, prompts: list[list[int]], top: int
) -> None:
    answer = real.ok(
        COMPLETIONS, prompt=prompts, max_tokens=1, temperature=0, echo=True, logprobs=top
    )
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(prompts)))
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        values = logprobs["token_logprobs"]
        assert len(values) == len(prompt) + 1
        assert values[0] is None
        assert values[1:-1] == pytest.approx(direct_score(model, prompt), abs=1e-4)
        if top:
            # The generated token is the argmax, and every table contains its own.
            assert values[-1] == pytest.approx(max(logprobs["top_logprobs"][-1].values()))
            for table, place in zip(
                logprobs["top_logprobs"][1:-1], range(len(prompt) - 1), strict=True
            ):
                best = float(np.array(logprobs_of(model, prompt))[place].max())
                assert max(table.values()) == pytest.approx(best, abs=1e-4)


def test_reports_are_of_the_distribution_that_was_drawn_from(real: Any, model: LoadedModel) -> None:
    prompt, named = [50, 60, 70], [200, 7, 100]
    raw = np.array(logprobs_of(model, [*prompt, 5]))[-1].astype(np.float64)
    allowed = sorted({*np.argsort(raw)[-40:].tolist(), *named})
    drawn = np.full(len(raw), -np.inf)
    drawn[allowed] = raw[allowed] / 0.7
    drawn[drawn < np.sort(drawn)[-30]] = -np.inf
    request: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0.7,
        "top_k": 30,
        "allowed_token_ids": allowed,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "n": 4,
        "seed": 3,
    }
    log_sum = float(np.log(np.exp(drawn).sum()))
    for mode, table in (("raw_logprobs", raw), ("processed_logprobs", drawn - log_sum)):
        answer = real.ok(
            COMPLETIONS, **request, logprobs=0, logprobs_mode=mode, logprob_token_ids=named
        )
        for choice in answer["choices"]:
            found = choice["logprobs"]["top_logprobs"][0]
            token = choice["token_ids"][0]
            assert set(found) == {f"token_id:{i}" for i in [*named, token]}
            assert drawn[token] > -np.inf
            for place in [*named, token]:
                wanted = max(table[place], -9999.0)
                assert found[f"token_id:{place}"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
)
def test_a_prompts_scores_are_the_models_own(real: Any, model: LoadedModel, mode: str) -> None:
    """vLLM's: log-probabilities or logits, by the mode; no temperature or cut changes them."""
    prompt = [50, 60, 70, 80]
    request = {"prompt": prompt, "max_tokens": 1, "temperature": 0.5, "top_k": 3, "seed": 1}
    answer = real.ok(COMPLETIONS, **request, prompt_logprobs=1, logprobs_mode=mode)
    logits = np.array(model.model(mx.array([prompt]))[0])
    table = logits if "logits" in mode else np.array(logprobs_of(model, prompt))
    scores = answer["choices"][0]["prompt_logprobs"]
    assert scores[0] is None
    for place, token in enumerate(prompt[1:]):
        assert scores[place + 1][str(token)]["logprob"] == pytest.approx(
            float(table[place, token]), abs=1e-3
        )


def test_allowed_tokens_and_a_grammar_exclude_each_other(real: Any) -> None:
    request = {"prompt": "a", "structured_outputs": {"regex": "[ab]+"}}
    assert real.ok(COMPLETIONS, **request)["choices"][0]["text"]
    response = real.post(COMPLETIONS, **request, allowed_token_ids=[7])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "allowed_token_ids"


def one(real: Any, place: int) -> tuple[Any, ...]:
    """A request that depends on its place, whole or as a stream, and what came of it."""
    request: dict[str, Any] = {
        "prompt": f"request {place} " * (place % 4 + 1),
        "max_tokens": 5 + place % 7,
        "temperature": [0, 0.8, 1.3][place % 3],
        "top_p": [1, 0.9][place % 2],
        "top_k": [0, 20][place // 2 % 2],
        "repetition_penalty": [1, 1.2][place // 3 % 2],
        "seed": place,
        "n": 1 + place % 2,
        "logprobs": [None, 2][place // 5 % 2],
        "ignore_eos": True,
    }
    if place % 2:
        events = real.events(COMPLETIONS, **request, stream_options={"include_usage": True})
        usage = events.pop()["usage"]
        choices = [event["choices"][0] for event in events]
        texts = [
            "".join(c["text"] for c in choices if c["index"] == index)
            for index in range(request["n"])
        ]
    else:
        answer = real.ok(COMPLETIONS, **request)
        texts, usage = [choice["text"] for choice in answer["choices"]], answer["usage"]
    return (*texts, usage["completion_tokens"])


def test_together_is_alone(real: Any) -> None:
    places = range(24)
    alone = [one(real, place) for place in places]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda place: one(real, place), places))
    assert together == alone
    assert all(
        count == (5 + place % 7) * (1 + place % 2) for place, (*_, count) in enumerate(alone)
    )


def test_a_disconnect_frees_the_rows(real: Any, helpers: Any) -> None:
    body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 4}
    url = real.url + COMPLETIONS
    with braked(real.engine):
        with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as response:
            next(response.iter_bytes())
        helpers.wait_until(lambda: real.engine.num_live == 0)
    helpers.wait_until(lambda: real.engine.stats().rows == 0)
    assert real.engine.stats().aborted >= 4


def test_lm_eval_agrees_with_a_direct_computation(
    real: Any, model: LoadedModel, tmp_path: Path
) -> None:
    lm_eval = pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance

    model.tokenizer._tokenizer.save_pretrained(tmp_path)
    client = lm_eval.LocalCompletionsAPI(
        model="tiny",
        base_url=real.url + COMPLETIONS,
        tokenizer_backend="huggingface",
        tokenizer=str(tmp_path),
        batch_size=3,
        max_length=512,
    )
    texts = [("one two", " three"), ("a", "b"), ("Zürich ist", " schön"), ("x" * 50, "yz")]
    requests = [
        Instance("loglikelihood", {}, arguments=pair, idx=idx) for idx, pair in enumerate(texts)
    ]
    answers = client.loglikelihood(requests, disable_tqdm=True)
    for (score, greedy), (context, continuation) in zip(answers, texts, strict=True):
        start = len(model.tokenizer.encode(context))
        ids = model.tokenizer.encode(context + continuation)
        assert score == pytest.approx(sum(direct_score(model, ids)[start - 1 :]), abs=1e-4)
        best = logprobs_of(model, ids)[start - 1 :].argmax(axis=-1).tolist()
        assert greedy == (best == ids[start:])
