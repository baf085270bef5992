"""Memories over HTTP, on a real engine with a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import BUNDLED, LoadedModel, load_model
from tests.server.memories.helpers import (
    ASKED,
    CHAT,
    CLOSE,
    COMPLETIONS,
    MEMORIES,
    PROMPT,
    TEXT,
    error_of,
    listed,
    remember,
)


def test_collections_grow_by_versions_and_go(real: Any) -> None:
    remember(real, text=TEXT, id="a", metadata={"page": 3}, window=32, stride=8)
    assert remember(real, documents=[{"text": "Anna."}, {"tokens": [70, 71]}])["version"] == 3
    found = listed(real)["default"]
    assert found["version"] == 3 and found["window"] == 32 and found["problem"] is None
    assert found["num_memories"] == len(TEXT) + len("Anna.") + 2
    kv_bytes = 2 * 2 * 2 * 8 * 4  # K and V of 2 layers, 2 heads, 8 numbers of 4 bytes
    assert found["bytes"] >= found["num_memories"] * kv_bytes
    first = found["documents"][0]
    assert first["id"] == "a" and first["metadata"] == {"page": 3}
    assert first["num_memories"] == first["characters"] == len(TEXT)

    remember(real, text="other", id="a")  # takes the place of the first one
    found = listed(real)["default"]
    assert found["version"] == 4 and len(found["documents"]) == 3
    assert found["num_memories"] == len("other") + len("Anna.") + 2

    gone = real.http.delete(MEMORIES, params={"collection": "default", "document_id": "a"})
    assert gone.json()["deleted"] and len(listed(real)["default"]["documents"]) == 2
    remember(real, text="x", collection="second")
    real.http.delete(MEMORIES, params={"collection": "default"})
    assert list(listed(real)) == ["second"]
    everything = real.http.delete(MEMORIES, params={"all": "true"})
    assert everything.json()["collections"] == ["second"]
    assert listed(real) == {}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "collection"),
        ("?all=false", "collection"),
        ("?collections=one", "collections"),
        ("?collection=one&documentid=a", "documentid"),
        ("?collection=one&all=true", "all"),
        ("?collection=one&collection=two", "collection"),
        ("?document_id=a", "collection"),
        ("?all=perhaps", "all"),
        ("?ALL=true", "ALL"),
    ],
)
def test_what_is_unclear_removes_nothing(real: Any, query: str, param: str) -> None:
    for name in ("one", "two"):
        remember(real, text=TEXT, collection=name, id="a")
    error = error_of(real.http.delete(MEMORIES + query), 400)
    assert error["param"] == param
    assert sorted(listed(real)) == ["one", "two"]


@pytest.mark.parametrize("query", ["?all=true", "?collection=one"])
@pytest.mark.parametrize("body", [b'{"collection": "one"}', b"{}", b"x"])
def test_a_body_removes_nothing(real: Any, query: str, body: bytes) -> None:
    remember(real, text=TEXT, collection="one")
    error_of(real.http.request("DELETE", MEMORIES + query, content=body), 400)
    assert list(listed(real)) == ["one"]


def test_the_same_text_is_stored_once(real: Any) -> None:
    first = remember(real, text=TEXT, metadata={"page": 3})
    again = remember(real, text=TEXT, metadata={"page": 3})
    assert again["document_ids"] == first["document_ids"] and again["version"] == first["version"]
    together = remember(real, documents=[{"text": TEXT, "metadata": {"page": 3}}, {"text": "b"}])
    assert together["documents_done"] == 2
    assert len(listed(real)["default"]["documents"]) == 2
    memory = {"collections": ["default"], "citations": "span"}
    cited = real.ok(COMPLETIONS, **ASKED, memory=memory)["choices"][0]["citations"]
    spans = [(c["document_id"], c["start"]) for c in cited]
    assert len(set(spans)) == len(spans)
    # Other metadata take the place of the old ones; an id of one's own is another document.
    assert remember(real, text=TEXT, metadata={"page": 4})["version"] == together["version"] + 1
    remember(real, text=TEXT, id="mine")
    documents = {d["id"]: d["metadata"] for d in listed(real)["default"]["documents"]}
    assert len(documents) == 3 and documents[first["document_ids"][0]] == {"page": 4}
    assert remember(real, text=TEXT, id="mine")["version"] == listed(real)["default"]["version"]


def test_changed_files_are_seen_and_nothing_else_suffers(
    serve: Callable[..., Any], llama_factory: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    server = serve(
        Engine(llama_factory, EngineConfig()),
        served_model_name=("org/tiny",),
        memory_dir=str(tmp_path),
    )
    for name in ("well", "missing", "short", "garbage", "flipped"):
        remember(server, text=f"{TEXT} {name}", collection=name, id="a")
    uids = {d.collection: d.uid for d in _documents(server)}
    files = {name: tmp_path / "documents" / f"{uid}.safetensors" for name, uid in uids.items()}
    content = files["flipped"].read_bytes()
    files["missing"].unlink()
    files["short"].write_bytes(files["short"].read_bytes()[:-100])
    files["garbage"].write_bytes(b"garbage" * 100)
    files["flipped"].write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])

    expected = {"missing": "missing", "short": "bytes", "garbage": "bytes", "flipped": "checksum"}
    found = listed(server)
    assert found["well"]["problem"] is None
    for name, reason in expected.items():
        assert reason in found[name]["problem"] and "'a'" in found[name]["problem"]
        memory = {"collections": ["well", name]}
        error = error_of(server.post(COMPLETIONS, **ASKED, memory=memory), 409)
        assert error["code"] == "memory_damaged" and repr(name) in error["message"]
        assert error["param"] == "memory.collections"
        search = {"query": "x", "collections": [name]}
        assert error_of(server.post("/v1/memories/search", **search), 409)["param"] == "collections"
    assert server.ok(COMPLETIONS, **ASKED, memory={"collections": ["well"]})
    remember(server, text=f"{TEXT} missing", collection="missing", id="a")  # adding mends
    assert server.ok(COMPLETIONS, **ASKED, memory={"collections": ["missing"]})
    for name in ("short", "garbage", "flipped"):
        assert server.http.delete(MEMORIES, params={"collection": name}).is_success
    assert sorted(listed(server)) == ["missing", "well"]
    assert all(one["problem"] is None for one in listed(server).values())


def _documents(server: Any) -> list[Any]:
    found = server.state.memories().collections()
    return [document for collection in found for document in collection.documents]


def test_requests_with_memories_differ_and_those_without_do_not(real: Any) -> None:
    before = real.ok(COMPLETIONS, **ASKED)["choices"][0]
    remember(real, text=TEXT)
    memory = {"collections": ["default"]}
    with_memory = real.ok(COMPLETIONS, **ASKED, memory=memory)["choices"][0]
    assert real.ok(COMPLETIONS, **ASKED)["choices"][0] == before
    assert with_memory["logprobs"] != before["logprobs"] and "citations" not in with_memory
    nothing = {**memory, "sim_threshold": 1.5}
    same = real.ok(COMPLETIONS, **ASKED, memory=nothing)["choices"][0]
    assert close(same, before)


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same text with the same log-probabilities."""
    pairs = zip(one["logprobs"]["token_logprobs"], other["logprobs"]["token_logprobs"], strict=True)
    return one["text"] == other["text"] and all(abs(a - b) < CLOSE for a, b in pairs)


