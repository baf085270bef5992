"""Which store memories are kept in, by its address."""

from __future__ import annotations

from pathlib import Path

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.memory.backends.backend import MemoryBackend


def open_backend(address: str | None, folder: Path | None) -> MemoryBackend:
    """The store at an address.

    Args:
        address: "redis://...", "postgresql://...", "neo4j://...", "bolt://...", "sqlite" or
            "faiss"; None is SQLite where there is a folder and FAISS, in memory, else.
        folder: for SQLite.

    Raises:
        MemoryStoreError: the store cannot be reached.
        InvalidRequestError: an unknown kind, or its client library is missing.
    """
    kind = (address or ("sqlite" if folder else "faiss")).partition("://")[0]
    if kind == "faiss":
        from mlx_parallm.memory.backends.faiss_backend import FAISSBackend

        return FAISSBackend()
    if kind == "sqlite":
        from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend

        if folder is None:
            raise InvalidRequestError("Memories in SQLite need --memory-dir.")
        return SQLiteBackend(folder)
    if kind in ("redis", "rediss", "unix"):
        from mlx_parallm.memory.backends.redis_backend import RedisBackend

        return RedisBackend(str(address))
    if kind in ("postgresql", "postgres"):
        from mlx_parallm.memory.backends.postgres_backend import PostgresBackend

        return PostgresBackend(str(address))
    if kind.startswith(("neo4j", "bolt")):
        from mlx_parallm.memory.backends.neo4j_backend import Neo4jBackend

        return Neo4jBackend(str(address))
    raise InvalidRequestError(
        f"There is no memory store of the kind {kind!r}; "
        "known are sqlite, faiss, redis://, postgresql:// and neo4j://."
    )
