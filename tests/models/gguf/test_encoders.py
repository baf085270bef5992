"""Encoders in GGUF files over HTTP: vectors, ranks and classes as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model, resolve
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models import llama_cpp, tiny_gguf, tiny_vocabularies
from tests.models.gguf import tiny_layers
from tests.models.many_scripts import texts
from tests.models.tiny_gguf import Shapes
from tests.waiting import wait_until

TABLE = 4e-3  # llama.cpp's GELU is a table of 16 bits
QUERY = "Which city is the capital of France?"
DOCUMENTS = texts(12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


@contextmanager
def served(file: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model_path=str(file)))) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


def chat_refusal(client: TestClient) -> str:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    return str(answer.json()["error"]["message"])


def test_vectors(tmp_path: Path) -> None:
    vocabulary, _ = tiny_vocabularies.word_piece(texts())
    file = tiny_gguf.write_vocabulary(tmp_path / "bert.gguf", vocabulary)
    # In some scripts llama.cpp's WordPiece is not BERT's, see test_gguf_tokenizers.
    plain = [text for text in texts() if text.isascii()][:12]
    assert len(plain) == 12
    with served(file) as client, llama_cpp.serve(file, encoder=True) as oracle:
        answer = client.post("/v1/embeddings", json={"input": plain}).json()
        for text, row in zip(plain, answer["data"], strict=True):
            right = oracle.embedding(oracle.ids(text))
            np.testing.assert_allclose(row["embedding"], right, atol=TABLE)
        refusal = chat_refusal(client)
        assert refusal.endswith("it has /v1/embeddings and /v1/rerank.")
        assert client.post("/v1/classifications", json={"input": "a"}).status_code == 400


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("nomic-bert", tiny_layers.nomic),
        ("jina-bert-v2", partial(tiny_layers.jina, fused=False)),
        ("jina-bert-v2", partial(tiny_layers.jina, fused=True)),
    ],
)
def test_vectors_of_other_encoders(
    architecture: str, layers: Callable[[int], Shapes], tmp_path: Path
) -> None:
    vocabulary, _ = tiny_vocabularies.word_piece(texts())
    file = tmp_path / "other.gguf"
    tiny_gguf.write_vocabulary(file, vocabulary, architecture=architecture, layers=layers)
    plain = [text for text in texts() if text.isascii()][:12]
    with served(file) as client, llama_cpp.serve(file, encoder=True) as oracle:
        answer = client.post("/v1/embeddings", json={"input": plain}).json()  # as one batch
        for text, row in zip(plain, answer["data"], strict=True):
            right = oracle.embedding(oracle.ids(text))
            np.testing.assert_allclose(row["embedding"], right, atol=TABLE)


def cross_encoder(folder: Path, kind: Kind = Kind.F32) -> Path:
    """As XLM-RoBERTa's rankers: one type of tokens, and two tokens between query and document."""
    vocabulary, _ = tiny_vocabularies.sentence_piece(texts(), "unigram")
    vocabulary.ids["seperator"] = vocabulary.ids["eos"]
    vocabulary.more |= {"add_bos_token": True, "add_eos_token": True, "add_sep_token": True}
    return tiny_gguf.write_vocabulary(
        folder / f"ranker-{kind.name}.gguf", vocabulary, head=["relevant"], types=1, kind=kind
    )


def test_ranks(tmp_path: Path) -> None:
    file = cross_encoder(tmp_path)
    with served(file) as client, llama_cpp.serve(file, ranker=True) as oracle:
        body = {"query": QUERY, "documents": DOCUMENTS}
        found = client.post("/v1/rerank", json=body).json()["results"]
        ours = {row["index"]: row["relevance_score"] for row in found}
        logits = np.array(oracle.ranking(QUERY, DOCUMENTS))
        right = 1 / (1 + np.exp(-logits))
        assert np.ptp(right) > 0.05
        np.testing.assert_allclose([ours[i] for i in range(len(DOCUMENTS))], right, atol=TABLE)
        assert [row["index"] for row in found] == sorted(ours, key=lambda i: -ours[i])


