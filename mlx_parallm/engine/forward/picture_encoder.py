"""The PictureEncoder: computes features between steps, once for equal pictures. One thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_parallm.engine.sequence import Sequence, Status
from mlx_parallm.models.vision.prepared import PreparedPicture
from mlx_parallm.models.vision.tower import Encoding, Features, Tower


@dataclass(eq=False, slots=True)
class _Wanted:
    """A picture that sequences wait for."""

    picture: PreparedPicture
    sequences: list[Sequence] = field(default_factory=list)
    encoding: Encoding | None = None

    @property
    def alive(self) -> bool:
        """Whether somebody still waits for it."""
        return any(s.status is Status.PREFILL for s in self.sequences)


class PictureEncoder:
    """Gives sequences the features of their pictures.

    Args:
        tower: computes them.
        spare: seconds that it may take between two steps, by how many rows decode.
        max_bytes: of features that are kept for later requests; the least recently used go.

    Attributes:
        encoded: pictures that were computed so far.
        found: pictures whose features were kept from earlier.
    """

    def __init__(self, tower: Tower, spare: Callable[[int], float | None], max_bytes: int) -> None:
        self.tower = tower
        self.spare = spare
        self.max_bytes = max_bytes
        self.encoded = self.found = 0
        self._kept: OrderedDict[bytes, Features] = OrderedDict()
        self._wanted: OrderedDict[bytes, _Wanted] = OrderedDict()

    @property
    def has_work(self) -> bool:
        """Whether a picture waits."""
        return bool(self._wanted)

    @property
    def nbytes(self) -> int:
        """Bytes of kept features."""
        return sum(features.nbytes for features in self._kept.values())

    def look(self, sequence: Sequence) -> None:
        """Give a running sequence the features that are there, and ask for the others."""
        media = sequence.media
        assert media is not None
        for place, span in enumerate(media.spans):
            if span.stop <= sequence.num_computed or media.features[place] is not None:
                continue
            kept = self._kept.get(span.picture.key)
            if kept is None:
                self._ask(span.picture, sequence)
            else:
                self._kept.move_to_end(span.picture.key)
                media.features[place] = kept
                self.found += 1

    def work(self, decoding: int) -> list[tuple[Sequence, Exception]]:
        """Compute pictures for as long as rows can wait, at least a block of one.

        Args:
            decoding: rows that wait for their next token meanwhile.

        Returns:
            sequences whose picture cannot be computed, and why.
        """
        began, seconds = time.perf_counter(), self.spare(decoding)
        failed: list[tuple[Sequence, Exception]] = []
        while self._wanted:
            key, wanted = next(iter(self._wanted.items()))
            left = None if seconds is None else seconds - (time.perf_counter() - began)
            if wanted.alive:
                try:
                    if not self._advance(key, wanted, left):
                        break
                except Exception as error:  # noqa: BLE001 - stays with those who want this picture
                    failed += [(s, error) for s in wanted.sequences if s.status is Status.PREFILL]
            del self._wanted[key]
            if seconds is not None and time.perf_counter() - began >= seconds:
                break
        return failed

    def reset(self) -> None:
        """Forget what is under way; kept features stay."""
        self._wanted.clear()

    def _ask(self, picture: PreparedPicture, sequence: Sequence) -> None:
        wanted = self._wanted.setdefault(picture.key, _Wanted(picture))
        if sequence not in wanted.sequences:
            wanted.sequences.append(sequence)

    def _advance(self, key: bytes, wanted: _Wanted, seconds: float | None) -> bool:
        if wanted.encoding is None:
            wanted.encoding = self.tower.begin(wanted.picture)
        if not wanted.encoding.advance(seconds):
            return False
        self.encoded += 1
        features = wanted.encoding.features
        for sequence in wanted.sequences:
            media = sequence.media
            assert media is not None
            for place, span in enumerate(media.spans):
                if span.picture.key == key and sequence.num_computed < span.stop:
                    media.features[place] = features
        self._keep(key, features)
        return True

    def _keep(self, key: bytes, features: Features) -> None:
        self._kept[key] = features
        held = self.nbytes
        while held > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            held -= oldest.nbytes
