"""The training loop: Muon for the matrices, Adam for the rest, checkpoints, progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.models.llama import Model
from tqdm import tqdm

from .batches import Batch, DocumentCache
from .checkpoints import flat, restore, store
from .fast_ops import cross_entropy

_WARM_UP = 0.02
_DECAY_FROM = 0.25
_CHECKPOINT_EVERY = 100
# A level of the curriculum is done when the loss of a token of recall is below this (it is 0.5
# when everything but the values is known), and at the latest so that the last level begins at
# this share of the training.
_ABLE, _LATEST = 0.13, 0.7
# Muon moves every direction of a matrix by the rate; the decay bounds its spectral norm by
# 1 / _DECAY. Without it the attention scores grew to 200 and the heads died.
_DECAY = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast: steps, at most `minutes` of wall time, learning rates."""

    steps: int
    minutes: float
    matrix_rate: float = 0.01
    other_rate: float = 2.5e-3


@dataclass(slots=True)
class Clock:
    """Where training stands. progress goes from 0 to 1 by steps, or by time if that is first;
    level is that of the curriculum, reached at step `since`."""

    step: int = 0
    seconds: float = 0.0
    level: int = 0
    since: int = 0

    def progress(self, plan: Plan) -> float:
        return max(self.step / plan.steps, self.seconds / (60 * plan.minutes))


def rate_share(progress: float) -> float:
    """Share of the full learning rate: short warm-up, plateau, linear decay to nothing."""
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, 0.02)
    if progress < _DECAY_FROM:
        return 1.0
    return max((1.0 - progress) / (1.0 - _DECAY_FROM), 0.0)


def is_matrix(name: str, weight: mx.array) -> bool:
    return weight.ndim == 2 and "embed" not in name


def _decay_matrices(model: Model, share: float) -> None:
    """Shrink the matrices by a share (mlx's Muon adds its weight decay to the gradient, where
    the orthogonalisation takes it away again)."""
    weights = flat(model.parameters())
    model.load_weights([(n, w * (1 - share)) for n, w in weights if is_matrix(n, w)], strict=False)


def make_optimizer(plan: Plan) -> optim.MultiOptimizer:
    return optim.MultiOptimizer(
        [
            optim.Muon(learning_rate=plan.matrix_rate, weight_decay=0.0),
            optim.Adam(learning_rate=plan.other_rate, betas=[0.9, 0.98], bias_correction=True),
        ],
        [is_matrix],
    )


def losses(model: Model, batch: Batch) -> mx.array:
    """Loss of every wanted token, (N,)."""
    cache = [DocumentCache(batch.visible)] * len(model.layers)
    hidden = model.model(batch.inputs, cache)
    chosen = hidden.reshape(-1, hidden.shape[-1])[batch.rows]
    return cross_entropy(model.model.embed_tokens.as_linear(chosen), batch.targets)


def _objective(model: Model, batch: Batch) -> tuple[mx.array, mx.array]:
    each = losses(model, batch)
    return (each * batch.weights).sum() / batch.weights.sum(), each


def train(
    model: Model,
    plan: Plan,
    next_batch: Callable[[int, int], Batch],
    tasks: list[str],
    levels: tuple[int, int],
    checkpoint: Path,
    label: str,
) -> None:
    """Train in place. next_batch(step, level) makes the batch of a step, always the same one;
    levels are that of the beginning and how many there are;
    `checkpoint` is a folder that is continued when it holds an earlier state."""
    optimizer = make_optimizer(plan)
    optimizer.init(model.trainable_parameters())
    clock = restore(model, optimizer, checkpoint, Clock) or Clock(level=levels[0])
    step_function = nn.value_and_grad(model, _objective)
    running = np.full(len(tasks), np.nan)
    bar = tqdm(total=plan.steps, initial=clock.step, desc=label, unit="step", dynamic_ncols=True)
    average: float | None = None
    while (progress := clock.progress(plan)) < 1.0:
        started = time.perf_counter()
        batch = next_batch(clock.step, clock.level)
        share = rate_share(progress)
        optimizer.optimizers[0].learning_rate = plan.matrix_rate * share
        optimizer.optimizers[1].learning_rate = plan.other_rate * share
        (loss, each), gradients = step_function(model, batch)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        _decay_matrices(model, plan.matrix_rate * share * _DECAY)
        mx.eval(model.parameters(), optimizer.state, loss, each)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        _track(running, np.array(each), batch.tasks)
        clock.step += 1
        _maybe_rise(clock, progress, levels[1], dict(zip(tasks, running, strict=True)))
        clock.seconds += time.perf_counter() - started
        bar.set_postfix(loss=f"{average:.4f}", tokens=batch.inputs.size, refresh=False)
        bar.update()
        if clock.step % _CHECKPOINT_EVERY == 0:
            store(model, optimizer, clock, checkpoint)
            bar.write(_summary(clock, average, tasks, running))
    store(model, optimizer, clock, checkpoint)
    bar.close()


def _maybe_rise(clock: Clock, progress: float, levels: int, running: dict[str, float]) -> None:
    """Go up a level when recall works on this one, or when there is little time left for the
    rest."""
    able = running.get("recall", 0.0) < _ABLE and clock.step - clock.since > 50
    late = progress > _LATEST * (clock.level + 1) / levels
    if clock.level < levels - 1 and (able or late):
        clock.level, clock.since = clock.level + 1, clock.step


def _track(running: np.ndarray, each: np.ndarray, tasks: np.ndarray) -> None:
    for task in np.unique(tasks):
        mean = each[tasks == task].mean()
        old = running[task]
        running[task] = mean if np.isnan(old) else 0.9 * old + 0.1 * mean


def _summary(clock: Clock, average: float, tasks: list[str], running: np.ndarray) -> str:
    parts = [f"{name} {value:.3f}" for name, value in zip(tasks, running, strict=True)]
    where = f"step {clock.step}, level {clock.level}, {clock.seconds / 60:.1f} min"
    return f"{where}, loss {average:.4f}: {', '.join(parts)}"
