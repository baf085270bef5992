"""Adapters over HTTP: loaded, chosen by the model's name, listed, replaced and removed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from tests.engine.brake import braked
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PROMPT = [40 + place % 60 for place in range(40)]
ADMIN = {"x-admin-key": "secret"}


@pytest.fixture(scope="module")
def folders(
    llama_factory: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        mlx_lm_adapter(folder / str(n), llama_factory().model, n, keys=list(ALL)) for n in range(4)
    ]


@pytest.fixture(scope="module")
def served(
    llama_factory: Callable[..., LoadedModel], helpers: Any, folders: list[Path]
) -> Iterator[Any]:
    """A server with the adapter `first`, an engine of two slots and a prefix cache."""
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    engine = Engine(llama_factory, EngineConfig(max_loras=2, prefix_cache_memory=1 << 20))
    settings = Settings(served_model_name=("base",), lora_modules=(f"first={folders[0]}",))
    running = helpers.Served(create_app(settings, engine), engine, 0.5)
    running.wait_ready()
    yield running
    running.stop()
    running.join()


def text_of(served: Any, model: str, **fields: Any) -> Any:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | fields
    answer = served.post(COMPLETIONS, ignore_eos=True, return_token_ids=True, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def load(served: Any, name: str, path: Path, **fields: Any) -> Any:
    return served.http.post("/v1/adapters", json={"name": name, "path": str(path), **fields})


def test_a_request_chooses_an_adapter_by_its_model(served: Any, folders: list[Path]) -> None:
    for number in (1, 2):  # three adapters for two slots
        assert load(served, f"other-{number}", folders[number]).json()["version"] == 1
    names = ["base", "first", "other-1", "other-2"]
    texts = [text_of(served, name) for name in names]
    assert len({tuple(text) for text in texts}) == 4
    found: dict[str, Any] = {}

    def ask(name: str) -> None:
        found[name] = text_of(served, name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[name] for name in names] == texts
    models = served.http.get("/v1/models").json()["data"]
    assert {m["id"]: m["parent"] for m in models} == {"base": None} | dict.fromkeys(
        names[1:], "base"
    )
    chat = served.post(CHAT, model="first", messages=[{"role": "user", "content": "a"}])
    assert chat.json()["model"] == "first"
    for number in (1, 2):
        assert served.http.delete(f"/v1/adapters/other-{number}").json()["deleted"]
    gone = served.post(COMPLETIONS, model="other-1", prompt="a")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_responses_and_messages_choose_an_adapter_too(served: Any, stream: bool) -> None:
    """Their answers are those of chat with the same adapter."""
    said = {"role": "user", "content": "tell me more"}
    chat: dict[str, Any] = {"messages": [said], "max_tokens": 8, "temperature": 0}
    own: dict[str, Any] = {"max_output_tokens": 8, "input": [said], "temperature": 0}
    wanted = {}
    for model in ("base", "first"):
        choice = served.post(CHAT, model=model, **chat).json()["choices"][0]
        wanted[model] = choice["message"]["content"]
    assert wanted["base"] != wanted["first"]
    for model, text in wanted.items():
        message = served.post("/v1/messages", model=model, stream=stream, **chat)
        response = served.post("/v1/responses", model=model, stream=stream, **own)
        if stream:
            assert streamed(message, "text") == streamed(response, "delta") == text
            continue
        assert (message.json()["model"], response.json()["model"]) == (model, model)
        assert message.json()["content"][0]["text"] == text
        assert response.json()["output"][0]["content"][0]["text"] == text


def streamed(answer: Any, name: str) -> str:
    """All texts of an answer's events, together."""
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    parts = [event.get("delta", "") for event in events]
    texts = [part.get(name, "") if isinstance(part, dict) else part for part in parts]
    return "".join(texts)


def test_tokens_are_counted_for_an_adapter(served: Any) -> None:
    messages = [{"role": "user", "content": "a"}]
    for path in ("/v1/messages/count_tokens", "/tokenize"):
        answers = [served.post(path, model=name, messages=messages) for name in ("base", "first")]
        assert answers[0].json() == answers[1].json()
        unknown = served.post(path, model="nobody", messages=messages)
        assert unknown.status_code == 404


