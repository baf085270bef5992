"""create_app(): the ASGI application around one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI

from mlx_parallm import __version__
from mlx_parallm.errors import ModelLoadError, ParallmError, UnavailableError
from mlx_parallm.models.sources.progress import LoadProgress, watcher
from mlx_parallm.server.audio import routes as sounds
from mlx_parallm.server.flow.dispatch import Dispatcher
from mlx_parallm.server.flow.queue import RequestQueue
from mlx_parallm.server.gate.admission import Admission
from mlx_parallm.server.gate.clients import clients_of
from mlx_parallm.server.gate.cors import Cors
from mlx_parallm.server.gate.undeclared import refuse_undeclared
from mlx_parallm.server.handlers import add_handlers
from mlx_parallm.server.memories import in_thread
from mlx_parallm.server.middleware import Gate
from mlx_parallm.server.observing.metrics import Metrics
from mlx_parallm.server.observing.record import RequestRecord
from mlx_parallm.server.observing.tracing import Tracer
from mlx_parallm.server.openapi import use_own_openapi
from mlx_parallm.server.routes import (
    adapters,
    advanced,
    chat,
    collections,
    completions,
    control,
    decisions,
    docs,
    generate,
    greeting,
    health,
    invocations,
    loads,
    models,
    page,
    pooling,
    predict,
    tokens,
    weights,
)
from mlx_parallm.server.routes.compat import llama_cpp, messages, ollama, openai_responses
from mlx_parallm.server.routes.rollouts import rollout, trl, vllm
from mlx_parallm.server.state import ServerState
from mlx_parallm.settings import Settings

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.engine.ranks.ranks import Ranks
    from mlx_parallm.models.loader import LoadedModel

logger = logging.getLogger(__name__)

_POLL_S = 0.02
# By these options steps are planned, so that every rank needs the same.
_SAME_ON_ALL_RANKS = (
    *("tensor_parallel", "pipeline_parallel", "dtype", "quantize", "max_model_len"),
    *("max_batch_size", "max_gap"),
    *("prefill_chunk", "prefix_cache_memory", "speculation", "num_draft_tokens", "max_loras"),
)
_FAMILIES = (
    adapters,
    rollout,
    weights,
    vllm,
    trl,
    docs,
    page,
    greeting,
    health,
    loads,
    collections,
    models,
    ollama,
    llama_cpp,
    chat,
    completions,
    control,
    invocations,
    decisions,
    messages,
    openai_responses,
    tokens,
    generate,
    advanced,
    pooling,
    predict,
    sounds,
)
_ROUTERS = tuple(family.router for family in _FAMILIES)


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    *,
    gated: bool = True,
    on_ready: Callable[[ServerState], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
    on_engine_failure: Callable[[str], None] | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        engine: not yet started; made from the settings when None. The app's lifespan starts
            and stops it. The app answers (503) while the engine loads.
        gated: without it somebody in front looks at keys and limits, and logs.
        on_ready: called once, when the model is loaded.
        on_failure: called instead, when it cannot be loaded.
        on_engine_failure: called with the reason when the engine has failed later, or stalls;
            everybody who waits was answered.

    Raises:
        UnsupportedError: a setting needs an extra that is not installed.
    """
    app = FastAPI(
        title="mlx_parallm",
        version=__version__,
        description="OpenAI-compatible inference on MLX, everything in one continuous batch.",
        lifespan=_lifespan(settings, engine, on_ready, on_failure, on_engine_failure),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server, app.state.settings = None, settings
    add_handlers(app)

    endpoint = settings.otlp_traces_endpoint
    tracer = app.state.tracer = None if endpoint is None else Tracer.to(endpoint)

    def on_answer(
        method: str, route: str, status: int, seconds: float, record: RequestRecord
    ) -> None:
        state: ServerState | None = app.state.server
        if state is not None:
            state.metrics.on_answer(method, route, status, seconds)
        if tracer is not None and record.generations:
            tracer.on_answer(method, route, status, seconds, record)

    app.state.on_answer = on_answer
    if gated:
        app.add_middleware(
            Gate,
            admission=Admission(lambda: app.state.server),
            clients=clients_of(settings),
            on_answer=on_answer,
        )
        app.add_middleware(Cors, origins=settings.cors_origin)
    for router in _ROUTERS:
        app.include_router(router, dependencies=[Depends(refuse_undeclared)])
    use_own_openapi(app, settings.has_keys)
    return app


def build_engine(
    settings: Settings,
    on_loaded: Callable[[LoadedModel], None] | None = None,
    progress: LoadProgress | None = None,
) -> Engine:
    """An engine that will load the model of the settings on its own thread.

    Args:
        on_loaded: called there, before the engine changes the model's modules.
        progress: told how far the download and the reading of the model are.
    """
    import mlx.core as mx

    from mlx_parallm.engine.engine import Engine, EngineConfig
    from mlx_parallm.engine.ranks.meet import meet
    from mlx_parallm.models.audio.loading import load_whisper
    from mlx_parallm.models.loader import BUNDLED, BUNDLED_DRAFT, load_model
    from mlx_parallm.models.predictor import load_predictors

    ranks, in_stages = settings.num_ranks, settings.pipeline_parallel > 1

    def load() -> LoadedModel:
        watcher.set(progress)
        whisper = None
        if settings.transcription_model is not None:  # first: it is small, and may be missing
            whisper = load_whisper(settings.transcription_model, settings.dtype)
        loaded = load_model(
            settings.model_path,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            trust_remote_code=settings.trust_remote_code,
            quantize=settings.quantize,
            group=mx.distributed.init() if ranks > 1 else None,
            in_stages=in_stages,
        )
        if settings.chat_template is not None:
            _use_chat_template(loaded, settings.chat_template)
        loaded.predictors = load_predictors(settings.predictor)
        if whisper is not None:
            loaded.whisper = whisper
            loaded.nbytes += whisper.nbytes
        if on_loaded is not None:
            on_loaded(loaded)
        return loaded

    def load_draft() -> LoadedModel:
        path = settings.draft_model or BUNDLED_DRAFT
        return load_model(BUNDLED_DRAFT if path == BUNDLED else path, dtype=settings.dtype)

    config = EngineConfig(
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
        prefill_chunk=settings.prefill_chunk,
        max_gap=settings.max_gap,
        kv_cache_memory=settings.kv_cache_memory,
        memory_utilization=settings.gpu_memory_utilization,
        memory_limit=settings.memory_limit,
        prefix_cache_memory=settings.prefix_cache_memory,
        prefix_cache_dir=Path(settings.prefix_cache_dir) if settings.prefix_cache_dir else None,
        prefix_cache_disk=settings.prefix_cache_disk,
        speculative=settings.speculation,
        num_draft_tokens=settings.num_draft_tokens,
        step_timeout=settings.step_timeout,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank,
    )

    def meet_ranks(on_end: Callable[[str], None]) -> Ranks:
        same = {name: getattr(settings, name) for name in _SAME_ON_ALL_RANKS}
        return meet(ranks, str(same), settings.step_timeout, on_end, in_stages=in_stages)

    return Engine(load, config, load_draft, meet_ranks if ranks > 1 else None)


def _use_chat_template(loaded: LoadedModel, given: str) -> None:
    """Replace the model's template by the one in a file, or by `given` where it is one itself."""
    is_template = "{{" in given or "{%" in given
    try:
        template = given if is_template else Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"--chat-template {given}: {error}") from None
    loaded.tokenizer.chat_template = template
    loaded.tokenizer.has_chat_template = True


