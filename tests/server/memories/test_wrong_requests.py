"""What is wrong with a request about memories is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.memories.helpers import (
    ASKED,
    COMPLETIONS,
    MEMORIES,
    TEXT,
    error_of,
    remember,
)


def test_unknown_things_are_named(real: Any) -> None:
    error = error_of(real.post(COMPLETIONS, **ASKED, memory={"collections": ["nope"]}), 404)
    assert error["param"] == "memory.collections" and "'nope'" in error["message"]
    remember(real, text=TEXT)
    assert error_of(real.http.delete(MEMORIES, params={"collection": "nope"}), 404)
    wrong = {"collection": "default", "document_id": "nope"}
    assert error_of(real.http.delete(MEMORIES, params=wrong), 404)["param"] == "document_id"
    assert error_of(real.http.delete(MEMORIES, params={"document_id": "a"}), 400)
    assert error_of(real.http.get(MEMORIES, params={"collection": "nope"}), 404)
    assert error_of(real.http.get("/v1/memories/jobs/nope"), 404)
    assert error_of(real.post("/v1/models/other/memories", text="x"), 404)["param"] == "model"


@pytest.mark.parametrize(
    ("memory", "param"),
    [
        ({}, "memory.collections"),
        ({"collections": []}, "memory.collections"),
        ({"collections": ["default"], "topk": 0}, "memory.topk"),
        ({"collections": ["default"], "sim_threshold": "high"}, "memory.sim_threshold"),
        ({"collections": ["default"], "layers": [7]}, "memory.layers"),
        ({"collections": ["default"], "position": "one"}, "memory.position"),
        ({"collections": ["default"], "local_offset": -1}, "memory.local_offset"),
        ({"collections": ["default"], "citations": True}, "memory.citations"),
        ({"collections": ["default"], "top_k": 3}, "memory.top_k"),
    ],
)
def test_wrong_memory_fields_are_named(real: Any, memory: dict[str, Any], param: str) -> None:
    remember(real, text=TEXT)
    assert error_of(real.post(COMPLETIONS, **ASKED, memory=memory), 400)["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "documents"),
        ({"text": "a", "tokens": [5]}, "documents"),
        ({"documents": [{"id": "a"}]}, "documents.0.text"),
        ({"documents": [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}]}, "documents"),
        ({"text": ""}, None),
        ({"tokens": [100000]}, "tokens"),
        ({"text": "a", "window": 100000}, "window"),
        ({"text": "a", "window": 8, "stride": 9}, "stride"),
        ({"text": "a", "collection": ""}, "collection"),
    ],
)
def test_wrong_documents_are_named(real: Any, body: dict[str, Any], param: str | None) -> None:
    assert error_of(real.post(MEMORIES, **body), 400)["param"] == param
