"""A rank that ends, stops or computes something else ends all of them; everybody is answered."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_parallm.engine.ranks.pulse import Pulse
from tests.engine.ranks.servers import PIPELINE, TENSOR, Server, is_alive, serving
from tests.waiting import PATIENCE_S, wait_until

LONG = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


def streamed(http: httpx.Client) -> Iterator[dict[str, Any]]:
    with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def ends_with_an_error(server: Server, signal_number: int, why: str) -> None:
    """Send a signal to rank 1 in mid-stream: everybody gets an error, and all ranks end."""
    (other,) = server.others
    events = streamed(server.http)
    first = next(events)
    assert "choices" in first
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.http.post, "/v1/completions", json=LONG)
        wait_until(lambda: server.running() == 2)
        os.kill(other, signal_number)
        assert "error" in list(events)[-1]
        answer = whole.result()
        assert answer.status_code == 503
        assert why in answer.json()["error"]["message"]
    assert server.process.wait(PATIENCE_S) == 1
    wait_until(lambda: not is_alive(other))


@pytest.mark.parametrize("way", [TENSOR, PIPELINE])
def test_a_killed_rank(way: str) -> None:
    with serving(ranks=2, way=way) as server:
        ends_with_an_error(server, signal.SIGKILL, "rank 1 has ended")


@pytest.mark.parametrize("way", [TENSOR, PIPELINE])
def test_a_stopped_rank(way: str) -> None:
    with serving("--step-timeout", "6", ranks=2, way=way) as server:
        ends_with_an_error(server, signal.SIGSTOP, "--step-timeout is 6 s")


_SAYS_BEATS = """
import sys
from multiprocessing.connection import Client
from mlx_parallm.engine.ranks.pulse import Pulse

connection = Client(sys.argv[1], authkey=b"key")
pulse = Pulse(connection, "rank 0", 0, print)
pulse.start()
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("does", "said", "silent"),
    [
        ("stops", "rank 1 is silent; --step-timeout is 1 s", True),
        ("ends", "rank 1 has ended", False),
    ],
)
def test_a_pulse_notices(tmp_path: Path, does: str, said: str, silent: bool) -> None:
    told: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    with Listener(str(tmp_path / "door"), authkey=b"key") as listener:
        command = [sys.executable, "-c", _SAYS_BEATS, str(tmp_path / "door")]
        other = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            with listener.accept() as connection:
                Pulse(connection, "rank 1", 1, lambda *end: told.put(end)).start()
                other.send_signal(signal.SIGSTOP if does == "stops" else signal.SIGKILL)
                assert told.get(timeout=PATIENCE_S) == (said, silent)
        finally:
            other.kill()
            other.communicate()


_DIVERGES = """
import os, sys
from mlx_parallm import cli
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler

plan, steps = ContinuousBatchScheduler.schedule, []

def other(self):
    planned = plan(self)
    steps.append(planned)
    if os.environ["MLX_RANK"] == "1" and len(planned.decode) and len(steps) > 20:
        planned.decode.pop()
    return planned

ContinuousBatchScheduler.schedule = other
sys.exit(cli.main(["--port", "0", {way!r}, "2"]))
"""


@pytest.mark.parametrize("way", [TENSOR, PIPELINE])
def test_a_rank_that_diverges_is_found_by_its_checksum(tmp_path: Path, way: str) -> None:
    """Here somebody else has started the ranks, as mlx.launch does."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    script = _DIVERGES.format(way=way)
    ranks = [started_by_a_launcher(script, hosts, rank) for rank in range(2)]
    try:
        leader, other = ranks
        assert leader.stdout is not None
        url = next(word for word in leader.stdout.readline().split() if word.startswith("http"))
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
            assert "error" in list(streamed(http))[-1]
        assert [rank.wait(PATIENCE_S) for rank in ranks] == [1, 1]
        assert other.stderr is not None
        assert "rank 1 has planned another step than rank 0" in other.stderr.read()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def started_by_a_launcher(script: str, hosts: Path, rank: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
