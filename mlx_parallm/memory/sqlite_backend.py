"""SQLiteBackend: what there is in a database, K and V in files beside it.

A document's file is written and synced under its own name first; then one
transaction makes it part of its collection. A process that is killed before
that leaves a file that nobody knows, which the next start removes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_parallm.memory.backend import MemoryBackend, MemoryStoreError, StoredCollection
from mlx_parallm.memory.document import Document, DocumentFiles

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    collection TEXT PRIMARY KEY, version INTEGER NOT NULL, present INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    place INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL, id TEXT NOT NULL, header TEXT NOT NULL,
    UNIQUE (collection, id));
"""
_BUSY_S = 30.0


class SQLiteBackend(MemoryBackend):
    """Durable memories in one folder.

    Raises:
        MemoryStoreError: the folder cannot be used.
    """

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        try:
            self.files = DocumentFiles(folder / "documents")
            self._db = sqlite3.connect(
                folder / "memories.sqlite3",
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise MemoryStoreError(f"{folder} cannot hold memories: {error}") from error
        known = self._db.execute("SELECT uid FROM documents").fetchall()
        self.files.keep_only({uid for (uid,) in known})

    def put(self, document: Document, payload: bytes) -> int:
        try:
            self.files.write(document.uid, payload)
        except OSError as error:
            raise MemoryStoreError(f"The memories could not be written: {error}") from error
        name = document.collection
        with self._transaction() as db:
            gone = self._remove(db, name, document.id)
            db.execute(
                "INSERT INTO documents (uid, collection, id, header) VALUES (?, ?, ?, ?)",
                (document.uid, name, document.id, document.header()),
            )
            version = self._bump(db, name, present=True)
        self._forget(gone)
        return version

    def payload(self, uid: str) -> bytes:
        try:
            return self.files.path(uid).read_bytes()
        except OSError:
            raise MemoryStoreError(f"The memories of document {uid} are gone.") from None

    def collections(self) -> list[StoredCollection]:
        with self._transaction() as db:
            versions = db.execute(
                "SELECT collection, version FROM versions WHERE present ORDER BY collection"
            ).fetchall()
            rows = db.execute("SELECT collection, header FROM documents ORDER BY place").fetchall()
        documents: dict[str, list[Document]] = {}
        for name, header in rows:
            documents.setdefault(name, []).append(Document.from_header(header))
        return [StoredCollection(n, v, tuple(documents.get(n, ()))) for n, v in versions]

    def delete_document(self, collection: str, document_id: str) -> bool:
        with self._transaction() as db:
            gone = self._remove(db, collection, document_id)
            if gone:
                self._bump(db, collection, present=True)
        self._forget(gone)
        return bool(gone)

    def delete_collection(self, collection: str) -> bool:
        with self._transaction() as db:
            there = db.execute(
                "SELECT 1 FROM versions WHERE collection = ? AND present", (collection,)
            ).fetchone()
            if there is None:
                return False
            gone = self._remove(db, collection, None)
            # The number stays, so that a new collection of that name has other versions.
            self._bump(db, collection, present=False)
        self._forget(gone)
        return True

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise MemoryStoreError(f"The memories' database failed: {error}") from error

    def _remove(self, db: sqlite3.Connection, name: str, document_id: str | None) -> list[str]:
        where, values = "collection = ?", [name]
        if document_id is not None:
            where, values = where + " AND id = ?", [name, document_id]
        rows = db.execute(f"DELETE FROM documents WHERE {where} RETURNING uid", values)  # noqa: S608
        return [uid for (uid,) in rows.fetchall()]

    def _bump(self, db: sqlite3.Connection, name: str, *, present: bool) -> int:
        rows = db.execute(
            "INSERT INTO versions VALUES (?, 1, ?) ON CONFLICT (collection) DO UPDATE "
            "SET version = version + 1, present = excluded.present RETURNING version",
            (name, present),
        )
        return int(rows.fetchone()[0])

    def _forget(self, uids: list[str]) -> None:
        for uid in uids:
            self.files.remove(uid)
