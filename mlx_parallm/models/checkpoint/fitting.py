"""From an upload to parameters that can take the place of a model's own.

They are renamed as at loading, checked, and brought into the types, the packing and the memory
layout that the model computes with. Nothing of the model is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_parallm.cpu.linear import is_stored_transposed, transposed_layout
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.checkpoint.tensor_file import Tensor
from mlx_parallm.models.checkpoint.upload import Upload

if TYPE_CHECKING:
    from mlx_parallm.models.vision.tower import Tower

Arrays = dict[str, mx.array]
_PACKED = ("scales", "biases")  # beside `weight`, of a quantised module


class Fitting:
    """Makes parameters of an upload. On the thread that owns mlx.

    Args:
        model: an mlx-lm model.
        dtype: that plain weights have before they are packed.
        now: the model's parameters, which say what is wanted.
        tower: what the model sees with, which stays as it is.
    """

    def __init__(
        self,
        model: Any,
        dtype: mx.Dtype,
        now: Mapping[str, mx.array],
        tower: Tower | None = None,
    ) -> None:
        self._model = model
        self._tower = tower
        self._dtype = dtype
        self._now = now
        self._modules: dict[str, Any] = dict(model.named_modules())
        self.made: Arrays = {}

    def steps(self, upload: Upload) -> Iterator[None]:
        """Fill `made`, a tensor a step, so that running rows need not wait for all of them.

        Raises:
            InvalidRequestError: a name, a shape, a type or a value does not fit.
        """
        arrays: Arrays = {}
        for name in list(upload.tensors):
            arrays[name] = _on_device(upload.tensors.pop(name))
            yield
        yield from self.check_tower(arrays)
        arrays = self._named(arrays)
        wanted = self._wanted(arrays)
        self._check(arrays, wanted)
        for name in wanted:
            yield from self._make(name, arrays.pop(name))
        mx.eval(self.made)

    def check_tower(self, arrays: Arrays) -> Iterator[None]:
        """Features and prefixes of running rows are this tower's: another one is refused."""
        for other in () if self._tower is None else self._tower.differences(dict(arrays)):
            if other:
                raise InvalidRequestError(
                    f"{other[:200]} is not as in the model: what it sees with cannot be replaced "
                    "while it runs. Leave these weights out, or start a server with the checkpoint."
                )
            yield

    def lazily(self, arrays: Arrays) -> Arrays:
        """Parameters that are made when they are computed with; float16 may overflow.

        Raises:
            InvalidRequestError: a name, a shape or a type does not fit.
        """
        arrays = self._named(arrays)
        wanted = self._wanted(arrays)
        self._check(arrays, wanted)
        for name in wanted:
            array = arrays.pop(name)
            if self._packs(name, array):
                self.made |= self._packed(name, array.astype(self._dtype))
            else:
                self.made[name] = array.astype(self._now[name].dtype)
        return self.made

    def _named(self, arrays: Arrays) -> Arrays:
        """By the model's own names: as they are, or as mlx-lm renames a checkpoint."""
        wanted = self._wanted(arrays)
        if arrays.keys() == wanted.keys() and all(
            tuple(arrays[name].shape) == shape for name, shape in wanted.items()
        ):
            return arrays
        rename: Callable[[Arrays], Arrays] | None = getattr(self._model, "sanitize", None)
        if rename is None:
            return arrays
        try:
            return dict(rename(dict(arrays)))
        except Exception as error:
            raise InvalidRequestError(
                "The weights are not a checkpoint of this model: mlx-lm cannot read them "
                f"({type(error).__name__}: {str(error)[:200]})."
            ) from error

    def _wanted(self, arrays: Arrays) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what has to be there: plain weights also where the model packs."""
        wanted = {name: tuple(array.shape) for name, array in self._now.items()}
        for path, module in self._modules.items():
            if hasattr(module, "bits") and f"{path}.scales" not in arrays:
                for part in _PACKED:
                    wanted.pop(f"{path}.{part}", None)
                wanted[f"{path}.weight"] = _plain_shape(module)
        return wanted

    def _check(self, arrays: Arrays, wanted: Mapping[str, tuple[int, ...]]) -> None:
        for name in arrays:
            if name not in wanted:
                raise InvalidRequestError(f"{name[:200]}: the model has no such parameter.")
        for name, shape in wanted.items():
            if name not in arrays:
                raise InvalidRequestError(f"{name[:200]} is missing: all weights are needed.")
            found = tuple(arrays[name].shape)
            if found != shape:
                raise InvalidRequestError(
                    f"{name[:200]} has the shape {found}; the model needs {shape}."
                )
            self._check_type(name, arrays[name])

    def _check_type(self, name: str, array: mx.array) -> None:
        own = self._now[name].dtype
        packs = self._packs(name, array)
        floats = mx.issubdtype(array.dtype, mx.floating)
        if floats != (packs or mx.issubdtype(own, mx.floating)) or not (
            floats or array.dtype == own
        ):
            raise InvalidRequestError(
                f"{name[:200]} has the type {_shown(array.dtype)}; the model computes with "
                f"{_shown(own)}."
            )

    def _packs(self, name: str, array: mx.array) -> bool:
        """Whether these are plain weights of a module that packs its own."""
        path, _, last = name.rpartition(".")
        packed = hasattr(self._modules.get(path), "bits") and last == "weight"
        return packed and bool(mx.issubdtype(array.dtype, mx.floating))

    def _make(self, name: str, array: mx.array) -> Iterator[None]:
        if self._packs(name, array):
            parts = self._packed(name, self._cast(name, array, self._dtype))
            mx.eval(parts)
            self.made |= parts
        else:
            made = self._cast(name, array, self._now[name].dtype)
            self.made[name] = laid_out(name, made, self._modules)
            mx.eval(self.made[name])
        yield

    def _packed(self, name: str, plain: mx.array) -> Arrays:
        """As `--quantize` does it at loading."""
        path = name.rpartition(".")[0]
        module = self._modules[path]
        parts = mx.quantize(plain, module.group_size, module.bits, mode=module.mode)
        names = (f"{path}.{part}" for part in ("weight", *_PACKED))
        return dict(zip(names, parts, strict=False))

    def _cast(self, name: str, array: mx.array, dtype: mx.Dtype) -> mx.array:
        made = array.astype(dtype)
        if array.dtype != dtype:
            check_overflow(name, made)
        return made


def laid_out(name: str, array: mx.array, modules: Mapping[str, Any]) -> mx.array:
    """A parameter in the memory layout that its module, of `modules` by path, computes with."""
    module = modules.get(name.rpartition(".")[0])
    transposed = name.endswith(".weight") and is_stored_transposed(module)
    return transposed_layout(array) if transposed else array


def check_overflow(name: str, made: mx.array) -> None:
    """Refuse a parameter with values that float16 cannot hold.

    Raises:
        InvalidRequestError: it has some.
    """
    if made.dtype == mx.float16 and not mx.isfinite(made).all().item():
        raise InvalidRequestError(f"{name[:200]}: there are values that float16 cannot hold.")


def check_memory(needed: int, free: int) -> None:
    """Refuse another version of the weights; all in bytes.

    Raises:
        InvalidRequestError: there is no memory for it beside the one in use.
    """
    if needed > free:
        raise InvalidRequestError(
            f"There is no memory for another version of the weights: {needed / 1e9:.2f} GB "
            f"are needed beside the one in use, and {free / 1e9:.2f} GB are free.",
            code="insufficient_memory",
        )


def _plain_shape(module: Any) -> tuple[int, ...]:
    *rows, _ = module.weight.shape
    return (*rows, module.scales.shape[-1] * module.group_size)


def _on_device(tensor: Tensor) -> mx.array:
    if tensor.kind == "F64":
        return mx.array(tensor.values.astype("float32"))
    made = mx.array(tensor.values)
    return made.view(mx.bfloat16) if tensor.kind == "BF16" else made


def _shown(dtype: mx.Dtype) -> str:
    return str(dtype).rsplit(".", 1)[-1]