def test_vllms_calls(served: Any, folders: list[Path]) -> None:
    body = {"lora_name": "policy", "lora_path": str(folders[1])}
    answer = served.post("/v1/load_lora_adapter", **body)
    assert answer.text == "Success: LoRA adapter 'policy' added successfully."
    before = text_of(served, "policy")
    again = served.post("/v1/load_lora_adapter", **body)
    assert again.status_code == 400 and "already been loaded" in again.text
    body["lora_path"] = str(folders[2])
    assert served.post("/v1/load_lora_adapter", load_inplace=True, **body).status_code == 200
    assert text_of(served, "policy") != before
    assert served.post("/load_lora_adapter", **body).json() == {"status": "ok"}  # prime-rl's
    assert len(served.http.get("/v1/adapters/policy").json()["versions"]) == 3
    assert served.post("/v1/adapters/policy/rollback").json()["version"] == 2
    rolled = served.post("/v1/adapters/policy/rollback").json()
    assert (rolled["version"], rolled["versions"]) == (1, [1, 2, 3])
    assert text_of(served, "policy") == before
    assert served.post("/v1/unload_lora_adapter", lora_name="policy").status_code == 200
    assert served.post("/v1/unload_lora_adapter", lora_name="policy").status_code == 404


def test_new_weights_as_a_body_and_bad_ones(served: Any, folders: list[Path]) -> None:
    data = (folders[3] / "adapters.safetensors").read_bytes()
    assert load(served, "live", folders[0]).status_code == 200
    assert load(served, "twin", folders[3]).status_code == 200
    before, wanted = text_of(served, "live"), text_of(served, "twin")

    def put(content: bytes) -> Any:
        return served.http.put("/v1/adapters/live/weights", content=content)

    for bad in (b"", data[:-1], data[: len(data) // 2], data.replace(b'"F32"', b'"I32"')):
        answer = put(bad)
        assert 400 <= answer.status_code < 500, answer.text
        assert text_of(served, "live") == before
    assert put(data).json()["version"] == 2
    assert text_of(served, "live") == wanted
    for name in ("live", "twin"):
        served.http.delete(f"/v1/adapters/{name}")


def test_one_change_of_a_name_at_a_time(served: Any, folders: list[Path]) -> None:
    """The first upload waits for the engine; the second is a 409, and changes nothing."""
    data = [(folder / "adapters.safetensors").read_bytes() for folder in folders[:3]]
    assert load(served, "busy", folders[0]).status_code == 200
    held = threading.Event()
    served.engine.call(lambda: held.wait(PATIENCE_S))

    def put(number: int) -> Any:
        return served.http.put("/v1/adapters/busy/weights", content=data[number])

    first = Later(lambda: put(1))
    wait_until(lambda: "busy" in served.state.adapters._busy)
    second = put(2)
    held.set()
    assert second.status_code == 409 and first.wait().json()["version"] == 2
    load(served, "twin", folders[1])
    assert text_of(served, "busy") == text_of(served, "twin")
    for name in ("busy", "twin"):
        served.http.delete(f"/v1/adapters/{name}")


def test_a_hundred_reloads_under_load(served: Any, folders: list[Path]) -> None:
    """Answers that begin after a reload never show the version before, cached prefixes included."""
    load(served, "hot", folders[0])
    wanted = [text_of(served, "hot")]
    load(served, "hot", folders[1], replace=True)
    wanted.append(text_of(served, "hot"))
    assert wanted[0] != wanted[1]
    stop, failures = threading.Event(), []

    def bother() -> None:
        while not stop.is_set():
            if text_of(served, "hot") not in wanted:
                failures.append("a text of neither version")

    threads = [threading.Thread(target=bother) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(100):
            assert load(served, "hot", folders[round_ % 2], replace=True).status_code == 200
            if round_ % 10 in (3, 4):
                assert text_of(served, "hot") == wanted[round_ % 2]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    entry = served.http.get("/v1/adapters/hot").json()
    assert entry["version"] == 102 and len(entry["versions"]) == 4
    served.http.delete("/v1/adapters/hot")


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"name": "base"}, 400, "base model's name"),
        ({"name": "first"}, 400, "already been loaded"),
        ({"path": "/nowhere"}, 404, "no adapter_config.json"),
        ({"path": ""}, 400, "path"),
    ],
)
def test_what_cannot_be_loaded(
    served: Any, folders: list[Path], fields: dict[str, Any], status: int, message: str
) -> None:
    body = {"name": "x", "path": str(folders[0])} | fields
    answer = served.http.post("/v1/adapters", json=body)
    assert answer.status_code == status and message in answer.text
    assert "x" not in [entry["id"] for entry in served.http.get("/v1/adapters").json()["data"]]


