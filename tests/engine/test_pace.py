"""The Pace: chunks that rows which decode can bear."""

from __future__ import annotations

from mlx_parallm.engine.pace import Pace


def paced(step: float, token: float) -> Pace:
    """Knows the seconds of a step and of a prompt's token."""
    pace = Pace()
    pace.decoded(step)
    for _ in range(30):
        pace.caught_up(64, 64 * token)
    return pace


def test_a_chunk_is_whole_until_anything_was_measured() -> None:
    pace = Pace()
    assert pace.chunk(64) == 64
    pace.decoded(0.02)
    assert pace.chunk(64) == 64


def test_a_chunk_takes_one_and_a_half_steps() -> None:
    pace = paced(step=0.020, token=0.00075)
    assert pace.chunk(64) == 40  # 30 ms
    for _ in range(30):
        pace.decoded(0.2)
    assert pace.chunk(64) == 64


def test_a_prompt_gets_half_of_the_compute_of_its_budget() -> None:
    pace = paced(step=0.001, token=0.001)
    assert pace.chunk(64) == 32  # however short a step is
    for _ in range(60):  # behind a long context a token costs three times as much
        pace.caught_up(32, 32 * 0.003)
    assert pace.chunk(64) == 16
    assert pace.chunk(4) == 4


def test_one_slow_chunk_changes_little() -> None:
    pace = paced(step=0.02, token=0.0004)
    assert pace.chunk(64) == 64
    pace.caught_up(64, 5.0)
    assert pace.chunk(64) >= 48
