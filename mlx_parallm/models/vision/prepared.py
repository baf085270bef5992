"""PreparedPictures and videos: what a model's processor made of them, and where they are in a
prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
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


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class PreparedVideo:
    """What one video becomes: pictures, each of a frame or of a few, with text around them.

    Attributes:
        key: names it: hashes all frames, their times, processor and tower.
        text: what stands for all of it in a prompt.
        pictures: in their order; their own texts are part of `text`.
        step: positions from one to the next in time, where all are one grid; None where each
            is a picture by itself.
    """

    key: bytes
    text: str
    pictures: tuple[PreparedPicture, ...]
    step: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(picture.nbytes for picture in self.pictures)

    def late(self, number: int) -> int:
        """How many positions in time a picture is behind the first; as transformers rounds it."""
        return int(np.float32(number) * np.float32(self.step or 0.0))


Prepared = PreparedPicture | PreparedVideo


@dataclass(frozen=True, eq=False, slots=True)
class PictureSpan:
    """Where a picture's placeholders are in a prompt.

    Attributes:
        places: (n,) ascending.
        continues: it is in the same grid as the one before it.
        late: its position in time in that grid.
    """

    places: np.ndarray
    picture: PreparedPicture
    continues: bool = False
    late: int = 0

    @property
    def first(self) -> int:
        """Its first placeholder."""
        return int(self.places[0])

    @property
    def stop(self) -> int:
        """Behind its last placeholder."""
        return int(self.places[-1]) + 1


def spans_of(
    ids: Sequence[int], feature_ids: Collection[int], shown: Sequence[Prepared]
) -> tuple[PictureSpan, ...]:
    """Where pictures lie in a tokenised prompt that holds their texts, in order.

    Args:
        feature_ids: the tokens that stand for one row of features.
        shown: the prompt's pictures and videos.

    Raises:
        ValueError: there are more or fewer of these than the pictures have features.
    """
    places = np.flatnonzero(np.isin(np.asarray(ids), list(feature_ids)))
    wanted = sum(picture.num_features for one in shown for picture in pictures_in(one))
    if len(places) != wanted:
        raise ValueError(f"{len(places)} placeholders for {wanted} features")
    spans, at = [], 0
    for one in shown:
        in_grid = isinstance(one, PreparedVideo) and one.step is not None
        for number, picture in enumerate(pictures_in(one)):
            own = places[at : at + picture.num_features]
            late = one.late(number) if isinstance(one, PreparedVideo) else 0
            spans.append(PictureSpan(own, picture, in_grid and number > 0, late))
            at += picture.num_features
    return tuple(spans)


def pictures_in(one: Prepared) -> tuple[PreparedPicture, ...]:
    """The pictures of a video; a picture itself."""
    return one.pictures if isinstance(one, PreparedVideo) else (one,)


def key_tokens(ids: Sequence[int], spans: Sequence[PictureSpan]) -> list[int]:
    """The prompt as prefixes are found by: each placeholder has a number of its own picture.

    The numbers are beyond any vocabulary, 62 bits of a hash each: of a page of them no two
    pictures have the same.
    """
    keys = list(ids)
    for span in spans:
        # Where it lies in a video's grid decides its positions, and so its K and V.
        place = f"{span.late}".encode() if span.continues else b""
        drawn = hashlib.shake_128(span.picture.key + place).digest(8 * len(span.places))
        numbers = np.frombuffer(drawn, dtype="<u8") >> np.uint64(2) | np.uint64(1 << 62)
        for place, number in zip(span.places.tolist(), numbers.tolist(), strict=True):
            keys[place] = number
    return keys


def axis_positions(count: int, spans: Sequence[PictureSpan]) -> np.ndarray:
    """(3, count) int32: position of each token in time, height and width.

    A picture's features lie in a grid, a video's in one that goes on in time, and the text behind
    it goes on after the grid's longest side (Qwen2-VL, arXiv 2409.12191).
    """
    positions = np.zeros((3, count), dtype=np.int32)
    at, following, origin = 0, 0, 0
    for span in spans:
        assert span.picture.grid is not None
        text = span.first - at
        positions[:, at : span.first] = following + np.arange(text)
        origin = origin if span.continues else following + text
        grid = np.indices(span.picture.grid).reshape(3, -1)
        grid[0] += span.late
        positions[:, span.first : span.stop] = origin + grid
        following = max(following + text, origin + int(grid.max()) + 1)
        at = span.stop
    positions[:, at:] = following + np.arange(count - at)
    return positions
