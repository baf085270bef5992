"""The engine of a training: by itself, or inside a server that answers others meanwhile."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import TrainingError
from mlx_parallm.server.adapters import Adapters, Entry
from mlx_parallm.server.listener import listen
from mlx_parallm.server.main import build_engine, create_app
from mlx_parallm.server.runner import Runner
from mlx_parallm.server.state import ServerState
from mlx_parallm.settings import Settings
from mlx_parallm.training import checkpoint
from mlx_parallm.training.settings import TrainSettings
from mlx_parallm.training.start import Twin, start_engine
from mlx_parallm.training.versions import POLICY, OwnVersions, Versions

_HOST = "127.0.0.1"
_ANSWER_S = 2
_LORAS = 4  # adapters of a server: versions of the policy that rows still use


@contextmanager
def training_engine(
    settings: TrainSettings, port: int | None
) -> Iterator[tuple[Engine, Any, Versions]]:
    """A running engine, the twin of its model, and where new versions go.

    Args:
        port: that a server listens on meanwhile; None is no server.
    """
    if port is None:
        engine, twin = start_engine(settings)
        try:
            yield engine, twin, OwnVersions(engine)
        finally:
            engine.stop()
        return
    with serving(settings, port) as served:
        yield served


@contextmanager
def serving(settings: TrainSettings, port: int) -> Iterator[tuple[Engine, Any, Versions]]:
    """The same inside a server, in a thread of its own.

    Raises:
        TrainingError: the port cannot be used, or the model cannot be loaded.
    """
    server_settings = _server_settings(settings, port)
    try:
        listener = listen(_HOST, port)
    except OSError as error:
        raise TrainingError(f"--serve {port}: {error.strerror or error}", param="serve") from None
    twin = Twin()
    engine = build_engine(server_settings, on_loaded=twin.keep)
    ready = _Ready()
    app = create_app(server_settings, engine, on_ready=ready.done, on_failure=ready.fail)
    runner = Runner(app, drain_s=server_settings.drain_timeout, answer_s=_ANSWER_S)
    thread = threading.Thread(target=lambda: _run(runner, listener, ready), name="server")
    with listener:
        thread.start()
        try:
            state, loop = ready.wait()
            address = f"http://{_HOST}:{listener.getsockname()[1]}"
            sys.stdout.write(f"the policy is served at {address} as the model {POLICY!r}\n")
            sys.stdout.flush()
            versions = ServedVersions(state.adapters, loop, settings.output, address)
            yield engine, twin.model, versions
        finally:
            runner.should_exit = True
            thread.join()


def _server_settings(settings: TrainSettings, port: int) -> Settings:
    logging.getLogger("uvicorn").setLevel("WARNING")
    return Settings(
        model_path=settings.model,
        dtype=settings.dtype,
        host=_HOST,
        port=port,
        max_batch_size=settings.max_batch_size,
        max_loras=_LORAS,
        max_lora_rank=settings.lora.rank,
    )


def _run(runner: Runner, listener: socket.socket, ready: _Ready) -> None:
    try:
        runner.run(sockets=[listener])
    finally:
        ready.fail(TrainingError("The server has stopped."))  # if it never was ready


class _Ready:
    """Waits for a server's model."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._found: tuple[ServerState, asyncio.AbstractEventLoop] | None = None
        self._error: Exception | None = None

    def done(self, state: ServerState) -> None:
        """On the server's event loop."""
        self._found = state, asyncio.get_running_loop()
        self._event.set()

    def fail(self, error: Exception) -> None:
        """Instead of `done`."""
        self._error = error
        self._event.set()

    def wait(self) -> tuple[ServerState, asyncio.AbstractEventLoop]:
        """Until one of the two."""
        self._event.wait()
        if self._found is None:
            assert self._error is not None
            raise self._error
        return self._found


class ServedVersions:
    """Versions that requests get by the name of the policy.

    Args:
        folder: where the adapter's files are.
        address: of the server.
    """

    def __init__(
        self, adapters: Adapters, loop: asyncio.AbstractEventLoop, folder: Path, address: str
    ) -> None:
        self.address = address
        self._adapters = adapters
        self._loop = loop
        self._folder = folder

    def publish(self, config: Mapping[str, Any], weights: bytes) -> Adapter:
        """As `PUT /v1/adapters/policy/weights` does it; see Versions."""
        changed = self._changed(config, weights)
        entry = asyncio.run_coroutine_threadsafe(changed, self._loop).result()
        assert entry.current is not None
        return entry.current

    async def _changed(self, config: Mapping[str, Any], weights: bytes) -> Entry:
        if POLICY in self._adapters:
            return await self._adapters.update(POLICY, weights)
        checkpoint.write_adapter(self._folder, config, weights)
        return await self._adapters.add(POLICY, str(self._folder))
