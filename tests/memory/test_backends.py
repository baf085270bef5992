"""The contract of memory stores, on every one of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.memory.backends import backend as backends
from mlx_parallm.memory.backends.backend import MemoryBackend
from mlx_parallm.memory.backends.faiss_backend import FAISSBackend, make_index
from mlx_parallm.memory.backends.store_errors import MemoryStoreError
from mlx_parallm.memory.backends.stores import open_backend
from tests.memory.conftest import DIM, make_document, make_layers, payload


def ids(backend: MemoryBackend) -> dict[str, list[str]]:
    return {c.name: [d.id for d in c.documents] for c in backend.collections()}


def versions(backend: MemoryBackend) -> dict[str, int]:
    return {c.name: c.version for c in backend.collections()}


def test_documents_come_back_whole_and_in_order(backend: MemoryBackend) -> None:
    made = [
        make_document(name, size=3 + place, metadata={"n": place})
        for place, name in enumerate("cab")
    ]
    given = [
        backend.put(document, payload(document.num_memories, place))
        for place, document in enumerate(made)
    ]
    (found,) = backend.collections()
    assert found.version == given[2] == given[1] + 1 == given[0] + 2
    for place, (one, other) in enumerate(zip(found.documents, made, strict=True)):
        assert one.header() == other.header()
        assert (one.offsets == other.offsets).all() and one.metadata == {"n": place}
        assert backend.payload(one.uid) == payload(one.num_memories, place)


def test_a_payload_of_many_parts(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "PART_BYTES", 1000)
    document = make_document("large", size=100)
    backend.put(document, payload(100, 1))
    assert backend.payload(document.uid) == payload(100, 1)


def test_a_document_takes_the_place_of_its_namesake(backend: MemoryBackend) -> None:
    old, new = make_document("a"), make_document("a", size=7)
    first = backend.put(old, payload(5, 0))
    backend.put(make_document("b"), payload(5, 1))
    backend.put(make_document("a", collection="other"), payload(5, 2))
    assert backend.put(new, payload(7, 3)) == first + 2
    assert ids(backend) == {"default": ["b", "a"], "other": ["a"]}
    assert backend.payload(new.uid) == payload(7, 3)
    with pytest.raises(MemoryStoreError, match="gone"):
        backend.payload(old.uid)


def test_what_is_deleted_is_gone_and_versions_go_on(backend: MemoryBackend) -> None:
    documents = {name: make_document(name) for name in "abc"}
    third = [backend.put(document, payload(5, 0)) for document in documents.values()][2]
    assert backend.delete_document("default", "b")
    assert not backend.delete_document("default", "b")
    assert not backend.delete_document("nope", "a")
    assert ids(backend) == {"default": ["a", "c"]} and versions(backend) == {"default": third + 1}
    assert backend.delete_collection("default") and not backend.delete_collection("default")
    assert backend.collections() == []
    for document in documents.values():
        with pytest.raises(MemoryStoreError):
            backend.payload(document.uid)
    assert backend.put(make_document("a"), payload(5, 0)) > third + 1


def test_stores_outlive_the_process_if_they_say_so(
    open_again: Callable[[], MemoryBackend],
) -> None:
    first = open_again()
    document = make_document("a")
    first.put(document, payload(5, 0))
    second = open_again()
    assert ids(second) == ({"default": ["a"]} if first.durable else {})
    if first.durable:
        assert second.payload(document.uid) == payload(5, 0)
        second.put(make_document("b"), payload(5, 1))
        assert ids(first) == {"default": ["a", "b"]}


def test_threads_may_write_at_the_same_time(backend: MemoryBackend) -> None:
    documents = [make_document(f"d{place}") for place in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda d: backend.put(d, payload(5, 0)), documents))
    assert sorted(found) == list(range(min(found), min(found) + 12))
    assert sorted(ids(backend)["default"]) == sorted(d.id for d in documents)


def test_search_finds_the_most_similar_keys(backend: MemoryBackend) -> None:
    document, layers = make_document("a", size=50), make_layers(50, 4)
    backend.put(document, backends_pack(layers))
    queries = np.random.default_rng(9).standard_normal((6, DIM)).astype(np.float32)
    for layer, head in [(0, 0), (1, 2)]:
        keys = layers[layer][0][head]
        cosine = queries @ keys.T / np.linalg.norm(keys, axis=1)
        cosine /= np.linalg.norm(queries, axis=1, keepdims=True)
        places, similarities = backend.search(document.uid, layer, head, queries, 4)
        assert (places == np.argsort(-cosine, axis=1)[:, :4]).all()
        assert np.allclose(similarities, -np.sort(-cosine, axis=1)[:, :4], atol=1e-5)
    places, _ = backend.search(document.uid, 0, 0, queries, 1000)
    assert places.shape == (6, 50) and (places >= 0).all()


def backends_pack(layers: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    from mlx_parallm.memory.document import pack

    return pack(layers)


def test_faiss_searches_a_graph_above_a_size(faiss_backend: FAISSBackend) -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((2000, 16)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    queries = keys[:50] + 0.1 * rng.standard_normal((50, 16)).astype(np.float32)
    _, exact = make_index(keys).search(queries, 10)
    index = make_index(keys, hnsw_above=1000)
    assert type(index).__name__ == "IndexHNSWFlat"
    _, found = index.search(queries, 10)
    same = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(same) > 9


def test_a_store_that_is_not_there_says_so(tmp_path: Path) -> None:
    for address in ("redis://127.0.0.1:1/0", "postgresql://nobody@127.0.0.1:1/x"):
        missing = (MemoryStoreError, InvalidRequestError)  # the store, or its package
        with pytest.raises(missing, match=r"cannot be used|package"):
            open_backend(address, None)
    with pytest.raises(InvalidRequestError, match="kind 'mongo'"):
        open_backend("mongo://x", None)
    with pytest.raises(InvalidRequestError, match="--memory-dir"):
        open_backend("sqlite", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryStoreError, match="cannot hold memories"):
        open_backend(None, tmp_path / "file")
