"""uvicorn with our way of stopping: refuse, finish what was accepted, answer what is left."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mlx_parallm.errors import UnavailableError
from mlx_parallm.server.gate.connection import Connection
from mlx_parallm.server.gate.connections import Connections
from mlx_parallm.server.gate.limits import ConnectionLimits
from mlx_parallm.server.listener import BACKLOG
from mlx_parallm.server.state import ServerState

logger = logging.getLogger(__name__)

# What a shell reports for a program that a signal ended, less the signal's number.
_EXIT_BY_SIGNAL = 128
# Connections that are accepted before others are read again. asyncio takes uvicorn's `backlog`
# for that too, and with thousands of them /health would wait.
_ACCEPTED_AT_ONCE = 256


class Runner(uvicorn.Server):
    """Serves an app of create_app().

    Args:
        drain_s: after a signal, seconds in which accepted requests may still finish. Then each
            that is left is answered with an error. Meanwhile new ones get a 503.
        answer_s: seconds for those last answers to reach their clients.
        limits: of connections.
        tls: serve https with it.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        drain_s: float,
        answer_s: int,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        limits = limits or ConnectionLimits()
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            log_level=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            backlog=_ACCEPTED_AT_ONCE,
            timeout_keep_alive=max(1, round(limits.idle_s)),
            timeout_graceful_shutdown=answer_s,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        super().__init__(config)
        self.server_state = self._connections = Connections(limits)
        self._app = app
        self._drain_s = drain_s
        self._sweeper: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM: the first ends cleanly, a second one now.

        uvicorn would raise the signal again after a clean end, and a second one would print the
        traceback of everything that was interrupted.
        """
        if self.should_exit:
            os._exit(_EXIT_BY_SIGNAL + sig)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn to begin."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        self._sweeper = asyncio.create_task(self._connections.sweep())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once it has been told to stop."""
        state: ServerState | None = self._app.state.server
        if state is not None:
            await self._drain(state)
        await super().shutdown(sockets)
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _drain(self, state: ServerState) -> None:
        """Wait for the requests that are being answered; the listener stays open for refusals."""
        state.drain()
        accepted = set(self.server_state.tasks)
        # Clients are to come back elsewhere, not on the connections that they have.
        self.server_state.default_headers = [
            *self.server_state.default_headers,
            (b"connection", b"close"),
        ]
        if not accepted:
            return
        logger.info(
            "%d requests may finish within %g s; another signal ends at once",
            len(accepted),
            self._drain_s,
        )
        _, late = await asyncio.wait(accepted, timeout=self._drain_s)
        if late:
            state.answer_all(UnavailableError("The server is shutting down."))
