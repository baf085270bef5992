"""Embeddings, scores, ranking, rewards and classes against direct MLX computations."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import openai
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.settings import Settings
from tests.engine import mock

TEXTS = ["one", "Zürich ist schön", "x" * 90, "and a fourth text"]


@pytest.fixture(scope="module")
def model(llama_factory: Callable[..., LoadedModel]) -> LoadedModel:
    """The model that the engine runs too, for direct computations."""
    return llama_factory()


def _serve(helpers: Any, load: Callable[[], LoadedModel]) -> Iterator[Any]:
    engine = Engine(load, EngineConfig(max_batch_size=8, prefill_chunk=16))
    yield from helpers.until_idle(Settings(served_model_name=("tiny",)), engine)


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A language model on a real engine."""
    yield from _serve(helpers, llama_factory)


def hidden_of(model: LoadedModel, ids: list[int]) -> np.ndarray:
    """(T, D): the last hidden states, by one forward of the body without a cache."""
    return np.array(model.model.model(mx.array([ids]))[0].astype(mx.float32))


def unit(vector: np.ndarray) -> np.ndarray:
    """At length 1."""
    return np.asarray(vector / np.linalg.norm(vector))


def embedded(real: Any, **body: Any) -> list[np.ndarray]:
    """The vectors of /v1/embeddings."""
    answer = real.ok("/v1/embeddings", **body)
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [np.array(entry["embedding"]) for entry in answer["data"]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_the_models(real: Any, model: LoadedModel, pooling: str) -> None:
    for text, vector in zip(
        TEXTS, embedded(real, input=TEXTS, pooling=pooling, normalize=False), strict=True
    ):
        hidden = hidden_of(model, model.tokenizer.encode(text))
        direct = hidden[-1] if pooling == "last" else hidden.mean(axis=0)
        np.testing.assert_allclose(vector, direct, atol=1e-4)


def test_embedding_options(real: Any, model: LoadedModel) -> None:
    (plain,) = embedded(real, input=TEXTS[1])
    raw = hidden_of(model, model.tokenizer.encode(TEXTS[1]))[-1]
    np.testing.assert_allclose(plain, unit(raw), atol=1e-5)
    (short,) = embedded(real, input=TEXTS[1], dimensions=8)
    # Matryoshka: the first dimensions, at length 1 again.
    np.testing.assert_allclose(short, unit(raw[:8]), atol=1e-5)
    (unscaled,) = embedded(real, input=TEXTS[1], dimensions=8, normalize=False)
    np.testing.assert_allclose(unscaled, raw[:8], atol=1e-4)
    (prefixed,) = embedded(real, input="cats", instruction="Find animals")
    (spelled,) = embedded(real, input="Instruct: Find animals\nQuery:cats")
    np.testing.assert_allclose(prefixed, spelled, atol=1e-6)
    ids = model.tokenizer.encode(TEXTS[1])
    (by_ids,) = embedded(real, input=ids)
    np.testing.assert_allclose(by_ids, plain, atol=1e-6)
    several = embedded(real, input=[ids, ids[:3]])
    np.testing.assert_allclose(several[0], plain, atol=1e-5)
    np.testing.assert_allclose(several[1], unit(hidden_of(model, ids[:3])[-1]), atol=1e-5)


def test_base64_is_float(real: Any) -> None:
    floats = embedded(real, input=TEXTS)
    answer = real.ok("/v1/embeddings", input=TEXTS, encoding_format="base64")
    for vector, entry in zip(floats, answer["data"], strict=True):
        packed = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
        np.testing.assert_allclose(packed, vector, atol=1e-6)
    tokens = sum(len(text.encode()) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_the_openai_client(real: Any) -> None:
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none")
    # It asks for base64 and unpacks it.
    answer = client.embeddings.create(model="tiny", input=TEXTS, dimensions=16)
    assert [entry.object for entry in answer.data] == ["embedding"] * len(TEXTS)
    for entry, vector in zip(answer.data, embedded(real, input=TEXTS, dimensions=16), strict=True):
        np.testing.assert_allclose(entry.embedding, vector, atol=1e-6)
    assert answer.model == "tiny"
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input="x", dimensions=1000)
    assert caught.value.param == "dimensions"


def test_pooled_rows_and_others_are_alone(real: Any) -> None:
    """Law 1, with pooled rows among rows that generate."""

    def one(place: int) -> Any:
        text = f"text {place} " * (place % 5 + 1)
        if place % 2:
            return real.ok(
                "/v1/completions",
                prompt=text,
                max_tokens=8 + place,
                temperature=0.7,
                seed=place,
                ignore_eos=True,
            )["choices"][0]["text"]
        return embedded(real, input=[text, text[::-1]], pooling=["last", "mean"][place // 2 % 2])

    places = range(20)
    alone = [one(place) for place in places]
    with ThreadPoolExecutor(len(places)) as pool:
        together = list(pool.map(one, places))
    for mine, other in zip(alone, together, strict=True):
        if isinstance(mine, str):
            assert other == mine
        else:
            np.testing.assert_allclose(np.array(other), np.array(mine), atol=1e-5)


def test_score_is_the_log_likelihood(real: Any, model: LoadedModel) -> None:
    prompt, continuations = "The snake lives in", [" Africa.", " a box", " Zürich"]
    answer = real.ok("/v1/score", prompt=prompt, continuations=continuations)
    before = len(model.tokenizer.encode(prompt))
    for continuation, entry in zip(continuations, answer["data"], strict=True):
        ids = model.tokenizer.encode(prompt + continuation)
        logits = model.model(mx.array([ids]))[0].astype(mx.float32)
        table = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        own = [float(table[place - 1, ids[place]]) for place in range(before, len(ids))]
        assert entry["token_logprobs"] == pytest.approx(own, abs=1e-4)
        assert entry["score"] == pytest.approx(sum(own), abs=1e-4)
        assert entry["mean"] == pytest.approx(sum(own) / len(own), abs=1e-4)
        assert entry["tokens"] == len(own)


def test_rerank_by_cosine(real: Any) -> None:
    query, documents = "snake", ["snake", "snakes", "a totally different one"]
    answer = real.ok("/v1/rerank", query=query, documents=documents)
    first, *others = embedded(real, input=[query, *documents])
    cosines = [float(first @ other) for other in others]
    order = sorted(range(3), key=lambda place: -cosines[place])
    assert [entry["index"] for entry in answer["results"]] == order
    assert order[0] == 0
    for entry in answer["results"]:
        assert entry["relevance_score"] == pytest.approx(cosines[entry["index"]], abs=1e-5)
        assert entry["document"] == {"text": documents[entry["index"]]}
    best = real.ok("/v1/rerank", query=query, documents=documents, top_n=1, return_documents=False)[
        "results"
    ]
    assert [set(entry) for entry in best] == [{"index", "relevance_score"}]


@pytest.mark.parametrize("path", ["/v1/rewards/score", "/v1/classifications"])
def test_a_language_model_has_no_head(real: Any, path: str) -> None:
    response = real.post(path, input="x")
    assert response.status_code == 400
    assert "ForSequenceClassification" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": [99999]}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "x", "dimensions": 33}, "dimensions"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": "x", "pooling": "max"}, "pooling"),
        ("/v1/embeddings", {"input": [1, 2], "instruction": "i"}, "instruction"),
        ("/v1/embeddings", {"input": "x" * 600}, "input"),
        ("/v1/embeddings", {"input": "x", "model": "other"}, "model"),
        ("/v1/score", {"prompt": "", "continuations": ["x"]}, "prompt"),
        ("/v1/score", {"prompt": "x", "continuations": []}, "continuations"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "x", "documents": ["y"], "top_n": 0}, "top_n"),
    ],
)
def test_wrong_input(real: Any, path: str, body: dict[str, Any], param: str) -> None:
    response = real.post(path, **body)
    assert response.status_code == (404 if param == "model" else 400), response.text
    assert response.json()["error"]["param"] == param


