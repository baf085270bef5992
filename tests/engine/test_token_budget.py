"""How much of the prompts a step takes: measured, and never a downward spiral."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_parallm.engine.pacing.step_curve import StepCurve
from mlx_parallm.engine.pacing.token_budget import TokenBudget


def machine(tokens: int, *, fixed: float = 0.1, each: float = 0.004, free: int = 16) -> float:
    """Seconds of a step on a machine that reads the weights, and computes behind a knee."""
    return fixed + each * max(0, tokens - free)


def budget(curve: StepCurve, **options: float) -> TokenBudget:
    return TokenBudget(curve, first=64, most=512, idle=512, **options)


def measured(*sizes: int, slow: float = 1.0) -> StepCurve:
    curve = StepCurve()
    for _ in range(5):
        for size in sizes:
            curve.measured(size, slow * machine(size))
    return curve


def test_nothing_is_known_at_first() -> None:
    assert budget(StepCurve())(8, 1) == 64
    assert budget(StepCurve())(0, 5) == 512


def test_tokens_below_the_knee_are_always_taken() -> None:
    curve = measured(4, 8, 16, 32, 64, 128)
    assert budget(curve, max_gap=1.0)(4, 0) >= 8


def test_running_rows_wait_two_plain_steps_at_most_where_nobody_waits() -> None:
    curve = measured(8, 16, 32, 64, 128)
    tokens = budget(curve)(8, 0)
    assert machine(8 + tokens) <= 2 * machine(8) * 1.05
    assert tokens >= 24


def test_a_batch_that_is_not_full_is_worth_more() -> None:
    curve = measured(2, 8, 16, 32, 64, 128, 256)
    sizes = [budget(curve)(8 - behind, behind) for behind in (0, 2, 4, 6)]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]


def test_chunks_do_not_spiral_down() -> None:
    """A chunk costs a reading of the weights whatever its size: shrinking it gains nothing."""
    curve, tokens = StepCurve(), 64
    limit = budget(curve)
    for _ in range(200):
        curve.measured(4, machine(4))
        curve.measured(4 + tokens, machine(4 + tokens))
        tokens = limit(4, 4)
    assert tokens >= 64


def test_a_busy_while_is_forgotten() -> None:
    """A size that was measured while the machine was busy is tried again later."""
    curve = measured(8, 64)
    before = budget(curve)(8, 1)
    for _ in range(20):
        curve.measured(8, machine(8))
        curve.measured(64, 40 * machine(64))
    assert budget(curve)(8, 1) < before
    for _ in range(300):
        curve.measured(8, machine(8))
        curve.measured(24, machine(24))
    assert budget(curve)(8, 1) >= before * 0.9


@pytest.mark.parametrize("size", [1, 8, 100, 1000])
def test_more_tokens_never_look_cheaper(size: int) -> None:
    curve = StepCurve()
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = int(rng.integers(1, 300))
        curve.measured(tokens, machine(tokens) * float(rng.uniform(0.7, 1.5)))
    seconds = curve.seconds(np.arange(size, size + 500))
    assert seconds is not None and (np.diff(seconds) >= 0).all()