def _lifespan(
    settings: Settings,
    given: Engine | None,
    on_ready: Callable[[ServerState], None] | None,
    on_failure: Callable[[Exception], None] | None,
    on_engine_failure: Callable[[str], None] | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        progress = LoadProgress()
        engine = given or build_engine(settings, progress=progress)
        state = _build_state(settings, engine, progress)
        app.state.server = state
        if on_engine_failure is not None:
            _tell_of_failure(state, on_engine_failure)
        state.engine.start()
        tasks = [
            asyncio.create_task(state.queue.batch_processing_worker()),
            asyncio.create_task(_watch_loading(state, on_ready, on_failure)),
        ]
        try:
            yield
        finally:
            await _shut_down(state, tasks)
            if app.state.tracer is not None:
                await asyncio.to_thread(app.state.tracer.close)

    return lifespan


def _build_state(settings: Settings, engine: Engine, progress: LoadProgress) -> ServerState:
    # The metrics read the queue, and the queue's dispatcher tells the metrics.
    metrics = Metrics(engine.stats, lambda: len(queue), settings.model_names[0])
    dispatcher = Dispatcher(engine, asyncio.get_running_loop(), metrics.on_generation)
    queue = RequestQueue(dispatcher, settings.batch_timeout_ms / 1e3, settings.max_batch_size)
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
    return ServerState(settings, engine, dispatcher, queue, metrics, executor, progress)


def _tell_of_failure(state: ServerState, tell: Callable[[str], None]) -> None:
    """Let a failure of the engine answer everybody, and then be told, on the event loop."""
    loop = asyncio.get_running_loop()

    def give_up(reason: str) -> None:
        state.drain()
        state.answer_all(UnavailableError(f"The server ends: {reason}."))
        tell(reason)

    def on_failure(reason: str) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server ends already
            loop.call_soon_threadsafe(give_up, reason)

    state.engine.on_failure = on_failure


async def _watch_loading(
    state: ServerState,
    on_ready: Callable[[ServerState], None] | None,
    on_failure: Callable[[Exception], None] | None,
) -> None:
    # Polled: a thread that waits for the engine could not be cancelled at shutdown.
    while state.engine.state == "loading":
        await asyncio.sleep(_POLL_S)
    try:
        state.engine.wait_ready(0)
        await _check_memories(state)
        await _load_adapters(state)
        state.responses()
    except (ParallmError, TimeoutError) as error:
        if on_failure is not None:
            on_failure(error)
        else:
            logger.error("%s", error)
        return
    if on_ready is not None:
        on_ready(state)


async def _load_adapters(state: ServerState) -> None:
    """Read the adapters that the options name: what is wrong with them is said at the start."""
    for entry in state.adapters.entries:
        await state.adapters.get(entry.name)
    state.dispatcher.find_default = state.adapters.current_default


async def _check_memories(state: ServerState) -> None:
    """Fail now, not at the first request, where memories were asked for and cannot be had."""
    settings = state.settings
    if settings.use_extended_mind or settings.memory_dir or settings.memory_store:
        manager = await in_thread(state, state.memories)
        if settings.use_extended_mind:
            await in_thread(state, manager.check_model)


async def _shut_down(state: ServerState, tasks: list[asyncio.Task[None]]) -> None:
    state.drain()
    state.answer_all(UnavailableError("The server is shutting down."))
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    state.adapters.close()
    state.close_versions()
    await asyncio.to_thread(state.close_memories)
    await asyncio.to_thread(state.close_responses)
    await asyncio.to_thread(state.engine.stop)
    state.close_sounds()
    state.close_prompts()
