"""uvicorn with our way of stopping: refuse, finish what was accepted, answer what is left."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from mlx_parallm.errors import UnavailableError
from mlx_parallm.server.state import ServerState


class Runner(uvicorn.Server):
    """Serves an app of create_app().

    Args:
        drain_s: after a signal, seconds in which accepted requests may still finish. Then each
            that is left is answered with an error.
        answer_s: seconds for those last answers to reach their clients.
    """

    def __init__(self, app: FastAPI, *, drain_s: float, answer_s: int) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_s) + answer_s,
        )
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once it has been told to stop."""
        state: ServerState | None = self._app.state.server
        if state is None:
            await super().shutdown(sockets)
            return
        state.drain()
        error = UnavailableError("The server is shutting down.")
        timer = asyncio.get_running_loop().call_later(self._drain_s, state.answer_all, error)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
