"""Which replica gets a prompt, and how many replicas there are, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="extra `ray`: pip install 'ray[serve]'")

from mlx_parallm.on_ray.router import SEQUENCES, PrefixPlaces, SequencesPolicy

STORY = "Ada lives in house 1. " * 100


def test_the_longest_known_beginning_says_the_place() -> None:
    places: Any = PrefixPlaces()
    places.put(STORY, "first")
    places.put(STORY[:1024] + "Bob lives in house 2. " * 100, "second")
    assert places.find(STORY + "What now?") == "first"
    assert places.find(STORY[:1024] + "Bob lives in house 2. " * 90) == "second"
    assert places.find("Cid lives in house 3. " * 100) is None


def test_a_short_prompt_is_known_as_a_whole() -> None:
    places: Any = PrefixPlaces()
    places.put("3 + 4 =", "first")
    assert places.find("3 + 4 =") == "first"
    assert places.find("3 + 5 =") is None


def test_what_a_replica_was_given_goes_with_it() -> None:
    places: Any = PrefixPlaces()
    places.put(STORY, "first")
    places.put("x" * 512, "second")
    places.keep({"second"})
    assert places.find(STORY) is None
    assert dict(places.counts()) == {"second": 2}


@pytest.mark.parametrize(("told", "wanted"), [([0, 0], 1), ([20, 12], 1), ([32, 1], 2), ([900], 8)])
def test_there_are_replicas_for_all_sequences(told: list[int], wanted: int) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={SEQUENCES: dict(enumerate(told))},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
    )
    assert SequencesPolicy(rows=32)(context)[0] == wanted
