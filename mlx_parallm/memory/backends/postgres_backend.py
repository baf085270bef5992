"""PostgresBackend: memories in a PostgreSQL database, one transaction a document."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlx_parallm.memory.backends.backend import (
    MemoryBackend,
    StoredCollection,
    collections_of,
    failed,
    need,
    parts_of,
)
from mlx_parallm.memory.backends.store_errors import MissingPayloadError
from mlx_parallm.memory.document import Document

_LOCK = 0x6D6C7870  # of the transaction that makes the tables
_SCHEMA = """
CREATE TABLE IF NOT EXISTS memory_versions (
    collection text PRIMARY KEY, version bigint NOT NULL, present boolean NOT NULL);
CREATE TABLE IF NOT EXISTS memory_documents (
    place bigserial PRIMARY KEY, uid text NOT NULL UNIQUE, collection text NOT NULL,
    id text NOT NULL, header text NOT NULL, UNIQUE (collection, id));
CREATE TABLE IF NOT EXISTS memory_parts (
    uid text NOT NULL REFERENCES memory_documents (uid) ON DELETE CASCADE,
    place integer NOT NULL, content bytea NOT NULL, PRIMARY KEY (uid, place));
"""


class PostgresBackend(MemoryBackend):
    """Memories in PostgreSQL.

    Args:
        url: postgresql://user@host/database.

    Raises:
        MemoryStoreError: the server does not answer.
        InvalidRequestError: the package psycopg is not installed.
    """

    name = "postgresql"
    shared = True

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise need("psycopg", "postgres", "PostgreSQL") from None
        self._psycopg: Any = psycopg
        self._url = url
        self._connection: Any = None
        self._lock = threading.Lock()
        with self._transaction(starting=True) as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            cursor.execute(_SCHEMA)

    def put(self, document: Document, payload: bytes) -> int:
        name, uid = document.collection, document.uid
        with self._transaction() as cursor:
            # First, so that changes of one collection wait for each other.
            version = self._bump(cursor, name, present=True)
            self._remove(cursor, name, document.id)
            cursor.execute(
                "INSERT INTO memory_documents (uid, collection, id, header) VALUES (%s,%s,%s,%s)",
                (uid, name, document.id, document.header()),
            )
            for place, part in enumerate(parts_of(payload)):
                cursor.execute("INSERT INTO memory_parts VALUES (%s, %s, %s)", (uid, place, part))
            return version

    def payload(self, uid: str) -> bytes:
        with self._transaction() as cursor:
            cursor.execute("SELECT content FROM memory_parts WHERE uid = %s ORDER BY place", (uid,))
            parts = [bytes(content) for (content,) in cursor.fetchall()]
        if not parts:
            raise MissingPayloadError(uid)
        return b"".join(parts)

    def collections(self) -> list[StoredCollection]:
        with self._transaction() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT collection, version FROM memory_versions WHERE present")
            versions = sorted(cursor.fetchall())
            cursor.execute(
                "SELECT header, collection, id, uid FROM memory_documents ORDER BY place"
            )
            rows = cursor.fetchall()
        return collections_of(versions, (Document.from_header(*row) for row in rows))

    def delete_document(self, collection: str, document_id: str) -> bool:
        with self._transaction() as cursor:
            there = bool(self._remove(cursor, collection, document_id))
            if there:
                self._bump(cursor, collection, present=True)
        return there

    def delete_collection(self, collection: str) -> bool:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT 1 FROM memory_versions WHERE collection = %s AND present FOR UPDATE",
                (collection,),
            )
            there = cursor.fetchone() is not None
            if there:
                # The number stays, so that a new collection of that name has other versions.
                self._bump(cursor, collection, present=False)
                cursor.execute("DELETE FROM memory_documents WHERE collection = %s", (collection,))
        return there

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    @staticmethod
    def _remove(cursor: Any, name: str, document_id: str) -> int:
        cursor.execute(
            "DELETE FROM memory_documents WHERE collection = %s AND id = %s", (name, document_id)
        )
        return int(cursor.rowcount)

    @staticmethod
    def _bump(cursor: Any, name: str, *, present: bool) -> int:
        cursor.execute(
            "INSERT INTO memory_versions VALUES (%s, 1, %s) ON CONFLICT (collection) DO UPDATE "
            "SET version = memory_versions.version + 1, present = excluded.present "
            "RETURNING version",
            (name, present),
        )
        return int(cursor.fetchone()[0])

    @contextmanager
    def _transaction(self, *, starting: bool = False) -> Iterator[Any]:
        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._psycopg.connect(
                        self._url, connect_timeout=10, client_encoding="UTF8"
                    )
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except self._psycopg.Error as error:
                raise failed("PostgreSQL", error, starting) from error
