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
from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.backends.store_errors import DiskFullError
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


_OVER_HTTP = """
import sys, time
from pathlib import Path
from mlx_parallm.engine.engine import Engine, EngineConfig
from tests.conftest import tiny_llama
from tests.server.conftest import Served, Settings, create_app

folder, path = Path(sys.argv[1]), "/v1/models/tiny/memories"
engine = Engine(tiny_llama, EngineConfig())
settings = Settings(served_model_name=("tiny",), memory_dir=str(folder), log_level="error")
server = Served(create_app(settings, engine), engine, 0.5)
try:
    server.wait_ready()
    failed = None
    for place in range(60):
        text = f"This is document {place}. " * 40
        answer = server.post(path, collection=f"c{place % 2}", text=text)
        if answer.status_code == 503:
            failed = answer.json()["error"]
            break
        job = answer.json()
        while job["status"] in ("queued", "running"):
            time.sleep(0.01)
            job = server.http.get(f"/v1/memories/jobs/{job['id']}").json()
        if job["status"] == "failed":
            failed = job["error"]
            break
    assert failed is not None and failed["code"] == "memory_store_error", failed
    assert server.http.delete(path, params={"collection": "c0"}).status_code == 200
    found = [one["id"] for one in server.http.get(path).json()["data"]]
    assert found == ["c1"], found
    job = server.post(path, collection="c2", text=text).json()
    while job["status"] in ("queued", "running"):
        time.sleep(0.01)
        job = server.http.get(f"/v1/memories/jobs/{job['id']}").json()
    assert job["status"] == "done", job
    assert server.http.delete(path, params={"all": "true"}).status_code == 200
finally:
    server.stop()
    server.join()
"""


@pytest.mark.parametrize("case", ["running", "restart", "no reserve"])
def test_memories_can_be_removed_from_a_full_disk(tmp_path: Path, case: str) -> None:
    on_a_small_disk(tmp_path, _SCRIPT, case)


def test_the_api_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    on_a_small_disk(tmp_path, _OVER_HTTP)


def on_a_small_disk(folder: Path, script: str, *arguments: str) -> None:
    """Run a script with a folder that has 4 MB, or skip."""
    mount = f'mount -t tmpfs -o size=4m tmpfs "{folder}"'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mount]).returncode != 0:
        pytest.skip("no file system can be mounted here")
    inside = f'{mount} && exec "$@"'
    command = [unshare, "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", script]
    done = subprocess.run([*command, str(folder), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
