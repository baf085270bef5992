"""Length classes: how many columns a row is given. No mlx here.

Rows of one class lie in one buffer, all equally wide. Classes are four to an octave, so
that a row wastes an eighth of its columns on average, and few rows share a class with
much longer ones.
"""

from __future__ import annotations

BLOCK = 64  # columns are allocated and viewed in blocks, so that shapes repeat
_PER_OCTAVE = 4
_SPARE = 8  # one slot in so many may be empty


def capacity_for(tokens: int) -> int:
    """Columns of the smallest class that holds so many tokens."""
    blocks = max(1, -(-tokens // BLOCK))
    step = max(1, 1 << max(0, (blocks - 1).bit_length() - _PER_OCTAVE // 2 - 1))
    return -(-blocks // step) * step * BLOCK


def slots_for(rows: int, held: int) -> int:
    """Slots to have for so many rows, where `held` are allocated: an eighth to spare when they
    become more, a quarter when they become fewer."""
    if rows > held:
        return max(rows, held + held // _SPARE)
    return rows if rows <= held * 3 // 4 else held
