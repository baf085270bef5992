"""Questions through the server, and whether their likeliest answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bundled.client import Client
from tqdm import tqdm

from .calibration import Judged
from .tasks import Task

_AT_ONCE = 16


def judged_all(client: Client, tasks: Sequence[Task], label: str = "decisions") -> list[Judged]:
    """Ask all of them, some at once; in order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda task: judged(client, task), tasks)
        return list(tqdm(found, total=len(tasks), desc=label, dynamic_ncols=True))


def judged(client: Client, task: Task) -> Judged:
    """Ask one question."""
    body = {"input": task.state, "questions": [task.question]}
    answer = client.decisions(body)["answers"][0]
    found = _probabilities(answer)
    best = found.index(max(found))
    return Judged(found[best], best == task.gold)


def _probabilities(answer: dict[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [entry["probability"] for entry in answer["probabilities"]]