def test_the_default_adapter_and_the_admin_key(
    llama_factory: Callable[..., LoadedModel], serve: Any, folders: list[Path], served: Any
) -> None:
    """--adapter-path: the base model's name means the model with the adapter."""
    running = serve(
        Engine(llama_factory, EngineConfig(max_lora_rank=4)),
        served_model_name=("base",),
        adapter_path=str(folders[0]),
        admin_key=("secret",),
    )
    assert text_of(running, "base") == text_of(served, "first")
    body = {"name": "more", "path": str(folders[1])}
    assert running.http.post("/v1/adapters", json=body).status_code == 401
    answer = running.http.post("/v1/adapters", json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert answer.json()["rank"] == config["lora_parameters"]["rank"]
    # A new version of the default adapter is what requests get that name none.
    default = {"lora_name": folders[0].name, "lora_path": str(folders[1]), "load_inplace": True}
    loaded = running.http.post("/v1/load_lora_adapter", json=default, headers=ADMIN)
    assert loaded.status_code == 200, loaded.text
    assert text_of(running, "base") == text_of(running, "more")
    assert running.http.delete(f"/v1/adapters/{folders[0].name}", headers=ADMIN).status_code == 200
    load(served, "more", folders[1])
    assert text_of(running, "base") == text_of(served, "base") != text_of(served, "more")
    served.http.delete("/v1/adapters/more")


def test_only_this_machine_without_a_key() -> None:
    from fastapi import Request

    from mlx_parallm.server.admin import _is_local

    def local(host: str) -> bool:
        return _is_local(Request({"type": "http", "client": (host, 1), "headers": []}))

    assert local("127.0.0.1") and local("::1") and local("::ffff:127.0.0.1")
    assert not (local("10.0.0.1") or local("::ffff:10.0.0.1") or local("testclient"))


def test_typed_questions_choose_an_adapter_too(served: Any) -> None:
    def probability(model: str) -> float:
        question = {"type": "predicate", "instructions": "Is it so?"}
        body = {"model": model, "input": "It is.", "questions": [question]}
        answer = served.post("/v1/decisions", **body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model
        found: float = answer.json()["answers"][0]["probability"]
        return found

    base, first = probability("base"), probability("first")
    assert abs(base - first) > 1e-3
    assert (probability("base"), probability("first")) == (base, first)


def test_every_tokens_version_is_told(served: Any, folders: list[Path]) -> None:
    """The version changes in mid-answer: kept or recomputed, whole or as a stream."""
    load(served, "moving", folders[0])
    body = {"model": "moving", "prompt": PROMPT, "max_tokens": 300, "ignore_eos": True}
    body["return_weight_versions"] = True
    for stream in (False, True):
        with braked(served.engine) as brake:
            asked = Later(lambda: served.post(COMPLETIONS, **body, stream=stream))  # noqa: B023
            brake.wait()
            changed = load(served, "moving", folders[1], replace=True, running="recompute")
        version, text = changed.json()["version"], asked.wait().text
        if stream:
            text = next(line for line in text.splitlines() if "weight_versions" in line)[6:]
        versions = json.loads(text)["choices"][0]["weight_versions"]
        assert len(versions) == 300 and versions == sorted(versions)
        assert set(versions) == {version - 1, version}
    assert set(_versions(served, "base")) == {0}
    served.http.delete("/v1/adapters/moving")


class Later:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.answer: Any = None

        def run() -> None:
            self.answer = call()

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self) -> Any:
        self._thread.join(PATIENCE_S)
        return self.answer


def _versions(served: Any, model: str) -> list[int]:
    answer = served.post(COMPLETIONS, model=model, prompt="ab", return_weight_versions=True)
    return list(answer.json()["choices"][0]["weight_versions"])


def test_every_api_takes_an_adapters_name(served: Any) -> None:
    """Where tokens are made, and where hidden states are, by OpenAI's, Ollama's and llama.cpp's
    calls."""

    def both(path: str, read: Callable[[Any], Any], **body: Any) -> tuple[Any, Any]:
        found = [read(served.ok(path, model=name, **body)) for name in ("base", "first")]
        return found[0], found[1]

    text = "abc" * 8
    vector = both("/v1/embeddings", lambda a: a["data"][0]["embedding"], input=text)
    assert vector[0] != vector[1]
    score = both("/v1/score", lambda a: a["data"][0]["score"], prompt=text, continuations=["de"])
    assert score[0] != score[1]
    documents = ["de", "fg"]
    ranked = both("/v1/rerank", lambda a: a["results"], query=text, documents=documents)
    assert ranked[0] != ranked[1]
    greedy = {"temperature": 0, "num_predict": 8}
    written = both(
        "/api/generate",
        lambda a: a["response"],
        prompt=text,
        raw=True,
        stream=False,
        options=greedy,
    )
    assert written[0] != written[1]
    assert served.ok("/api/generate", model="first:latest", prompt=text, stream=False)
    embedded = both("/api/embed", lambda a: a["embeddings"], input=text)
    assert embedded[0] != embedded[1]
    continued = both("/completion", lambda a: a["content"], prompt=text, n_predict=8, temperature=0)
    assert continued[0] != continued[1]
    told = text_of(served, "first", prompt=text)
    assert (
        served.ok(
            "/completion",
            model="first",
            prompt=text,
            n_predict=8,
            temperature=0,
            ignore_eos=True,
            return_tokens=True,
        )["tokens"]
        == told
    )
    tokens = both("/tokenize", lambda a: a["tokens"], prompt=text)
    assert tokens[0] == tokens[1]
    assert both("/detokenize", lambda a: a["prompt"], tokens=tokens[0]) == (text, text)
    assert "first:latest" in [m["name"] for m in served.http.get("/api/tags").json()["models"]]


def test_memories_are_made_with_an_adapter(served: Any, folders: list[Path]) -> None:
    """Made by an adapter's model id, they serve its requests, as exactly as the text itself would;
    requests of others get a 400."""
    text = "A whole text to remember."

    def remember(model: str, name: str) -> None:
        path = f"/v1/models/{model}/memories"
        assert served.post(path, collection=name, text=text).status_code == 202
        query = {"collection": name}
        wait_until(lambda: bool(served.http.get(path, params=query).json().get("data")))

    def ask(model: str, name: str) -> Any:
        memory = {"collections": [name], "topk": 64, "position": "contiguous"}
        body = {"prompt": " It ends.", "max_tokens": 8, "temperature": 0, "logprobs": 0}
        return served.post(COMPLETIONS, model=model, memory=memory, **body)

    remember("base", "of-base")
    remember("first", "of-first")
    for model, own, other in (("base", "of-base", "of-first"), ("first", "of-first", "of-base")):
        refused = ask(model, other)
        assert refused.status_code == 400 and "another model or adapter" in refused.text
        found = ask(model, own).json()["choices"][0]["logprobs"]
        whole = served.ok(
            COMPLETIONS,
            model=model,
            prompt=f"{text} It ends.",
            max_tokens=8,
            temperature=0,
            logprobs=0,
        )["choices"][0]["logprobs"]
        assert found["tokens"] == whole["tokens"]
        assert found["token_logprobs"] == pytest.approx(whole["token_logprobs"], abs=1e-3)
    query = {"query": "remember", "collections": ["of-first"]}
    assert served.ok("/v1/memories/search", model="first", **query)["data"]
    assert served.post("/v1/memories/search", model="base", **query).status_code == 400
    # Another version of the adapter is another model; the one before finds its memories again.
    before = ask("first", "of-first").json()["choices"][0]["text"]
    load(served, "first", folders[2], replace=True)
    assert ask("first", "of-first").status_code == 400
    served.http.post("/v1/adapters/first/rollback")
    assert ask("first", "of-first").json()["choices"][0]["text"] == before
    served.http.delete("/v1/models/base/memories", params={"all": "true"})


@pytest.mark.parametrize("path", ["x" * 9000, "~nobody-of-this-name/x", "a\0b"])
def test_a_path_that_cannot_be_is_a_404(served: Any, path: str) -> None:
    for call, body in (
        ("/v1/adapters", {"name": "odd", "path": path}),
        ("/v1/load_lora_adapter", {"lora_name": "odd", "lora_path": path}),
    ):
        answer = served.http.post(call, json=body)
        assert answer.status_code in (400, 404), answer.text
        assert len(answer.text) < 1000
