"""Replicas behind the real router: prefixes stay, what dies comes back, a clean end."""

from __future__ import annotations

import itertools
import json
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

from mlx_parallm.tools.child import Child
from mlx_parallm.tools.replicas import free_port
from mlx_parallm.tools.serve_many import main
from tests.tools.fleet import ADMIN, ALICE, BOB, SERVE, Fleet, load_of, prompts_of
from tests.waiting import PATIENCE_S, wait_until

_STREAMS, _PLAIN = 8, 24


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    pytest.importorskip("smg", reason="extra `replicas`: pip install smg")
    fleet = Fleet(tmp_path_factory.mktemp("keys"))
    try:
        fleet.wait_for("from 2 replicas")
        yield fleet
    finally:
        fleet.close()


def test_prompts_with_the_same_beginning_stay_with_one_replica(fleet: Fleet) -> None:
    stories = [f"{name} lives in house {place}. " * 30 for place, name in enumerate("ABCD")]
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # Its replica is busy when the others begin, so that these go to the other replica.
        first = pool.submit(fleet.stream, stories[0], 200, begun.set)
        assert begun.wait(PATIENCE_S)
        shares = [cached_share(fleet, story) for story in reversed(stories)]
        first.result()
    assert min(shares) >= 0.65
    assert all(prompts_of(port) > 0 for port in fleet.ports)


def cached_share(fleet: Fleet, story: str) -> float:
    """Of the prompts' tokens of eight turns, those that were found cached."""
    receipts = [fleet.ask(f"{story} Turn {turn}.").json()["receipts"][0] for turn in range(8)]
    asked = sum(receipt["prompt_tokens"] for receipt in receipts)
    return float(sum(receipt["cached_tokens"] for receipt in receipts) / asked)


def test_each_client_has_its_key_and_the_admin_the_list_of_replicas(fleet: Fleet) -> None:
    asked = [fleet.ask("3 + 4 =", key).status_code for key in (ALICE, BOB, "sk-nobody", ADMIN)]
    assert asked == [200, 200, 401, 401]
    workers = [
        fleet.http.get("/workers", headers={"Authorization": f"Bearer {key}"}).status_code
        for key in (ALICE, BOB, ADMIN)
    ]
    assert workers == [401, 401, 200]


def test_the_router_knows_how_busy_the_replicas_are(fleet: Fleet) -> None:
    admin = {"Authorization": f"Bearer {ADMIN}"}
    urls = {f"http://127.0.0.1:{port}" for port in fleet.ports}

    def loads() -> list[dict[str, Any]]:
        return list(fleet.http.get("/get_loads", headers=admin).json()["loads"])

    wait_until(lambda: {load["worker"] for load in loads()} == urls)
    assert {load["max_running_requests"] for load in loads()} == {32}


def test_a_replica_that_is_added_takes_work(fleet: Fleet) -> None:
    port = free_port()
    command = [
        *SERVE,
        "--port",
        str(port),
        "--api-key",
        ALICE,
        "--api-key",
        BOB,
        "--admin-key",
        ADMIN,
    ]
    admin = {"Authorization": f"Bearer {ADMIN}"}
    third = {"url": f"http://127.0.0.1:{port}", "api_key": ALICE}
    numbers = itertools.count()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert b"serves bundled" in process.stdout.readline()
            added = fleet.http.post("/workers", json=third, headers=admin).json()
            wait_until(lambda: fleet.ask(f"{next(numbers)}").is_success and prompts_of(port) > 0)
            fleet.http.delete(f"/workers/{added['worker_id']}", headers=admin).raise_for_status()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_killed_replica_loses_no_plain_request_and_comes_back(fleet: Fleet) -> None:
    """32 clients: streams of the killed replica end with an error, all others are answered."""
    begun = [threading.Event() for _ in range(_STREAMS)]
    with ThreadPoolExecutor(_STREAMS + _PLAIN) as pool:
        streams = [
            pool.submit(fleet.stream, f"Story {place}", 300, event.set)
            for place, event in enumerate(begun)
        ]
        assert all(event.wait(PATIENCE_S) for event in begun)
        port = max(fleet.ports[:2], key=load_of)
        plain = [
            pool.submit(fleet.ask, f"{place} Count", max_tokens=24) for place in range(2 * _PLAIN)
        ]
        wait_until(lambda: any(one.done() for one in plain))
        fleet.kill(fleet.pid_of(port))
        assert [one.result().status_code for one in plain] == [200] * len(plain)
        ends = [events.result()[-2:] for events in streams]
    assert {end[-1] for end in ends} == {"[DONE]"}
    assert any("error" in json.loads(end[0]) for end in ends)
    for end in (json.loads(end[0]) for end in ends):
        assert "error" in end or end["choices"][0]["finish_reason"] == "length"
    numbers = itertools.count()
    wait_until(lambda: fleet.ask(f"{next(numbers)} again").is_success and prompts_of(port) > 0)
    assert fleet.count("is started again") == 1


def test_a_killed_router_comes_back(fleet: Fleet) -> None:
    fleet.kill(fleet.router_pid)
    fleet.wait_for("the router has ended with -9; it is started again")

    def answers() -> bool:
        try:
            return fleet.ask("3 + 4 =").is_success
        except httpx.HTTPError:
            return False

    wait_until(answers)


def test_a_clean_end_finishes_what_was_accepted(fleet: Fleet) -> None:
    with ThreadPoolExecutor(8) as pool:
        body: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
        asked = [pool.submit(fleet.ask, f"Count {i}", **body) for i in range(8)]
        wait_until(
            lambda: sum(one.done() for one in asked) + sum(map(load_of, fleet.ports[:2])) >= 8
        )
        assert fleet.stop() == 0
        assert [one.result().status_code for one in asked] == [200] * 8


def test_what_ends_again_and_again_is_started_less_and_less_often() -> None:
    child = Child("one that fails", [sys.executable, "-S", "-c", "raise SystemExit(3)"])
    child.start()
    child.join(PATIENCE_S)
    now = 1000.0
    starts: list[float] = []
    for _ in range(2000):
        child.look(now)
        if len(starts) < child.restarts:
            starts.append(now)
            child.join(PATIENCE_S)
        now += 0.1
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert child.exit_code == 3
    assert waits == sorted(waits) and waits[-1] > 8 * waits[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["0"], "at least 1"), (["2", "--no-such-flag"], "--no-such-flag")],
)
def test_wrong_options(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("smg", reason="extra `replicas`: pip install smg")
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_no_more_keys_than_the_environment_sees(tmp_path: Path) -> None:
    """A command is seen by everybody on the machine, an environment is not."""
    from mlx_parallm.options.loading import load_settings
    from mlx_parallm.tools.router import key_arguments, router_of

    settings = load_settings(["--api-key", "sk-1", "--api-key", "sk-2"])
    router = router_of(settings, "127.0.0.1", 1, "cache_aware", ["http://127.0.0.1:2"])
    assert not any("sk-" in part for part in router.command)
    first, *others = key_arguments(settings)
    assert first == "--api-key=sk-1" and others[:2] == ["--tenant-api-key", "key-2:sk-2"]
    # Nobody knows the key that would change the list of replicas.
    assert others[2] == "--control-plane-api-keys" and "sk-" not in others[3]
    assert key_arguments(load_settings([])) == []
