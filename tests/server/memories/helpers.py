"""What tests of memories over HTTP say and ask for."""

from __future__ import annotations

import time
from typing import Any

from tests.waiting import PATIENCE_S

MEMORIES = "/v1/models/org/tiny/memories"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
TEXT = "Zubrovka's capital is Lutz. Its river is the Prall."
PROMPT = "What is the capital of"
ASKED = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 2}
CLOSE = 1e-4


def remember(real: Any, path: str = MEMORIES, **body: Any) -> dict[str, Any]:
    """Add, and wait for the job."""
    response = real.post(path, **body)
    assert response.status_code == 202, response.text
    job = response.json()
    assert job["object"] == "memory.job" and job["total_tokens"] > 0
    job = ended(real, job)
    assert job["status"] == "done", job
    assert job["done_tokens"] == job["total_tokens"] and job["progress"] == 1
    return dict(job)


def ended(real: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The job when nothing is left to do."""
    until = time.monotonic() + PATIENCE_S
    while job["status"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.01)
        job = real.http.get(f"/v1/memories/jobs/{job['id']}").json()
    return job


def listed(real: Any) -> dict[str, Any]:
    answer = real.http.get(MEMORIES)
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()["data"]}


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])
