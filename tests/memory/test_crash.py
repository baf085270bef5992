"""kill -9 while documents are written: what was acknowledged is there, nothing is half there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load

from mlx_parallm.memory.backends.backend import MemoryBackend
from mlx_parallm.memory.backends.stores import open_backend
from mlx_parallm.memory.document import DocumentFiles
from tests.memory.conftest import make_document, payload
from tests.waiting import PATIENCE_S

SIZE = 10000  # memories of a document: some megabytes, so that the end comes in the middle

_WRITER = """
import sys
from pathlib import Path
from mlx_parallm.memory.backends.stores import open_backend
from tests.memory.conftest import make_document, payload

backend = open_backend(sys.argv[1], Path(sys.argv[2]))
content = payload({size}, 0)
print("ready", flush=True)
for place in range(10000):
    backend.put(make_document(f"d{{place % 7}}-{{place}}", size=3), content)
    print(place, flush=True)
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
def test_kill_nine(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    address = kind if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
    expected = {name: array.tobytes() for name, array in load(payload(SIZE, 0)).items()}
    for after_s in (0.02, 0.11, 0.23) if kind == "sqlite" else (0.11,):
        acknowledged = _write_and_kill(address, tmp_path, after_s)
        backend = open_backend(address, tmp_path)
        documents = [d for collection in backend.collections() for d in collection.documents]
        names = [document.id for document in documents]
        assert acknowledged <= len(names) <= acknowledged + 1
        assert names[:acknowledged] == [f"d{p % 7}-{p}" for p in range(acknowledged)]
        for document in documents[-3:]:
            found = load(backend.payload(document.uid))
            assert {name: array.tobytes() for name, array in found.items()} == expected
        _start_over(backend)


def _write_and_kill(address: str, folder: Path, after_s: float) -> int:
    """How many documents the writer said were stored."""
    command = [sys.executable, "-c", _WRITER.format(size=SIZE), address, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(after_s)
    writer.send_signal(signal.SIGKILL)
    lines = writer.stdout.read().split()
    writer.stdout.close()
    writer.wait(PATIENCE_S)
    return len(lines)


def _start_over(backend: MemoryBackend) -> None:
    backend.delete_collection("default")
    backend.close()


def test_files_that_a_crash_left_are_removed(tmp_path: Path) -> None:
    files = DocumentFiles(tmp_path)
    document = make_document("a")
    files.write(document.uid, payload(5, 0))
    files.write("unknown", payload(5, 0))
    files.path("half").with_suffix(".part").write_bytes(b"half")
    files.keep_only({document.uid})  # another process may be writing them now
    assert len(list(tmp_path.iterdir())) == 3
    files.keep_only({document.uid}, older_than_s=-1)
    assert [path.stem for path in tmp_path.iterdir()] == [document.uid]
