"""A disk that is full under the memories: adding fails with a reason, removing makes room."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# On a file system of its own, 4 MB small.
_SCRIPT = """
import sys
from pathlib import Path
from mlx_parallm.memory.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.store_errors import DiskFullError
from tests.memory.conftest import make_document, payload

folder = Path(sys.argv[1])
backend = SQLiteBackend(folder)
content = payload(500, 0)
made, full = [], False
while not full:
    document = make_document(f"d{len(made)}", collection=f"c{len(made) % 3}", size=500)
    try:
        backend.put(document, content)
        made.append(document)
    except DiskFullError as error:
        assert error.status == 503, error
        full = True
assert len(made) > 3, len(made)
assert not list(folder.rglob("*.part"))
ballast = open(folder / "ballast", "wb", buffering=0)  # the last byte, too
try:
    while ballast.write(b"x" * 64):
        pass
except OSError:
    pass
try:
    backend.keep_job("job", "x" * 100000)
    raise SystemExit("a job was kept on a full disk")
except DiskFullError:
    pass
if sys.argv[2] == "restart":
    backend.close()
    backend = SQLiteBackend(folder)
if sys.argv[2] == "no reserve":
    (folder / "reserve").unlink()
    try:
        while ballast.write(b"x" * 64):
            pass
    except OSError:
        pass
assert [c.name for c in backend.collections()] == ["c0", "c1", "c2"]
assert backend.delete_document("c1", "d1")
assert backend.delete_collection("c0")
names = {d.id for c in backend.collections() for d in c.documents}
assert names == {d.id for d in made if d.collection != "c0" and d.id != "d1"}, names
for document in made:
    assert backend.files.has(document.uid) == (document.id in names)
backend.put(make_document("new", size=500), content)
backend.keep_job("job", "x")
assert backend.drop_job("job")
"""


@pytest.mark.parametrize("case", ["running", "restart", "no reserve"])
def test_memories_can_be_removed_from_a_full_disk(tmp_path: Path, case: str) -> None:
    mount = f'mount -t tmpfs -o size=4m tmpfs "{tmp_path}"'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mount]).returncode != 0:
        pytest.skip("no file system can be mounted here")
    inside = f'{mount} && exec "$@"'
    command = [unshare, "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", _SCRIPT]
    done = subprocess.run([*command, str(tmp_path), case], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
