"""Pages on disk: what survives, what is refused, what is removed, and the bound in bytes."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_parallm.cache.prefixes import page_store
from mlx_parallm.cache.prefixes.page_file import (
    PageFileError,
    Record,
    TensorSpec,
    decode,
    encode,
    pack_arrays,
    unpack_arrays,
)
from mlx_parallm.cache.prefixes.page_store import PageStore
from tests.waiting import PATIENCE_S

MODEL = "0123456789abcdef"
OTHER = "fedcba9876543210"
KEY = "ab" * 20
LAYOUT = (TensorSpec("layers.0.k", "F32", (2, 4)), TensorSpec("layers.0.v", "BF16", (3,)))
Open = Callable[..., PageStore]


def record(seed: int = 0, note: str = "") -> Record:
    return Record(LAYOUT, random.Random(seed).randbytes(38), note)


def key(number: int) -> str:
    return f"{number * 7919:040x}"[::-1]


FILE_BYTES = len(encode(record(), MODEL, KEY))


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    stores: list[PageStore] = []

    def make(model: str = MODEL, max_bytes: int = 1 << 20, **options: Any) -> PageStore:
        stores.append(PageStore(tmp_path / "cache", model, max_bytes, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def file_of(store: PageStore, name: str = KEY) -> Path:
    return store.directory / f"mlx_parallm-{store.model}" / name[:2] / f"{name}.safetensors"


def kept(store: PageStore, name: str = KEY, seed: int = 0) -> Path:
    """A record on disk."""
    assert store.put(name, record(seed))
    store.flush()
    return file_of(store, name)


# The format


def test_files_are_safetensors(open_store: Open) -> None:
    path = kept(open_store())
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
        "layers.0.k": ((2, 4), mx.float32),
        "layers.0.v": ((3,), mx.bfloat16),
    }
    ordered = [arrays[spec.name].reshape(-1).view(mx.uint8) for spec in LAYOUT]
    data = b"".join(np.array(a).tobytes() for a in ordered)
    assert data == record().data
    plain = Record((TensorSpec("x", "I32", (2,)),), struct.pack("<2i", 5, -7))
    path.write_bytes(encode(plain, MODEL, KEY))
    assert load_file(path)["x"].tolist() == [5, -7]


def test_a_file_cut_anywhere_is_refused() -> None:
    file = encode(record(), MODEL, KEY)
    assert decode(file, MODEL, KEY) == record()
    for length in range(len(file)):
        with pytest.raises(PageFileError):
            decode(file[:length], MODEL, KEY)
    with pytest.raises(PageFileError):
        decode(file + b"\0", MODEL, KEY)


def test_a_changed_byte_is_refused_or_harmless() -> None:
    file = encode(record(), MODEL, KEY)
    rng = random.Random(5)
    for position in range(len(file)):
        broken = bytearray(file)
        broken[position] ^= 1 << rng.randrange(8)
        try:
            found = decode(bytes(broken), MODEL, KEY)
        except PageFileError:
            continue
        # Of what decides where bytes go, only names are left, which the reader compares.
        assert found.data == record().data
        assert [(s.dtype, s.nbytes) for s in found.layout] == [("F32", 32), ("BF16", 6)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"__metadata__": None}, "not a page"),
        ({"__metadata__": {"format": "pt"}}, "format"),
        ({"layers.0.k": 5}, "no shape"),
        ({"layers.0.k": {"dtype": "F32", "shape": [-2, -4]}}, "no shape"),
        ({"layers.0.k": {"dtype": ["F32"], "shape": [8]}}, "unknown type"),
        ({"layers.0.k": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}, "follow"),
        ({"layers.0.v": {"dtype": "U8", "shape": [5], "data_offsets": [32, 37]}}, "bytes of"),
    ],
)
def test_a_wrong_header_is_refused(change: dict[str, Any], reason: str) -> None:
    file = encode(record(), MODEL, KEY)
    (length,) = struct.unpack_from("<Q", file)
    header = json.dumps(json.loads(file[8 : 8 + length]) | change).encode()
    with pytest.raises(PageFileError, match=reason):
        decode(struct.pack("<Q", len(header)) + header + file[8 + length :], MODEL, KEY)


@pytest.mark.parametrize(
    "header", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"__metadata__": {}}']
)
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(PageFileError):
        decode(struct.pack("<Q", len(header)) + header, MODEL, KEY)


def test_snapshots_come_back_as_they_were() -> None:
    arrays = [
        mx.arange(6).reshape(2, 3).astype(dtype)
        for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint8, mx.bool_)
    ]
    snapshot = [[arrays[0], None, *arrays[1:]], [], 7, "text", (1.5, True), mx.array(3)]
    found = unpack_arrays(pack_arrays(snapshot))
    assert (found[0][1], found[1:5]) == (None, [[], 7, "text", [1.5, True]])
    found_arrays = [*found[0][:1], *found[0][2:], found[5]]
    for one, other in zip(found_arrays, [*arrays, mx.array(3)], strict=True):
        assert one.dtype == other.dtype and mx.array_equal(one, other)
    with pytest.raises(TypeError, match="object"):
        pack_arrays([object()])
    for note in ("", '{"array": 9}', '{"x": 1}'):
        with pytest.raises(PageFileError):
            unpack_arrays(Record((), b"", note))


# Keeping


def test_records_survive_a_restart(open_store: Open) -> None:
    first = open_store()
    for number in range(20):
        assert first.put(key(number), record(number, f"note {number}"))
    assert first.put(key(3) + "-state", record(99))
    assert first.get(key(0)) == record(0, "note 0")  # written or not
    first.close()
    second = open_store()
    assert all(second.get(key(n)) == record(n, f"note {n}") for n in range(20))
    assert second.get(key(3) + "-state") == record(99)
    assert key(20) not in second and second.get(key(20)) is None
    stats = second.stats()
    assert (stats.hits, stats.misses, stats.files, stats.damaged) == (21, 1, 21, 0)
    assert stats.nbytes == sum(p.stat().st_size for p in second.directory.rglob("*.safetensors"))


def test_a_record_is_written_once(open_store: Open) -> None:
    store = open_store()
    path = kept(store)
    before = path.stat().st_ino
    assert store.put(KEY, record(1))
    store.flush()
    assert path.stat().st_ino == before and store.get(KEY) == record()
    assert store.stats().written == 1


def test_another_models_pages_are_never_served(open_store: Open) -> None:
    ours, theirs = open_store(MODEL), open_store(OTHER)
    path = kept(theirs)
    assert KEY not in ours and ours.get(KEY) is None
    forged = file_of(ours)
    forged.parent.mkdir(parents=True)
    forged.write_bytes(path.read_bytes())
    again = open_store(MODEL)
    assert KEY in again  # by its name
    assert again.get(KEY) is None and not forged.exists()
    assert again.stats().damaged == 1
    assert theirs.get(KEY) == record()


def test_a_page_under_another_name_is_never_served(open_store: Open) -> None:
    store = open_store()
    path = kept(store)
    other = path.with_name(f"ab{'0' * 38}.safetensors")
    path.rename(other)
    again = open_store()
    assert again.get(other.stem) is None and not other.exists()
    assert again.get(KEY) is None


# Damage


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text", "grown"])
def test_a_damaged_file_is_a_miss_logged_and_removed(
    open_store: Open, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(open_store())
    file = path.read_bytes()
    contents = {
        "cut": file[:-5],
        "empty": b"",
        "zeros": file[:-38] + bytes(38),  # what a power failure leaves
        "text": b"this is no safetensors file at all",
        "grown": file + b"x",
    }
    path.write_bytes(contents[damage])
    store = open_store()
    assert store.get(KEY) is None
    assert not path.exists() and KEY not in store
    assert str(path) in caplog.text
    assert store.stats().damaged == 1 and store.stats().nbytes == 0
    assert kept(store).exists() and store.get(KEY) == record()


def test_foreign_files_are_removed_from_our_folders_only(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(open_store())
    root = tmp_path / "cache"
    mine = [root / "model.safetensors", root / "mlx_parallm-x" / "ab" / "a", root / "ab" / "b"]
    mine.append(path.parent.parent / "README")
    target = tmp_path / "precious"
    target.write_text("x")
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    foreign = [path.parent / "a.txt", path.parent / f"{'cd' * 20}.safetensors"]
    for file in foreign:
        file.write_text("x")
    (path.parent / f"{'ab' * 19}ee.safetensors").symlink_to(target)
    (path.parent / "folder").mkdir()
    store = open_store()
    assert all(file.exists() for file in mine) and target.exists()
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "folder"])
    assert all(str(file) in caplog.text for file in foreign)
    assert store.stats().damaged == 3 and store.get(KEY) == record()


def test_interrupted_writing_leaves_nothing(open_store: Open) -> None:
    path = kept(open_store())
    old, new = path.with_name(f"{KEY}.1-0.tmp"), path.with_name(f"{KEY}.1-1.tmp")
    for file in (old, new):
        file.write_bytes(b"half a page")
    os.utime(old, (time.time() - 3600,) * 2)
    store = open_store()
    assert not old.exists() and new.exists()  # the new one may be another server's
    assert store.stats().files == 1


def test_files_that_vanish_are_misses(open_store: Open) -> None:
    store = open_store()
    kept(store).unlink()
    assert KEY in store
    assert store.get(KEY) is None and KEY not in store
    assert store.stats().nbytes == 0 and store.stats().damaged == 0


WRITER = """
import sys, itertools
from pathlib import Path
from mlx_parallm.cache.prefixes.page_store import PageStore
from mlx_parallm.cache.prefixes.page_file import Record, TensorSpec
store = PageStore(Path(sys.argv[1]), sys.argv[2], 1 << 30)
layout = (TensorSpec("x", "U8", (100_000,)),)
for number in itertools.count():
    store.put(f"{number:040x}", Record(layout, bytes([number % 256]) * 100_000), wait=True)
    if number == 3:
        store.flush()
        print("ready", flush=True)