def test_classes(tmp_path: Path) -> None:
    vocabulary, _ = tiny_vocabularies.word_piece(texts())
    labels = ["angry", "glad", "calm"]
    file = tiny_gguf.write_vocabulary(
        tmp_path / "bert.gguf", vocabulary, head=labels, kind=Kind.Q8_0
    )
    head = {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in llama_cpp.tensors(file)
        if tensor.name.startswith("cls")
    }
    with served(file) as client:
        body = {"input": DOCUMENTS[0], "pooling": "cls", "normalize": False}
        vector = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
        hidden = np.tanh(head["cls.weight"] @ np.array(vector) + head["cls.bias"])
        powers = np.exp(head["cls.output.weight"] @ hidden + head["cls.output.bias"])
        row = client.post("/v1/classifications", json={"input": DOCUMENTS[0]}).json()["data"][0]
        np.testing.assert_allclose(row["probs"], powers / powers.sum(), atol=1e-4)
        assert row["label"] == labels[int(powers.argmax())]
        assert chat_refusal(client).endswith("/v1/classifications and /v1/rerank.")


def test_a_packed_head_is_unpacked(tmp_path: Path) -> None:
    plain, packed = cross_encoder(tmp_path), cross_encoder(tmp_path, Kind.Q8_0)
    heads = [load_model(str(file)).head for file in (plain, packed)]
    assert heads[0] is not None and heads[1] is not None
    np.testing.assert_allclose(heads[0].weight, heads[1].weight, atol=0.02)
    assert heads[1].labels == ("relevant",)


RANKING = (
    "<|im_start|>Judge.<|im_end|>\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>answer\n"
)


def ranking_decoder(folder: Path) -> Path:
    """As Qwen3's rankers."""
    file = folder / "ranker.gguf"
    vocab = len(tiny_gguf.vocabulary()[0])
    layers = [tiny_layers.attention(norms=True) | tiny_layers.mlp() for _ in range(2)]
    layers = [layer | {"ffn_norm.weight": (tiny_gguf.WIDTH,)} for layer in layers]
    shapes = tiny_layers.whole(vocab, layers, tied=True)
    shapes["cls.output.weight"] = (2, tiny_gguf.WIDTH)
    values = {"block_count": 2, "pooling_type": 4, "classifier.output_labels": ["yes", "no"]}
    template = [{"name": "rerank", "template": RANKING}]
    return tiny_gguf.write(file, "qwen3", values=values, shapes=shapes, template=template)


def test_ranks_of_a_decoder(tmp_path: Path) -> None:
    file = ranking_decoder(tmp_path)
    plain = [text for text in texts() if text.isascii()][:12]
    encode = load_model(str(file)).tokenizer.encode
    with served(file) as client, llama_cpp.serve(file, 1024, ranker=True) as oracle:
        body = {"query": QUERY, "documents": plain}
        found = client.post("/v1/rerank", json=body).json()["results"]
        ours = {row["index"]: row["relevance_score"] for row in found}
        right = oracle.ranking(QUERY, plain)
        assert np.ptp(right) > 0.05
        np.testing.assert_allclose([ours[i] for i in range(len(plain))], right, atol=1e-4)
        # What a client writes is no token, and no place, of the template.
        counts = []
        for query, document in (("a", "a"), ("{document}", "<|im_end|>")):
            written = {"query": query, "documents": [document]}
            answer = client.post("/v1/rerank", json=written).json()
            counts.append(answer["usage"]["prompt_tokens"] - len(encode(query)))
        assert counts[1] >= counts[0] + 3


def test_a_head_of_other_labels_is_named(tmp_path: Path) -> None:
    shapes: Shapes = {"token_embd.weight": (8, 64), "cls.output.weight": (2, 64)}
    values = {"classifier.output_labels": ["a", "b"]}
    file = tiny_gguf.write(tmp_path / "a.gguf", "qwen3", shapes=shapes, values=values)
    with pytest.raises(ModelLoadError, match=r"head of the labels \['a', 'b'\] is not supported"):
        resolve(str(file))


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    shapes = {"token_embd.weight": (8, 64), "token_types.weight": (64,)}
    file = tiny_gguf.write(tmp_path / "a.gguf", "bert", shapes=shapes)
    with pytest.raises(ModelLoadError, match="with tables of positions and of types"):
        resolve(str(file))
    shapes |= {"position_embd.weight": (8, 64), "cls.weight": (1, 64)}
    tiny_gguf.write(file, "bert", shapes=shapes)
    with pytest.raises(ModelLoadError, match=r"classification head without its cls\.output"):
        resolve(str(file))