# Heads


def _write_classifier(folder: Path, loaded: LoadedModel, kind: str, labels: int) -> np.ndarray:
    """A *ForSequenceClassification checkpoint with the model's body; gives its head."""
    weights = dict(tree_flatten(loaded.model.parameters()))
    weights.pop("lm_head.weight", None)
    size = loaded.config["hidden_size"]
    weights["score.weight"] = mx.random.normal((labels, size), key=mx.random.key(7))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    names = {str(i): f"class {i}" for i in range(labels)}
    config = loaded.config | {"architectures": [f"{kind}ForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
    mock.byte_tokenizer()._tokenizer.save_pretrained(folder)
    return np.array(weights["score.weight"])


def _tiny_qwen3(llama: LoadedModel) -> LoadedModel:
    config = llama.config | {"model_type": "qwen3", "head_dim": 8, "rope_theta": 10000.0}
    mx.random.seed(1)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return LoadedModel(
        **{**{f: getattr(llama, f) for f in llama.__dataclass_fields__}, "model": model}
        | {"config": config}
    )


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def kind(request: pytest.FixtureRequest) -> str:
    """The architecture."""
    return str(request.param)


@pytest.fixture(scope="module")
def body(kind: str, model: LoadedModel) -> LoadedModel:
    """The model below the head."""
    return model if kind == "Llama" else _tiny_qwen3(model)


@pytest.fixture(scope="module")
def classifier(
    kind: str, body: LoadedModel, helpers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, np.ndarray]]:
    """A server with three classes, and its head."""
    folder = tmp_path_factory.mktemp("classifier")
    head = _write_classifier(folder, body, kind, 3)
    for served in _serve(helpers, partial(load_model, str(folder))):
        yield served, head


@pytest.fixture(scope="module")
def rewarder(
    kind: str, body: LoadedModel, helpers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, np.ndarray]]:
    """A server with a reward model, and its head."""
    folder = tmp_path_factory.mktemp("rewarder")
    head = _write_classifier(folder, body, kind, 1)
    for served in _serve(helpers, partial(load_model, str(folder))):
        yield served, head