"""


def test_a_killed_server_leaves_whole_files(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    found = 0
    for pause_s in (0.02, 0.05):
        command = [sys.executable, "-c", WRITER, str(directory), MODEL]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(pause_s)
            process.send_signal(signal.SIGKILL)
        store = PageStore(directory, MODEL, 1 << 30)
        names = [path.stem for path in directory.rglob("*.safetensors")]
        for name in names:
            record_found = store.get(name)
            assert record_found is not None
            assert record_found.data == bytes([int(name, 16) % 256]) * 100_000
        found += len(names)
        assert store.stats().damaged == 0
        store.close()
    assert found > 0


# Bounds


def test_the_bound_holds_and_the_longest_unused_goes(open_store: Open) -> None:
    store = open_store(max_bytes=4 * FILE_BYTES)
    for number in range(4):
        kept(store, key(number))
    assert store.get(key(0)) is not None
    kept(store, key(4))
    assert [key(n) in store for n in range(5)] == [True, False, True, True, True]
    assert store.touch(key(2)) and not store.touch(key(1))
    kept(store, key(5))
    assert [n for n in range(6) if key(n) in store] == [0, 2, 4, 5]
    stats = store.stats()
    assert (stats.evicted, stats.files, stats.nbytes) == (2, 4, 4 * FILE_BYTES)
    assert len(list(store.directory.rglob("*.safetensors"))) == 4


def test_the_bound_is_for_all_models_by_time_of_use(open_store: Open) -> None:
    theirs, ours = open_store(OTHER), open_store()
    paths = [kept(theirs, key(0)), kept(ours, key(1)), kept(ours, key(2))]
    for age, path in zip((10, 30, 20), paths, strict=True):
        os.utime(path, (time.time() - age,) * 2)
    again = open_store(max_bytes=3 * FILE_BYTES)
    kept(again, key(3))
    kept(again, key(4))
    assert [path.exists() for path in paths] == [True, False, False]
    kept(again, key(5))
    assert not paths[0].exists()
    assert theirs.get(key(0)) is None


def test_a_smaller_bound_after_a_restart(open_store: Open) -> None:
    first = open_store()
    for number in range(6):
        os.utime(kept(first, key(number)), (time.time() - 100 + number,) * 2)
    store = open_store(max_bytes=2 * FILE_BYTES)
    kept(store, key(6))
    assert [n for n in range(7) if key(n) in store] == [5, 6]


def test_use_is_remembered_over_a_restart(open_store: Open) -> None:
    first = open_store()
    for number in range(3):
        os.utime(kept(first, key(number)), (time.time() - 100 + number,) * 2)
    assert first.get(key(0)) and first.touch(key(1))
    store = open_store(max_bytes=3 * FILE_BYTES)
    kept(store, key(3))
    assert [n for n in range(4) if key(n) in store] == [0, 1, 3]


def test_a_record_over_the_bound_is_dropped(open_store: Open) -> None:
    store = open_store(max_bytes=FILE_BYTES - 1)
    store.put(KEY, record())
    store.flush()
    assert KEY not in store and store.stats().dropped == 1
    assert not store.put(KEY, Record((), bytes(FILE_BYTES)))


def test_a_slow_disk_drops_pages_or_waits(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def slow(*arguments: Any) -> bytes:
        assert go.wait(PATIENCE_S)
        return encode(*arguments)

    monkeypatch.setattr(page_store, "encode", slow)
    store = open_store(max_pending=80)
    assert [store.put(key(n), record(n)) for n in range(4)] == [True, True, False, False]
    assert store.stats().dropped == 2
    assert store.get(key(1)) == record(1)  # while it waits to be written
    threading.Timer(0.05, go.set).start()
    assert store.put(key(2), record(2), wait=True)
    store.flush()
    assert [n for n in range(4) if key(n) in store] == [0, 1, 2]


def test_a_disk_that_refuses_is_logged_once(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "write_bytes", full)
        for number in range(5):
            store.put(key(number), record())
        store.flush()
    assert caplog.text.count("No space left") == 1
    assert store.stats().failures == 5 and store.stats().files == 0
    assert not [path for path in store.directory.rglob("*") if path.is_file()]
    kept(store)
    assert store.get(KEY) == record()


def test_a_file_that_cannot_be_read_is_a_miss(open_store: Open) -> None:
    store = open_store()
    path = kept(store)
    path.unlink()
    path.mkdir()
    assert store.get(KEY) is None and store.stats().failures == 1


def test_a_closed_store_refuses(open_store: Open) -> None:
    store = open_store()
    kept(store)
    store.close()
    store.close()
    assert not store.put(key(1), record()) and not store.put(key(1), record(), wait=True)
    assert store.get(KEY) == record()
    store.flush()


def test_names_are_checked(open_store: Open, tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "AB" * 20, "ab" * 19, KEY + "-other"):
        with pytest.raises(ValueError, match="no key"):
            open_store().put(name, record())
    for model in ("", "../x" * 4, "0123"):
        with pytest.raises(ValueError, match="not hexadecimal"):
            PageStore(tmp_path, model, 1)
