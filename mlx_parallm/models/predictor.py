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

    def __call__(self, rows: Items[np.ndarray]) -> np.ndarray:
        """All rows in one forward.

        Args:
            rows: (input_size,) each for an MLP, (T, input_size) with any T for an LSTM.

        Returns:
            (len(rows), output_size) float32.
        """
        is_mlp = self.signature.kind == "mlp"
        y = self._mlp(mx.array(np.stack(rows))) if is_mlp else self._lstm(rows)
        return np.array(OUTPUTS[self.signature.output](y))

    def _mlp(self, x: mx.array) -> mx.array:
        activation = ACTIVATIONS[self.signature.activation]
        last = len(self.signature.hidden_sizes)
        for layer in range(last + 1):
            x = self._linear(f"layers.{layer}", x)
            x = x if layer == last else activation(x)
        return x

    def _lstm(self, rows: Items[np.ndarray]) -> mx.array:
        padded = np.zeros((len(rows), max(map(len, rows)), self.signature.input_size), np.float32)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        x = mx.array(padded)
        for layer, size in enumerate(self.signature.hidden_sizes):
            module = nn.LSTM(x.shape[-1], size)
            names = ("Wx", "Wh", "bias")
            module.update({name: self._weights[f"layers.{layer}.{name}"] for name in names})
            x = module(x)[0]
        # What follows a row's last step does not reach it.
        return self._linear("head", at_end(x, None, mx.array([len(row) for row in rows])))

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
