"""Replicas of the server as processes: started, watched, started again, ended cleanly."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_POLL_S = 0.2
_HEALTH_TIMEOUT_S = 5.0
# How long a replica that ends again and again waits before it is started.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SETTLED_S = 60.0


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


class Replica:
    """One server process at a port of its own.

    Args:
        command: starts it; `--host` and `--port` are added.
    """

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.port = port
        self.restarts = 0
        self._command = [*command, "--host", "127.0.0.1", "--port", str(port)]
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0
        self._start_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of its process; None where there is none."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of its last process; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process. A group of its own: Ctrl-C is for its supervisor."""
        self._process = subprocess.Popen(self._command, start_new_session=True)
        self._started_at = time.monotonic()

    def is_healthy(self) -> bool:
        """Whether it answers requests."""
        return is_answered(self.port, "/health")

    def look(self, now: float) -> bool:
        """Start it again where it ended; later and later where it ends again and again.

        Returns:
            whether it has ended since the last look.
        """
        if self.alive:
            if now - self._started_at > _SETTLED_S:
                self._pause_s = _FIRST_PAUSE_S
            return False
        if self._start_at is None:
            self._start_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return True
        if now >= self._start_at:
            self._start_at = None
            self.restarts += 1
            self.start()
        return False

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    def join(self, timeout_s: float) -> None:
        """Wait for its end; kill it afterwards."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Supervisor:
    """Replicas and the router in front of them.

    Args:
        replicas: not yet started.
        router: starts the router, once all replicas answer; router_port: where it listens.
        drain_s: how long accepted requests may take after the end was asked for.
    """

    def __init__(
        self, replicas: Sequence[Replica], router: Sequence[str], router_port: int, drain_s: float
    ) -> None:
        self.replicas = list(replicas)
        self._router_command = list(router)
        self._router_port = router_port
        self._router: subprocess.Popen[bytes] | None = None
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
            if not self._wait_until_healthy():
                return 0 if self._stopping else 1
            self._router = subprocess.Popen(self._router_command, start_new_session=True)
            while not (self._stopping or is_answered(self._router_port, "/readiness")):
                if self._router.poll() is not None:
                    return 1  # it has said why
                time.sleep(_POLL_S)
            sys.stdout.write(ready + "\n")
            sys.stdout.flush()
            return self._watch()
        finally:
            self._end()

    def _wait_until_healthy(self) -> bool:
        waiting = list(self.replicas)
        while waiting and not self._stopping:
            if any(not replica.alive for replica in waiting):
                return False  # it has said why
            waiting = [replica for replica in waiting if not replica.is_healthy()]
            time.sleep(_POLL_S)
        return not self._stopping

    def _watch(self) -> int:
        assert self._router is not None
        while not self._stopping:
            if self._router.poll() is not None:
                sys.stderr.write(f"the router has ended with {self._router.returncode}\n")
                return 1
            for replica in self.replicas:
                if replica.look(time.monotonic()):
                    sys.stderr.write(
                        f"the replica at {replica.url} has ended with {replica.exit_code}; "
                        "it is started again\n"
                    )
            time.sleep(_POLL_S)
        return 0

    def _end(self) -> None:
        """Replicas first: they finish what they have, which the router still passes on."""
        for replica in self.replicas:
            replica.signal(signal.SIGTERM)
        until = time.monotonic() + self._drain_s
        for replica in self.replicas:
            replica.join(max(0.1, until - time.monotonic()))
        if self._router is not None:
            self._router.terminate()
            try:
                self._router.wait(5)
            except subprocess.TimeoutExpired:
                self._router.kill()
                self._router.wait()
