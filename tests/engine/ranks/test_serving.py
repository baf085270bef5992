"""Law 1 over ranks: two processes that divide the model answer as one that has all of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_parallm
from mlx_parallm.models.loader import load_model
from mlx_parallm.options.loading import load_settings
from mlx_parallm.settings import SettingsError
from tests.engine.ranks.servers import (
    PIPELINE,
    TENSOR,
    Request,
    Server,
    assert_same,
    ends_cleanly,
    serving,
)
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.server.test_predict import MLP, mlp_weights
from tests.server.test_predict import write as write_network

BUNDLED = Path(mlx_parallm.__file__).parent / "models" / "bundled"
TEXT = "the quick brown fox jumps over the lazy dog and then some more words follow here. "
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHOWS_A_PICTURE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
}


def completion(prompt: str, **fields: Any) -> Request:
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, **fields}
    return "/v1/completions", body


def mixed() -> list[Request]:
    """A little of everything that goes through a batch."""
    drawn = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}
    person = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    asked = [{"role": "user", "content": "Name a person."}]
    return [
        *(completion(f"{place} " + TEXT * (place + 1), logprobs=3) for place in range(4)),
        *(completion(f"What is {place} plus 4?", seed=place, **drawn) for place in range(3)),
        completion("abc " * 20, n=3, seed=3, temperature=0.8, logit_bias={"12": 5}),
        completion("one two three", prompt_logprobs=2, max_tokens=3),
        completion("x", structured_outputs={"regex": "[a-c]{4,9}"}, ignore_eos=False),
        completion(TEXT, model="lora", logprobs=1),
        completion("another", model="dora", logprobs=1),
        ("/v1/chat/completions", {"messages": asked, "seed": 1, "response_format": person}),
        ("/v1/embeddings", {"input": ["hello world", "another text that is longer"]}),
        ("/v1/predict", {"model": "iris", "inputs": [[1, 2, 3, 4], [0, 0, 0, 1]]}),
    ]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of two adapters, of all kinds of layers, and of a plain network."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, kind in enumerate(("lora", "dora")):
        model = load_model("bundled").model
        mlx_lm_adapter(folder / kind, model, seed, kind=kind, keys=list(ALL), scale=0.3)
    network = write_network(folder / "network", MLP, mlp_weights())
    named = [f"--lora-modules={kind}={folder / kind}" for kind in ("lora", "dora")]
    return [*named, "--predictor", network]


@pytest.fixture(scope="module")
def alone(adapters: list[str]) -> Iterator[list[Any]]:
    """The answers of one process."""
    with serving(*adapters) as server:
        yield server.ask_all(mixed())


@pytest.fixture(scope="module", params=[TENSOR, PIPELINE])
def two(
    request: pytest.FixtureRequest,
    adapters: list[str],
    alone: list[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Two ranks that guess from n-grams and have room for few prefixes, the rest on disk.

    They have answered already: each test finds prefixes, whichever are run.
    """
    prefixes = str(tmp_path_factory.mktemp("prefixes"))
    kept = ("--prefix-cache-memory", "200KB", "--prefix-cache-dir", prefixes)
    with serving(*adapters, *kept, "--speculative", "ngram", ranks=2, way=request.param) as server:
        assert_same(alone, server.ask_all(mixed()))
        yield server
        ends_cleanly(server)
    assert {path.name for path in Path(prefixes).iterdir()} == {"rank-0-of-2", "rank-1-of-2"}


def test_two_ranks_answer_as_one_process(alone: list[Any], two: Server) -> None:
    assert_same(alone, two.ask_all(mixed()))  # with prefixes and n-grams of the first time
    assert two.http.get("/debug/metrics").json()["engine"]["prefix_hit_tokens"] > 0


@pytest.mark.parametrize("way", [TENSOR, PIPELINE])
def test_a_draft_model_guesses_on_all_ranks(
    adapters: list[str], alone: list[Any], way: str
) -> None:
    with serving(*adapters, "--draft-model", "bundled", ranks=2, way=way) as server:
        assert_same(alone, server.ask_all(mixed()))
        ends_cleanly(server)


def test_what_is_paused_and_forgotten_is_so_on_all_ranks(alone: list[Any], two: Server) -> None:
    assert two.http.post("/pause", params={"mode": "keep"}).status_code == 200
    assert two.http.post("/reset_prefix_cache").status_code == 200
    assert two.http.post("/resume").status_code == 200
    changed = {"use_speculative_decoding": False, "max_batch_size": 3, "prefill_chunk": 32}
    assert two.http.post("/v1/configure", json=changed).status_code == 200
    assert two.http.get("/get_world_size").json() == {"world_size": 2}
    assert_same(alone[:8], two.ask_all(mixed()[:8]))


@pytest.mark.parametrize(
    ("status", "path", "body", "said"),
    [
        (400, "/v1/completions", {"prompt": "a", "memory": {"collections": ["x"]}}, "Memories"),
        (400, "/v1/models/bundled/memories", {"collection": "x", "text": "a"}, "Memories"),
        (400, "/v1/completions", {"prompt": "a", "max_tokens": 5000}, "context"),
        (400, "/v1/completions", {"prompt": "a", "grammar": "root ::= ("}, "rammar"),
        (400, "/v1/chat/completions", {"messages": [SHOWS_A_PICTURE]}, "does not see pictures"),
        (400, "/v1/configure", {"max_batch_size": 0}, "max_batch_size"),
        (404, "/v1/load_lora_adapter", {"lora_name": "n", "lora_path": "/x"}, "/x"),
        (404, "/v1/completions", {"prompt": "a", "model": "gone"}, "gone"),
        (404, "/v1/unload_lora_adapter", {"lora_name": "gone"}, "gone"),
    ],
)
def test_what_is_refused_is_so_by_rank_0_and_nothing_is_lost(
    two: Server, status: int, path: str, body: dict[str, Any], said: str
) -> None:
    answer = two.http.post(path, json=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )
    assert two.ask(completion("1 2 3", max_tokens=1))["choices"]


def test_a_pipelines_weights_stay(two: Server) -> None:
    info = two.http.get("/server_info", params={"config_format": "json"}).json()
    if info["vllm_config"]["parallel_config"]["pipeline_parallel_size"] == 1:
        return  # test_new_weights.py replaces these
    answer = two.http.put("/v1/models/bundled/weights", json={"path": str(BUNDLED)})
    assert answer.status_code == 400
    assert "--pipeline-parallel" in answer.text


def test_some_architectures() -> None:
    """One with experts and sinks, one with recurrent layers; all are in every_type.py."""
    command = [sys.executable, "-m", "tests.engine.ranks.every_type", "gpt_oss", "qwen3_5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["gpt_oss", "qwen3_5"], done.stderr
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--memory-dir", "x"],
        ["--memory-store", "redis://x"],
        ["--use-extended-mind"],
        ["--also-serve", "bundled/draft"],
        ["--models-dir", "x"],
        ["--strict"],
    ],
)
def test_options_that_ranks_cannot_have_are_refused_at_start(flags: list[str]) -> None:
    for way in (TENSOR, PIPELINE):
        with pytest.raises(SettingsError, match=f"{flags[0]} does not go with {way}: "):
            load_settings([*flags, way, "2"], {})


def test_a_model_is_divided_in_one_way() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        load_settings([TENSOR, "2", PIPELINE, "2"], {})
