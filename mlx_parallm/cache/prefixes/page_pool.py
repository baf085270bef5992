"""The PagePool: which pages are free, and how often each used one is referenced.

Numbers only. What a page holds is kept elsewhere (models/pages.py), so that the
prefix tree can be tested without a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from mlx_parallm.errors import OutOfMemoryError


class PagesExhaustedError(OutOfMemoryError, RuntimeError):
    """Every page is in use."""


class IntegrityError(RuntimeError):
    """Counts and contents disagree: a defect of this package, found by check_integrity."""


class PagePool:
    """Page numbers 0 .. num_pages-1, reference counted.

    Args:
        num_pages: how many there are.
        on_free: called with the pages whose last reference went, before they can
            be given out again.
    """

    def __init__(self, num_pages: int, on_free: Callable[[list[int]], None] | None = None) -> None:
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}")
        self.num_pages = num_pages
        self.on_free = on_free
        self._references: dict[int, int] = {}
        self._returned: list[int] = []
        self._fresh = 0  # pages from here on were never given out

    @property
    def num_used(self) -> int:
        """Pages with at least one reference."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Pages that can be allocated."""
        return self.num_pages - len(self._references)

    def references(self, page: int) -> int:
        """How often a page is referenced; 0 is free."""
        return self._references.get(page, 0)

    def allocate_page(self) -> int:
        """One page with one reference.

        Raises:
            PagesExhaustedError: all are in use.
        """
        pages = self.allocate_pages(1)
        if pages is None:
            raise PagesExhaustedError("Insufficient pages in KV cache")
        return pages[0]

    def allocate_pages(self, num_pages: int) -> list[int] | None:
        """Pages with one reference each, or None where that many are not free."""
        if num_pages < 0:
            raise ValueError(f"cannot allocate {num_pages} pages")
        if num_pages > self.num_free:
            return None
        reused = min(num_pages, len(self._returned))
        pages = self._returned[len(self._returned) - reused :]
        del self._returned[len(self._returned) - reused :]
        fresh = num_pages - reused
        pages += range(self._fresh, self._fresh + fresh)
        self._fresh += fresh
        self._references.update(dict.fromkeys(pages, 1))
        return pages

    def add_reference(self, pages: Sequence[int]) -> None:
        """One more reference to each page.

        Raises:
            ValueError: one of them is free; nothing was changed.
        """
        self._require(pages)
        for page in pages:
            self._references[page] += 1

    def free_page(self, page: int) -> None:
        """One reference less; see free_pages."""
        self.free_pages([page])

    def free_pages(self, pages: Sequence[int]) -> None:
        """One reference less to each page; those without any are free again.

        Raises:
            ValueError: one of them is free already; nothing was changed.
        """
        self._require(pages)
        gone = []
        for page in pages:
            self._references[page] -= 1
            if not self._references[page]:
                gone.append(page)
        for page in gone:
            del self._references[page]
        if gone and self.on_free is not None:
            self.on_free(gone)
        self._returned += gone

    def _require(self, pages: Sequence[int]) -> None:
        for page, times in Counter(pages).items():
            if self._references.get(page, 0) < times:
                raise ValueError(f"page {page} is not in use")

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every page is either free or referenced."""
        returned = set(self._returned)
        if len(returned) != len(self._returned):
            raise IntegrityError("a page is free twice")
        if returned & self._references.keys():
            raise IntegrityError(f"pages {returned & self._references.keys()} are free and used")
        if any(count < 1 for count in self._references.values()):
            raise IntegrityError("a used page has no reference")
        known = returned | self._references.keys()
        if known != set(range(self._fresh)) or self._fresh > self.num_pages:
            raise IntegrityError(f"{len(known)} pages are known of {self._fresh} given out")
