"""Ranks as processes of this machine, started by rank 0. No mlx here.

They meet through MLX's ring backend over loopback: a file lists an address for each, and the
environment says which is whose. `mlx.launch` does the same for several machines.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

LEADER = "MLX_PARALLM_LEADER"  # the process that started this one
_LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
# Below what systems give to connections that ask for any port.
_PORTS = range(20_000, 32_000)
_END_S = 10.0
_LOOK_S = 0.25


def rank_of_environment() -> int | None:
    """This process' rank, where a launcher has started it; None where none has."""
    for name in _LAUNCHERS:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def kill_leader() -> None:
    """End the process that started this rank, which may be stopped."""
    leader = os.environ.get(LEADER, "")
    if leader.isdigit() and int(leader) == os.getppid():
        with suppress(ProcessLookupError):
            os.kill(int(leader), signal.SIGKILL)


_started: list[subprocess.Popen[bytes]] = []


def kill_local_ranks() -> None:
    """End all that were started here, stopped ones too."""
    for process in _started:
        process.kill()


def end_with_leader() -> None:
    """Let this rank end at once when the process that started it does, whatever it waits for.

    Before ranks have met there is no pulse that would tell.
    """
    leader = os.environ.get(LEADER, "")

    def watch() -> None:
        while os.getppid() == int(leader):
            time.sleep(_LOOK_S)
        os._exit(1)

    if leader.isdigit():
        threading.Thread(target=watch, name="leader-watch", daemon=True).start()


def serving_command(argv: Sequence[str]) -> list[str]:
    """Starts a rank of the server with these options."""
    return [sys.executable, "-m", "mlx_parallm.cli", *argv]


class LocalRanks:
    """Ranks 1 ... size - 1, as children of this process, which becomes rank 0.

    At the end of the `with` block they have ended.

    Args:
        command: starts one of them.
        on_end: called with the reason, on a thread of its own, when one has ended with an error.
    """

    def __init__(self, command: Sequence[str], size: int, on_end: Callable[[str], None]) -> None:
        self._command = list(command)
        self._size = size
        self._on_end = on_end
        self._ending = False

    def __enter__(self) -> LocalRanks:
        self._folder = tempfile.TemporaryDirectory(prefix="mlx_parallm-ranks-")
        hosts = Path(self._folder.name) / "hosts.json"
        ports = free_ports(self._size)
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        os.environ.update({"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"})
        for rank in range(1, self._size):
            process = self._start(rank)
            _started.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for process in _started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        kill_local_ranks()
        self._folder.cleanup()

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "MLX_RANK": str(rank), LEADER: str(os.getpid())}
        # A session of its own: Ctrl-C is for rank 0, which lets the others finish.
        return subprocess.Popen(
            self._command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if code and not self._ending:
            self._on_end(f"rank {rank} has ended with code {code}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, at random: two servers take others."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("there is no free port for the ranks")
