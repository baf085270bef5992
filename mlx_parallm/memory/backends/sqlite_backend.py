"""SQLiteBackend: what there is in a database, K and V in files beside it.

A document's file is written and synced under its own name first; then one
transaction makes it part of its collection. A process that is killed before
that leaves a file that nobody knows, which the next start removes.

On a full disk things can still be removed: room that was reserved for that is
given up, and files go before what is known of them.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlx_parallm.memory.backends.backend import MemoryBackend, StoredCollection, collections_of
from mlx_parallm.memory.backends.store_errors import DiskFullError, MemoryStoreError
from mlx_parallm.memory.disk_reserve import DiskReserve
from mlx_parallm.memory.document import Document, DocumentFiles

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    collection TEXT PRIMARY KEY, version INTEGER NOT NULL, present INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    place INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL, id TEXT NOT NULL, header TEXT NOT NULL,
    UNIQUE (collection, id));
CREATE TABLE IF NOT EXISTS jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, submission TEXT NOT NULL);
"""
_BUSY_S = 30.0


class SQLiteBackend(MemoryBackend):
    """Durable memories in one folder.

    Raises:
        MemoryStoreError: the folder cannot be used.
    """

    name = "sqlite"
    keeps_jobs = True

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        try:
            self.files: DocumentFiles = DocumentFiles(folder / "documents")
            self._reserve = DiskReserve(folder)
            self._db = _open(folder / "memories.sqlite3", self._reserve)
            known = self._db.execute("SELECT uid FROM documents").fetchall()
            was_used = self._db.execute("SELECT 1 FROM versions").fetchone() is not None
        except (OSError, sqlite3.Error) as error:
            raise MemoryStoreError(f"{folder} cannot hold memories: {error}") from error
        if was_used:  # a database that was lost must not take the files with it
            self.files.keep_only({uid for (uid,) in known})
        self._reserve.hold()

    def put(self, document: Document, payload: bytes) -> int:
        self.files.write(document.uid, payload)
        name = document.collection
        try:
            with self._transaction() as db:
                gone = self._remove(db, name, document.id)
                db.execute(
                    "INSERT INTO documents (uid, collection, id, header) VALUES (?, ?, ?, ?)",
                    (document.uid, name, document.id, document.header()),
                )
                version = self._bump(db, name, present=True)
        except MemoryStoreError:
            self.files.remove(document.uid)
            raise
        self._forget(gone)
        return version

    def payload(self, uid: str) -> bytes:
        return self.files.read(uid)

    def collections(self) -> list[StoredCollection]:
        with self._transaction() as db:
            versions = db.execute(
                "SELECT collection, version FROM versions WHERE present ORDER BY collection"
            ).fetchall()
            rows = db.execute(
                "SELECT header, collection, id, uid FROM documents ORDER BY place"
            ).fetchall()
        return collections_of(versions, (Document.from_header(*row) for row in rows))

    def delete_document(self, collection: str, document_id: str) -> bool:
        def delete() -> list[str]:
            with self._transaction() as db:
                gone = self._remove(db, collection, document_id)
                if gone:
                    self._bump(db, collection, present=True)
            return gone

        gone = self._freeing(delete, *_where(collection, document_id))
        self._forget(gone)
        return bool(gone)

    def delete_collection(self, collection: str) -> bool:
        def delete() -> list[str] | None:
            with self._transaction() as db:
                there = db.execute(
                    "SELECT 1 FROM versions WHERE collection = ? AND present", (collection,)
                ).fetchone()
                if there is None:
                    return None
                gone = self._remove(db, collection, None)
                # The number stays, so that a new collection of that name has other versions.
                self._bump(db, collection, present=False)
            return gone

        gone = self._freeing(delete, *_where(collection, None))
        self._forget(gone or [])
        return gone is not None

    def keep_job(self, job_id: str, submission: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT INTO jobs (id, submission) VALUES (?, ?)", (job_id, submission))

    def kept_jobs(self) -> list[tuple[str, str]]:
        with self._transaction() as db:
            rows = db.execute("SELECT id, submission FROM jobs ORDER BY place").fetchall()
        return [(job_id, submission) for job_id, submission in rows]

    def drop_job(self, job_id: str) -> bool:
        def delete() -> int:
            with self._transaction() as db:
                return db.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount

        count = self._freeing(delete)
        self._reserve.hold()
        return count > 0

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
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                if _is_full(error):
                    raise DiskFullError("The disk under the memories is full.") from error
                raise MemoryStoreError(f"The memories' database failed: {error}") from error

    def _freeing(self, delete: Callable[[], T], where: str = "0", values: Items[str] = ()) -> T:
        """Delete; on a full disk make room first, with the documents `where`, and try again."""
        try:
            return delete()
        except DiskFullError:
            log.warning("the disk under the memories is full: files are removed first")
            self._reserve.release()
            with self._lock:
                rows = self._db.execute(f"SELECT uid FROM documents WHERE {where}", values)  # noqa: S608
                uids = [uid for (uid,) in rows.fetchall()]
            for uid in uids:
                self.files.remove(uid)
            return delete()

    @staticmethod
    def _remove(db: sqlite3.Connection, name: str, document_id: str | None) -> list[str]:
        where, values = _where(name, document_id)
        rows = db.execute(f"DELETE FROM documents WHERE {where} RETURNING uid", values)  # noqa: S608
        return [uid for (uid,) in rows.fetchall()]

    @staticmethod
    def _bump(db: sqlite3.Connection, name: str, *, present: bool) -> int:
        rows = db.execute(
            "INSERT INTO versions VALUES (?, 1, ?) ON CONFLICT (collection) DO UPDATE "
            "SET version = version + 1, present = excluded.present RETURNING version",
            (name, present),
        )
        return int(rows.fetchone()[0])

    def _forget(self, uids: list[str]) -> None:
        for uid in uids:
            self.files.remove(uid)
        self._reserve.hold()


def _open(path: Path, reserve: DiskReserve) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.Error as error:
        if not _is_full(error):
            raise
        reserve.release()
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _is_full(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # an extended one: its kind is the low byte
    return code is not None and code & 0xFF == sqlite3.SQLITE_FULL


def _where(collection: str, document_id: str | None) -> tuple[str, list[str]]:
    if document_id is None:
        return "collection = ?", [collection]
    return "collection = ? AND id = ?", [collection, document_id]