def test_contiguous_memories_are_the_prompt_that_precedes(real: Any) -> None:
    remember(real, text=TEXT)
    memory = {"collections": ["default"], "position": "contiguous", "topk": 60000}
    found = real.ok(COMPLETIONS, **ASKED, memory=memory)["choices"][0]
    expected = real.ok(COMPLETIONS, **{**ASKED, "prompt": TEXT + PROMPT})["choices"][0]
    assert close(found, expected)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/generate", "/v1/generate"])
@pytest.mark.parametrize("kind", ["span", "token"])
def test_citations_come_whole_and_streamed(real: Any, path: str, kind: str) -> None:
    remember(real, text=TEXT, id="facts", metadata={"page": 3})
    body: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
    body["memory"] = {"collections": ["default"], "citations": kind, "topk": 2}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": PROMPT}]
    else:
        body["prompt"] = PROMPT
    answer = real.ok(path, **body)
    citations = answer["choices"][0]["citations"] if "choices" in answer else answer["citations"]
    if kind == "token":
        assert [entry["index"] for entry in citations] == [0, 1, 2]
        memories = [memory for entry in citations for memory in entry["memories"]]
    else:
        memories = citations
        weights = [entry["weight"] for entry in memories]
        assert weights == sorted(weights, reverse=True)
    assert memories
    for entry in memories:
        assert entry["document_id"] == "facts" and entry["metadata"] == {"page": 3}
        assert entry["text"] == TEXT[entry["start"] : entry["end"]] and 0 < entry["weight"] <= 1
    if path == "/v1/generate":
        return
    events = real.events(path, **body)
    if "choices" in answer:
        last = [c for e in events for c in e["choices"] if c["finish_reason"] is not None]
        assert [choice["citations"] for choice in last] == [citations]
    else:
        assert events[-1]["citations"] == citations


def test_n_answers_share_the_memories(real: Any) -> None:
    remember(real, text=TEXT)
    body = {**ASKED, "n": 3, "temperature": 1.0, "seed": 5}
    memory = {"collections": ["default"], "citations": "span"}
    choices = real.ok(COMPLETIONS, **body, memory=memory)["choices"]
    for place, choice in enumerate(choices):
        own = {**ASKED, "temperature": 1.0, "seed": 5 + place}
        alone = real.ok(COMPLETIONS, **own, memory=memory)["choices"][0]
        assert close(choice, alone) and choice["citations"]


