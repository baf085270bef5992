"""Versions of the whole model's weights: how they come in, and which are kept.

Files are read and checked on a thread of their own; the engine's thread copies them to the
device, a tensor at a time between steps, and puts all in at once between two of them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_parallm.engine.ranks.events import (
    BeginWeights,
    ForgetWeights,
    KeepWeights,
    MakeWeights,
)
from mlx_parallm.engine.ranks.turn import Event
from mlx_parallm.engine.weights import Running, Weights
from mlx_parallm.errors import ConflictError, InvalidRequestError, NotFoundError
from mlx_parallm.models.checkpoint.fitting import check_memory
from mlx_parallm.models.checkpoint.upload import (
    Upload,
    files_of,
    merged,
    read_body,
    read_path,
)
from mlx_parallm.models.device_memory import free_memory
from mlx_parallm.models.loader import float32_bytes
from mlx_parallm.server.adapters import run_in_pieces

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine

T = TypeVar("T")
_HEADERS = 16 << 20


@dataclass(frozen=True, slots=True)
class Put:
    """What a change of the weights did.

    Attributes:
        weights: that the model has now.
        switched: sequences that had begun and go on with them.
    """

    weights: Weights
    switched: int


class ModelVersions:
    """The weights that one engine's model has had. On the event loop.

    Args:
        kept: versions that can be rolled back to at most, the one in use included.
    """

    def __init__(self, engine: Engine, kept: int) -> None:
        self._engine = engine
        self._kept = kept
        self._last = 0
        self._versions: OrderedDict[int, Weights] = OrderedDict({0: engine.weights})
        self._busy = False
        assert engine.loaded is not None
        vision = engine.loaded.vision
        self._plain_bytes = float32_bytes(engine.loaded.model)
        self._plain_bytes += 0 if vision is None else vision.tower.nbytes
        self._parts: list[Upload] | None = None  # of an update in several calls
        self._paths: list[str] = []  # of one that every rank reads itself
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights")

    @property
    def versions(self) -> list[int]:
        """Those that are kept, in the order in which they came."""
        return list(self._versions)

    @property
    def current(self) -> Weights:
        """Those in use."""
        return self._engine.weights

    @property
    def most_bytes(self) -> int:
        """That weights for this model can have in files: plain, and as float64."""
        return 2 * self._plain_bytes + _HEADERS

    async def put_body(self, data: bytes, running: Running) -> Put:
        """A safetensors file as the next version.

        Raises:
            InvalidRequestError, ConflictError: nothing is changed.
        """
        with self._only_change():
            return await self._put(lambda: read_body(data), running)

    async def put_path(self, path: str, running: Running) -> Put:
        """A file or a folder on this machine as the next version.

        Raises:
            NotFoundError, InvalidRequestError, ConflictError: nothing is changed.
        """
        most = self.most_bytes
        with self._only_change():
            if self._is_divided:
                return await self._put_divided([path], running)
            return await self._put(lambda: read_path(path, most), running)

    @property
    def _is_divided(self) -> bool:
        self._engine.check_replaceable()
        return self._engine.ranks.size > 1

    def start(self) -> None:
        """Collect parts from now on; those of an update that was not finished are dropped."""
        self._parts, self._paths = [], []

    @property
    def is_collecting(self) -> bool:
        """Whether an update in parts is under way."""
        return self._parts is not None

    async def add_part(self, path: str) -> None:
        """Read a part of an update that was started.

        Raises:
            NotFoundError, InvalidRequestError, ConflictError: the part is not taken.
        """
        most, parts = self.most_bytes, self._parts
        assert parts is not None
        with self._only_change():
            if self._is_divided:
                await self._in_thread(lambda: files_of(path, most))
                self._paths.append(path)
                return
            parts.append(await self._in_thread(lambda: read_path(path, most)))

    async def finish(self, running: Running) -> Put:
        """Put in what was collected.

        Raises:
            InvalidRequestError, ConflictError: nothing is changed, and the parts are dropped.
        """
        parts, paths = self._parts, self._paths
        if not parts and not paths:
            raise InvalidRequestError("There is no update to finish: it needs weights first.")
        with self._only_change():
            self._parts, self._paths = None, []
            if self._is_divided:
                return await self._put_divided(paths, running)
            return await self._put(lambda: merged(parts or []), running)

    async def roll_back(self, version: int | None, running: Running) -> Put:
        """An earlier version again; None is the one before.

        Raises:
            NotFoundError: the version is not kept.
            ConflictError: another change is under way.
        """
        with self._only_change():
            known = self.versions
            if version is None:
                place = known.index(self.current.version)
                version = known[place - 1] if place else None
            if version is None or version not in self._versions:
                raise NotFoundError(f"There is no such version; kept are {known}.", param="version")
            return await self._use(self._versions[version], running)

    def close(self) -> None:
        """Read nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _only_change(self) -> Iterator[None]:
        if self._busy:
            raise ConflictError("The model's weights are being changed by another request.")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    async def _put(self, read: Callable[[], Upload], running: Running) -> Put:
        fitting = self._engine.fitting()
        upload = await self._in_thread(read)
        self._check_memory(upload)
        digest = await self._in_thread(upload.digest)
        await run_in_pieces(self._engine, fitting.steps(upload))
        return await self._add(Weights(self._last + 1, digest, fitting.made), running)

    async def _put_divided(self, paths: list[str], running: Running) -> Put:
        """Every rank reads the files and keeps its part."""
        try:
            await self._enter(BeginWeights(paths, self.most_bytes))
            while await self._enter(MakeWeights()):
                pass
            weights = await self._enter(KeepWeights(self._last + 1))
            return await self._add(weights, running)
        finally:
            self._engine.enter(ForgetWeights(self.versions))

    async def _enter(self, event: Event) -> Any:
        return await asyncio.wrap_future(self._engine.enter(event))

    async def _add(self, weights: Weights, running: Running) -> Put:
        before = self.current.version
        put = await self._use(weights, running)
        self._last = weights.version
        self._versions[weights.version] = weights
        self._forget_old(before)
        return put

    def _forget_old(self, before: int) -> None:
        """Keep the newest version and the one before, and of the others the newer ones."""
        kept = {self._last, *([before] if self._kept > 1 else [])}
        for version in self.versions:
            if len(self._versions) > self._kept and version not in kept:
                del self._versions[version]

    async def _use(self, weights: Weights, running: Running) -> Put:
        switched = await asyncio.wrap_future(self._engine.put_weights(weights, running))
        return Put(weights, switched)

    def _check_memory(self, upload: Upload) -> None:
        """A new version is whole before it takes the place of the one in use; what is larger than
        it becomes is there beside it.

        Raises:
            InvalidRequestError: there is no memory for both.
        """
        needed, free = self.current.nbytes, free_memory()
        if upload.nbytes > needed:
            needed += upload.nbytes
        check_memory(needed, free)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
