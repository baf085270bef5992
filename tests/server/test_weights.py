"""New weights for the whole model over HTTP: by body, by path, in parts, and back again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.checkpoint.upload import read_body
from mlx_parallm.models.loader import LoadedModel
from tests.engine.brake import braked
from tests.engine.versions import checkpoint_of
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

COMPLETIONS = "/v1/completions"
WEIGHTS = "/v1/models/base/weights"
PROMPT = [40 + place % 60 for place in range(40)]


class Site:
    """A server, and checkpoints of other models of the same shape."""

    def __init__(self, served: Any, make: Callable[..., LoadedModel], folder: Path) -> None:
        self.served, self.http, self.folder = served, served.http, folder
        self.models = [make(seed).model for seed in range(3)]
        self.data = [checkpoint_of(model, folder) for model in self.models]
        self.texts = [self._greedy(model) for model in self.models]

    @staticmethod
    def _greedy(model: Any) -> list[int]:
        tokens = list(PROMPT)
        for _ in range(8):
            tokens.append(int(model(mx.array([tokens]))[0, -1].argmax()))
        return tokens[len(PROMPT) :]

    def put(self, content: bytes, query: str = "") -> Any:
        return self.http.put(WEIGHTS + query, content=content)

    def put_path(self, path: Path, **fields: Any) -> Any:
        return self.http.put(WEIGHTS, json={"path": str(path), **fields})

    def file(self, name: str, number: int) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.data[number])
        return path

    def text(self, **fields: Any) -> list[int]:
        return list(self.choice(**fields)["token_ids"])

    def choice(self, **fields: Any) -> Any:
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True} | fields
        body |= {"return_token_ids": True, "return_weight_versions": True}
        return self.served.ok(COMPLETIONS, **body)["choices"][0]

    def check_logprobs(self, choice: Any, new: int) -> None:
        """Each token's is what mlx-lm's model of its version gives, over the whole text at once."""
        text = mx.array([[*PROMPT, *choice["token_ids"]]])
        tables = [model(text)[0, len(PROMPT) - 1 : -1] for model in self.models[:2]]
        tables = [np.array(t - mx.logsumexp(t, axis=-1, keepdims=True)) for t in tables]
        told = zip(choice["token_ids"], choice["weight_versions"], strict=True)
        wanted = [tables[int(of == new)][place][token] for place, (token, of) in enumerate(told)]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)

    @property
    def card(self) -> Any:
        return self.http.get(WEIGHTS).json()


@pytest.fixture(scope="module")
def site(
    llama_factory: Callable[..., LoadedModel],
    helpers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    engine = Engine(llama_factory, EngineConfig(prefix_cache_memory=1 << 20))
    app = create_app(Settings(served_model_name=("base", "org/alias"), weight_versions=3), engine)
    served = helpers.Served(app, engine, 0.5)
    served.wait_ready()
    yield Site(served, llama_factory, tmp_path_factory.mktemp("site"))
    served.stop()
    served.join()


@pytest.fixture(autouse=True)
def as_loaded(site: Site) -> Iterator[None]:
    """Each test begins and ends with the weights that were loaded."""
    yield
    while site.card["version"] != 0:
        version = 0 if 0 in site.card["versions"] else None
        if version is None:  # forgotten: the same weights under a new number
            assert site.put(site.data[0]).status_code == 200
            break
        site.http.post(f"{WEIGHTS}/rollback", json={"version": version})
    assert site.text() == site.texts[0]


def test_weights_come_and_go(site: Site) -> None:
    first = site.card["version"]
    answer = site.put(site.data[1]).json()
    assert answer["version"] > first and answer["switched"] == 0
    assert answer["digest"] == read_body(site.data[1]).digest() and answer["bytes"] > 10_000
    choice = site.choice()
    assert choice["token_ids"] == site.texts[1]
    assert choice["weight_versions"] == choice["base_weight_versions"] == [answer["version"]] * 8
    back = site.http.post(f"{WEIGHTS}/rollback").json()
    assert back["version"] == first and site.text() == site.texts[0]
    checked = site.http.get("/weight_checker").json()
    assert checked["weights"]["version"] == first
    assert site.http.get("/weight_info").json() == {"weight_version": str(first)}
    assert site.http.get("/v1/models/org/alias/weights").json()["model"] == "org/alias"
    gone = site.http.post(f"{WEIGHTS}/rollback", json={"version": 99})
    assert gone.status_code == 404 and "kept are" in gone.text


def test_files_and_folders(site: Site) -> None:
    assert site.put_path(site.file("one.safetensors", 1)).status_code == 200
    assert site.text() == site.texts[1]
    shards = site.folder / "shards"
    shards.mkdir()
    tensors: dict[str, mx.array] = dict(tree_flatten(site.models[2].parameters()))
    for part in range(2):
        mine = {name: tensors[name] for name in sorted(tensors)[part::2]}
        mx.save_safetensors(str(shards / f"model-{part}.safetensors"), mine)
    assert site.http.post("/update_weights", json={"weight_dir": str(shards)}).status_code == 200
    assert site.text() == site.texts[2]
    for path in (site.folder / "nothing", site.folder / "x.safetensors"):
        assert site.put_path(path).status_code == 404


def test_vllms_calls(site: Site) -> None:
    """Parts change nothing until all are there."""
    post = site.http.post
    assert post("/init_weight_transfer_engine").json() == {"message": "Weight transfer initialized"}
    refused = post("/init_weight_transfer_engine", json={"init_info": {"master_port": 1}})
    assert refused.status_code == 400 and "files only" in refused.text
    tensors = dict(tree_flatten(site.models[1].parameters()))
    names = sorted(tensors)
    for finished in (False, True):  # the first one is begun anew
        assert post("/start_weight_update").json() == {"message": "Weight update started"}
        for part in range(2):
            file = site.folder / f"part-{part}.safetensors"
            mx.save_safetensors(str(file), {name: tensors[name] for name in names[part::2]})
            info = {"update_info": {"weight_dir": str(file)}}
            assert post("/update_weights", json=info).json() == {"message": "Weights updated"}
            assert site.text() == site.texts[0]
            if not finished:
                break
    assert post("/finish_weight_update").json() == {"message": "Weight update finished"}
    assert site.text() == site.texts[1]
    assert post("/finish_weight_update").status_code == 400
    nccl = {"update_info": {"names": ["a"], "dtype_names": ["float32"], "shapes": [[1]]}}
    assert post("/update_weights", json=nccl).status_code == 400


def _changed(site: Site, change: Callable[[dict[str, Any]], None]) -> bytes:
    tensors = dict(tree_flatten(site.models[1].parameters()))
    change(tensors)
    file = site.folder / "changed.safetensors"
    mx.save_safetensors(str(file), tensors)
    return file.read_bytes()


NORM = "model.norm.weight"
BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing": (lambda t: t.pop(NORM), f"{NORM} is missing"),
    "unknown": (lambda t: t.update(extra=mx.zeros(1)), "extra: the model has no such parameter"),
    "shape": (lambda t: t.update({NORM: mx.zeros(31)}), "has the shape (31,)"),
    "type": (lambda t: t.update({NORM: mx.zeros(32, mx.int32)}), "has the type int32"),
    "nan": (lambda t: t.update({NORM: mx.full((32,), mx.nan)}), "not finite"),
    "bfloat16 nan": (
        lambda t: t.update({NORM: mx.full((32,), mx.inf).astype(mx.bfloat16)}),
        "not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_changes_nothing(site: Site, case: str) -> None:
    before = site.card
    change, message = BAD[case]
    answer = site.put(_changed(site, change))
    assert answer.status_code == 400 and message in answer.text
    assert site.card == before and site.text() == site.texts[0]


def test_other_refusals(site: Site) -> None:
    before, data = site.card, site.data[1]
    for bad in (b"", data[:-1], data[:100], b"{}"):
        assert site.put(bad).status_code == 400
    assert site.put(b"\0" * (60 << 20)).status_code == 413
    assert site.put(data, "?running=later").status_code == 400
    assert site.http.put("/v1/models/nobody/weights", content=data).status_code == 404
    folder = mlx_lm_adapter(site.folder / "adapter", site.models[0], 0, keys=list(ALL))
    body = {"name": "extra", "path": str(folder)}
    assert site.http.post("/v1/adapters", json=body).status_code == 200
    answer = site.http.put("/v1/models/extra/weights", content=data)
    assert answer.status_code == 400 and "/v1/adapters" in answer.text
    site.http.delete("/v1/adapters/extra")
    assert site.card == before


def test_one_change_at_a_time(site: Site) -> None:
    """The first upload waits for the engine; the second is a 409, and the first goes through."""
    held, answers = threading.Event(), []
    site.served.engine.call(lambda: held.wait(PATIENCE_S))
    first = threading.Thread(target=lambda: answers.append(site.put(site.data[1])))
    first.start()
    versions = site.served.state.versions
    wait_until(lambda: versions._busy)
    second = site.put(site.data[2])
    held.set()
    first.join()
    assert second.status_code == 409 and answers[0].status_code == 200
    assert site.text() == site.texts[1]


@pytest.mark.parametrize("running", ["finish", "keep", "recompute"])
def test_requests_that_run(site: Site, running: str) -> None:
    """A stream whose weights change in mid-answer tells each token's version."""
    answers: list[Any] = []
    ask = threading.Thread(target=lambda: answers.append(site.choice(max_tokens=300, logprobs=0)))
    with braked(site.served.engine) as brake:
        ask.start()
        brake.wait()
        put = site.put(site.data[1], f"?running={running}").json()
    ask.join()
    versions = answers[0]["weight_versions"]
    if running != "keep":  # what is kept is compared in tests/engine/test_weights.py
        site.check_logprobs(answers[0], new=put["version"])
    assert put["switched"] == (running != "finish") and versions == sorted(versions)
    if running == "finish":
        assert put["version"] not in versions
    else:
        assert versions[-1] == put["version"] and versions[0] != put["version"]
    assert site.text() == site.texts[1]


