"""The simulation of a fleet against queues that are known, and against itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fleet_simulation.curve import Curve
from fleet_simulation.fleet import Result, simulate, some_requests
from fleet_simulation.measuring import measure
from fleet_simulation.replica import Machine, Request
from fleet_simulation.routing import ROUTINGS, PrefixAffine, RoundRobin

from tests.scripts.runner import run, succeed


def machine(seconds: float = 1.0, *, rows: int = 4, chunk: int = 100, kept: int = 4) -> Machine:
    """One whose steps all take equally long."""
    return Machine([seconds] * (rows + chunk + 1), rows, chunk, prefix=50, kept=kept)


def test_three_requests_by_hand() -> None:
    """One row, steps of a second: each waits for the one before it."""
    asked = [Request(0, 80, 3), Request(0, 80, 2), Request(1, 150, 1)]
    result = simulate(machine(rows=1), 1, RoundRobin, asked, arrivals=[0.0, 0.5, 0.6])
    # 0: prompt in step 1, tokens at 1, 2, 3. 1: from 3 on, 50 of 80 found. 2: two steps for 150.
    assert [request.first for request in result.requests] == [1.0, 4.0, 7.0]
    assert [request.cached for request in result.requests] == [0, 50, 0]
    assert result.seconds == 7.0
    assert result.tokens_per_second == pytest.approx(6 / 7)
    assert result.cost_of_million(36.0) == pytest.approx(0.01 / (6 / 7) * 1e6)


def test_rows_that_run_together_share_steps() -> None:
    asked = [Request(place, 40, 5) for place in range(4)]
    result = simulate(machine(), 1, RoundRobin, asked, clients=4)
    # The first one begins a step alone; in the next are two prompts and half of the last one.
    assert sorted(request.first for request in result.requests) == [1.0, 2.0, 2.0, 3.0]
    assert result.seconds == 7.0


def test_it_waits_as_long_as_an_m_d_1_queue() -> None:
    """Poisson arrivals, one row, one step each: Pollaczek and Khinchine's mean wait."""
    rng, now, arrivals = random.Random(1), 0.0, []
    rate, count = 0.7, 40_000
    for _ in range(count):
        now += rng.expovariate(rate)
        arrivals.append(now)
    asked = (Request(place, 10, 1) for place in range(count))
    result = simulate(machine(rows=1), 1, RoundRobin, asked, arrivals=arrivals)
    waits = [request.first - request.sent - 1.0 for request in result.requests]
    assert sum(waits) / count == pytest.approx(rate / (2 * (1 - rate)), rel=0.05)


@pytest.mark.parametrize("replicas", [1, 2, 7])
@pytest.mark.parametrize("kept", [1, 4, 100])
@pytest.mark.parametrize("clients", [1, 5, 40])
def test_affinity_never_finds_less(replicas: int, kept: int, clients: int) -> None:
    def hits(routing: str) -> float:
        asked = some_requests(60 * replicas, prefixes=4 * replicas, prompt=80, output=6)
        result = simulate(
            machine(kept=kept), replicas, ROUTINGS[routing], asked, clients=clients * replicas
        )
        assert len(result.requests) == 60 * replicas
        return result.hit_rate

    affine, in_turn = hits("prefix-affine"), hits("round robin")
    assert affine >= in_turn
    assert affine == in_turn or replicas > 1


def test_a_prefix_that_everybody_asks_for_is_spread() -> None:
    asked = [Request(0, 80, 50) for _ in range(400)]
    one = simulate(machine(), 4, PrefixAffine, asked, clients=40)
    alone = simulate(machine(), 1, PrefixAffine, asked, clients=40)
    assert one.tokens_per_second > 2 * alone.tokens_per_second


def test_the_router_is_a_limit() -> None:
    def rate(replicas: int) -> float:
        asked = [Request(0, 80, 1) for _ in range(400)]
        result = simulate(
            machine(), replicas, RoundRobin, asked, clients=8 * replicas, router_s=0.1
        )
        return result.tokens_per_second

    assert rate(2) < 9.0
    assert rate(20) == pytest.approx(10.0, rel=0.05)  # requests a second that the router passes


def test_a_curve_goes_through_what_was_measured(tmp_path: Path) -> None:
    curve = Curve("some", {1: 1.0, 3: 2.0, 5: 4.0})
    assert curve.table(7) == [1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0]
    curve.write(tmp_path / "curve.json")
    assert Curve.read(tmp_path / "curve.json") == curve
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no curve"):
        Curve.read(tmp_path / "none.json")


def test_the_script_simulates_and_draws(tmp_path: Path) -> None:
    curve, table, plot = (tmp_path / name for name in ("curve.json", "table.json", "plot.svg"))
    Curve("some", {1: 0.001, 32: 0.004, 512: 0.05}).write(curve)
    small = ("--replicas", "1", "4", "--clients", "4", "--requests", "2", "--router-ms", "0.5")
    files = ("--curve", str(curve), "--json", str(table), "--plot", str(plot))
    printed = succeed("simulate_fleet.py", *small, *files)
    assert "prefix-affine" in printed and "replicas" in printed
    assert "<svg" in plot.read_text()
    rows = json.loads(table.read_text())
    assert len(rows) == 4 and all(row["first p99 ms"] >= row["first p50 ms"] for row in rows)


def test_without_a_curve_it_says_how_to_get_one() -> None:
    done = run("simulate_fleet.py")
    assert done.returncode == 1 and "--measure" in done.stderr


def test_a_models_steps_are_measured(tiny: Path) -> None:
    curve = measure(tiny, "tiny")
    assert {1, 32, 512} <= set(curve.points) and min(curve.points.values()) > 0


def test_a_result_is_of_all_its_requests() -> None:
    done = [Request(0, 10, 2, sent=1.0, first=1.0 + place, cached=5) for place in range(100)]
    result = Result(2, 50.0, done)
    assert (result.hit_rate, result.first_token(0.5), result.first_token(0.99)) == (0.5, 50.0, 99.0)
