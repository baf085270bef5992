"""Starts OpenAI-compatible servers as child processes, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# mlx_lm.server as pip installs it computes with the reference BLAS; this runner gives it
# the same BLAS as ours, so that what is compared is the servers.
_MLX_LM_RUNNER = (
    "import mlx_parallm.cpu.blas as blas; blas.preload(); "
    "import runpy; runpy.run_module('mlx_lm.server', run_name='__main__')"
)
_REPOSITORY = Path(__file__).resolve().parents[2]


class SpawnError(RuntimeError):
    """A server did not come up; the message holds the end of its log."""


@dataclass
class SpawnedServer:
    """A running server.

    Attributes:
        url: its root, without a slash at the end.
        log: file with its stdout and stderr.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of its log."""
        return _tail(self.log)

    def cpu_seconds(self) -> float | None:
        """CPU time it has used so far, in seconds; None where there is no /proc."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int | None:
        """Memory it holds now; None where there is no /proc."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def our_command(model: str | Path, *extra: str) -> list[str]:
    """Command of this project's server; `{port}` is filled in by `spawn`."""
    program = [sys.executable, "-m", "mlx_parallm.cli", "--port", "{port}"]
    return [*program, "--model-path", str(model), *extra]


def mlx_lm_command(model: str | Path) -> list[str]:
    """Command of mlx_lm.server with the same BLAS as ours."""
    return [sys.executable, "-c", _MLX_LM_RUNNER, "--model", str(model), "--port", "{port}"]


@contextlib.contextmanager
def spawn(
    name: str, command: str | Sequence[str], *, ready_s: float = 120
) -> Iterator[SpawnedServer]:
    """Run a server until the block ends.

    Args:
        name: for messages.
        command: one line or a list; `{port}` becomes a free port.
        ready_s: seconds it may take until `/health` (or `/v1/models` without it) is 200.

    Raises:
        SpawnError: it ended or was not ready in time.
    """
    port = free_port()
    parts = shlex.split(command) if isinstance(command, str) else command
    arguments = [part.replace("{port}", str(port)) for part in parts]
    with tempfile.TemporaryDirectory(prefix="server-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = _start(name, arguments, output)
        server = SpawnedServer(name, f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server, ready_s)
            yield server
        finally:
            _stop(process)


def _start(name: str, arguments: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    paths = [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        return subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
    except OSError as error:
        raise SpawnError(f"{name} did not start: {error}") from error


def _wait_until_ready(server: SpawnedServer, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise SpawnError(f"{server.name} ended at start-up:\n{_tail(server.log)}")
        if _is_ready(server.url):
            return
        time.sleep(0.1)
    raise SpawnError(f"{server.name} was not ready in {ready_s:g} s:\n{_tail(server.log)}")


def _is_ready(url: str) -> bool:
    health = _status(f"{url}/health")
    if health == 404:  # a server without /health
        return _status(f"{url}/v1/models") == 200
    return health == 200


def _status(url: str) -> int | None:
    """The status of a GET; None while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
