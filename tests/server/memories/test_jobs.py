"""Jobs that make memories: while they run, after a restart, beside others."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from tests.server.memories.helpers import (
    ASKED,
    CHAT,
    COMPLETIONS,
    MEMORIES,
    TEXT,
    ended,
    error_of,
    listed,
    remember,
)
from tests.waiting import PATIENCE_S, wait_until


def test_a_job_that_ends_while_it_is_listed(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list never shows a job as done without what it made: clients stop asking then."""
    goes_on, manager = threading.Event(), real.state.memories()
    find, collections = manager.find, manager.collections

    def then_the_job_ends() -> Any:
        found = collections()
        goes_on.set()
        assert all(job.ended.wait(PATIENCE_S) for job in manager.jobs.jobs)
        return found

    monkeypatch.setattr(manager, "find", lambda *asked: goes_on.wait(PATIENCE_S) and find(*asked))
    real.post(MEMORIES, text=TEXT, collection="late")
    monkeypatch.setattr(manager, "collections", then_the_job_ends)
    answer = real.http.get(MEMORIES).json()
    assert answer["data"] == []
    assert answer["jobs"][-1]["status"] in ("queued", "running")


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "memory.collections"),
        (COMPLETIONS, ASKED, "memory.collections"),
        ("/v1/memories/search", {"query": "x"}, "collections"),
    ],
)
def test_a_collection_that_is_still_being_made(
    real: Any, path: str, asked: dict[str, Any], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """409 with the job's id and Retry-After, and not "unknown"; then it is there."""
    chosen: dict[str, Any] = {"collections": ["slow"]}
    body = {**asked, **(chosen if "query" in asked else {"memory": chosen})}
    goes_on, manager = threading.Event(), real.state.memories()
    find = manager.find
    monkeypatch.setattr(manager, "find", lambda *asked: goes_on.wait(PATIENCE_S) and find(*asked))
    job = real.post(MEMORIES, text=TEXT, collection="slow").json()
    early = real.post(path, **body)
    goes_on.set()
    error = error_of(early, 409)
    assert (error["code"], error["param"]) == ("collection_not_ready", param)
    assert job["id"] in error["message"]
    assert int(early.headers["retry-after"]) >= 1
    wait_until(lambda: real.http.get(f"/v1/memories/jobs/{job['id']}").json()["status"] == "done")
    assert real.post(path, **body).status_code == 200


def test_what_was_accepted_goes_on_after_a_restart(
    serve: Callable[..., Any], llama_factory: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    def start(seed: int = 0, folder: Path | None = tmp_path) -> Any:
        engine = Engine(lambda: llama_factory(seed), EngineConfig())
        memory_dir = None if folder is None else str(folder)
        return serve(engine, served_model_name=("org/tiny",), memory_dir=memory_dir)

    first = start()
    jobs = first.state.memories().jobs
    remember, stops, count = jobs._remember, threading.Event(), itertools.count()

    def two(*arguments: Any) -> bool:
        assert next(count) < 2 or stops.wait(PATIENCE_S)
        return bool(remember(*arguments))

    jobs._remember = two
    texts = [{"text": f"{TEXT} {place}" * 2} for place in range(8)]
    job = first.post(MEMORIES, documents=texts, window=64, stride=8).json()
    assert job["durable"] is True and job["status"] != "done"
    first.stop()
    wait_until(lambda: jobs._stopping)
    stops.set()
    first.join()
    other = start(1)  # another model leaves it alone
    assert error_of(other.http.get(f"/v1/memories/jobs/{job['id']}"), 404)
    other.stop()
    other.join()
    second = start()
    job = ended(second, second.http.get(f"/v1/memories/jobs/{job['id']}").json())
    assert job["documents_done"] == 8 and job["total_tokens"] == job["done_tokens"]
    assert len(listed(second)["default"]["documents"]) == 8
    assert second.state.memories().backend.kept_jobs() == []
    in_memory = start(folder=None)
    assert in_memory.post(MEMORIES, text=TEXT).json()["durable"] is False


def test_memories_are_made_while_others_decode(real: Any) -> None:
    body = {**ASKED, "max_tokens": 200, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: real.events(COMPLETIONS, **body))
        remember(real, text=TEXT * 40, window=64, stride=16)
        events = running.result()
    assert close_texts(events, real.events(COMPLETIONS, **body))


def close_texts(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    def text(events: list[dict[str, Any]]) -> str:
        return "".join(choice["text"] for event in events for choice in event["choices"])

    return text(one) == text(other)
