"""Which features and positions a forward's tokens have: from sequences to a Pictured."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from mlx_parallm.cache.span import Row, Span
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.vision.inputs import Pictured


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Tokens of one sequence in a forward.

    Attributes:
        first: place of the first one in the sequence.
        places: (n,) where they are among the forward's.
    """

    sequence: Sequence
    first: int
    places: np.ndarray


def set_shift(row: Row, sequence: Sequence) -> None:
    """Where the positions of a row's next tokens go on, if they hold no picture."""
    if sequence.media is not None:
        sequence.media.forget(row.length)
        row.shift = sequence.media.shift(row.length)
        if sequence.memory is not None:
            row.shift += sequence.memory.shift


def pictured(parts: Items[Part], positions: np.ndarray) -> Pictured | None:
    """What the forward computes of pictures; None where it has no placeholders.

    Args:
        parts: of sequences that have pictures.
        positions: (N,) of all tokens, as they are without pictures.
    """
    made = Pictured(np.zeros(0, np.int32), [])
    places = []
    for part in parts:
        media = part.sequence.media
        assert media is not None
        stop, found = part.first + len(part.places), False
        for span, features in zip(media.spans, media.features, strict=True):
            rows = np.flatnonzero((span.places >= part.first) & (span.places < stop))
            if len(rows):
                if features is None:
                    raise RuntimeError("a picture was not computed before its tokens")
                places.append(part.places[span.places[rows] - part.first])
                made.features.append((features, rows.astype(np.int32)))
                found = True
        if found and media.positions is not None:
            _set_positions(made, part, positions)
    if not places:
        return None
    made.places = np.concatenate(places).astype(np.int32)
    return made


def set_blocks(span: Span, rows: Items[Row], sequences: Mapping[Row, Sequence]) -> None:
    """Let the tokens of pictures see all of their picture, where the model wants that.

    Args:
        rows: of the span; sequences: of the rows that have pictures.
    """
    for place, row in enumerate(rows):
        sequence = sequences.get(row)
        count = int(span.counts[place])
        if sequence is None or sequence.media is None:
            continue
        for first, stop in sequence.media.blocks_between(row.length, row.length + count):
            if span.blocks is None:
                span.blocks = np.zeros((span.size, span.width, 2), dtype=np.int32)
                span.narrow = sequence.media.whole == "in windows"
            start = max(0, first - row.length)
            span.blocks[place, start : min(count, stop - row.length)] = (first, stop)


def _set_positions(made: Pictured, part: Part, positions: np.ndarray) -> None:
    media, memory = part.sequence.media, part.sequence.memory
    assert media is not None
    if made.positions is None:
        made.positions = np.tile(positions, (3, 1))
    own = media.positions_between(part.first, part.first + len(part.places))
    made.positions[:, part.places] = own + (0 if memory is None else memory.shift)
