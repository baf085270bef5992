"""Plain networks beside the language model: multilayer perceptrons and LSTMs.

A network is a folder with two files. signature.json of an MLP:

    {"kind": "mlp", "name": "iris", "input_size": 4, "hidden_sizes": [16, 16],
     "output_size": 3, "activation": "relu", "output": "softmax", "labels": ["a", "b", "c"]}

and of an LSTM, whose output is that of the last step:

    {"kind": "lstm", "name": "sine", "input_size": 1, "hidden_size": 32, "num_layers": 2,
     "output_size": 1, "output": "linear"}

name is the folder's where it is missing; activation is relu, gelu, silu, tanh or sigmoid;
output is linear, sigmoid or softmax; labels are optional. model.safetensors holds
layers.N.weight (out, in) and layers.N.bias of an MLP; layers.N.Wx, layers.N.Wh and
layers.N.bias (gates in the order i, f, g, o), head.weight and head.bias of an LSTM.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.lstm import at_end

ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": mx.tanh,
    "sigmoid": mx.sigmoid,
}
OUTPUTS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "linear": lambda x: x,
    "sigmoid": mx.sigmoid,
    "softmax": lambda x: mx.softmax(x, axis=-1),
}


@dataclass(frozen=True)
class Signature:
    """signature.json; see above. `hidden_sizes` are an LSTM's too, one a layer."""

    kind: str
    name: str
    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    output: str
    labels: tuple[str, ...]


class Predictor:
    """A network that is ready to run, on the thread that made it.

    Raises:
        ModelLoadError: in one sentence, what is missing or wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.signature = _read_signature(folder)
        weights = _read_weights(folder)
        wanted = _shapes(self.signature)
        for name, shape in wanted.items():
            if name not in weights or weights[name].shape != shape:
                found = weights[name].shape if name in weights else "nothing"
                raise ModelLoadError(f"{folder}: {name} must be {shape}, there is {found}")
        if extra := sorted(set(weights) - set(wanted)):
            raise ModelLoadError(f"{folder}: {extra[0]} is not part of the signature")
        self._weights = {name: array.astype(mx.float32) for name, array in weights.items()}
        mx.eval(self._weights)
        self.size = sum(array.size for array in self._weights.values())
        is_mlp = self.signature.kind == "mlp"
        self._layers = [] if is_mlp else [self._layer(n) for n in range(self._depth)]

    @property
    def _depth(self) -> int:
        return len(self.signature.hidden_sizes)

    def __call__(
        self, steps: np.ndarray, counts: np.ndarray, states: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """All rows in one forward, some time steps further.

        Args:
            steps: (B, T, input_size) float32; an MLP reads the first step only.
            counts: (B,) steps of each row, 0 to T; what follows them does not reach it.
            states: of the rows before these steps, as returned; None at the beginning.

        Returns:
            (B, output_size) float32 behind each row's last step, and the rows' states, None
            of an MLP.
        """
        after: mx.array | None = None
        if self.signature.kind == "mlp":
            y = self._mlp(mx.array(steps[:, 0]))
        else:
            after = self._lstm(mx.array(steps), mx.array(counts), states)
            y = self._linear("head", after[:, -1, 0])
        y = OUTPUTS[self.signature.output](y)
        mx.eval(y, *([] if after is None else [after]))
        return np.array(y), None if after is None else np.array(after)

    def new_states(self, rows: int) -> np.ndarray:
        """(rows, layers, 2, hidden_size) zeros: an LSTM's rows before their first step."""
        return np.zeros((rows, self._depth, 2, self.signature.hidden_sizes[0]), np.float32)

    def _mlp(self, x: mx.array) -> mx.array:
        activation = ACTIVATIONS[self.signature.activation]
        for layer in range(self._depth + 1):
            x = self._linear(f"layers.{layer}", x)
            x = x if layer == self._depth else activation(x)
        return x

    def _layer(self, layer: int) -> nn.LSTM:
        names = ("Wx", "Wh", "bias")
        weights = {name: self._weights[f"layers.{layer}.{name}"] for name in names}
        module = nn.LSTM(weights["Wx"].shape[1], self.signature.hidden_sizes[layer])
        module.update(weights)
        return module

    def _lstm(self, x: mx.array, counts: mx.array, states: np.ndarray | None) -> mx.array:
        """(B, layers, 2, hidden_size): hidden and cell of each row behind its last step."""
        ends = []
        for place, layer in enumerate(self._layers):
            before = None if states is None else mx.array(states[:, place])
            hidden, cell = (None, None) if before is None else (before[:, 0], before[:, 1])
            x, cells = layer(x, hidden, cell)
            ends.append(mx.stack([at_end(x, hidden, counts), at_end(cells, cell, counts)], axis=1))
        return mx.stack(ends, axis=1)

    def _linear(self, name: str, x: mx.array) -> mx.array:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]


