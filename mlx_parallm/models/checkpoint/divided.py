"""New weights of a model that several processes divide: each makes its own part, as at loading.

All of them read the same files. Nothing of the model is changed, and none ever holds all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.adapting.shards import divide
from mlx_parallm.models.checkpoint.fitting import Arrays, Fitting, check_overflow, laid_out
from mlx_parallm.models.checkpoint.stored import StoredTensors
from mlx_parallm.models.checkpoint.upload import add_to_digest, files_of

if TYPE_CHECKING:
    from mlx_parallm.models.vision.tower import Tower

_PIECE = 16 << 20  # bytes; all processes do the same in a piece, however fast they are


class DividedFitting:
    """Makes this process' part of new weights. On the thread that owns mlx.

    Args:
        whole: makes the model with all of its layers, of which no weight is read.
        group: of processes that divide it.
        model: that runs, which has a part of them; now: its parameters.
        dtype: that plain weights have before they are packed.
        tower: what the model sees with, which stays as it is.

    Attributes:
        made: the parameters. digest: of what is in the files, as Upload.digest.
    """

    def __init__(
        self,
        whole: Callable[[], tuple[Any, dict[str, Any]]],
        group: mx.distributed.Group,
        model: Any,
        now: Mapping[str, mx.array],
        dtype: mx.Dtype,
        tower: Tower | None = None,
    ) -> None:
        self._whole, self._group, self._dtype = whole, group, dtype
        self._tower = tower
        self._now = now
        self._modules: dict[str, Any] = dict(model.named_modules())
        self.made: Arrays = {}
        self.digest = ""

    def steps(self, paths: list[str], most: int) -> Iterator[None]:
        """Fill `made` and `digest`, a short piece a step.

        Args:
            paths: files, or folders of them. most: bytes that one of these may have.

        Raises:
            NotFoundError, InvalidRequestError, BodyTooLargeError: they cannot be read, or do
                not fit.
        """
        stored = StoredTensors([file for path in paths for file in files_of(path, most)])
        yield from self._read(stored)
        model, config = self._whole()
        now: Arrays = dict(tree_flatten(model.parameters()))
        fitting, arrays = Fitting(model, self._dtype, now, self._tower), stored.arrays()
        yield from fitting.check_tower(arrays)
        made = fitting.lazily(arrays)
        model.update(tree_unflatten(list(made.items())))
        divide(model, self._group, config)
        parts: Arrays = dict(tree_flatten(model.parameters()))
        del model, now, fitting, arrays, made  # what is read below is freed with its part
        yield from self._take(parts)

    def _read(self, stored: StoredTensors) -> Iterator[None]:
        """Look at every number, and at nothing twice."""
        digest, read = hashlib.sha256(), 0
        for name in sorted(stored.names):
            tensor = stored.read(name)
            add_to_digest(digest, name, tensor)
            read += tensor.values.nbytes
            if read >= _PIECE:
                read = 0
                yield
        self.digest = digest.hexdigest()[:32]

    def _take(self, parts: Arrays) -> Iterator[None]:
        size = 0
        for name in list(parts):
            array, own = parts.pop(name), self._now.get(name)
            if own is None or own.shape != array.shape:
                raise InvalidRequestError(f"{name[:200]}: the model has no such parameter.")
            self.made[name] = laid_out(name, array.astype(own.dtype), self._modules)
            mx.eval(self.made[name])
            check_overflow(name, self.made[name])
            mx.clear_cache()
            size += own.nbytes
            if size >= _PIECE:
                size = 0
                yield
        if missing := self._now.keys() - self.made.keys():
            raise InvalidRequestError(f"{min(missing)[:200]} is missing: all weights are needed.")
