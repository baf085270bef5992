"""uvicorn with our way of stopping: refuse, finish what was accepted, answer what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mlx_parallm.errors import UnavailableError
from mlx_parallm.server.state import ServerState

# What a shell reports for a program that Ctrl-C ended.
_EXIT_INTERRUPTED = 130


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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM: the first ends cleanly, a second Ctrl-C now.

        uvicorn would raise the signal again after a clean end, and a second one would print the
        traceback of everything that was interrupted.
        """
        if self.should_exit and sig == signal.SIGINT:
            os._exit(_EXIT_INTERRUPTED)
        self.should_exit = True

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
