"""create_fleet_app(): one ASGI application in front of several models."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import Depends, FastAPI

from mlx_parallm import __version__
from mlx_parallm.errors import ParallmError
from mlx_parallm.models.device_memory import total_memory
from mlx_parallm.server.audio.form import FORM_BYTES
from mlx_parallm.server.fleet.catalog import Entry, entries_of, settings_for
from mlx_parallm.server.fleet.fleet import Fleet
from mlx_parallm.server.fleet.front import Front
from mlx_parallm.server.fleet.routes import router
from mlx_parallm.server.gate.admission import Admission
from mlx_parallm.server.gate.clients import clients_of
from mlx_parallm.server.gate.cors import Cors
from mlx_parallm.server.gate.undeclared import refuse_undeclared
from mlx_parallm.server.handlers import add_handlers
from mlx_parallm.server.main import create_app
from mlx_parallm.server.middleware import Gate
from mlx_parallm.server.observing.record import RequestRecord
from mlx_parallm.server.routes import greeting, page
from mlx_parallm.server.state import ServerState
from mlx_parallm.settings import Settings

logger = logging.getLogger(__name__)

# Of the machine's memory: for the weights of all loaded models, and for K and V of each.
_WEIGHTS_SHARE = 0.5
_KV_SHARE = 0.25
_SHARING = 4


def create_fleet_app(
    settings: Settings,
    *,
    make_app: Callable[..., FastAPI] = create_app,
    on_ready: Callable[[ServerState], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
    on_engine_failure: Callable[[str], None] | None = None,
) -> FastAPI:
    """The server of several models as an ASGI application.

    Args:
        make_app: makes the application of one model; as create_app().
        on_ready, on_failure: as in create_app(), for the first model and those that are pinned.
        on_engine_failure: as in create_app(), for every model.

    Raises:
        SettingsError: the models of the settings are not there.
    """
    entries = entries_of(settings)
    kv_bytes = settings.kv_cache_memory or int(total_memory() * _KV_SHARE / _SHARING)

    def make(
        entry: Entry, ready: Callable[[ServerState], None], failed: Callable[[Exception], None]
    ) -> FastAPI:
        own = replace(settings_for(settings, entry), kv_cache_memory=kv_bytes)
        more = {} if on_engine_failure is None else {"on_engine_failure": on_engine_failure}
        return make_app(own, gated=False, on_ready=ready, on_failure=failed, **more)

    fleet = Fleet(
        entries,
        make,
        memory=settings.models_memory or int(total_memory() * _WEIGHTS_SHARE),
        ttl_s=settings.model_ttl,
        waits=settings.while_loading == "wait",
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            first = await _start(fleet, on_failure)
            if first is not None and on_ready is not None:
                on_ready(first)
            yield
        finally:
            await fleet.stop()

    app = FastAPI(
        title="mlx_parallm",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.server, app.state.settings = fleet, settings
    add_handlers(app)
    # The page is there while no model is, and is no reason to load one.
    for family in (router, greeting.router, page.router):
        app.include_router(family, dependencies=[Depends(refuse_undeclared)])
    app.add_middleware(Front, fleet=fleet, own=app.router, limit=largest_body(settings))
    app.add_middleware(
        Gate,
        admission=Admission(lambda: fleet),
        clients=clients_of(settings),
        on_answer=_on_answer,
    )
    app.add_middleware(Cors, origins=settings.cors_origin)
    return app


def largest_body(settings: Settings) -> int:
    """Bytes that the front reads of any request; the routes look again, each at its own limit."""
    if settings.transcription_model is None:
        return settings.max_body_size
    return max(settings.max_body_size, settings.max_audio_bytes + FORM_BYTES)


async def _start(
    fleet: Fleet, on_failure: Callable[[Exception], None] | None
) -> ServerState | None:
    try:
        await fleet.start()
    except ParallmError as error:
        if on_failure is None:
            logger.error("%s", error)
        else:
            on_failure(error)
    return fleet.slots[0].state


def _on_answer(method: str, route: str, status: int, seconds: float, record: RequestRecord) -> None:
    if record.on_answer is not None:
        record.on_answer(method, route, status, seconds, record)
