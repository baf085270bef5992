"""The PageStore: pages on disk, so that prefixes survive eviction and a restart.

    DIR/mlx_parallm-<model>/<first two digits>/<key>.safetensors

A key hashes the namespace and all tokens up to the page's end, so a name says
what is in the file; the model's fingerprint is in the folder's name and in each
file. Files are written to a temporary name and renamed, by a thread of their
own. What cannot be read is logged and removed, and is then a miss like another.

Only folders of the above name are ever touched; several servers may share DIR.
Together they stay under the bound in bytes as seen by each; the files that were
not used for longest (mtime) go first, other models' too.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_parallm.cache.prefixes.page_file import PageFileError, Record, decode, encode

log = logging.getLogger(__name__)

PREFIX = "mlx_parallm-"
_FOLDER = re.compile(PREFIX + r"[0-9a-f]{8,64}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{40}(-state)?")
_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_TEMPORARY_S = 60.0  # older than this, its writer is dead


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counters since the start, and the state now.

    Attributes:
        hits, misses: pages read, and pages asked for that were not there.
        written, evicted: files.
        dropped: pages not written because the disk is too slow, or too small.
        damaged: files removed because they could not be used.
        failures: writes and reads that the system refused.
        files, nbytes: on disk now, other models' included.
    """

    hits: int = 0
    misses: int = 0
    written: int = 0
    evicted: int = 0
    dropped: int = 0
    damaged: int = 0
    failures: int = 0
    files: int = 0
    nbytes: int = 0


