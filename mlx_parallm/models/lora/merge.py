"""Puts an adapter into the weights of a model, once and for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.lora.delta import HEAD, Delta
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.slots import plain_weight

_PLAIN: dict[type, Any] = {
    nn.QuantizedLinear: nn.Linear,
    nn.QuantizedEmbedding: nn.Embedding,
    QuantizedSwitchLinear: SwitchLinear,
}
_TOLERANCE = 1e-4  # between what the embedding and the head, which are one, become


def merge(model: Any, deltas: Mapping[str, Delta], *, pack: bool = False) -> None:
    """Change a model's weights in place.

    Products are computed in float32 and rounded to the weights' type. A packed module becomes a
    plain one: its answers are then those of the packed module with the adapter.

    Args:
        pack: pack such modules again, as they were; that rounds the weights.

    Raises:
        UnsupportedError: the model has no parameter for one of the changes.
    """
    modules = Modules(model)
    by_path: dict[str, dict[str, mx.array]] = {}
    for path, delta in deltas.items():
        place = path.removesuffix(HEAD)
        changed = changed_parameters(modules, path, delta)
        if place in by_path or (path.endswith(HEAD) and place not in deltas):
            _check_one_weight(place, by_path.get(place, {}), changed)
        elif modules.is_embedding(path) and modules.has_tied_head and place + HEAD not in deltas:
            _check_one_weight(place, {}, changed)
        by_path[place] = changed
    others = [(path, _with(modules[path], found, pack)) for path, found in by_path.items()]
    model.update_modules(tree_unflatten(others))
    mx.eval(model.parameters())


def changed_parameters(modules: Modules, path: str, delta: Delta) -> dict[str, mx.array]:
    """The module's parameters that the delta changes, in float32."""
    module = modules[path]
    found = {name: mx.array(array) for name, array in delta.replaced.items()}
    if delta.a is not None and delta.b is not None:
        weight = mx.array(delta.replaced["weight"]) if "weight" in found else plain_weight(module)
        found["weight"] = _weight(modules, path, delta, weight)
    if delta.added is not None:
        if "bias" not in module:
            raise UnsupportedError(f"{path}: the model has no bias that could be changed.")
        found["bias"] = found.get("bias", module.bias) + mx.array(delta.added)
    for name in found:
        if name not in module:
            raise UnsupportedError(f"{path}: the model has no parameter {name!r} here.")
    return found


def _weight(modules: Modules, path: str, delta: Delta, weight: mx.array) -> mx.array:
    assert delta.a is not None and delta.b is not None
    change = mx.array(delta.a) @ mx.array(delta.b)
    looks_up = modules.is_embedding(path) and not path.endswith(HEAD)
    weight = weight + (change if looks_up else change.swapaxes(-1, -2))
    if delta.magnitude is None:
        return weight
    magnitude = mx.array(delta.magnitude)
    if looks_up and not delta.by_token:
        return weight * (magnitude / mx.linalg.norm(weight, axis=0))
    return weight * (magnitude / mx.linalg.norm(weight, axis=1))[:, None]


def _check_one_weight(path: str, one: dict[str, mx.array], other: dict[str, mx.array]) -> None:
    same = one.keys() == other.keys() and all(
        np.allclose(np.array(one[name]), np.array(other[name]), atol=_TOLERANCE) for name in one
    )
    if not same:
        raise UnsupportedError(
            f"{path}: the embedding and the head of this model are one weight, and the adapter "
            "changes them differently."
        )


def _with(module: Any, changed: dict[str, mx.array], pack: bool) -> Any:
    """The module with other parameters, of the types that it had."""
    kind = type(module)
    packed = kind in _PLAIN and "weight" in changed
    if not packed:
        for name, array in changed.items():
            setattr(module, name, array.astype(module[name].dtype))
        return module
    dtype = module.scales.dtype if mx.issubdtype(module.scales.dtype, mx.floating) else mx.float32
    plain = _plain(kind, changed["weight"].astype(dtype), "bias" in module)
    if "bias" in module:
        plain.bias = changed.get("bias", module.bias).astype(module.bias.dtype)
    if not pack:
        return plain
    return plain.to_quantized(group_size=module.group_size, bits=module.bits, mode=module.mode)


def _plain(kind: type, weight: mx.array, bias: bool) -> Any:
    shape = weight.shape
    if kind is nn.QuantizedEmbedding:
        plain: Any = nn.Embedding(*shape)
    elif kind is nn.QuantizedLinear:
        plain = nn.Linear(shape[1], shape[0], bias=bias)
    else:
        plain = SwitchLinear(shape[2], shape[1], shape[0], bias=bias)
    plain.weight = weight
    return plain
