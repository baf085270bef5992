"""Rewards, advantages and data: what they give, and what is wrong with them is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.errors import TrainingError
from mlx_parallm.training.advantages import advantages
from mlx_parallm.training.dataset import Dataset
from mlx_parallm.training.rewards import load_reward, total
from mlx_parallm.training.settings import TrainSettings

TEXTS = ["yes", ' {"a": 1} ', "no yes"]
COLUMNS: dict[str, list[Any]] = {
    "prompts": ["?"] * 3,
    "completions": TEXTS,
    "completion_ids": [[1], [1, 2], [1, 2, 3, 4]],
    "answer": ["yes ", "yes", "no"],
    "schema": [{"required": ["a"]}, {"type": "object"}, True],
}


@pytest.mark.parametrize(
    ("spec", "scores"),
    [
        ("exact_match", [1, 0, 0]),
        ("contains", [0, 0, 1]),
        ("regex:^no|1}", [0, 1, 1]),
        ("json_schema", [0, 1, 0]),
        ("length:2", [1, 1, 0.5]),
    ],
)
def test_built_in_rewards(spec: str, scores: list[float]) -> None:
    assert load_reward(spec).score(COLUMNS).tolist() == scores


def test_schema_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"required": ["a"], "type": "object"}')
    assert load_reward(f"json_schema:{tmp_path / 's.json'}").score(COLUMNS).tolist() == [0, 1, 0]


def test_a_function_gets_what_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def few(completions, answer):\n    return [len(a) for a in answer]\n"
        "def every(prompts, **fields):\n    return [len(fields)] * len(prompts)\n"
        "def wrong(completions):\n    return [1.0]\n"
        "def nan(completions):\n    return [float('nan')] * len(completions)\n"
        "def broken(completions):\n    return completions.missing\n"
    )
    assert load_reward(f"{file}:few").score(COLUMNS).tolist() == [4, 3, 2]
    assert load_reward(f"{file}:every").score(COLUMNS).tolist() == [4, 4, 4]
    for name in ("wrong", "nan", "broken"):
        with pytest.raises(TrainingError, match=f"the reward {name}"):
            load_reward(f"{file}:{name}").score(COLUMNS)
    with pytest.raises(TrainingError, match="no function 'gone'"):
        load_reward(f"{file}:gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("guess", "no such reward; there are exact_match"),
        ("regex:(", "regex:"),
        ("length:many", "number of tokens"),
        ("no/such.py:f", "no such file"),
    ],
)
def test_wrong_rewards(spec: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_reward(spec)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(TrainingError, match="'gold'"):
        load_reward("exact_match:gold").score(COLUMNS)


def test_advantages() -> None:
    rewards = np.array([[1.0, 0, 0, 1], [2, 2, 2, 2]])
    assert np.allclose(advantages(rewards, "none"), [[0.5, -0.5, -0.5, 0.5], [0.0] * 4])
    group = advantages(rewards, "group")
    assert np.allclose(group[0], np.array([1, -1, -1, 1]) * 0.5 / (np.sqrt(1 / 3) + 1e-4))
    assert not group[1].any()
    assert np.allclose(advantages(rewards, "batch")[0, 0], 0.5 / (rewards.std(ddof=1) + 1e-4))
    assert total([np.ones(2), np.zeros(2)], (0.5, 2.0)).tolist() == [0.5, 0.5]


def _lines(file: Path, *rows: Any) -> Path:
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return file


def test_data(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = [{"prompt": f"say {n}", "n": n} for n in range(5)]
    data = Dataset.read(_lines(tmp_path / "d", *rows), byte_tokenizer, seed=1, longest=50)
    assert data.examples[3].fields == {"n": 3}
    assert data.examples[3].ids == byte_tokenizer.encode("say 3")
    steps = [[e.fields["n"] for e in data.of_step(step, 2)] for step in range(5)]
    seen = [n for step in steps for n in step]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))  # two epochs
    assert seen[:5] != seen[5:]
    assert steps == [[e.fields["n"] for e in data.of_step(step, 2)] for step in range(5)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ":1: this is not JSON"),
        ([1], "no JSON object"),
        ({"text": "a"}, "one of `prompt` and `messages`"),
        ({"prompt": "a", "messages": []}, "one of `prompt` and `messages`"),
        ({"prompt": 3}, "`prompt` is a text"),
        ({"messages": 3}, "`messages` do not fit"),
        ({"prompt": "x" * 99}, "99 tokens; 1 to 50"),
    ],
)
def test_wrong_data(tmp_path: Path, byte_tokenizer: Any, row: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Dataset.read(_lines(tmp_path / "d", row), byte_tokenizer, seed=1, longest=50)
    with pytest.raises(TrainingError, match="not readable"):
        Dataset.read(tmp_path / "none", byte_tokenizer, seed=1, longest=50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "--group-size must be at least 2"),
        ({"temperature": 0.0}, "--temperature"),
        ({"rewards": ()}, "--reward is needed"),
        ({"reward_weights": (1.0, 2.0)}, "2 numbers; there are 1"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"data": Path(), "output": Path(), "rewards": ("length:1",)}
    with pytest.raises(TrainingError, match=message):
        TrainSettings(**values | changes)
