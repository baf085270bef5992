"""The policy's gradient, against the same formulas written plainly, and against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.cpu import gradients
from mlx_parallm.models.adapting import replacements
from mlx_parallm.training.dataset import Example
from mlx_parallm.training.loss import divergence, token_losses
from mlx_parallm.training.micro_batch import micro_batches, token_weights
from mlx_parallm.training.policy import Policy, added
from mlx_parallm.training.rollouts import Sample
from mlx_parallm.training.settings import LOSS_KINDS, LoraSettings, LossKind, TrainSettings

pytestmark = pytest.mark.usefixtures("no_compile")
TEMPERATURE, KL, LONGEST = 0.7, 0.3, 9


def settings_with(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "data": Path("unused"),
        "output": Path("unused"),
        "rewards": ("length:1",),
        "lora": LoraSettings(rank=4),
        "temperature": TEMPERATURE,
        "kl": KL,
        "max_tokens": LONGEST,
    }
    return TrainSettings(**values | changes)


def some_samples(count: int = 5, noise: float = 0.4) -> list[Sample]:
    """Answers of different lengths whose log-probabilities are not those of any policy."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(count):
        prompt, tokens = (rng.integers(3, 250, rng.integers(2, LONGEST)).tolist() for _ in "12")
        sample = Sample(Example("", prompt), 1, tokens, advantage=float(rng.normal()))
        sample.logprobs = (rng.normal(-4, noise, len(tokens))).tolist()
        found.append(sample)
    return found


def plain_loss(
    model: Any, base: Any, samples: Sequence[Sample], weights: Sequence[float], clip: float
) -> mx.array:
    """The sum over tokens, one answer at a time, without padding; straight from the paper."""
    loss = mx.array(0.0)
    for sample, weight in zip(samples, weights, strict=True):
        ids = mx.array([[*sample.example.ids, *sample.tokens]])
        first = len(sample.example.ids)
        new, old_base = (
            mx.take_along_axis(nn.log_softmax(m(ids)[0, :-1] / TEMPERATURE), ids[0, 1:, None], -1)
            for m in (model, base)
        )
        new, ref = new[first - 1 :, 0], old_base[first - 1 :, 0]
        ratio = mx.exp(new - mx.array(sample.logprobs))
        gain = mx.minimum(
            ratio * sample.advantage, mx.clip(ratio, 1 - clip, 1 + clip) * sample.advantage
        )
        kl = mx.exp(ref - new) - (ref - new) - 1
        loss = loss - weight * (gain - KL * kl).sum()
    return loss


@pytest.mark.parametrize(("loss", "dora"), [("grpo", False), ("dapo", True), ("dr_grpo", False)])
def test_gradient_equals_plain_autograd(llama_factory: Any, loss: LossKind, dora: bool) -> None:
    """Padded, selected and accumulated: the same as whole forwards of mlx-lm's model."""
    settings = settings_with(loss=loss, lora=LoraSettings(rank=4, dora=dora))
    model = llama_factory().model
    policy = Policy(model, llama_factory().model, settings)
    rng = np.random.default_rng(0)
    policy.model.update(_noise(policy.model.trainable_parameters(), rng))
    samples = some_samples()
    parts = None
    for batch in micro_batches(samples, 2, loss, LONGEST, all_count=True):
        parts = added(parts, policy.gradients(batch)[1])
    replacements.uninstall(policy.model)  # mlx-lm's own functions
    weights = token_weights([len(s.tokens) for s in samples], loss, LONGEST)
    policy._scorer._tap.select_tokens(None)
    wanted = nn.value_and_grad(
        policy.model,
        lambda: plain_loss(policy.model, llama_factory().model, samples, weights, settings.clip),
    )()[1]
    mine, theirs = dict(tree_flatten(parts)), dict(tree_flatten(wanted))
    assert mine.keys() == theirs.keys() and len(mine) >= 28
    largest = max(float(mx.abs(value).max()) for value in theirs.values())
    for name, value in theirs.items():
        assert np.allclose(mine[name], value, rtol=1e-3, atol=1e-5 * largest), name


