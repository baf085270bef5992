"""Answers that differ by noise are told as before, others anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.server.decisions.told import FLOAT32_NOISE, Decision, Told, key_of


def decision(*probabilities: float, label: bool = True) -> Decision:
    return Decision(probabilities, 0.9, label)


@given(st.lists(st.floats(-0.45 * FLOAT32_NOISE, 0.45 * FLOAT32_NOISE), max_size=20))
def test_noise_does_not_show_nor_drift(noises: list[float]) -> None:
    told, first = Told(), decision(0.3, 0.7)
    assert told.settled(b"q", first, FLOAT32_NOISE) is first
    for noise in noises:
        again = decision(0.3 + noise, 0.7 - noise, label=False)
        assert told.settled(b"q", again, FLOAT32_NOISE) is first


def test_what_is_not_noise_is_told_anew() -> None:
    told = Told()
    told.settled(b"q", decision(0.3, 0.7), FLOAT32_NOISE)
    other = decision(0.3001, 0.6999)
    assert told.settled(b"q", other, FLOAT32_NOISE) is other
    assert told.settled(b"q", decision(0.3, 0.7), FLOAT32_NOISE) == decision(0.3, 0.7)


def test_the_oldest_are_forgotten() -> None:
    told = Told(limit=2)
    first = decision(0.5, 0.5)
    for key in (b"a", b"b", b"a", b"c"):
        told.settled(key, first, FLOAT32_NOISE)
    assert len(told) == 2
    near = decision(0.500001, 0.499999)
    assert told.settled(b"a", near, FLOAT32_NOISE) is first
    assert told.settled(b"b", near, FLOAT32_NOISE) is near


def test_keys_tell_questions_apart() -> None:
    keys = {
        key_of((), [1, 2], [(3,), (4,)]),
        key_of((), [1, 2], [(4,), (3,)]),
        key_of((), [1], [(2, 3), (4,)]),
        key_of((), [1, 2, 3], [(4,)]),
        key_of((("salt", "s"),), [1, 2], [(3,), (4,)]),
    }
    assert len(keys) == 5
    assert key_of((), [1, 2], [(3,)]) == key_of((), [1, 2], [(3,)])
