"""More than two ranks, and ranks that do not have the same model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import llama

from tests.engine.ranks.servers import PIPELINE, Server, ends_cleanly, serving
from tests.engine.ranks.test_lost_ranks import free_ports, started_by_a_launcher
from tests.models import checkpoints
from tests.waiting import PATIENCE_S

TWELVE_HEADS = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "rms_norm_eps": 1e-5,
    "vocab_size": 259,
    "tie_word_embeddings": True,
}
THREE_LAYERS = {**TWELVE_HEADS, "num_hidden_layers": 3}
PROMPTS = [list(range(10, 10 + length)) for length in (3, 20, 70)]
TOKENS = 4
REPEATING = [[7, 8, 9] * 12, [3, 4] * 20]
IN_PARTS = [place % 251 for place in range(0, 1500, 5)]  # more than a step takes


@pytest.fixture
def model() -> Any:
    return made_of(TWELVE_HEADS)


def made_of(config: dict[str, Any]) -> Any:
    """With random weights that leave gaps between logits."""
    mx.random.seed(5)
    made = llama.Model(llama.ModelArgs.from_dict(config))
    made.update({"model": {"embed_tokens": {"weight": mx.random.normal((259, 96))}}})
    return made


def saved(folder: Path, model: Any, config: dict[str, Any] = TWELVE_HEADS) -> Path:
    return checkpoints.write(folder, config, dict(tree_flatten(model.parameters())))


def greedy(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What mlx-lm writes, prompt by prompt."""
    return [
        [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]
        for prompt in prompts
    ]


def written(server: Server, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What a server writes for prompts that come at once."""
    ask = {"temperature": 0, "max_tokens": count, "ignore_eos": True, "logprobs": 0}
    body = {"prompt": prompts, "return_tokens_as_token_ids": True, **ask}
    answer = server.ask(("/v1/completions", body))
    names = [choice["logprobs"]["tokens"] for choice in answer["choices"]]
    return [[int(name.removeprefix("token_id:")) for name in tokens] for tokens in names]


def test_three_ranks_give_the_tokens_of_mlx_lm(model: Any, tmp_path: Path) -> None:
    with serving("--model", str(saved(tmp_path / "model", model)), ranks=3) as server:
        assert written(server, PROMPTS, TOKENS) == greedy(model, PROMPTS, TOKENS)
        ends_cleanly(server)


def test_three_stages_give_the_tokens_of_mlx_lm(tmp_path: Path) -> None:
    """Fewer rows than stages, as many, and more; a long prompt in parts; guesses."""
    model, prompts = made_of(THREE_LAYERS), [*PROMPTS, *REPEATING, IN_PARTS]
    expected = greedy(model, prompts, 12)
    flags = ("--prefill-chunk", "16", "--speculative", "ngram")
    folder = str(saved(tmp_path / "model", model, THREE_LAYERS))
    with serving("--model", folder, *flags, ranks=3, way=PIPELINE) as server:
        for rows in (1, 2, 3, len(prompts)):
            assert written(server, prompts[-rows:], 12) == expected[-rows:]
        engine = server.http.get("/debug/metrics").json()["engine"]
        assert engine["accepted_tokens"] > 0
        ends_cleanly(server)


_SERVES = """
import sys
from mlx_parallm import cli

sys.exit(cli.main(["--port", "0", "--tensor-parallel", "2", "--model", {path!r}]))
"""


@contextmanager
def started(paths: list[Path], hosts: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Ranks of which each has its own folder."""
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(len(paths))]))
    ranks = [
        started_by_a_launcher(_SERVES.format(path=str(path)), hosts, rank)
        for rank, path in enumerate(paths)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_ranks_with_different_weights_are_refused_at_start(model: Any, tmp_path: Path) -> None:
    one = saved(tmp_path / "one", model)
    model.update({"model": {"norm": {"weight": 2 * mx.ones(96)}}})
    other = saved(tmp_path / "other", model)
    with started([one, other], tmp_path / "hosts.json") as ranks:
        assert [rank.wait(PATIENCE_S) for rank in ranks] == [1, 1]
        for rank in ranks:
            assert rank.stderr is not None
            assert "the ranks have different weights of this model" in rank.stderr.read()
