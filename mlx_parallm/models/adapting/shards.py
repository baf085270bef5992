"""Models divided over ranks: each holds some of the heads and of the wide layers' columns.

mlx-lm's models divide themselves (`shard`). Their divided layers become plain ones here, where
they compute what a plain one does, so that everything else knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.nn.layers import distributed
from mlx.utils import tree_flatten
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.adapting.shard import Shard, noting, shard_of, tag
from mlx_parallm.models.adapting.summed import SummedLinear, SummedQuantizedLinear

_CLASSES: dict[type, Any] = {
    distributed.AllToShardedLinear: nn.Linear,
    distributed.QuantizedAllToShardedLinear: nn.QuantizedLinear,
    distributed.ShardedToAllLinear: SummedLinear,
    distributed.QuantizedShardedToAllLinear: SummedQuantizedLinear,
}
_PACKED = (
    *(nn.QuantizedLinear, nn.QuantizedEmbedding),
    *(QuantizedSwitchLinear, QuantizedMultiLinear),
)
# What ranks share, as config.json has it.
_COUNTS = (
    *("num_attention_heads", "num_key_value_heads"),
    *("linear_num_key_heads", "linear_num_value_heads"),
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Divided:
    """How a model is divided of which this process has a part.

    Attributes:
        group: the processes.
        whole: makes the model once more with all of its layers, and its config.json; no weight
            is read.
    """

    group: mx.distributed.Group
    whole: Callable[[], tuple[Any, dict[str, Any]]]


def shard(model: Any, group: mx.distributed.Group, config: Mapping[str, Any]) -> None:
    """Keep this rank's part of a model whose weights are still to be read, and read it.

    Args:
        config: the model's config.json.

    Raises:
        ModelLoadError: the architecture cannot be divided, or not among so many ranks.
    """
    divide(model, group, config)
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for array in weights.values():
        mx.eval(array)  # one after the other: what is cut off is freed before the next is read
        mx.clear_cache()


def divide(model: Any, group: mx.distributed.Group, config: Mapping[str, Any]) -> None:
    """Keep this rank's part, and read nothing; see shard."""
    _check_kind(model, str(config.get("model_type")))
    shapes = {path: _shapes(module) for path, module in model.named_modules()}
    counts = _counts(model)
    try:
        with noting(group):
            divided_part(model).shard(group)
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        reason = _uneven(config, group.size())
        if isinstance(error, AssertionError) or not reason:
            reason = str(error)
        raise _indivisible(group.size(), reason) from error
    _check_counts(counts, _counts(model), config, group.size())
    for path, module in model.named_modules():
        _settle(module, shapes.get(path), group)


def divided_part(model: Any) -> Any:
    """The model, or the text model inside, that mlx-lm can divide; None where there is none."""
    for part in (model, getattr(model, "language_model", None)):
        if hasattr(part, "shard"):
            return part
    return None


def _check_kind(model: Any, model_type: str) -> None:
    """Refuse architectures that mlx-lm does not divide, or not all of whose layers."""
    if divided_part(model) is None:
        raise ModelLoadError(
            f"--tensor-parallel: the architecture {model_type!r} cannot be divided over ranks: "
            "mlx-lm does not say how (its model has no `shard`)"
        )
    for path, module in model.named_modules():
        if hasattr(module, "bits") and not isinstance(module, _PACKED):
            raise ModelLoadError(
                f"--tensor-parallel: the architecture {model_type!r} cannot be divided over ranks: "
                f"mlx-lm cannot divide its layers of the kind {type(module).__name__} ({path})"
            )


def _indivisible(size: int, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"--tensor-parallel {size}: this model cannot be divided by that number: {reason}"
    )


def _uneven(config: Mapping[str, Any], size: int) -> str:
    """What in config.json is no multiple of the number of ranks."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else config
    wrong = [name for name in _COUNTS if isinstance(text.get(name), int) and text[name] % size]
    return ", ".join(f"{name} is {text[name]}" for name in wrong)


def _counts(model: Any) -> dict[str, int]:
    """The modules' whole numbers, such as those of their heads, by path and name."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is int
    }


def _check_counts(
    before: dict[str, int], now: dict[str, int], config: Mapping[str, Any], size: int
) -> None:
    """Heads are divided by `//`, which would lose some; fewer than ranks may be repeated."""
    for name, count in now.items():
        whole = before.get(name, count)
        repeated = count == 1 and size % whole == 0 if whole else False
        if count not in (whole, whole / size) and not repeated:
            raise _indivisible(size, _uneven(config, size) or f"{name} is {whole}")


def _settle(module: Any, before: Shapes | None, group: mx.distributed.Group) -> None:
    """Give a divided layer a plain class, and let it be known as divided."""
    now, noted = _shapes(module), shard_of(module)
    if before not in (None, now) and (noted is None or not _divided(before, now, noted)):
        tag(module, Shard("out", group, known=False))
    module.__class__ = _CLASSES.get(type(module), type(module))


def _divided(before: Shapes | None, now: Shapes, noted: Shard) -> bool:
    """Whether nothing was done to a layer's weight besides."""
    if before is None or len(now.get("weight", ())) < 2:
        return False
    axis = -2 if noted.axis == "out" else -1
    return now["weight"][axis] * noted.size == before["weight"][axis]


def _shapes(module: Any) -> Shapes:
    if not isinstance(module, dict):
        return {}
    return {name: tuple(a.shape) for name, a in module.items() if isinstance(a, mx.array)}
