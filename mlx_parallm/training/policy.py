"""The Policy: low-rank layers that are trained, around the weights that the engine serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from safetensors.numpy import save

from mlx_parallm.errors import TrainingError
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.twin import share_weights, twin_of
from mlx_parallm.training.loss import divergence, token_losses
from mlx_parallm.training.micro_batch import MicroBatch
from mlx_parallm.training.scorer import Scorer
from mlx_parallm.training.settings import LoraSettings, TrainSettings

Gradients = Any  # a tree as the parameters'


@dataclass(frozen=True)
class Scored:
    """What one forward and backward of a MicroBatch found.

    Attributes:
        logprobs: (M,) of its tokens now; divergences: (M,) from the base model, or None.
        loss: its part of the loss.
    """

    logprobs: np.ndarray
    divergences: np.ndarray | None
    loss: float


class Policy:
    """What is trained. All of it on the engine's thread.

    Args:
        model: the engine's. Its weights are shared: nothing is held twice.
        twin: a `twin_of` it, made before the engine changed its modules.
    """

    def __init__(self, model: Any, twin: Any, settings: TrainSettings) -> None:
        self._settings = settings
        twin = twin_of(twin)  # so that another policy can begin from the same one
        replacements.install(twin)
        share_weights(twin, model)
        twin.freeze()
        self._base = Scorer(twin_of(twin), settings.temperature) if settings.kl else None
        self.config = add_low_rank_layers(twin, settings.lora, settings.seed)
        self._scorer = Scorer(twin, settings.temperature)
        self._value_and_grad = nn.value_and_grad(twin, self._loss)
        # The same as in the paper that AdamW is from: mlx leaves the correction out by default.
        self._optimizer = optim.AdamW(
            settings.learning_rate, weight_decay=settings.weight_decay, bias_correction=True
        )
        self._optimizer.init(twin.trainable_parameters())
        mx.eval(twin.trainable_parameters(), self._optimizer.state)

    @property
    def model(self) -> Any:
        """The model with its low-rank layers."""
        return self._scorer.model

    @property
    def parameters(self) -> dict[str, mx.array]:
        """Those that are trained, by mlx-lm's names."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(array.size for array in self.parameters.values())

    def adapter(self) -> bytes:
        """The parameters as a safetensors file of mlx-lm's format."""
        return save({name: np.array(array) for name, array in self.parameters.items()})

    def gradients(self, batch: MicroBatch) -> tuple[Scored, Gradients]:
        """Its part of the loss's gradient; parts of one update are added.

        Raises:
            TrainingError: the loss is not finite.
        """
        model = self.model
        with replacements.differentiable(model):
            base = None if self._base is None else mx.stop_gradient(self._base.logprobs(batch))
            (loss, new), found = self._value_and_grad(batch, base)
            far = None if base is None else divergence(new, base)
            mx.eval(loss, new, found, [] if far is None else far)
        if not np.isfinite(loss.item()):
            raise TrainingError("The loss is not finite; a smaller --learning-rate may help.")
        divergences = None if far is None else np.array(far)
        return Scored(np.array(new), divergences, loss.item()), found

    def update(self, found: Gradients, learning_rate: float) -> float:
        """Change the parameters; returns the gradient's norm before it was limited.

        Raises:
            TrainingError: it is not finite; nothing is changed.
        """
        model, most = self.model, self._settings.max_grad_norm
        found, norm = optim.clip_grad_norm(found, most or float("inf"))
        if not np.isfinite(norm.item()):
            raise TrainingError("The gradient is not finite; a smaller --learning-rate may help.")
        self._optimizer.learning_rate = learning_rate
        self._optimizer.update(model, found)
        mx.eval(model.trainable_parameters(), self._optimizer.state)
        return float(norm.item())

    def state(self) -> dict[str, mx.array]:
        """The optimizer's, by name."""
        return dict(tree_flatten(self._optimizer.state))

    def restore(self, parameters: Mapping[str, mx.array], state: Mapping[str, mx.array]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: its parameters are others than these.
        """
        shapes = {name: array.shape for name, array in self.parameters.items()}
        if {name: array.shape for name, array in parameters.items()} != shapes:
            raise TrainingError("The checkpoint has other low-rank layers than the options say.")
        self.model.load_weights(list(parameters.items()), strict=False)
        self._optimizer.state = tree_unflatten(list(state.items()))
        mx.eval(self.model.trainable_parameters(), self._optimizer.state)

    def _loss(self, batch: MicroBatch, base: mx.array | None) -> tuple[mx.array, mx.array]:
        new = self._scorer.logprobs(batch)
        losses = token_losses(
            new,
            mx.array(batch.logprobs),
            mx.array(batch.advantages),
            self._settings.clip_range,
            base,
            self._settings.kl,
        )
        return (losses * mx.array(batch.weights)).sum(), new


def add_low_rank_layers(model: Any, lora: LoraSettings, seed: int) -> dict[str, Any]:
    """Give a frozen model mlx-lm's layers, drawn from a seed.

    Returns:
        mlx-lm's adapter_config.json for them.

    Raises:
        TrainingError: a key names no module, or a module takes no such layer.
    """
    blocks = len(model.layers)
    num_layers = blocks if lora.num_layers < 0 else min(lora.num_layers, blocks)
    names = [name for name, _ in model.named_modules()]
    for key in lora.keys:
        if not any(name == key or name.endswith(f".{key}") for name in names):
            raise TrainingError(f"--keys: the model has no module {key!r}.", param="keys")
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": 0.0}
    if lora.keys:
        parameters["keys"] = list(lora.keys)
    mx.random.seed(seed)
    try:
        linear_to_lora_layers(model, num_layers, parameters, use_dora=lora.dora)
    except ValueError as error:
        raise TrainingError(f"these layers cannot be trained: {error}") from None
    trained = dict(tree_flatten(model.trainable_parameters()))
    if not trained:
        raise TrainingError("There is nothing to train: no module was chosen.")
    for name, array in trained.items():
        if name.endswith(".m") and not bool((array > 0).all()):  # DoRA divides by these norms
            raise TrainingError(
                f"{name.removesuffix('.m')} has rows of zeros, which DoRA cannot train; "
                "choose other modules with --keys, or leave --dora out."
            )
    return {
        "fine_tune_type": "dora" if lora.dora else "lora",
        "num_layers": num_layers,
        "lora_parameters": parameters,
    }


def added(one: Gradients | None, other: Gradients) -> Gradients:
    """The sum of two gradients."""
    return other if one is None else tree_map(mx.add, one, other)
