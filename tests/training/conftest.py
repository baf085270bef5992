"""Small data and settings for trainings of the bundled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.tools.training_engine import training_engine
from mlx_parallm.training.rewards import load_reward
from mlx_parallm.training.settings import LoraSettings, TrainSettings
from mlx_parallm.training.start import read_dataset
from mlx_parallm.training.trainer import Trainer
from mlx_parallm.training.versions import Versions

EXAMPLE = Path(__file__).parents[2] / "scripts" / "say_a_word"
MakeSettings = Callable[..., TrainSettings]


@dataclass
class Bench:
    """A running engine that trainers can be made on."""

    engine: Engine
    twin: Any
    versions: Versions

    def trainer(self, settings: TrainSettings) -> Trainer:
        rewards = [load_reward(spec) for spec in settings.rewards]
        dataset = read_dataset(settings, self.engine)
        return Trainer(settings, self.engine, self.twin, self.versions, dataset, rewards)


@pytest.fixture
def settings_of(tmp_path: Path) -> MakeSettings:
    """Settings of the example in scripts/, in a short form; keywords replace them."""

    def make(**changes: Any) -> TrainSettings:
        lora = LoraSettings(**changes.pop("lora", {}))
        values: dict[str, Any] = {
            "data": EXAMPLE / "prompts.jsonl",
            "output": tmp_path / "out",
            "rewards": (f"{EXAMPLE / 'rewards.py'}:says_it",),
            "steps": 4,
            "max_tokens": 12,
            "learning_rate": 1e-3,
            "micro_batch": 32,
            "lora": lora,
        }
        settings = TrainSettings(**values | changes)
        settings.output.mkdir(exist_ok=True)
        return settings

    return make


@pytest.fixture
def bench() -> Iterator[Callable[[TrainSettings], Bench]]:
    """Starts engines, which end with the test; a port makes them serve meanwhile."""
    with ExitStack() as stack:

        def start(settings: TrainSettings, port: int | None = None) -> Bench:
            return Bench(*stack.enter_context(training_engine(settings, port)))

        yield start
