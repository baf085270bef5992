"""A PreparedPicture: what a model's processor made of a picture, and where it is in a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class PreparedPicture:
    """What one picture becomes before its model's tower sees it.

    Attributes:
        key: names the features: hashes pixels, detail, processor and tower.
        text: what stands for it in a prompt: its placeholders, and marks around them.
        num_features: how many placeholders, each of which one row of features replaces.
        grid: (time, height, width) of the features, where the family counts positions so.
        inputs: what the tower is given, by name.
    """

    key: bytes
    text: str
    num_features: int
    grid: tuple[int, int, int] | None
    inputs: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.inputs.values())


@dataclass(frozen=True, eq=False, slots=True)
class PictureSpan:
    """Where a picture's placeholders are in a prompt.

    Attributes:
        places: (n,) ascending.
    """

    places: np.ndarray
    picture: PreparedPicture

    @property
    def first(self) -> int:
        """Its first placeholder."""
        return int(self.places[0])

    @property
    def stop(self) -> int:
        """Behind its last placeholder."""
        return int(self.places[-1]) + 1


def spans_of(
    ids: Sequence[int], feature_id: int, pictures: Sequence[PreparedPicture]
) -> tuple[PictureSpan, ...]:
    """Where pictures lie in a tokenised prompt that holds their texts, in order.

    Args:
        feature_id: the token that stands for one row of features.

    Raises:
        ValueError: there are more or fewer of these than the pictures have features.
    """
    places = np.flatnonzero(np.asarray(ids) == feature_id)
    wanted = sum(picture.num_features for picture in pictures)
    if len(places) != wanted:
        raise ValueError(f"{len(places)} placeholders for {wanted} features")
    spans, at = [], 0
    for picture in pictures:
        spans.append(PictureSpan(places[at : at + picture.num_features], picture))
        at += picture.num_features
    return tuple(spans)


def key_tokens(ids: Sequence[int], spans: Sequence[PictureSpan]) -> list[int]:
    """The prompt as prefixes are found by: each placeholder has a number of its own picture.

    The numbers are beyond any vocabulary, 62 bits of a hash each: of a page of them no two
    pictures have the same.
    """
    keys = list(ids)
    for span in spans:
        drawn = hashlib.shake_128(span.picture.key).digest(8 * len(span.places))
        numbers = np.frombuffer(drawn, dtype="<u8") >> np.uint64(2) | np.uint64(1 << 62)
        for place, number in zip(span.places.tolist(), numbers.tolist(), strict=True):
            keys[place] = number
    return keys


def axis_positions(count: int, spans: Sequence[PictureSpan]) -> np.ndarray:
    """(3, count) int32: position of each token in time, height and width.

    A picture's features lie in a grid, and the text behind it goes on after the grid's
    longest side (Qwen2-VL, arXiv 2409.12191).
    """
    positions = np.zeros((3, count), dtype=np.int32)
    at, following = 0, 0
    for span in spans:
        assert span.picture.grid is not None
        text = span.first - at
        positions[:, at : span.first] = following + np.arange(text)
        following += text
        grid = np.indices(span.picture.grid).reshape(3, -1)
        positions[:, span.first : span.stop] = following + grid
        following += max(span.picture.grid)
        at = span.stop
    positions[:, at:] = following + np.arange(count - at)
    return positions
