"""Every store behind the one contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.memory.backends.backend import MemoryBackend
from mlx_parallm.memory.backends.faiss_backend import FAISSBackend
from mlx_parallm.memory.backends.stores import open_backend
from mlx_parallm.memory.document import Document, pack
from tests.memory import stores

LAYERS, HEADS, DIM = 2, 3, 8


def make_document(name: str, collection: str = "default", size: int = 5, **more: Any) -> Document:
    """A document with as many memories."""
    return Document(
        id=name,
        collection=collection,
        text="x" * size,
        offsets=np.stack([np.arange(size), np.arange(size) + 1], axis=1).astype(np.int32),
        indices=np.arange(size, dtype=np.int32),
        num_tokens=size,
        num_layers=LAYERS,
        dtype="float32",
        window=16,
        stride=8,
        fingerprint="f",
        **more,
    )


def make_layers(size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random K and V."""
    rng = np.random.default_rng(seed)
    return [
        tuple(rng.standard_normal((2, HEADS, size, DIM)).astype(np.float32)) for _ in range(LAYERS)
    ]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with stores.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with stores.postgres_server() as url:
        yield url


@pytest.fixture(params=["faiss", "sqlite", "redis", "postgres", "neo4j"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """What open_backend takes, of each store."""
    kind = request.param
    if kind in ("redis", "postgres"):
        return request.getfixturevalue(f"{kind}_url"), tmp_path
    return stores.neo4j_server() if kind == "neo4j" else kind, tmp_path


@pytest.fixture
def open_again(address: tuple[str, Path]) -> Iterator[Callable[[], MemoryBackend]]:
    """Opens the store; what was in it stays from one opening to the next."""
    opened: list[MemoryBackend] = []

    def make() -> MemoryBackend:
        opened.append(open_backend(*address))
        return opened[-1]

    yield make
    for backend in opened[1:]:
        backend.close()
    for collection in opened[0].collections() if opened else []:
        opened[0].delete_collection(collection.name)
    if opened:
        opened[0].close()


@pytest.fixture
def backend(open_again: Callable[[], MemoryBackend]) -> MemoryBackend:
    return open_again()


@pytest.fixture
def faiss_backend() -> Iterator[FAISSBackend]:
    found = FAISSBackend()
    yield found
    found.close()


def payload(size: int, seed: int) -> bytes:
    """K and V as they are stored."""
    return pack(make_layers(size, seed))
