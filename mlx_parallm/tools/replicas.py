"""Replicas of the server behind a router: started, watched, started again, ended cleanly."""

from __future__ import annotations

import http.client
import signal
import socket
import sys
import time
from collections.abc import Sequence

from mlx_parallm.tools.child import Child

_POLL_S = 0.2
_HEALTH_TIMEOUT_S = 5.0
_ROUTER_END_S = 5.0


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def is_answered(port: int, path: str) -> bool:
    """Whether a server on this machine answers a GET with a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Replica(Child):
    """One server process at a port of its own.

    Args:
        command: starts it; `--host` and `--port` are added.
    """

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.port = port
        address = ("--host", "127.0.0.1", "--port", str(port))
        super().__init__(f"the replica at {self.url}", [*command, *address])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def is_healthy(self) -> bool:
        """Whether it answers requests."""
        return is_answered(self.port, "/health")


class Supervisor:
    """Replicas and the router in front of them.

    Args:
        replicas, router: not yet started; the router is, once all replicas answer.
        router_port: where it listens.
        drain_s: how long accepted requests may take after the end was asked for.
    """

    def __init__(
        self, replicas: Sequence[Replica], router: Child, router_port: int, drain_s: float
    ) -> None:
        self.replicas = list(replicas)
        self.router = router
        self._router_port = router_port
        self._drain_s = drain_s
        self._stopping = False

    def stop(self) -> None:
        """Ask run() to end; for signal handlers."""
        self._stopping = True

    def run(self, ready: str) -> int:
        """Start everything, watch it until stop() is called, and end it cleanly.

        Args:
            ready: what to print once requests are answered.

        Returns:
            an exit code: 1 where the replicas or the router cannot run.
        """
        for replica in self.replicas:
            replica.start()
        try:
            if not (self._wait_until_healthy() and self._start_router()):
                return 0 if self._stopping else 1  # who cannot run has said why
            sys.stdout.write(ready + "\n")
            sys.stdout.flush()
            self._watch()
            return 0
        finally:
            self._end()

    def _wait_until_healthy(self) -> bool:
        waiting = list(self.replicas)
        while waiting and not self._stopping:
            if any(not replica.alive for replica in waiting):
                return False
            waiting = [replica for replica in waiting if not replica.is_healthy()]
            time.sleep(_POLL_S)
        return not self._stopping

    def _start_router(self) -> bool:
        self.router.start()
        while not (self._stopping or is_answered(self._router_port, "/readiness")):
            if not self.router.alive:
                return False
            time.sleep(_POLL_S)
        return not self._stopping

    def _watch(self) -> None:
        while not self._stopping:
            for child in (*self.replicas, self.router):
                if child.look(time.monotonic()):
                    sys.stderr.write(
                        f"{child.name} has ended with {child.exit_code}; it is started again\n"
                    )
            time.sleep(_POLL_S)

    def _end(self) -> None:
        """Replicas first: they finish what they have, which the router still passes on."""
        for replica in self.replicas:
            replica.signal(signal.SIGTERM)
        until = time.monotonic() + self._drain_s
        for replica in self.replicas:
            replica.join(max(0.1, until - time.monotonic()))
        self.router.signal(signal.SIGTERM)
        self.router.join(_ROUTER_END_S)
