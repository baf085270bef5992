"""Where pictures lie in prompts: placeholders, positions on three axes, and keys of prefixes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mlx_parallm.models.vision.media import Media
from mlx_parallm.models.vision.prepared import (
    PreparedPicture,
    PreparedVideo,
    axis_positions,
    key_tokens,
    spans_of,
)

PAD = 9


def _picture(name: str, grid: tuple[int, int, int]) -> PreparedPicture:
    return PreparedPicture(name.encode(), "", int(np.prod(grid)), grid, {})


WIDE, SMALL = _picture("wide", (1, 2, 3)), _picture("small", (1, 1, 1))
IDS = [1, 2, *[PAD] * 6, 3, PAD, 4, 5]


def test_positions_are_those_of_qwen2_vl() -> None:
    """Worked out by hand: text, a grid of 2 x 3, text behind its longest side, and so on."""
    spans = spans_of(IDS, {PAD}, [WIDE, SMALL])
    time = [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8]
    height = [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8]
    width = [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8]
    assert axis_positions(len(IDS), spans).tolist() == [time, height, width]
    media = Media(IDS, spans, axes=True)
    assert media.shift(0) == 0
    assert media.shift(8) == -3
    assert media.shift(len(IDS) + 5) == -3
    assert media.positions_between(10, 14).tolist() == [[7, 8, 9, 10]] * 3


def test_positions_of_a_video_go_on_in_time() -> None:
    """Worked out by hand for a step of 2.5, which is rounded down as transformers does."""
    groups = tuple(_picture(name, (1, 2, 1)) for name in "abc")
    film = PreparedVideo(b"film", "", groups, step=2.5)
    ids = [1, 2, *[PAD] * 6, 3, PAD, 4]
    spans = spans_of(ids, {PAD}, [film, SMALL])
    time = [0, 1, 2, 2, 4, 4, 7, 7, 8, 9, 10]
    height = [0, 1, 2, 3, 2, 3, 2, 3, 8, 9, 10]
    width = [0, 1, 2, 2, 2, 2, 2, 2, 8, 9, 10]
    assert axis_positions(len(ids), spans).tolist() == [time, height, width]
    slower = spans_of(ids, {PAD}, [PreparedVideo(b"film", "", groups, step=5.0), SMALL])
    keys, others = key_tokens(ids, spans), key_tokens(ids, slower)
    assert keys[:4] == others[:4], "the first group is where it was"
    assert not set(keys[4:8]) & set(others[4:8])


def test_other_numbers_of_placeholders_are_refused() -> None:
    for pictures in ([WIDE], [WIDE, SMALL, SMALL]):
        with pytest.raises(ValueError, match="placeholders"):
            spans_of(IDS, {PAD}, pictures)


def test_keys_are_of_the_picture_and_the_place_in_it() -> None:
    spans = spans_of(IDS, {PAD}, [WIDE, SMALL])
    keys = key_tokens(IDS, spans)
    others = key_tokens(IDS, spans_of(IDS, {PAD}, [_picture("other", (1, 2, 3)), SMALL]))
    text = [place for place, token in enumerate(IDS) if token != PAD]
    assert [keys[place] for place in text] == [IDS[place] for place in text]
    assert len(set(keys)) == len(keys)
    assert all(1 << 62 <= keys[p] < 1 << 63 for p in range(len(IDS)) if p not in text)
    assert not set(keys[2:8]) & set(others[2:8])
    assert keys[9] == others[9]


def test_a_chunk_ends_before_a_picture_that_is_not_computed() -> None:
    media = Media(IDS, spans_of(IDS, {PAD}, [WIDE, SMALL]))
    assert media.computable(0, 12) == 2
    assert media.computable(2, 1) == 0
    assert media.computable(8, 12) == 1


def test_a_chunk_never_cuts_a_picture_that_is_seen_as_a_whole() -> None:
    media = Media(IDS, spans_of(IDS, {PAD}, [WIDE, SMALL]), whole="everywhere")
    media.features = [object(), object()]  # type: ignore[list-item]
    assert media.computable(0, 12) == 12
    assert media.computable(0, 5) == 2, "ends before it"
    assert media.computable(2, 3) == 6, "or behind it"
    assert media.computable(5, 1) == 3, "also where a prefix was found that ends in it"
    assert media.blocks_between(0, 4) == [(2, 8)]
    assert media.blocks_between(8, 12) == [(9, 10)]
    assert media.blocks_between(10, 12) == []
    assert media.before([*IDS, 6, 7]).blocks_between(0, 4) == [(2, 8)], "nor in what goes on"


def test_other_ranks_get_the_same() -> None:
    media = Media(IDS, spans_of(IDS, {PAD}, [WIDE, SMALL]), axes=True)
    other: Media = pickle.loads(pickle.dumps(media))
    assert other.keys == media.keys
    assert (other.positions_between(0, 20) == media.positions_between(0, 20)).all()
    assert other.spans[0].picture.key == WIDE.key