class PageStore:
    """Records by key, for one model. stats is for any thread, the rest for one.

    Args:
        directory: DIR above; made where it is missing.
        model: the model's fingerprint, in hexadecimal.
        max_bytes: bound of all our files in DIR.
        max_pending: bytes that may wait to be written; more are dropped.

    Raises:
        OSError: the directory cannot be made or read.
    """

    def __init__(
        self, directory: Path, model: str, max_bytes: int, max_pending: int = 64 << 20
    ) -> None:
        if not _FOLDER.fullmatch(PREFIX + model):
            raise ValueError(f"the model's fingerprint {model!r} is not hexadecimal")
        self.directory = directory
        self.model = model
        self.max_bytes = max_bytes
        self.max_pending = max_pending
        self._folder = directory / (PREFIX + model)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stats = StoreStats()
        self._files: OrderedDict[Path, int] = OrderedDict()  # bytes; longest unused first
        self._nbytes = 0
        self._scan()
        self._pending: dict[str, Record] = {}
        self._pending_bytes = 0
        self._jobs: deque[str] = deque()
        self._closed = self._stopped = False
        self._refusal = ""
        self._changed = threading.Condition()  # guards everything above
        self._names = itertools.count()
        self._writer = threading.Thread(target=self._write_all, name="page-store", daemon=True)
        self._writer.start()

    # Use

    def __contains__(self, key: str) -> bool:
        """Whether a record is there, to the best of our knowledge."""
        with self._changed:
            return key in self._pending or self._path(key) in self._files

    def touch(self, key: str) -> bool:
        """Whether a record is there; if so, it counts as used now."""
        path = self._path(key)
        with self._changed:
            if key in self._pending:
                return True
            if path not in self._files:
                return False
            self._files.move_to_end(path)
        with contextlib.suppress(OSError):  # only the order of eviction is less exact
            os.utime(path)
        return True

    def put(self, key: str, record: Record, wait: bool = False) -> bool:
        """Keep a record, later. Nothing happens where it is kept already.

        Args:
            key: 40 hexadecimal digits, or these and "-state".
            wait: for a slow disk, instead of dropping the record.

        Returns:
            False where it was dropped.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        size = len(record.data)
        with self._changed:
            if key in self._pending or self._path(key) in self._files:
                return True
            if wait:
                self._changed.wait_for(lambda: self._has_room(size) or self._closed)
            if self._closed or not self._has_room(size) or size > self.max_bytes:
                self._count(dropped=1)
                return False
            self._pending[key] = record
            self._pending_bytes += size
            self._jobs.append(key)
            self._changed.notify_all()
            return True

    def get(self, key: str) -> Record | None:
        """A record, or None where it is not there or its file is damaged."""
        path = self._path(key)
        with self._changed:
            record = self._pending.get(key)
            if record is not None:
                self._count(hits=1)
                return record
        record = self._read(path, key)
        with self._changed:
            if record is None:
                self._count(misses=1)
                return None
            self._count(hits=1)
        self.touch(key)
        return record

    def flush(self) -> None:
        """Wait until everything is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or self._stopped)

    def close(self) -> None:
        """Write what waits, and stop. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join()

    def stats(self) -> StoreStats:
        """Counters and state; from any thread."""
        with self._changed:
            return replace(self._stats, files=len(self._files), nbytes=self._nbytes)

    # Reading

    def _read(self, path: Path, key: str) -> Record | None:
        try:
            return decode(path.read_bytes(), self.model, key)
        except FileNotFoundError:
            self._forget(path)  # another server made room
        except PageFileError as error:
            self._remove_damaged(path, str(error))
        except OSError as error:
            self._refused("a cached page cannot be read: %s", error)
            self._forget(path)
        return None

    def _remove_damaged(self, path: Path, reason: str) -> None:
        log.warning("removed %s from the prefix cache: %s", path, reason)
        self._unlink(path)
        with self._changed:
            self._count(damaged=1)

    def _forget(self, path: Path) -> None:
        with self._changed:
            self._nbytes -= self._files.pop(path, 0)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a cached page cannot be removed: %s", error)
        self._forget(path)

    # Writing, on the writer's thread

    def _write_all(self) -> None:
        try:
            while (key := self._next_job()) is not None:
                self._write_one(key)
        finally:
            with self._changed:
                self._closed = self._stopped = True
                self._changed.notify_all()

    def _write_one(self, key: str) -> None:
        try:
            self._write(key, self._pending[key])
        except OSError as error:
            self._refused("a page cannot be kept on disk: %s", error)
        finally:
            with self._changed:
                self._pending_bytes -= len(self._pending.pop(key).data)
                self._changed.notify_all()

    def _refused(self, message: str, error: OSError) -> None:
        with self._changed:
            self._count(failures=1)
            # One log line for a full disk, not one for each page.
            known, self._refusal = self._refusal, message + str(error.strerror)
        if known != self._refusal:
            log.warning(message, error)

    def _next_job(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return self._jobs.popleft() if self._jobs else None

    def _write(self, key: str, record: Record) -> None:
        file = encode(record, self.model, key)
        if len(file) > self.max_bytes:
            with self._changed:
                self._count(dropped=1)
            return
        self._make_room(len(file))
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{key}.{os.getpid()}-{next(self._names)}{_TEMPORARY}")
        try:
            temporary.write_bytes(file)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with self._changed:
            self._nbytes += len(file) - self._files.pop(path, 0)
            self._files[path] = len(file)
            self._count(written=1)

    def _make_room(self, size: int) -> None:
        while True:
            with self._changed:
                if self._nbytes + size <= self.max_bytes:
                    return
                path = next(iter(self._files))
                self._count(evicted=1)
            self._unlink(path)

    # Books

    def _has_room(self, size: int) -> bool:
        return not self._pending or self._pending_bytes + size <= self.max_pending

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / (key + _SUFFIX)

    def _count(self, **more: int) -> None:
        changes = {name: getattr(self._stats, name) + count for name, count in more.items()}
        self._stats = replace(self._stats, **changes)

    def _scan(self) -> None:
        """Learn which files there are, of all models, and remove what cannot be one."""
        found: list[tuple[float, Path, int]] = []
        for entry in self._entries():
            path = Path(entry.path)
            try:
                status = entry.stat(follow_symlinks=False)
                if _is_page(path) and entry.is_file(follow_symlinks=False):
                    found.append((status.st_mtime, path, status.st_size))
                elif entry.is_dir(follow_symlinks=False):
                    log.warning("ignored the folder %s in the prefix cache", path)
                elif path.suffix != _TEMPORARY:
                    self._remove(path, "it is not a page", logging.WARNING)
                elif time.time() - status.st_mtime > _TEMPORARY_S:
                    self._remove(path, "its writing was interrupted", logging.INFO)
            except FileNotFoundError:
                continue  # another server's
        for _, path, size in sorted(found):
            self._files[path] = size
            self._nbytes += size

    def _remove(self, path: Path, reason: str, level: int) -> None:
        log.log(level, "removed %s from the prefix cache: %s", path, reason)
        self._count(damaged=1)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """Everything in the folders that pages are kept in."""
        for folder in os.scandir(self.directory):
            if not _FOLDER.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for shard in os.scandir(folder):
                if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                    yield from os.scandir(shard)


def _is_page(path: Path) -> bool:
    return bool(
        path.suffix == _SUFFIX
        and _KEY.fullmatch(path.stem)
        and path.stem.startswith(path.parent.name)
    )
