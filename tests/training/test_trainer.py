"""Trainings of the bundled model: that it learns, and that each step is what it should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import stream_generate
from mlx_lm.utils import load

from mlx_parallm.errors import TrainingError
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.loader import resolve
from mlx_parallm.training import checkpoint, csv_log
from mlx_parallm.training.trainer import StepResult, Trainer
from tests.waiting import PATIENCE_S

Start = Callable[..., Any]
KEYS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj")


def rewards_of(trainer: Trainer) -> list[float]:
    found: list[StepResult] = []
    trainer.run(found.append)
    return [result.values["reward"] for result in found]


def test_the_reward_rises(settings_of: Any, bench: Start) -> None:
    """From at most 20% to most of the answers, in the short form of scripts/say_a_word."""
    settings = settings_of(steps=24)
    rewards = rewards_of(bench(settings).trainer(settings))
    assert rewards[0] <= 0.2
    assert np.mean(rewards[-6:]) >= 0.6
    assert csv_log.read(settings.output) == []  # logs belong to a Run


def test_weights_are_shared_and_samples_are_exact(settings_of: Any, bench: Start) -> None:
    """The twin has the engine's arrays; training sees the log-probabilities of sampling."""
    settings = settings_of(temperature=0.8, kl=0.05, updates_per_step=2, micro_batch=5)
    running = bench(settings)
    trainer = running.trainer(settings)
    engine_model = dict(tree_flatten(running.engine.loaded.model.parameters()))
    twin = dict(tree_flatten(trainer.policy.model.parameters()))
    for name, array in engine_model.items():
        own = [other for path, other in twin.items() if other is array]
        assert len(own) == 1, name
    for number in (1, 2, 3):
        result = trainer.train_step()
        assert result.values["mismatch"] < 1e-4  # nats
        assert {s.version for group in result.samples for s in group} == {number}
    assert result.values["kl"] > 0


def test_a_resumed_run_is_the_uninterrupted_one(
    settings_of: Any, bench: Start, tmp_path: Path
) -> None:
    whole = settings_of(steps=5, save_every=2)
    rewards = rewards_of(bench(whole).trainer(whole))
    parts = settings_of(steps=3, save_every=3, output=tmp_path / "parts")
    first = rewards_of(bench(parts).trainer(parts))
    rest = settings_of(steps=5, output=tmp_path / "parts", resume=True)
    trainer = bench(rest).trainer(rest)
    assert trainer.step == 3
    assert first + rewards_of(trainer) == rewards
    one, other = checkpoint.newest(whole.output), checkpoint.newest(parts.output)
    assert one.step == other.step == 5
    for file in ("adapters.safetensors", "checkpoints/000005/optimizer.safetensors"):
        mine: Any = mx.load(str(whole.output / file))
        theirs: Any = mx.load(str(parts.output / file))
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert np.allclose(np.array(mine[name]), np.array(theirs[name]), atol=1e-6), name


def test_another_run_cannot_be_resumed(settings_of: Any, bench: Start) -> None:
    settings = settings_of(steps=1)
    running = bench(settings)
    rewards_of(running.trainer(settings))
    with pytest.raises(TrainingError, match="another lora"):
        running.trainer(settings_of(resume=True, lora={"rank": 4}))
    with pytest.raises(TrainingError, match="another seed"):
        running.trainer(settings_of(resume=True, seed=1))
    with pytest.raises(TrainingError, match="rows of zeros"):  # mlx-lm's layer divides by them
        running.trainer(settings_of(lora={"dora": True}))


@pytest.mark.parametrize("dora", [False, True])
def test_the_server_has_the_new_version(settings_of: Any, bench: Start, dora: bool) -> None:
    """Its tokens after updates are those of mlx_lm with the saved adapter."""
    settings = settings_of(
        steps=6, lora={"dora": dora, "rank": 4, "keys": KEYS}, learning_rate=3e-2
    )
    with httpx.Client(timeout=PATIENCE_S) as client:
        running = bench(settings, 0)
        address = running.versions.address
        trainer = running.trainer(settings)
        before = _answer(client, address)
        rewards_of(trainer)
        after = _answer(client, address)
        versions = client.get(f"{address}/v1/adapters").json()
    assert "policy" in str(versions)
    folder = str(resolve("bundled"))
    assert before == _mlx_lm_answer(folder, None)
    assert after == _mlx_lm_answer(folder, str(settings.output))
    assert after != before


def _answer(client: httpx.Client, address: str) -> list[int]:
    body = {"model": "policy", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
    answer = client.post(f"{address}/v1/completions", json=body | {"return_token_ids": True})
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


PROMPT = "Say apple"


def _mlx_lm_answer(folder: str, adapter: str | None) -> list[int]:
    model, tokenizer = load(folder, adapter_path=adapter)[:2]
    replacements.uninstall(model)
    model.update(tree_map(lambda array: array.astype(mx.float32), model.parameters()))
    return [int(r.token) for r in stream_generate(model, tokenizer, PROMPT, max_tokens=24)]
