"""Responses that were asked to be kept: the newest in memory, with a file all of them in SQLite."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_parallm.errors import ModelLoadError, UnavailableError

logger = logging.getLogger(__name__)

# Of what is in memory, as JSON.
MAX_BYTES = 64 * 1024**2
# Rows of the file; the oldest go first.
MAX_ROWS = 100_000

_TABLE = (
    "CREATE TABLE IF NOT EXISTS responses"
    "(number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, stored TEXT NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A response and what it was made from.

    Attributes:
        owner: whose it is, where API keys are kept apart.
        response: as its client got it.
        items: of the conversation before it, oldest first.
    """

    owner: str
    response: dict[str, Any]
    items: list[dict[str, Any]]


class ResponseStore:
    """Keeps responses by id. For the event loop: the file is on a thread of its own.

    Args:
        path: of an SQLite file; None keeps what fits in memory.
        max_bytes: of what is kept in memory.

    Raises:
        ModelLoadError: the file cannot be used.
    """

    def __init__(self, path: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._num_bytes = 0
        self._max_bytes = max_bytes
        self._file = None if path is None else _ResponseFile(path)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="responses")

    def put(self, stored: Stored) -> None:
        """Keep a response; it is in the file soon."""
        id_, text = stored.response["id"], json.dumps(asdict(stored), ensure_ascii=False)
        self._keep(id_, text)
        if self._file is not None:
            written = self._executor.submit(self._file.put, id_, text)
            written.add_done_callback(lambda future: _say_if_lost(id_, future.exception()))

    async def get(self, id_: str, owner: str) -> Stored | None:
        """A response; None where there is none of this owner."""
        text = self._kept.get(id_)
        if text is None and self._file is not None:
            text = await asyncio.wrap_future(self._executor.submit(self._file.get, id_))
        if text is None:
            return None
        stored = Stored(**json.loads(text))
        if stored.owner != owner:
            return None
        self._keep(id_, text)
        return stored

    async def delete(self, id_: str) -> None:
        """Forget a response.

        Raises:
            UnavailableError: the file cannot be written, on a full disk for example.
        """
        if self._file is not None:
            try:
                await asyncio.wrap_future(self._executor.submit(self._file.delete, id_))
            except sqlite3.Error as error:
                logger.error("response %s cannot be deleted: %s", id_, error)
                raise UnavailableError("The response cannot be deleted now.") from None
        self._forget(id_)

    def close(self) -> None:
        """Write what is not in the file yet."""
        self._executor.shutdown()
        if self._file is not None:
            self._file.close()

    def _keep(self, id_: str, text: str) -> None:
        self._forget(id_)
        self._kept[id_] = text
        self._num_bytes += len(text)
        while self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, id_: str) -> None:
        self._num_bytes -= len(self._kept.pop(id_, ""))


def _say_if_lost(id_: str, error: BaseException | None) -> None:
    if error is not None:
        logger.error("response %s is kept in memory only: %s", id_, error)


class _ResponseFile:
    """The SQLite file; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_TABLE)
            self._connection.commit()
        except (OSError, sqlite3.Error) as error:
            raise ModelLoadError(f"--response-store {path}: {error}") from None

    def put(self, id_: str, text: str) -> None:
        with self._connection as connection:
            connection.execute(
                "INSERT OR REPLACE INTO responses(id, stored) VALUES(?, ?)", (id_, text)
            )
            connection.execute(
                "DELETE FROM responses WHERE number <= (SELECT max(number) FROM responses) - ?",
                (MAX_ROWS,),
            )

    def get(self, id_: str) -> str | None:
        found = self._connection.execute("SELECT stored FROM responses WHERE id = ?", (id_,))
        row = found.fetchone()
        return None if row is None else str(row[0])

    def delete(self, id_: str) -> None:
        with self._connection as connection:
            connection.execute("DELETE FROM responses WHERE id = ?", (id_,))

    def close(self) -> None:
        self._connection.close()
