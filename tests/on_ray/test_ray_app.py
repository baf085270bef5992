"""The real Ray: two replicas, prefixes that stay, adapters, a killed replica, a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="extra `ray`: pip install 'ray[serve]'")

from mlx_parallm.models.loader import load_model
from mlx_parallm.ray_app import app, main
from mlx_parallm.settings import SettingsError
from mlx_parallm.tools.replicas import free_port
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.streamed import streamed
from tests.waiting import PATIENCE_S, wait_until

ADAPTERS = 3


class RayServer:
    """`python -m mlx_parallm.ray_app` with two replicas of the bundled model.

    Args:
        folder: for its adapters.
    """

    def __init__(self, folder: Path) -> None:
        adapters = []
        for number in range(ADAPTERS):
            path = folder / f"adapter-{number}"
            mlx_lm_adapter(path, load_model("bundled").model, number, keys=list(ALL))
            adapters += ["--adapter", f"adapter-{number}={path}"]
        port = free_port()
        command = [sys.executable, "-m", "mlx_parallm.ray_app", "--port", str(port)]
        options = ["--min-replicas", "2", "--cpus-per-replica", "0.1", "--max-loras", "2"]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(
            [*command, *options, *adapters],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def ready(self) -> bool:
        assert self.process.poll() is None, "".join(self.lines[-40:])
        return any(" on Ray" in line for line in self.lines)

    def ask(self, prompt: str, **body: Any) -> httpx.Response:
        asked = {"model": "bundled", "prompt": prompt, "max_tokens": 4, "receipt": True, **body}
        return self.http.post("/v1/completions", json=asked)

    def stream(self, prompt: str, max_tokens: int, on_start: Any) -> list[str]:
        return streamed(self.http, prompt, max_tokens, on_start)

    def replicas(self) -> list[int]:
        """Their processes."""
        found = subprocess.run(
            ["pgrep", "-f", "^ray::ServeReplica:mlx_parallm:Replica"],
            capture_output=True,
            check=False,
        )
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    server = RayServer(tmp_path_factory.mktemp("adapters"))
    try:
        wait_until(server.ready)
        yield server
    finally:
        server.stop()
        server._reader.join()
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.http.close()


def test_it_answers_as_the_server_does(server: RayServer) -> None:
    assert server.http.get("/health").json()["status"] == "healthy"
    whole = server.ask("3 + 4 =", temperature=0).json()["choices"][0]["text"]
    events = server.stream("3 + 4 =", 4, lambda: None)
    assert events[-1] == "[DONE]"
    assert len(events) > 2 and whole
    wrong = server.ask("3 + 4 =", top_p=7)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "top_p")
    unknown = server.ask("3 + 4 =", model="nothing")
    assert unknown.json()["error"]["code"] == "model_not_found"


def test_memories_of_one_replica_are_refused(server: RayServer) -> None:
    answer = server.http.post("/v1/models/bundled/memories", json={"collection": "a", "text": "b"})
    assert answer.status_code == 501
    assert "--memory-store" in answer.json()["error"]["message"]


def test_prompts_with_the_same_beginning_stay_with_one_replica(server: RayServer) -> None:
    for name in "ABCD":
        story = f"{name} lives in a house. " * 30
        receipts = [server.ask(f"{story} Turn {turn}.").json()["receipts"][0] for turn in range(8)]
        asked = sum(receipt["prompt_tokens"] for receipt in receipts)
        assert sum(receipt["cached_tokens"] for receipt in receipts) / asked >= 0.65


def test_adapters_are_read_when_they_are_asked_for(server: RayServer) -> None:
    """Three, of which a replica keeps two: each gives its own answer whenever it is asked."""
    body = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}

    def answers() -> list[str]:
        names = ["bundled", *(f"adapter-{number}" for number in range(ADAPTERS))]
        asked = [server.ask("Once upon", model=name, **body) for name in names]
        return [answer.json()["choices"][0]["text"] for answer in asked]

    first = answers()
    assert len(set(first)) == len(first)
    assert [answers() for _ in range(2)] == [first, first]


def test_a_killed_replica_loses_no_plain_request_and_comes_back(server: RayServer) -> None:
    first = server.replicas()
    assert len(first) == 2
    begun = [threading.Event() for _ in range(6)]
    with ThreadPoolExecutor(22) as pool:
        streams = [
            pool.submit(server.stream, f"{place} is a story", 800, event.set)
            for place, event in enumerate(begun)
        ]
        assert all(event.wait(PATIENCE_S) for event in begun)
        plain = [pool.submit(server.ask, f"{place} Count", max_tokens=24) for place in range(16)]
        os.kill(first[0], signal.SIGKILL)
        assert [one.result().status_code for one in plain] == [200] * len(plain)
        ends = [events.result()[-2:] for events in streams]
    assert {end[-1] for end in ends} == {"[DONE]"}
    kinds = {"error" in json.loads(end[0]) for end in ends}
    assert kinds == {True, False}, "one replica's streams end with an error, the other's do not"
    wait_until(lambda: len(set(server.replicas()) - {first[0]}) == 2)
    assert server.ask("3 + 4 =").status_code == 200


def test_a_clean_end(server: RayServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        begun = [threading.Event() for _ in range(4)]
        streams = [
            pool.submit(server.stream, f"{place} ends", 100, event.set)
            for place, event in enumerate(begun)
        ]
        assert all(event.wait(PATIENCE_S) for event in begun)
        assert server.stop() == 0
        ends = [json.loads(events.result()[-2])["choices"][0] for events in streams]
    assert {end["finish_reason"] for end in ends} == {"length"}


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--min-replicas", "2", "--memory-dir", "somewhere"]) == 2
    assert "--memory-store" in capsys.readouterr().err
    assert main(["--no-such-flag"]) == 2
    with pytest.raises(SettingsError, match="no option 'nothing'"):
        app({"nothing": "1"})
    with pytest.raises(SettingsError, match="min_replicas is a number"):
        app({"min_replicas": "many"})
