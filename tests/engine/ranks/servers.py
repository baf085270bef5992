"""Servers as processes, alone and over ranks, and what they are asked."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from tests.waiting import PATIENCE_S, wait_until

TENSOR, PIPELINE = "--tensor-parallel", "--pipeline-parallel"
Request = tuple[str, dict[str, Any]]
_OF_THE_ANSWER = ("id", "created", "system_fingerprint", "usage", "model")


class Server:
    """The command as a process; its ranks are its children."""

    def __init__(self, *flags: str, ranks: int = 1, way: str = TENSOR) -> None:
        command = [sys.executable, "-m", "mlx_parallm.cli", "--port", "0", *flags]
        if ranks > 1:
            command += [way, str(ranks)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        url = next((word for word in line.split() if word.startswith("http")), None)
        assert url is not None, f"it has not started: {line}"
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_S)

    @property
    def others(self) -> list[int]:
        """Process ids of the other ranks."""
        children = ["pgrep", "-P", str(self.process.pid), "-f", "mlx_parallm.cli"]
        found = subprocess.run(children, capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def running(self) -> int:
        """Sequences that compute now."""
        return int(self.http.get("/debug/metrics").json()["engine"]["running"])

    def ask(self, request: Request) -> Any:
        path, body = request
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask_all(self, requests: list[Request]) -> list[Any]:
        """All at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self.ask, requests))

    def kill(self) -> None:
        """End what is left of it."""
        for pid in self.others:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        self.http.close()


@contextmanager
def serving(*flags: str, ranks: int = 1, way: str = TENSOR) -> Iterator[Server]:
    """A server that is killed at the end."""
    server = Server(*flags, ranks=ranks, way=way)
    try:
        assert len(server.others) == ranks - 1
        yield server
    finally:
        server.kill()


def ends_cleanly(server: Server) -> None:
    """SIGTERM ends a server with code 0, and all of its ranks with it."""
    others = server.others
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    wait_until(lambda: not any(is_alive(pid) for pid in others))


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    """Equal tokens and texts, and numbers within a tolerance."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - set(_OF_THE_ANSWER):
            assert_same(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, tolerance)
    elif isinstance(one, float):
        assert math.isclose(one, other, abs_tol=tolerance), f"{one} and {other}"
    else:
        assert one == other