def load_predictors(folders: Items[str]) -> dict[str, Predictor]:
    """The networks of these folders by name.

    Raises:
        ModelLoadError: one cannot be loaded, or two have one name.
    """
    found: dict[str, Predictor] = {}
    for folder in folders:
        predictor = Predictor(Path(folder).expanduser())
        name = predictor.signature.name
        if name in found:
            raise ModelLoadError(f"{folder}: there is a network of the name {name!r} already")
        found[name] = predictor
    return found


def _read_signature(folder: Path) -> Signature:
    file = folder / "signature.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{file}: expected an object")

    def size(name: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise ModelLoadError(f"{file}: {name} must be a whole number of at least 1")
        return value

    def choice(name: str, allowed: Items[str], default: str = "") -> str:
        value = raw.get(name, default)
        if value not in allowed:
            raise ModelLoadError(f"{file}: {name} must be one of {', '.join(allowed)}")
        return str(value)

    kind = choice("kind", ("mlp", "lstm"))
    if kind == "mlp":
        hidden = raw.get("hidden_sizes", [])
        hidden = hidden if isinstance(hidden, list) else [hidden]
    else:
        hidden = [raw.get("hidden_size")] * size("num_layers", raw.get("num_layers", 1))
    labels = raw.get("labels") or []
    output_size = size("output_size", raw.get("output_size"))
    if not isinstance(labels, list) or len(labels) not in (0, output_size):
        raise ModelLoadError(f"{file}: labels must be as many as output_size")
    return Signature(
        kind,
        str(raw.get("name") or folder.name),
        size("input_size", raw.get("input_size")),
        tuple(size("hidden sizes", value) for value in hidden),
        output_size,
        choice("activation", tuple(ACTIVATIONS), "relu"),
        choice("output", tuple(OUTPUTS), "linear"),
        tuple(map(str, labels)),
    )


def _read_weights(folder: Path) -> dict[str, mx.array]:
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelLoadError(f"{folder}: there is no model.safetensors in this folder")
    try:
        found = mx.load(str(file))
    except RuntimeError as error:
        raise ModelLoadError(f"{file}: not readable as safetensors") from error
    assert isinstance(found, dict)
    return found


def _shapes(signature: Signature) -> dict[str, tuple[int, ...]]:
    """The weights that belong to a signature."""
    widths = [signature.input_size, *signature.hidden_sizes]
    found: dict[str, tuple[int, ...]] = {}
    if signature.kind == "mlp":
        for layer, (into, out) in enumerate(
            zip(widths, [*widths[1:], signature.output_size], strict=True)
        ):
            found[f"layers.{layer}.weight"] = (out, into)
            found[f"layers.{layer}.bias"] = (out,)
        return found
    for layer, (into, out) in enumerate(itertools.pairwise(widths)):
        found[f"layers.{layer}.Wx"] = (4 * out, into)
        found[f"layers.{layer}.Wh"] = (4 * out, out)
        found[f"layers.{layer}.bias"] = (4 * out,)
    found["head.weight"] = (signature.output_size, widths[-1])
    found["head.bias"] = (signature.output_size,)
    return found