def test_a_trainers_round(site: Site) -> None:
    """vLLM's way: pause and keep, new weights, resume. The request goes on with the new ones."""
    answers: list[Any] = []
    ask = threading.Thread(target=lambda: answers.append(site.choice(max_tokens=300)))
    post = site.http.post
    with braked(site.served.engine) as brake:
        ask.start()
        brake.wait()
        assert post("/pause?mode=keep").status_code == 200
    file = site.file("round.safetensors", 1)
    assert post("/update_weights", json={"weight_dir": str(file)}).status_code == 200
    assert ask.is_alive()
    assert post("/resume").status_code == 200
    ask.join()
    versions = answers[0]["weight_versions"]
    assert len(versions) == 300 and versions[-1] == site.card["version"] != versions[0]


def test_reloads_under_load(site: Site) -> None:
    """Answers that begin after a change never show the weights before, nor does any prefix."""
    stop, failures = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            choice = site.choice()
            if len(set(choice["weight_versions"])) != 1 or choice["token_ids"] not in site.texts:
                failures.append(choice)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine = site.served.engine
    memory = []
    try:
        for round_ in range(12):
            number = 1 + round_ % 2
            assert site.put(site.data[number]).status_code == 200
            assert site.text() == site.texts[number]
            memory.append(engine.call(mx.get_active_memory).result(PATIENCE_S))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(site.card["versions"]) == 3
    assert min(memory[-4:]) < 2 * max(memory[2:6])  # versions that are forgotten give theirs back