def test_classes(classifier: tuple[Any, np.ndarray], body: LoadedModel) -> None:
    served, head = classifier
    answer = served.ok("/v1/classifications", input=TEXTS)
    assert answer["labels"] == ["class 0", "class 1", "class 2"]
    for text, entry in zip(TEXTS, answer["data"], strict=True):
        logits = head @ hidden_of(body, body.tokenizer.encode(text))[-1]
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        assert entry["probs"] == pytest.approx(probs.tolist(), abs=1e-4)
        assert entry["label"] == f"class {int(logits.argmax())}"
        assert entry["num_classes"] == 3
    response = served.post("/v1/rewards/score", input="x")
    assert response.status_code == 400
    assert "3 labels" in response.json()["error"]["message"]


def test_rewards(rewarder: tuple[Any, np.ndarray], body: LoadedModel) -> None:
    served, head = rewarder

    def direct(text: str) -> float:
        return float((head @ hidden_of(body, body.tokenizer.encode(text))[-1])[0])

    answer = served.ok("/v1/rewards/score", input=TEXTS)
    assert [e["score"] for e in answer["data"]] == pytest.approx(
        [direct(text) for text in TEXTS], abs=1e-3
    )
    (alone,) = served.ok("/v1/rewards/score", input=TEXTS[2])["data"]
    assert alone["score"] == pytest.approx(answer["data"][2]["score"], abs=1e-4)
    # A head of one label ranks: query and document in one text.
    ranked = served.ok("/v1/rerank", query="q", documents=TEXTS)["results"]
    for entry in ranked:
        logit = direct(f"q\n{TEXTS[entry['index']]}")
        assert entry["relevance_score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    scores = [entry["relevance_score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True)


def test_a_classifier_without_its_head(tmp_path: Path, model: LoadedModel) -> None:
    _write_classifier(tmp_path, model, "Llama", 1)
    weights: Any = mx.load(str(tmp_path / "model.safetensors"))
    del weights["score.weight"]
    mx.eval(weights)
    (tmp_path / "model.safetensors").unlink()
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    with pytest.raises(ModelLoadError, match=r"score\.weight"):
        load_model(str(tmp_path))
