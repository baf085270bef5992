"""What was accepted is on the disk: kill -9 right after the answer loses nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.manager import MemoryManager
from mlx_parallm.memory.submission import Source, Submission
from mlx_parallm.models.loader import LoadedModel
from tests.waiting import PATIENCE_S

_ADDS_AND_DIES = """
import itertools, os, signal, sys, threading
from pathlib import Path
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.memory.manager import MemoryManager
from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.submission import Source
from tests.conftest import tiny_llama

engine = Engine(tiny_llama, EngineConfig())
engine.start()
engine.wait_ready(120)
manager = MemoryManager(engine, SQLiteBackend(Path(sys.argv[1])))
texts = [f"The code of number {place} is {7 * place}." for place in range(30)]
remember, count = manager.jobs._remember, itertools.count()

def fifteen(*arguments):
    if next(count) == 15:
        threading.Event().wait()  # the rest is left
    return remember(*arguments)

manager.jobs._remember = fifteen
ids = [manager.add([Source(text, metadata={"n": place})]).id for place, text in enumerate(texts)]
sys.stdout.write(" ".join(ids))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_nine_after_the_answer(
    tmp_path: Path, llama_factory: Callable[..., LoadedModel]
) -> None:
    command = [sys.executable, "-c", _ADDS_AND_DIES, str(tmp_path)]
    died = subprocess.run(command, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    accepted = died.stdout.split()
    assert len(accepted) == 30
    engine = Engine(llama_factory, EngineConfig())
    engine.start()
    engine.wait_ready(PATIENCE_S)
    manager = MemoryManager(engine, SQLiteBackend(tmp_path))
    try:
        left = manager.jobs.jobs
        assert set(accepted[15:]) <= {job.id for job in left} <= set(accepted)
        for job in left:
            job.wait(PATIENCE_S)
        documents = manager.collection("default").documents
        assert [document.metadata["n"] for document in documents] == list(range(30))
        assert manager.backend.kept_jobs() == []
    finally:
        manager.close()
        engine.stop()


def test_jobs_are_kept_in_order_until_they_are_dropped(tmp_path: Path) -> None:
    first = SQLiteBackend(tmp_path)
    for name in ("b", "a", "c"):
        first.keep_job(name, f"text of {name}")
    assert first.drop_job("a") and not first.drop_job("a")
    second = SQLiteBackend(tmp_path)
    assert second.kept_jobs() == [("b", "text of b"), ("c", "text of c")]
    first.close()
    second.close()


def test_submissions_come_back_as_they_were() -> None:
    sources = [Source("Grüße", "a", {"n": [1]}), Source([1, 2, 3])]
    made = Submission(sources, "default", 32, 8, "f")
    found = Submission.from_json(made.to_json())
    assert found.to_json() == made.to_json() and found.id == made.id
    for wrong in ("", "[]", '{"sources": [{}]}', '{"sources": 5}', made.to_json()[:-1]):
        with pytest.raises(ValueError, match=r".+"):
            Submission.from_json(wrong)
