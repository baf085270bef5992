"""The two parts of the training, and their loop with checkpoints."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from bundled.batches import DocumentCache
from bundled.checkpoints import restore, store
from bundled.fast_ops import cross_entropy
from bundled.training import Clock, Plan, rate_share
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.models.llama import Model
from tqdm import tqdm

from .grown import Grown, flat
from .lessons import Batch
from .probes import Probes, probe_losses
from .tower import Tower

# The arguments of the loss, twice.
Parts = tuple[tuple[Any, ...], tuple[Any, ...]]

_CHECKPOINT_EVERY, _LOG_EVERY = 100, 20
_DECAY = 0.3


class Watcher(nn.Module):
    """The first part: the tower names properties; see probes.py."""

    def __init__(self, tower: Tower, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tower, self.probes = tower, Probes(width)

    def loss(self, cut: mx.array, truth: mx.array) -> mx.array:
        return probe_losses(self.probes(self.tower(cut)), truth).sum() / cut.shape[0]


class Reader(nn.Module):
    """The second part: the language model, grown, answers questions about what the tower sees.
    The tower itself stays."""

    def __init__(self, proj: nn.Linear, grown: Grown, shell: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.proj, self.grown = proj, grown
        self._shell = [shell]  # in a list: its weights are the grown ones, not its own

    def losses(self, batch: Batch, seen: mx.array) -> mx.array:
        """Loss of every wanted token, (N,)."""
        (shell,) = self._shell
        weights = dict(self.grown.weights())
        shell.update(tree_unflatten(list(weights.items())))
        features = self.proj(seen)
        table = mx.concatenate(
            [weights["model.embed_tokens.weight"], features.reshape(-1, features.shape[-1])]
        )
        length = batch.inputs.shape[1]
        causal = mx.tril(mx.ones((length, length)))[None, None]
        cache = [DocumentCache(causal)] * len(shell.layers)
        hidden = shell.model(batch.inputs, cache, input_embeddings=table[batch.inputs])
        wanted = hidden.reshape(-1, hidden.shape[-1])[batch.rows]
        return cross_entropy(wanted @ weights["lm_head.weight"].T, batch.targets)

    def loss(self, batch: Batch, seen: mx.array) -> mx.array:
        return (self.losses(batch, seen) * batch.weights).sum() / batch.weights.sum()


def is_matrix(name: str, weight: mx.array) -> bool:
    """Whether Muon moves it; Adam moves tables, heads and whatever has one axis."""
    others = ("embed", "head", "position", "queries")
    return weight.ndim == 2 and not any(part in name for part in others)


def make_optimizer(plan: Plan) -> optim.MultiOptimizer:
    muon = optim.Muon(learning_rate=plan.matrix_rate, weight_decay=0.0)
    adam = optim.Adam(learning_rate=plan.other_rate, betas=[0.9, 0.98], bias_correction=True)
    return optim.MultiOptimizer([muon, adam], [is_matrix])


def fit(
    model: nn.Module,
    plan: Plan,
    draw: Callable[[random.Random], Parts],
    folder: Path,
    label: str,
) -> None:
    """Train in place, on two cores: the gradient of `model.loss(*part)` is the mean of two parts'.

    Args:
        plan: its minutes are those of computing on both cores together, so that other work on
            the machine does not end a training early.
        draw: the parts of a step, from a generator of its own, so that a step is repeatable.
        folder: continued where it holds an earlier state.
    """
    optimizer = make_optimizer(plan)
    optimizer.init(model.trainable_parameters())
    clock = restore(model, optimizer, folder, Clock) or Clock()
    gradients_of = _on_both_cores(model)
    bar = tqdm(total=plan.steps, initial=clock.step, desc=label, unit="step", mininterval=10)
    average: float | None = None
    while (progress := clock.progress(plan)) < 1.0:
        started = time.process_time()
        loss, gradients = gradients_of(draw(random.Random(f"{label} {clock.step}")))
        share = rate_share(progress)
        optimizer.optimizers[0].learning_rate = plan.matrix_rate * share
        optimizer.optimizers[1].learning_rate = plan.other_rate * share
        gradients, norm = optim.clip_grad_norm(gradients, 2.0)
        # A rare step is not finite; it changes nothing.
        if math.isfinite(loss + norm.item()):
            optimizer.update(model, gradients)
            _decay(model, plan.matrix_rate * share * _DECAY)
            mx.eval(model.parameters(), optimizer.state)
            average = loss if average is None else 0.95 * average + 0.05 * loss
        clock.step += 1
        clock.seconds += time.process_time() - started
        bar.update()
        if clock.step % _LOG_EVERY == 0:
            bar.set_postfix(loss=f"{average:.3f}", minutes=f"{clock.seconds / 60:.1f}")
        if clock.step % _CHECKPOINT_EVERY == 0:
            store(model, optimizer, clock, folder)
    store(model, optimizer, clock, folder)
    bar.close()


def _on_both_cores(model: nn.Module) -> Callable[[Parts], tuple[float, Any]]:
    """Computes mean loss and mean gradients; each part on a stream, which is a thread, of its
    own."""
    step_function = nn.value_and_grad(model, lambda *given: model.loss(*given))
    streams = [mx.new_stream(mx.cpu) for _ in range(2)]

    def both(parts: Parts) -> tuple[float, Any]:
        made = []
        for stream, part in zip(streams, parts, strict=True):
            with mx.stream(stream):
                made.append(step_function(*part))
        mx.eval(made)
        (first, one), (second, other) = made
        return (first.item() + second.item()) / 2, tree_map(lambda a, b: (a + b) / 2, one, other)

    return both


def _decay(model: nn.Module, share: float) -> None:
    """Shrink the matrices by a share; see bundled/training.py."""
    shrunk = [
        (name, weight * (1 - share)) for name, weight in flat(model) if is_matrix(name, weight)
    ]
    model.load_weights(shrunk, strict=False)