def _noise(tree: Any, rng: np.random.Generator) -> Any:
    def drawn(value: mx.array) -> mx.array:
        return value + mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.1)

    return nn.utils.tree_map(drawn, tree)


def test_token_losses_in_float64() -> None:
    """Values and derivatives by differences, on both sides of the clipped range."""
    rng = np.random.default_rng(1)
    new, old, base = (rng.normal(-2, 0.4, 400) for _ in range(3))
    advantages = rng.normal(size=400)
    low, high = 0.8, 1.3

    def reference(new: np.ndarray) -> np.ndarray:
        ratio = np.exp(new - old)
        gain = np.minimum(ratio * advantages, np.clip(ratio, low, high) * advantages)
        return np.asarray(-gain + KL * (np.exp(base - new) - (base - new) - 1))

    was, gains, ref = (mx.array(x.astype(np.float32)) for x in (old, advantages, base))

    def ours(new: mx.array) -> mx.array:
        return token_losses(new, was, gains, (low, high), ref, KL)

    at = mx.array(new.astype(np.float32))
    assert np.allclose(np.array(ours(at)), reference(new), atol=1e-5)
    slopes = (reference(new + 1e-6) - reference(new - 1e-6)) / 2e-6
    assert np.allclose(np.array(mx.grad(lambda x: ours(x).sum())(at)), slopes, atol=1e-4)
    assert float(divergence(at, ref).min()) >= 0


@pytest.mark.parametrize("loss", LOSS_KINDS)
def test_weights_of_tokens(loss: LossKind) -> None:
    weights = token_weights([1, 3], loss, 10)
    wanted = {"grpo": [1 / 2, 1 / 6], "dapo": [1 / 4] * 2, "dr_grpo": [1 / 20] * 2}
    assert np.allclose(weights, wanted[loss])


def test_answers_without_advantage_are_left_out() -> None:
    samples = some_samples(4)
    samples[1].advantage = 0.0
    counts = [
        sum(len(b.inputs) for b in micro_batches(samples, 2, "grpo", 9, all_count=every))
        for every in (True, False)
    ]
    assert counts == [4, 3]


def _pairs() -> dict[str, tuple[Callable[..., mx.array], Callable[..., mx.array], Any]]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> mx.array:
        return mx.array(rng.normal(size=shape).astype(np.float32))

    def fast(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")

    def mine(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return gradients.attention(q, k, v, scale=0.3, mask="causal")

    return {
        "attention": (mine, fast, [draw(3, 4, 70, 8), draw(3, 2, 70, 8), draw(3, 2, 70, 8)]),
        # Written out: a model that was loaded in this process may have replaced MLX's own.
        "swiglu": (
            gradients.swiglu,
            lambda gate, up: gate * mx.sigmoid(gate) * up,
            [30 * draw(40, 600), draw(40, 600)],
        ),
        "logsumexp": (
            gradients.logsumexp,
            lambda x: mx.logsumexp(x, axis=-1, keepdims=True),
            [20 * draw(30, 1000)],
        ),
    }


@pytest.mark.parametrize("name", ["attention", "swiglu", "logsumexp"])
def test_functions_for_cpus_have_their_gradients(name: str) -> None:
    """Values and all gradients are those of MLX's functions, on large arrays."""
    mine, theirs, arguments = _pairs()[name]
    weight = mx.array(np.random.default_rng(2).normal(size=mine(*arguments).shape))
    places = list(range(len(arguments)))

    def of(function: Callable[..., mx.array]) -> Any:
        return mx.value_and_grad(lambda *a: (function(*a) * weight).sum(), places)(*arguments)

    (value, found), (expected, wanted) = of(mine), of(theirs)
    assert np.isclose(value.item(), expected.item(), rtol=1e-4)
    for one, other in zip(found, wanted, strict=True):
        assert np.allclose(np.array(one), np.array(other), rtol=1e-3, atol=2e-5)
