"""Adapters by name: where they come from, their versions, and which one a request gets.

Files are read and checked on a thread of their own; the engine's thread only copies what was
read, a module at a time between steps, and puts it in between two of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.weights import Running
from mlx_parallm.errors import ConflictError, InvalidRequestError, NotFoundError
from mlx_parallm.models.places import named_place

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.models.lora.delta import AdapterWeights
    from mlx_parallm.server.flow.generation import Track

T = TypeVar("T")
PIECE_S = 0.01
"""Seconds that running rows wait at a time for weights that come to the device."""

KEPT_VERSIONS = 4
"""Versions of an adapter that can be rolled back to, the one in use included."""


@dataclass(slots=True)
class Entry:
    """An adapter that requests can name.

    Attributes:
        path: its folder; None where its weights came in a request.
        config: its adapter_config.json, once it was read.
        versions: those that are kept, the newest last; empty until the first use.
        current: the one that requests get.
        last_version: the largest number that was given.
    """

    name: str
    path: str | None
    created: int = field(default_factory=lambda: int(time.time()))
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: OrderedDict[int, Adapter] = field(default_factory=OrderedDict)
    current: Adapter | None = None
    last_version: int = 0


class Adapters:
    """All adapters of a server. On the event loop.

    Args:
        named: those of --lora-modules and --adapter-path: name -> folder.
        default: the name of the one that requests get that name none.
        taken: names of the base model.
    """

    def __init__(
        self,
        engine: Engine,
        named: Mapping[str, str],
        default: str | None,
        taken: tuple[str, ...],
    ) -> None:
        self._engine = engine
        self.default = default
        self._taken = taken
        self._entries = {name: Entry(name, path) for name, path in named.items()}
        self._busy: set[str] = set()
        self._loading: dict[str, asyncio.Lock] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def entries(self) -> list[Entry]:
        """In the order in which they were added."""
        return list(self._entries.values())

    def entry(self, name: str) -> Entry:
        """One of them.

        Raises:
            NotFoundError: there is none of that name.
        """
        if name not in self._entries:
            raise NotFoundError(f"There is no adapter {name[:200]!r}.", param="name")
        return self._entries[name]

    def current_default(self) -> Adapter | None:
        """The version of the default adapter that new requests get; None where there is none."""
        entry = None if self.default is None else self._entries.get(self.default)
        return None if entry is None else entry.current

    async def get(self, name: str) -> Adapter:
        """The version that new requests get; read on the first use.

        Raises:
            NotFoundError, InvalidRequestError: it cannot be read.
        """
        entry = self.entry(name)
        async with self._loading.setdefault(name, asyncio.Lock()):
            if entry.current is None:
                assert entry.path is not None
                config, weights = await self._read(entry.path)
                await self._install(entry, config, weights)
            else:
                await self._prepare(entry.current)
        if entry.current is None:
            raise NotFoundError(f"The adapter {name[:200]!r} was removed.", param="model")
        return entry.current

    async def add(
        self, name: str, path: str, *, replace: bool = False, running: Running = "finish"
    ) -> Entry:
        """Read an adapter's folder; with `replace`, as the next version of a known name.

        Args:
            running: what becomes of sequences that an earlier version computes: they finish
                with it, switch and keep their K and V, or switch and compute them again.

        Raises:
            InvalidRequestError: the name is taken, or the adapter cannot be used.
            NotFoundError: there is no adapter in the folder.
            ConflictError: another change of this name is under way.
        """
        if not name or name in self._taken:
            raise InvalidRequestError(f"{name[:200]!r} is the base model's name.", param="name")
        if name in self._entries and not replace:
            raise InvalidRequestError(
                f"The adapter {name[:200]!r} has already been loaded; to load it in place, say so.",
                param="name",
            )
        with self._only_change(name):
            config, weights = await self._read(path)
            entry = self._entries.get(name) or Entry(name, path)
            entry.path = path
            await self._install(entry, config, weights)
            self._entries[name] = entry
            await self._switch(entry, running)
        return entry

    async def update(self, name: str, data: bytes, running: Running = "finish") -> Entry:
        """New weights for a known adapter, as safetensors; its settings stay.

        Raises:
            NotFoundError, InvalidRequestError, ConflictError: nothing is changed.
        """
        await self.get(name)
        entry = self.entry(name)
        with self._only_change(name):
            weights = await self._in_thread(lambda: self._parse(entry.config, data))
            await self._install(entry, entry.config, weights)
            await self._switch(entry, running)
        return entry

    def roll_back(self, name: str, version: int | None) -> Entry:
        """Give new requests an earlier version; None is the one before.

        Raises:
            NotFoundError: no such adapter, or the version is not kept.
        """
        entry = self.entry(name)
        known = list(entry.versions)
        if version is None and entry.current is not None:
            place = known.index(entry.current.version)
            version = known[place - 1] if place else None
        if version is None or version not in entry.versions:
            raise NotFoundError(f"There is no such version; kept are {known}.", param="version")
        entry.current = entry.versions[version]
        return entry

    def remove(self, name: str) -> None:
        """Forget an adapter; rows that use it go on to their end.

        Raises:
            NotFoundError: there is none of that name.
            ConflictError: it is being changed.
        """
        self.entry(name)
        with self._only_change(name):
            del self._entries[name]
        if self.default == name:
            self.default = None

    def close(self) -> None:
        """Read nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _only_change(self, name: str) -> Iterator[None]:
        if name in self._busy:
            raise ConflictError(f"The adapter {name[:200]!r} is being changed by another request.")
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)

    async def _install(
        self, entry: Entry, config: Mapping[str, Any], weights: AdapterWeights
    ) -> None:
        """Make the weights the next version, and bring them to the device."""
        adapter = Adapter(entry.name, entry.last_version + 1, weights)
        await self._prepare(adapter)
        entry.last_version, entry.config, entry.current = adapter.version, config, adapter
        entry.versions[adapter.version] = adapter
        while len(entry.versions) > KEPT_VERSIONS:
            entry.versions.popitem(last=False)

    async def _prepare(self, adapter: Adapter) -> None:
        """Copy its weights to the device, a little between any two steps of the engine."""
        steps = self._engine.prepare_adapter(adapter)
        if steps:
            await run_in_pieces(self._engine, (step() for step in steps))

    async def _switch(self, entry: Entry, running: Running) -> None:
        if running != "finish" and entry.current is not None:
            recompute = running == "recompute"
            switched = self._engine.switch_adapter(entry.current, recompute=recompute)
            await asyncio.wrap_future(switched)

    async def _read(self, path: str) -> tuple[Mapping[str, Any], AdapterWeights]:
        from mlx_parallm.models.lora.reader import read_config, read_folder

        folder = named_place(path, "path")
        modules, rank = self._engine.adapter_modules(), self._engine.config.max_lora_rank

        def read() -> tuple[Mapping[str, Any], AdapterWeights]:
            return read_config(folder), read_folder(folder, modules, rank)

        return await self._in_thread(read)

    def _parse(self, config: Mapping[str, Any], data: bytes) -> AdapterWeights:
        from mlx_parallm.models.lora.reader import read_bytes

        rank = self._engine.config.max_lora_rank
        return read_bytes(config, data, self._engine.adapter_modules(), rank)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


async def run_in_pieces(engine: Engine, work: Iterator[None]) -> None:
    """Run work on the engine's thread, a little between any two of its steps.

    Args:
        work: does a short piece each time it is asked for the next.
    """

    def some() -> bool:
        until = time.perf_counter() + PIECE_S
        return any(time.perf_counter() > until for _ in work)

    while await asyncio.wrap_future(engine.call(some)):
        pass


def named_adapters(
    modules: tuple[str, ...], adapter_path: str | None
) -> tuple[dict[str, str], str | None]:
    """Names and folders of the options, and which is the default.

    Args:
        modules: each "name=path".
    """
    named = dict(entry.split("=", 1) for entry in modules)
    if adapter_path is None:
        return named, None
    default = Path(adapter_path).name or adapter_path
    return {default: adapter_path, **named}, default


def use_adapter(tracks: Iterable[Track], adapter: Adapter | None) -> None:
    """Compute a request's sequences with an adapter, where it named one."""
    if adapter is not None:
        for track in tracks:
            track.sequence.use(adapter)
