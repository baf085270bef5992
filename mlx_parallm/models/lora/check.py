"""Whether an adapter fits a model: shapes, ranks and kinds of modules. Any thread may ask."""

from __future__ import annotations

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.adapting.shard import shard_of
from mlx_parallm.models.lora.delta import HEAD, AdapterWeights, Delta
from mlx_parallm.models.lora.modules import Modules, width_of


def check(weights: AdapterWeights, modules: Modules, max_rank: int) -> None:
    """Compare every change with the module that it is for.

    Raises:
        InvalidRequestError: nothing in it, a wrong shape, or a rank that is too large.
        UnsupportedError: a kind of change that this module cannot have.
    """
    if not weights.deltas:
        raise InvalidRequestError("The adapter changes nothing: there are no weights in it.")
    if weights.rank > max_rank:
        raise InvalidRequestError(
            f"The adapter's rank is {weights.rank}; --max-lora-rank is {max_rank}."
        )
    for path, delta in weights.deltas.items():
        _check_shard(path, modules)
        _check_low_rank(path, delta, modules)
        _check_replaced(path, delta, modules)


def _check_shard(path: str, modules: Modules) -> None:
    """Refuse what cannot be divided as the layer is (--tensor-parallel)."""
    shard = shard_of(modules[path])
    if shard is not None and not shard.known:
        raise UnsupportedError(
            f"{_shown(path)}: with --tensor-parallel this layer is divided in a way that adapters "
            "cannot follow."
        )


def _check_low_rank(path: str, delta: Delta, modules: Modules) -> None:
    if delta.a is None and delta.b is None:
        return
    if delta.a is None or delta.b is None:
        raise InvalidRequestError(f"{_shown(path)}: one of its two low-rank matrices is missing.")
    if not (modules.is_linear(path) or modules.is_embedding(path) or modules.is_experts(path)):
        raise UnsupportedError(f"{_shown(path)}: a module of this kind takes no adapter.")
    *experts, out, width = width_of(modules[path])
    if modules.is_embedding(path) and not path.endswith(HEAD):
        out, width = width, out
    rank = delta.rank
    _same(path, "A", delta.a.shape, (*experts, width, rank))
    _same(path, "B", delta.b.shape, (*experts, rank, out))
    if delta.magnitude is not None:
        if experts:
            raise UnsupportedError(f"{_shown(path)}: DoRA of experts is not supported.")
        _same(path, "magnitude", delta.magnitude.shape, (width if delta.by_token else out,))
    if delta.added is not None:
        _same(path, "bias", delta.added.shape, (out,))


def _check_replaced(path: str, delta: Delta, modules: Modules) -> None:
    module = modules[path]
    for name, array in delta.replaced.items():
        if name == "bias" and modules.is_linear(path):
            wanted: tuple[int, ...] = width_of(module)[:1]
        elif name in module and modules.is_experts(path):
            raise UnsupportedError(f"{_shown(path)}: whole weights of experts are not supported.")
        elif name in module:
            wanted = width_of(module) if name == "weight" else module[name].shape
        else:
            raise InvalidRequestError(f"{_shown(path)}: there is no parameter {name[:100]!r}.")
        _same(path, name, array.shape, tuple(wanted))


def _same(path: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(wanted):
        raise InvalidRequestError(
            f"{_shown(path)}: {name} has the shape {tuple(shape)}; the model needs {wanted}."
        )


def _shown(path: str) -> str:
    return path.removesuffix(HEAD)[:200]
