"""Replicas behind the real router: prefixes stay, a dead replica loses nothing, a clean end."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mlx_parallm.tools.replicas import Replica, free_port
from mlx_parallm.tools.serve_many import main
from tests.waiting import wait_until

pytest.importorskip("smg", reason="extra `replicas`: pip install smg")
PATIENCE_S = 150.0


class Fleet:
    """`serve-many 2` with the bundled model, its output as it comes."""

    def __init__(self) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "mlx_parallm", "serve-many", "2"]
        options = ["--port", str(self.port), "--log-level", "info"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(lambda: sum(text in line for line in self.lines) >= times, PATIENCE_S)

    def ask(self, prompt: str, **body: Any) -> httpx.Response:
        asked = {"model": "bundled", "prompt": prompt, "max_tokens": 4, "receipt": True, **body}
        return self.http.post("/v1/completions", json=asked)

    @property
    def ports(self) -> list[int]:
        """Of the replicas that have started, the newest last."""
        found = re.findall(r"serves bundled at http://127.0.0.1:(\d+) ", "".join(self.lines))
        return [int(port) for port in found]

    @property
    def accepted(self) -> int:
        """Requests that the replicas have."""
        loads = (
            httpx.get(f"http://127.0.0.1:{port}/v1/loads", timeout=PATIENCE_S).json()["aggregate"]
            for port in self.ports[:2]
        )
        return sum(load["total_running_reqs"] + load["total_waiting_reqs"] for load in loads)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.stop()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.close()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    try:
        fleet.wait_for("from 2 replicas")
        yield fleet
    finally:
        fleet.close()


def test_prompts_with_the_same_beginning_find_it_cached(fleet: Fleet) -> None:
    stories = [f"{name} lives in house {place}. " * 30 for place, name in enumerate("ABCD")]
    cached = asked = 0
    for turn in range(8):
        for story in stories:
            receipt = fleet.ask(f"{story} Turn {turn}.").json()["receipts"][0]
            cached += receipt["cached_tokens"]
            asked += receipt["prompt_tokens"]
    assert cached / asked >= 0.65


def test_a_killed_replica_loses_no_plain_request_and_comes_back(fleet: Fleet) -> None:
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(fleet.ask, f"Count {i}", max_tokens=48) for i in range(96)]
        wait_until(lambda: sum(one.done() for one in asked) > 10, PATIENCE_S)
        pid = int(
            subprocess.run(
                ["pgrep", "-f", f"mlx_parallm.cli .*--port {fleet.ports[0]}$"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[0]
        )
        os.kill(pid, signal.SIGKILL)
        assert [one.result().status_code for one in asked] == [200] * 96
    fleet.wait_for("it is started again")
    fleet.wait_for("serves bundled at http://127.0.0.1:", times=4)


def test_a_clean_end_finishes_what_was_accepted(fleet: Fleet) -> None:
    with ThreadPoolExecutor(8) as pool:
        body = {"max_tokens": 400, "ignore_eos": True}
        asked = [pool.submit(fleet.ask, f"Count {i}", **body) for i in range(8)]
        wait_until(lambda: sum(one.done() for one in asked) + fleet.accepted >= 8, PATIENCE_S)
        assert fleet.stop() == 0
        statuses = {one.result().status_code for one in asked}
    assert statuses <= {200, 503}
    assert 200 in statuses


def test_a_replica_that_ends_again_and_again_is_started_less_and_less_often() -> None:
    replica = Replica([sys.executable, "-c", "raise SystemExit(3)"], 1)
    replica.start()
    replica.join(PATIENCE_S)
    now = 1000.0
    starts: list[float] = []
    for _ in range(2000):
        replica.look(now)
        if len(starts) < replica.restarts:
            starts.append(now)
            replica.join(PATIENCE_S)
        now += 0.1
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert replica.exit_code == 3
    assert waits == sorted(waits) and waits[-1] > 8 * waits[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["0"], "at least 1"), (["2", "--no-such-flag"], "--no-such-flag")],
)
def test_wrong_options(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
