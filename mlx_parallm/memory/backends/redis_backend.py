"""RedisBackend: memories in a Redis server, shared by every process that uses it.

A document's K and V are written in parts under keys that nobody reads yet; one
MULTI/EXEC then makes the document part of its collection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlx_parallm.memory.backends.backend import (
    MemoryBackend,
    StoredCollection,
    failed,
    need,
    parts_of,
)
from mlx_parallm.memory.backends.store_errors import MissingPayloadError
from mlx_parallm.memory.document import Document

_PREFIX = "mlx_parallm:memories"
_UNFINISHED_S = 3600  # parts of a document that was never finished are gone after this


class RedisBackend(MemoryBackend):
    """Memories in Redis.

    Args:
        url: redis://, rediss:// or unix://.

    Raises:
        MemoryStoreError: the server does not answer.
        InvalidRequestError: the package redis is not installed.
    """

    name = "redis"
    shared = True

    def __init__(self, url: str, prefix: str = _PREFIX) -> None:
        try:
            import redis
        except ImportError:
            raise need("redis", "redis", "Redis") from None
        self._errors = redis.RedisError
        self._prefix = prefix
        self._redis: Any = redis.Redis.from_url(url)
        with self._faults(starting=True):
            self._redis.ping()

    def put(self, document: Document, payload: bytes) -> int:
        parts = parts_of(payload)
        name = document.collection
        with self._faults():
            for place, part in enumerate(parts):
                self._redis.set(self._part(document.uid, place), part, ex=_UNFINISHED_S)
            return self._change(name, document.id, (document, len(parts))) or 0

    def payload(self, uid: str) -> bytes:
        with self._faults():
            count = self._redis.hget(self._key("parts"), uid)
            if count is None:
                raise MissingPayloadError(uid)
            parts = self._redis.mget([self._part(uid, place) for place in range(int(count))])
        if any(part is None for part in parts):
            raise MissingPayloadError(uid)
        return b"".join(parts)

    def collections(self) -> list[StoredCollection]:
        with self._faults():
            names = sorted(name.decode() for name in self._redis.smembers(self._key("names")))
            return [self._collection(name) for name in names]

    def delete_document(self, collection: str, document_id: str) -> bool:
        with self._faults():
            return self._change(collection, document_id, None) is not None

    def delete_collection(self, collection: str) -> bool:
        with self._faults():
            there = self._redis.transaction(
                lambda pipe: self._drop(pipe, collection),
                self._key("documents", collection),
                value_from_callable=True,
            )
            return bool(there)

    def close(self) -> None:
        self._redis.close()

    def _collection(self, name: str) -> StoredCollection:
        with self._redis.pipeline() as pipe:  # one MULTI/EXEC: both of the same moment
            pipe.hget(self._key("versions"), name)
            pipe.lrange(self._key("documents", name), 0, -1)
            version, rows = pipe.execute()
        documents = tuple(_document(name, json.loads(row)) for row in rows)
        return StoredCollection(name, int(version or 0), documents)

    def _change(self, name: str, document_id: str, new: tuple[Document, int] | None) -> int | None:
        """Swap a document for another one; the new version, None where there is nothing to do."""
        key = self._key("documents", name)

        def change(pipe: Any) -> int | None:
            rows = pipe.lrange(key, 0, -1)
            old = [row for row in rows if json.loads(row)["id"] == document_id]
            version = int(pipe.hget(self._key("versions"), name) or 0) + 1
            pipe.multi()
            if new is None and not old:
                return None
            for row in old:
                pipe.lrem(key, 1, row)
                self._forget(pipe, json.loads(row))
            if new is not None:
                self._append(pipe, key, *new)
            pipe.hset(self._key("versions"), name, version)
            pipe.sadd(self._key("names"), name)
            return version

        # Tried again where another process changes the collection at the same time.
        found: int | None = self._redis.transaction(
            change, key, self._key("versions"), value_from_callable=True
        )
        return found

    def _append(self, pipe: Any, key: str, document: Document, parts: int) -> None:
        row = {"id": document.id, "uid": document.uid, "parts": parts}
        pipe.rpush(key, json.dumps({**row, "header": document.header()}))
        pipe.hset(self._key("parts"), document.uid, parts)
        for place in range(parts):
            pipe.persist(self._part(document.uid, place))

    def _drop(self, pipe: Any, name: str) -> bool:
        key = self._key("documents", name)
        rows = pipe.lrange(key, 0, -1)
        there = bool(pipe.sismember(self._key("names"), name))
        pipe.multi()
        for row in rows:
            self._forget(pipe, json.loads(row))
        pipe.delete(key)
        pipe.srem(self._key("names"), name)
        # The number stays, so that a new collection of that name has other versions.
        pipe.hincrby(self._key("versions"), name, 1)
        return there

    def _forget(self, pipe: Any, row: dict[str, Any]) -> None:
        pipe.hdel(self._key("parts"), row["uid"])
        pipe.delete(*(self._part(row["uid"], place) for place in range(row["parts"])))

    def _key(self, *names: str) -> str:
        return ":".join([self._prefix, *names])

    def _part(self, uid: str, place: int) -> str:
        return self._key("part", uid, str(place))

    @contextmanager
    def _faults(self, *, starting: bool = False) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise failed("Redis", error, starting) from error


def _document(collection: str, row: dict[str, Any]) -> Document:
    return Document.from_header(row["header"], collection, row["id"], row["uid"])
