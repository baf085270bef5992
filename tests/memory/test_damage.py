"""Stores whose contents were lost or changed: it is seen, named, and stays where it is."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.memory import MemoryBackend, MemoryManager
from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.backends.store_errors import DamagedMemoriesError, MissingPayloadError
from mlx_parallm.memory.document import Document, DocumentFiles
from mlx_parallm.memory.submission import Source
from mlx_parallm.models.loader import LoadedModel
from tests.memory.conftest import make_document, payload
from tests.waiting import PATIENCE_S

TEXT = "Anna has a red bicycle and lives by the river."


def lose(backend: Any, uid: str) -> None:
    """Take a document's K and V away behind the store's back."""
    if backend.files is not None:
        backend.files.path(uid).unlink()
    elif backend.name == "redis":
        backend._redis.delete(backend._part(uid, 0))
    else:
        with backend._transaction() as cursor:
            cursor.execute("DELETE FROM memory_parts WHERE uid = %s", (uid,))


def flip(backend: Any, uid: str) -> None:
    """Change the last byte of a document's K and V."""
    content = bytearray(backend.payload(uid))
    content[-1] ^= 1
    if backend.files is not None:
        backend.files.path(uid).write_bytes(content)
    elif backend.name == "redis":
        backend._redis.set(backend._part(uid, 0), bytes(content))
    else:
        with backend._transaction() as cursor:
            cursor.execute(
                "UPDATE memory_parts SET content = %s WHERE uid = %s", (bytes(content), uid)
            )


@pytest.fixture(scope="module")
def engine(llama_factory: Callable[..., LoadedModel]) -> Any:
    found = Engine(llama_factory, EngineConfig(max_batch_size=4))
    found.start()
    found.wait_ready(PATIENCE_S)
    yield found
    found.stop()


@pytest.mark.parametrize("harm", [lose, flip])
def test_damage_is_named_and_can_be_mended(
    engine: Engine, open_again: Callable[[], MemoryBackend], harm: Callable[[Any, str], None]
) -> None:
    open_again()  # which clears the store at the end
    manager = MemoryManager(engine, open_again())
    for name in ("ill", "well"):
        manager.add([Source(TEXT, id="a")], name).wait(PATIENCE_S)
    before = manager.request(["well"]).view.size
    harm(manager.backend, manager.collection("ill").documents[0].uid)
    with pytest.raises(DamagedMemoriesError, match=r"'ill'.*'a'") as refused:
        manager.request(["well", "ill"])
    assert refused.value.status == 409
    assert "'a'" in str(manager.problem(manager.collection("ill")))
    assert manager.problem(manager.collection("well")) is None
    assert manager.request(["well"]).view.size == before
    manager.add([Source(TEXT, id="a")], "ill").wait(
        PATIENCE_S
    )  # the same again: not there, so made
    assert manager.problem(manager.collection("ill")) is None
    assert manager.request(["ill"]).view.size == before
    manager.close()


def test_what_another_process_has_removed_is_made_again(
    engine: Engine, open_again: Callable[[], MemoryBackend]
) -> None:
    open_again()  # which clears the store at the end
    manager, other = MemoryManager(engine, open_again()), open_again()
    manager.add([Source(TEXT)]).wait(PATIENCE_S)
    if other.shared:
        assert other.delete_collection("default")
        manager.add([Source(TEXT)]).wait(PATIENCE_S)
        assert [len(c.documents) for c in other.collections()] == [1]
    version = manager.collection("default").version
    manager.add([Source(TEXT)]).wait(PATIENCE_S)
    assert manager.collection("default").version == version  # it is there
    manager.close()


def test_a_payload_that_is_not_there(backend: MemoryBackend) -> None:
    document = make_document("a")
    backend.put(document, payload(5, 0))
    lose(backend, document.uid)
    with pytest.raises(MissingPayloadError, match="gone"):
        backend.payload(document.uid)
    assert backend.delete_document("default", "a")


@pytest.mark.parametrize("place", range(0, 400, 13))
def test_every_flipped_byte_of_a_description_is_seen(place: int) -> None:
    document = make_document("a", size=9, metadata={"page": "three"})
    header = bytearray(document.header().encode())
    where = place % len(header)
    header[where] ^= 1
    found = Document.from_header(header.decode(), "default", "a", document.uid)
    assert found.problem is not None
    assert (found.collection, found.id, found.uid) == ("default", "a", document.uid)
    whole = Document.from_header(document.header(), "default", "a", document.uid)
    assert whole.problem is None and whole.metadata == {"page": "three"}
    # A name beside it that was changed.
    assert Document.from_header(document.header(), "other", "a", document.uid).problem


def test_descriptions_of_earlier_versions_are_read() -> None:
    document = make_document("a")
    old = document.header().partition(" ")[2]
    assert Document.from_header(old, "default", "a", document.uid).problem is None


def test_one_damaged_description_leaves_the_others(engine: Engine, tmp_path: Path) -> None:
    manager = MemoryManager(engine, SQLiteBackend(tmp_path))
    for name in ("ill", "well"):
        manager.add([Source(TEXT, id="a")], name).wait(PATIENCE_S)
    manager.close()
    with sqlite3.connect(tmp_path / "memories.sqlite3") as db:
        db.execute("UPDATE documents SET header = 'x' || header WHERE collection = 'ill'")
    db.close()
    manager = MemoryManager(engine, SQLiteBackend(tmp_path))
    assert "description" in str(manager.problem(manager.collection("ill")))
    with pytest.raises(DamagedMemoriesError, match="'ill'"):
        manager.request(["ill"])
    assert manager.request(["well"]).view.size == len(TEXT)
    manager.add([Source("More.")], "ill").wait(PATIENCE_S)
    manager.delete("ill", "a")
    assert manager.request(["ill"]).view.size == len("More.")
    manager.close()


@pytest.mark.parametrize("harm_file", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_lost_database_does_not_take_the_files_with_it(
    tmp_path: Path, harm_file: Callable[[Path], object]
) -> None:
    backend = SQLiteBackend(tmp_path)
    document = make_document("a")
    backend.put(document, payload(5, 0))
    backend.close()
    for path in tmp_path.glob("memories.sqlite3*"):
        harm_file(path)
    file = DocumentFiles(tmp_path / "documents").path(document.uid)
    os.utime(file, (0, 0))  # as old as what a crash has left
    SQLiteBackend(tmp_path).close()
    assert file.exists()
