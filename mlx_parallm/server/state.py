"""What the routes of one running server share."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request

from mlx_parallm.errors import NotFoundError, ParallmError, UnavailableError, UnsupportedError
from mlx_parallm.models.sources.progress import LoadProgress
from mlx_parallm.server.adapters import Adapters, named_adapters
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.decisions.told import Told
from mlx_parallm.server.flow.dispatch import Dispatcher
from mlx_parallm.server.flow.queue import RequestQueue
from mlx_parallm.server.flow.registry import Registry
from mlx_parallm.server.gate.turnstile import Turnstile
from mlx_parallm.server.input.pictures.limits import PictureLimits
from mlx_parallm.server.input.pictures.pictures import Pictures
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.input.videos.sampling import VideoLimits
from mlx_parallm.server.observing.metrics import Metrics
from mlx_parallm.server.response_store import ResponseStore
from mlx_parallm.server.weights import ModelVersions
from mlx_parallm.settings import Settings

if TYPE_CHECKING:
    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.memory.manager import MemoryManager
    from mlx_parallm.models.loader import LoadedModel
    from mlx_parallm.server.audio.service import Sounds


@dataclass(slots=True)
class ServerState:
    """One server: its settings, its engine, and the ways to it."""

    settings: Settings
    engine: Engine
    dispatcher: Dispatcher
    queue: RequestQueue
    metrics: Metrics
    executor: ThreadPoolExecutor
    progress: LoadProgress = field(default_factory=LoadProgress)
    registry: Registry = field(default_factory=Registry)
    draining: bool = False
    turnstile: Turnstile = field(default_factory=Turnstile)
    created: int = field(default_factory=lambda: int(time.time()))
    _prompts: Prompts | None = None
    memory_executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="memories")
    )
    told_decisions: Told = field(default_factory=Told)
    _sounds: Sounds | None = None
    _responses: ResponseStore | None = None
    _memories: MemoryManager | None = None
    _memories_lock: threading.Lock = field(default_factory=threading.Lock)
    _adapters: Adapters | None = None
    _versions: ModelVersions | None = None
    sleeping: bool = False

    def loaded(self) -> LoadedModel:
        """The model, once it is there.

        Raises:
            UnavailableError: loading, draining or stopped.
        """
        loaded = self.engine.loaded
        if self.engine.state != "ready" or loaded is None:
            reason = without_folders(str(self.engine.reason))
            raise UnavailableError(f"The server cannot take requests now: {reason}.")
        if self.waits_for_adapter:
            raise UnavailableError("The server cannot take requests now: the adapter is loading.")
        return loaded

    @property
    def waits_for_adapter(self) -> bool:
        """Whether the adapter of all requests is not there yet."""
        return self.adapters.default is not None and self.dispatcher.default_adapter is None

    def prompts(self) -> Prompts:
        """The maker of prompts for the model.

        Raises:
            UnavailableError: as loaded().
        """
        loaded = self.loaded()
        if self._prompts is None:
            self._prompts = Prompts(
                loaded,
                self.executor,
                not self.settings.allow_special_tokens_in_content,
                self.settings.max_tokens,
                self.settings.max_logprobs,
                self.settings.logprobs_mode,
                self._pictures(),
            )
        return self._prompts

    def _pictures(self) -> Pictures:
        settings = self.settings
        limits = PictureLimits(
            settings.max_images, settings.max_image_bytes, settings.max_image_pixels
        )
        video_limits = VideoLimits(
            settings.max_videos,
            settings.max_video_frames,
            settings.max_video_bytes,
            settings.max_video_pixels,
            settings.max_video_seconds,
        )
        hosts, timeout = settings.allow_image_hosts, settings.image_fetch_timeout
        return Pictures(limits, hosts, timeout, video_limits)

    def sounds(self) -> Sounds:
        """The way to the model for sounds.

        Raises:
            UnavailableError: as loaded().
            NotFoundError: there is none.
        """
        whisper = self.loaded().whisper
        if whisper is None:
            raise NotFoundError(
                "This server has no model for sounds; see --transcription-model.",
                param="model",
                code="model_not_found",
            )
        if self._sounds is None:
            from mlx_parallm.server.audio.service import Sounds

            self._sounds = Sounds(self.engine, whisper, self.settings)
        return self._sounds

    def close_sounds(self) -> None:
        """Decode no more sounds."""
        if self._sounds is not None:
            self._sounds.close()

    def responses(self) -> ResponseStore:
        """The store of responses.

        Raises:
            ModelLoadError: --response-store cannot be used.
        """
        if self._responses is None:
            path = self.settings.response_store
            self._responses = ResponseStore(None if path is None else Path(path).expanduser())
        return self._responses

    def close_responses(self) -> None:
        """Write what is to be kept; may wait for a disk."""
        if self._responses is not None:
            self._responses.close()

    def memories(self) -> MemoryManager:
        """The model's memories; may wait for a store, so not for the event loop.

        Raises:
            UnavailableError: as loaded().
            UnsupportedError: several processes compute the model.
            MemoryStoreError: the store cannot be used.
        """
        self.loaded()
        if self.settings.num_ranks > 1:
            raise UnsupportedError(
                "Memories hold K and V of the whole model, and with --tensor-parallel or "
                "--pipeline-parallel every process has a part of them only.",
                param="memory",
            )
        with self._memories_lock:
            if self._memories is None:
                self._memories = self._open_memories()
            return self._memories

    def _open_memories(self) -> MemoryManager:
        from mlx_parallm.memory.backends.stores import open_backend
        from mlx_parallm.memory.manager import MemoryManager

        folder, settings = self.settings.memory_dir, self.settings
        backend = open_backend(
            settings.memory_store, None if folder is None else Path(folder).expanduser()
        )
        return MemoryManager(self.engine, backend, settings.memory_budget)

    def close_prompts(self) -> None:
        """End what makes prompts and grammars."""
        if self._prompts is not None:
            self._prompts.close()
        self.executor.shutdown(wait=False, cancel_futures=True)

    def close_memories(self) -> None:
        """Stop making memories; before the engine stops."""
        with self._memories_lock:
            if self._memories is not None:
                self._memories.close()
        self.memory_executor.shutdown(wait=False, cancel_futures=True)

    @property
    def adapters(self) -> Adapters:
        """What can be added to the model."""
        if self._adapters is None:
            settings = self.settings
            named, default = named_adapters(settings.lora_modules, settings.adapter_path)
            self._adapters = Adapters(self.engine, named, default, settings.model_names)
        return self._adapters

    @property
    def versions(self) -> ModelVersions:
        """The weights that the model has had; once it is loaded."""
        if self._versions is None:
            self._versions = ModelVersions(self.engine, self.settings.weight_versions)
        return self._versions

    def close_versions(self) -> None:
        """Read no new weights."""
        if self._versions is not None:
            self._versions.close()

    async def model_of(self, name: str) -> tuple[str, Adapter | None]:
        """The served name that a request's `model` means, and its adapter where it is one's.

        Raises:
            NotFoundError: no such model is served.
            InvalidRequestError: the adapter cannot be read.
        """
        adapter = self._adapter_name(name)
        if adapter is None:
            return self.check_model(name), None
        return name, await self.adapters.get(adapter)

    def _adapter_name(self, name: str) -> str | None:
        """The adapter that a request's `model` means; None where it is none."""
        if name in self.settings.model_names:
            return None
        found = (known for known in (name, name.removesuffix(":latest")) if known in self.adapters)
        return next(found, None)

    def check_known(self, name: str) -> None:
        """For what is the same for a model and its adapters.

        Raises:
            NotFoundError: no such model is served, and no such adapter.
        """
        if self._adapter_name(name) is None:
            self.check_model(name)

    def check_model(self, name: str) -> str:
        """The served name that a request's `model` means; empty means the first.

        Ollama's clients write ":latest" behind names without a tag.

        Raises:
            NotFoundError: no such model is served.
        """
        names = self.settings.model_names
        if name not in names:
            name = name.removesuffix(":latest")
        if name in self.adapters:
            raise UnsupportedError(
                f"This endpoint answers with the base model only, not with {name[:200]!r}.",
                param="model",
            )
        if name and name not in names:
            raise NotFoundError(
                f"The model {name[:200]!r} does not exist; this server has {names[0]!r}.",
                param="model",
                code="model_not_found",
            )
        return name or names[0]

    @property
    def capacity(self) -> int:
        """Sequences that can be computed or wait at the same time."""
        return self.settings.max_queue + self.engine.config.max_batch_size

    def drain(self) -> None:
        """Refuse new requests and let the accepted ones finish."""
        self.draining = True
        self.engine.drain()

    def answer_all(self, error: ParallmError) -> None:
        """End every request that still waits, with an error."""
        self.queue.close(error)
        if self._sounds is not None:
            self._sounds.end_all(error)
        self.dispatcher.cancel_all(error)


def state_of(request: Request) -> ServerState:
    """The state of the server that got this request.

    Raises:
        UnavailableError: the app runs without its lifespan.
    """
    state: ServerState | None = request.app.state.server
    if state is None:
        raise UnavailableError("The server has not started.")
    return state
