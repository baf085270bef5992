"""New weights for a model that two ranks divide: each reads its part, and all use them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from mlx_parallm.models.sources.sources import BUNDLED, resolve
from tests.engine.ranks.servers import Server, ends_cleanly, serving

WEIGHTS = "/v1/models/bundled/weights"
PROMPT = [place * 97 % 2000 + 3 for place in range(30)]


def greedy(model: Any) -> list[str]:
    tokens = generate_step(mx.array(PROMPT), model, max_tokens=6)
    return [f"token_id:{int(token)}" for token, _ in tokens]


def tokens_of(server: Server) -> list[str]:
    ask = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "logprobs": 0}
    body = {"prompt": PROMPT, "return_tokens_as_token_ids": True, **ask}
    return list(server.ask(("/v1/completions", body))["choices"][0]["logprobs"]["tokens"])


def another(model: Any, folder: Path) -> Any:
    """The model with other weights, which are saved there."""
    key = mx.random.key(3)
    changed = tree_map_with_path(
        lambda _, array: array + mx.std(array) * mx.random.normal(array.shape, key=key),
        model.parameters(),
    )
    model.update(changed)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return model


def test_weights_are_replaced_and_rolled_back_on_all_ranks(tmp_path: Path) -> None:
    model, _ = load_model(resolve(BUNDLED))
    model.set_dtype(mx.float32)
    before = greedy(model)
    after = greedy(another(model, tmp_path / "new"))
    assert before != after
    with serving("--prefix-cache-memory", "1MB", ranks=2) as server:
        assert tokens_of(server) == before
        put = server.http.put(WEIGHTS, json={"path": str(tmp_path / "new")})
        assert put.status_code == 200, put.text
        assert (put.json()["version"], put.json()["versions"]) == (1, [0, 1])
        assert tokens_of(server) == after
        assert server.http.post(f"{WEIGHTS}/rollback").json()["version"] == 0
        assert tokens_of(server) == before
        in_parts(server, tmp_path / "new")
        assert tokens_of(server) == after
        checked = server.http.get("/weight_checker").json()
        assert checked["weights"]["digest"] == put.json()["digest"]
        refused(server, tmp_path)
        assert tokens_of(server) == after
        ends_cleanly(server)


def in_parts(server: Server, folder: Path) -> None:
    """As vLLM's clients do it."""
    for path, body in (
        ("/start_weight_update", {}),
        ("/update_weights", {"weight_dir": str(folder)}),
        ("/finish_weight_update", {}),
    ):
        answer = server.http.post(path, json=body)
        assert answer.status_code == 200, answer.text


def refused(server: Server, folder: Path) -> None:
    """What is wrong changes nothing."""
    content = (folder / "new" / "model.safetensors").read_bytes()
    body = server.http.put(WEIGHTS, content=content)
    assert body.status_code == 400 and "give a path that all of them have" in body.text
    short = folder / "short.safetensors"
    short.write_bytes(content[:-100])
    wrong = folder / "wrong.safetensors"
    mx.save_safetensors(str(wrong), {"model.norm.weight": mx.ones(3)})
    for path, said, status in (
        (short, "truncated", 400),
        (wrong, "is missing", 400),
        (folder / "gone", "there is no such file", 404),
    ):
        answer = server.http.put(WEIGHTS, json={"path": str(path)})
        assert (answer.status_code, said in answer.text) == (status, True), answer.text