def test_rows_with_different_memories_in_one_batch_equal_each_alone(real: Any) -> None:
    remember(real, text=TEXT, collection="one")
    remember(real, text="Nothing of this is about a river at all.", collection="two")
    bodies: list[dict[str, Any]] = [
        {**ASKED, "prompt": PROMPT + "!" * place, "max_tokens": 20, "memory": memory}
        for place, memory in enumerate(
            [
                None,
                {"collections": ["one"]},
                {"collections": ["two"], "topk": 3},
                {"collections": ["one", "two"], "position": "contiguous"},
                None,
                {"collections": ["two"], "sim_threshold": 0.2, "layers": [1]},
            ]
        )
    ]
    alone = [real.ok(COMPLETIONS, **body)["choices"][0] for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda b: real.ok(COMPLETIONS, **b)["choices"][0], bodies))
    for one, other in zip(alone, together, strict=True):
        assert close(one, other)


def test_the_prefix_cache_tells_memories_apart(real: Any) -> None:
    prompt = "a prompt that is longer than a page of the prefix cache. " * 2
    body = {**ASKED, "prompt": prompt}
    plain = real.ok(COMPLETIONS, **body)["choices"][0]
    remember(real, text=TEXT)
    memory = {"collections": ["default"]}
    first = real.ok(COMPLETIONS, **body, memory=memory)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = real.ok(COMPLETIONS, **body, memory=memory)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert close(first["choices"][0], again["choices"][0])
    remember(real, text="Something else.")
    grown = real.ok(COMPLETIONS, **body, memory=memory)
    assert grown["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert close(real.ok(COMPLETIONS, **body)["choices"][0], plain)


def test_search_shows_what_a_text_retrieves(real: Any) -> None:
    remember(real, text=TEXT, id="facts")
    body = {"query": "river", "collections": ["default"], "topk": 1}
    found = real.ok("/v1/memories/search", **body)["data"]
    assert found and all(entry["document_id"] == "facts" for entry in found)
    assert (
        error_of(real.post("/v1/memories/search", query="x", collections=["nope"]), 404)["param"]
        == "collections"
    )


def test_a_collection_keeps_its_window(real: Any) -> None:
    remember(real, text=TEXT, window=32, stride=8)
    assert error_of(real.post(MEMORIES, text="x", window=64), 400)["param"] == "window"
    remember(real, text="x")


def test_memories_outlive_the_server_but_not_the_model(
    serve: Callable[..., Any],
    llama_factory: Callable[..., LoadedModel],
    helpers: Any,
    tmp_path: Path,
) -> None:
    def start(seed: int) -> Any:
        engine = Engine(lambda: llama_factory(seed), EngineConfig())
        return serve(engine, served_model_name=("org/tiny",), memory_dir=str(tmp_path))

    memory = {"collections": ["default"]}
    first = start(0)
    remember(first, text=TEXT)
    expected = first.ok(COMPLETIONS, **ASKED, memory=memory)["choices"][0]
    first.stop()
    first.join()
    second = start(0)
    assert second.ok(COMPLETIONS, **ASKED, memory=memory)["choices"][0] == expected
    third = start(1)
    assert "another model" in listed(third)["default"]["problem"]
    error = error_of(third.post(COMPLETIONS, **ASKED, memory=memory), 400)
    assert error["code"] == "memory_mismatch" and error["param"] == "memory.collections"
    assert error_of(third.post(MEMORIES, text="more"), 400)["code"] == "memory_mismatch"


def test_the_bundled_model_answers_from_memory_alone(serve: Callable[..., Any]) -> None:
    """The example of the README."""
    engine = Engine(lambda: load_model(BUNDLED), EngineConfig())
    bundled = serve(engine, served_model_name=("bundled",))
    text = "The code of Mira is 57. The code of Tom is 23. The code of Anna is 91."
    remember(bundled, path="/v1/models/bundled/memories", collection="notes", text=text)
    memory = {"collections": ["notes"], "topk": 8, "citations": "span"}
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    for name, code in (("Mira", "57"), ("Tom", "23"), ("Anna", "91")):
        asked["messages"] = [{"role": "user", "content": f"What is the code of {name}?"}]
        told = bundled.ok(CHAT, **asked, memory=memory)["choices"][0]
        assert told["message"]["content"] == f"The code of {name} is {code}."
        cited = told["citations"][0]
        assert code in cited["text"] and len(cited["text"]) < 20
        assert cited["text"] == text[cited["start"] : cited["end"]]
        untold = bundled.ok(CHAT, **asked)["choices"][0]
        assert code not in untold["message"]["content"]


def test_files_from_the_command_line(real: Any, tmp_path: Path, capsys: Any) -> None:
    from mlx_parallm.memory.__main__ import main

    (tmp_path / "facts.txt").write_text(TEXT)
    file = str(tmp_path / "facts.txt")
    assert main([file, "--url", real.url, "--collection", "files", "--window", "32"]) == 0
    assert "100%" in capsys.readouterr().err
    assert [d["id"] for d in listed(real)["files"]["documents"]] == ["facts.txt"]
    assert main([file, "--url", real.url, "--collection", "files", "--window", "64"]) == 1
    assert "has window 32" in capsys.readouterr().err
    assert main([str(tmp_path / "nope"), "--url", real.url]) == 1
