"""`mlx_parallm serve-many` as a process, with what tests ask and do to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from mlx_parallm.tools.replicas import free_port
from tests.streamed import streamed
from tests.waiting import PATIENCE_S, wait_until

ALICE, BOB, ADMIN = "sk-alice", "sk-bob", "sk-admin"
SERVE = (sys.executable, "-m", "mlx_parallm.cli", "--log-level", "warning")


class Fleet:
    """Two replicas of the bundled model with two clients' keys; their output as it comes.

    Args:
        folder: for the file of keys.
    """

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys.toml"
        keys.write_text(f'[alice]\nkey = "{ALICE}"\n[bob]\nkey = "{BOB}"\n')
        self.port = free_port()
        command = [sys.executable, "-m", "mlx_parallm", "serve-many", "2", "--port", str(self.port)]
        options = ["--api-key-file", str(keys), "--admin-key", ADMIN, "--log-level", "warning"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {ALICE}"},
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def count(self, text: str) -> int:
        """Lines of output with this text."""
        return sum(text in line for line in self.lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until so many lines of output have this text."""
        wait_until(lambda: self.count(text) >= times)

    def ask(self, prompt: str, key: str = ALICE, **body: Any) -> httpx.Response:
        """A completion of a few tokens, through the router."""
        asked = {"model": "bundled", "prompt": prompt, "max_tokens": 4, "receipt": True, **body}
        headers = {"Authorization": f"Bearer {key}"}
        return self.http.post("/v1/completions", json=asked, headers=headers)

    def stream(self, prompt: str, max_tokens: int, on_start: Any) -> list[str]:
        """The data of all events of a streamed completion, through the router."""
        return streamed(self.http, prompt, max_tokens, on_start)

    @property
    def ports(self) -> list[int]:
        """Of the replicas that have started, the newest last."""
        found = re.findall(r"serves bundled at http://127.0.0.1:(\d+) \(", "".join(self.lines))
        return [int(port) for port in found]

    def pid_of(self, port: int) -> int:
        """The process of a replica."""
        return self._find("-f", f"mlx_parallm.cli .*--port {port}$")

    @property
    def router_pid(self) -> int:
        """The process of the router."""
        return self._find("-f", f"mlx_parallm.tools.router .*--port {self.port} |smg::router")

    def _find(self, *arguments: str) -> int:
        command = ["pgrep", "-P", str(self.process.pid), *arguments]
        return int(subprocess.run(command, capture_output=True, check=True).stdout.split()[0])

    def kill(self, pid: int) -> None:
        """As the system's out-of-memory killer would."""
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Stop it, if a test has not."""
        self.stop()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.close()


def load_of(port: int) -> int:
    """Requests that a replica has."""
    headers = {"Authorization": f"Bearer {BOB}"}
    url = f"http://127.0.0.1:{port}/v1/loads"
    load = httpx.get(url, headers=headers, timeout=PATIENCE_S).json()["aggregate"]
    return int(load["total_running_reqs"] + load["total_waiting_reqs"])


def prompts_of(port: int) -> int:
    """Prompt tokens that a replica has been given so far; 0 where nobody answers."""
    headers = {"Authorization": f"Bearer {BOB}", "x-admin-key": ADMIN}
    try:
        url = f"http://127.0.0.1:{port}/debug/metrics"
        figures = httpx.get(url, headers=headers, timeout=PATIENCE_S).json()
    except httpx.HTTPError:
        return 0
    return int(figures["engine"]["prompt_tokens"])
