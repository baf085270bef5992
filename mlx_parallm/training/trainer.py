"""The Trainer: rollouts, rewards, an update, the next version; step after step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import load

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import TrainingError
from mlx_parallm.training import checkpoint
from mlx_parallm.training.advantages import advantages
from mlx_parallm.training.checkpoint import Checkpoint
from mlx_parallm.training.dataset import Dataset, Example
from mlx_parallm.training.micro_batch import MicroBatch, micro_batches
from mlx_parallm.training.policy import Policy, Scored, added
from mlx_parallm.training.rewards import Reward, total
from mlx_parallm.training.rollouts import Rollouts, Sample
from mlx_parallm.training.settings import TrainSettings
from mlx_parallm.training.versions import Versions


@dataclass
class StepResult:
    """What one step found.

    Attributes:
        step: counted from 1.
        values: what is logged, by name.
        samples: its answers, group by group.
    """

    step: int
    values: dict[str, float]
    samples: list[list[Sample]] = field(default_factory=list)


class Trainer:
    """Trains a policy on a running engine.

    Args:
        twin: a `twin_of` the engine's model, made before the engine changed it.
        versions: where updates go.
        rewards: by the names that logs show.
        on_tokens: told how many tokens were sampled, as they come.

    Attributes:
        step: steps that are done.
        stop: set it, and `run` ends after the step that is under way.
    """

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        twin: Any,
        versions: Versions,
        dataset: Dataset,
        rewards: list[Reward],
        on_tokens: Callable[[int], None] = lambda count: None,
    ) -> None:
        assert engine.loaded is not None
        self._settings = settings
        self._engine = engine
        self._versions = versions
        self._dataset = dataset
        self._rewards = rewards
        self._rollouts = Rollouts(engine, settings, on_tokens)
        self.step = 0
        self.stop = threading.Event()
        model = engine.loaded.model
        self.policy = engine.call(lambda: Policy(model, twin, settings)).result()
        if settings.resume:
            self._restore(checkpoint.newest(settings.output))
        self._adapter = self._publish()

    def run(self, on_step: Callable[[StepResult], None]) -> None:
        """Train up to the last step, or until `stop` is set; a checkpoint is saved at the end.

        Raises:
            TrainingError: a reward failed, or numbers are not finite any more.
        """
        saved = self.step
        while self.step < self._settings.steps and not self.stop.is_set():
            on_step(self.train_step())
            if self.step % self._settings.save_every == 0:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()

    def train_step(self) -> StepResult:
        """One step."""
        began = time.perf_counter()
        count = self._settings.prompts_per_step
        examples = self._dataset.of_step(self.step, count)
        groups = self._rollouts.sample(self.step, examples, self._adapter)
        sampled = time.perf_counter()
        values = self._judge(groups)
        values |= self._update([sample for group in groups for sample in group])
        trained = time.perf_counter()
        self._adapter = self._publish()
        self.step += 1
        values |= {
            "sample_s": sampled - began,
            "train_s": trained - sampled,
            "publish_s": time.perf_counter() - trained,
        }
        return StepResult(self.step, values, groups)

    def save(self) -> None:
        """Write a checkpoint."""
        state = self._engine.call(lambda: _host(self.policy.state())).result()
        found = Checkpoint(self.step, self.policy.config, self._weights, state, self._origin)
        checkpoint.write(self._settings.output, found, self._settings.keep)

    def _judge(self, groups: list[list[Sample]]) -> dict[str, float]:
        """Fill rewards and advantages in."""
        samples = [sample for group in groups for sample in group]
        columns = _columns(samples)
        scores = [reward.score(columns) for reward in self._rewards]
        rewards = total(scores, self._settings.reward_weights)
        shape = (len(groups), self._settings.group_size)
        found = advantages(rewards.reshape(shape), self._settings.scale_rewards).reshape(-1)
        for sample, reward, advantage in zip(samples, rewards, found, strict=True):
            sample.reward, sample.advantage = float(reward), float(advantage)
        lengths = np.array([len(sample.tokens) for sample in samples])
        each = {
            f"reward/{reward.name}": float(score.mean())
            for reward, score in zip(self._rewards, scores, strict=True)
        }
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            **(each if len(each) > 1 else {}),
            "tokens": float(lengths.sum()),
            "length": float(lengths.mean()),
            "truncated": float(np.mean([sample.truncated for sample in samples])),
            "groups_alike": float(np.mean([len({s.reward for s in g}) == 1 for g in groups])),
        }

    def _update(self, samples: list[Sample]) -> dict[str, float]:
        settings = self._settings
        rate = settings.learning_rate
        if settings.warmup_steps:
            rate *= min(1.0, (self.step + 1) / settings.warmup_steps)
        batches = list(
            micro_batches(
                samples,
                settings.micro_batch,
                settings.loss,
                settings.max_tokens,
                all_count=settings.kl > 0,
            )
        )
        tally = Tally(settings.clip_range)
        for _ in range(settings.updates_per_step if batches else 0):
            tally.norm = self._update_once(batches, rate, tally)
        return tally.values() | {"learning_rate": rate}

    def _update_once(self, batches: list[MicroBatch], rate: float, tally: Tally) -> float:
        """A call each, so that rows of other requests go on between them."""
        found = None
        for batch in batches:
            scored, part = self._engine.call(lambda b=batch: self.policy.gradients(b)).result()  # type: ignore[misc]
            tally.add(batch, scored)
            found = self._engine.call(lambda a=found, b=part: _evaluated(added(a, b))).result()  # type: ignore[misc]
        return self._engine.call(lambda: self.policy.update(found, rate)).result()

    def _publish(self) -> Adapter:
        self._weights = self._engine.call(self.policy.adapter).result()
        return self._versions.publish(self.policy.config, self._weights)

    def _restore(self, found: Checkpoint) -> None:
        for name, value in self._origin.items():
            if found.origin.get(name) != value:
                raise TrainingError(
                    f"The checkpoint was made with another {name}: "
                    f"{found.origin.get(name)!r}, not {value!r}.",
                    param="resume",
                )

        def restore() -> None:
            parameters = {name: mx.array(array) for name, array in load(found.adapter).items()}
            state = {name: mx.array(array) for name, array in found.state.items()}
            self.policy.restore(parameters, state)

        self._engine.call(restore).result()
        self.step = found.step

    @property
    def _origin(self) -> Mapping[str, Any]:
        settings = self._settings
        lora = asdict(settings.lora) | {"keys": list(settings.lora.keys)}
        return {
            "model": settings.model,
            "data": self._dataset.digest,
            "seed": settings.seed,
            "prompts_per_step": settings.prompts_per_step,
            "group_size": settings.group_size,
            "lora": lora,
        }


@dataclass
class Tally:
    """Sums over the micro-batches of a step."""

    clip_range: tuple[float, float]
    loss: float = 0.0
    tokens: int = 0
    clipped: int = 0
    divergence: float = 0.0
    norm: float = 0.0
    mismatch: float | None = None

    def add(self, batch: MicroBatch, scored: Scored) -> None:
        """Count one."""
        ratio = np.exp(scored.logprobs - batch.logprobs)
        low, high = self.clip_range
        rises = batch.advantages > 0
        self.clipped += int(np.where(rises, ratio > high, ratio < low).sum())
        self.loss += scored.loss
        self.tokens += len(ratio)
        if scored.divergences is not None:
            self.divergence += float(scored.divergences.sum())
        if not self.norm:  # before the first update both are of the same weights
            apart = float(np.abs(scored.logprobs - batch.logprobs).max())
            self.mismatch = max(self.mismatch or 0.0, apart)

    def values(self) -> dict[str, float]:
        """What is logged. `mismatch`: nats between sampled and trained log-probabilities."""
        tokens = max(1, self.tokens)
        return {
            "loss": self.loss,
            "kl": self.divergence / tokens,
            "clipped": self.clipped / tokens,
            "mismatch": self.mismatch or 0.0,
            "grad_norm": self.norm,
        }


def _columns(samples: list[Sample]) -> dict[str, list[Any]]:
    """What rewards are given; a field that a line does not have is None."""
    names = dict.fromkeys(name for sample in samples for name in sample.example.fields)
    return {name: [s.example.fields.get(name) for s in samples] for name in names} | {
        "prompts": [s.example.prompt for s in samples],
        "completions": [s.text for s in samples],
        "completion_ids": [s.tokens for s in samples],
    }


def _host(arrays: Mapping[str, mx.array]) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in arrays.items()}


def _evaluated(tree: Any) -> Any:
    mx.eval(tree)
    return tree


__all__ = ["Example", "StepResult", "Trainer"]