def test_memories_belong_to_weights(site: Site) -> None:
    """A collection is refused once the weights that it was made with are gone; they come back."""
    path, notes = "/v1/models/base/memories", {"collection": "notes"}
    assert site.served.post(path, **notes, text="The sky is blue.").status_code == 202
    wait_until(lambda: bool(site.http.get(path, params=notes).json().get("data")))
    memory = {"collections": ["notes"], "topk": 2}
    before, first = site.text(memory=memory), site.card["version"]
    assert site.put(site.data[1]).status_code == 200
    refused = site.served.post(COMPLETIONS, prompt=PROMPT, memory=memory)
    assert refused.status_code == 400 and "another model" in refused.text
    site.http.post(f"{WEIGHTS}/rollback", json={"version": first})
    assert site.text(memory=memory) == before
    assert site.http.delete(path, params=notes).is_success


def test_the_admin_key(llama_factory: Callable[..., LoadedModel], serve: Any, site: Site) -> None:
    running = serve(
        Engine(llama_factory, EngineConfig()), served_model_name=("base",), admin_key=("secret",)
    )
    assert running.http.put(WEIGHTS, content=site.data[1]).status_code == 401
    answer = running.http.put(WEIGHTS, content=site.data[1], headers={"x-admin-key": "secret"})
    assert answer.status_code == 200
    for path in ("/update_weights", "/start_weight_update", "/finish_weight_update"):
        assert running.http.post(path, json={}).status_code == 401
