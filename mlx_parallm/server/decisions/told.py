"""What was told before: the same question is answered in the same way, bit by bit.

A row's log-probabilities differ by some 1e-6 with what else is in its batch, because products of
other sizes round differently, and no rounding hides that for every value: some always lie at the
border of two. So each question is computed each time, and where the result is what was told
before but for such noise, it is told as before. A result that differs by more, as after the
weights have changed, is told anew.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

# How far products may be off, as a difference of probabilities, in float32 and in shorter types.
FLOAT32_NOISE = 2e-5
SHORT_FLOAT_NOISE = 5e-3


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question.

    Attributes:
        probabilities: one per option, of the options alone.
        label_mass: the probability that the reply is one of the options.
        argmax_is_label: whether the likeliest first token begins one.
    """

    probabilities: tuple[float, ...]
    label_mass: float
    argmax_is_label: bool

    def is_close(self, other: Decision, noise: float) -> bool:
        """Whether both are the same but for differences up to `noise`."""
        mine, theirs = ((*one.probabilities, one.label_mass) for one in (self, other))
        return bool(np.allclose(mine, theirs, rtol=0, atol=noise))


class Told:
    """The newest answers, by what was asked.

    Args:
        limit: answers that are remembered.
    """

    def __init__(self, limit: int = 16_384) -> None:
        self._limit = limit
        self._answers: OrderedDict[bytes, Decision] = OrderedDict()
        # Large answers are made on a thread of their own.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    def settled(self, key: bytes, fresh: Decision, noise: float) -> Decision:
        """A decision as it is to be told.

        Args:
            key: of the question, see key_of().
            fresh: as it was computed now.
            noise: differences up to this are none.
        """
        with self._lock:
            told = self._answers.get(key)
            if told is None or not told.is_close(fresh, noise):
                self._answers[key] = told = fresh
            self._answers.move_to_end(key)
            if len(self._answers) > self._limit:
                self._answers.popitem(last=False)
        return told


def key_of(namespace: object, prompt: Sequence[int], options: Iterable[Sequence[int]]) -> bytes:
    """A question's key: whose it is, its tokens, and those of its options in their order."""
    digest = hashlib.blake2b(repr(namespace).encode(), digest_size=20)
    for tokens in (prompt, *options):
        digest.update(len(tokens).to_bytes(4, "little"))
        digest.update(np.array(tokens, dtype=np.int64).tobytes())
    return digest.digest()
