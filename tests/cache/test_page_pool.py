"""The page pool: references, exhaustion, and its own check of its books."""

from __future__ import annotations

import pytest

from mlx_parallm.cache.prefixes.page_pool import IntegrityError, PagePool, PagesExhaustedError
from mlx_parallm.errors import OutOfMemoryError


def test_pages_are_free_again_when_their_last_reference_goes() -> None:
    freed: list[int] = []
    pool = PagePool(3, on_free=freed.extend)
    pages = pool.allocate_pages(3)
    assert pages is not None and sorted(pages) == [0, 1, 2]
    pool.add_reference(pages[:1])
    pool.free_pages(pages)
    assert (pool.num_used, pool.num_free, pool.references(pages[0])) == (1, 2, 1)
    assert freed == pages[1:]
    pool.free_page(pages[0])
    assert pool.num_free == 3
    assert sorted(pool.allocate_pages(3) or []) == [0, 1, 2]
    pool.check_integrity()


def test_an_exhausted_pool_says_so() -> None:
    pool = PagePool(2)
    assert pool.allocate_pages(3) is None
    assert pool.num_free == 2
    assert {pool.allocate_page(), pool.allocate_page()} == {0, 1}
    with pytest.raises(PagesExhaustedError, match="Insufficient pages") as caught:
        pool.allocate_page()
    assert {RuntimeError, OutOfMemoryError} <= set(type(caught.value).__mro__)


def test_misuse_of_the_pool_changes_nothing() -> None:
    pool = PagePool(4)
    pages = pool.allocate_pages(2) or []
    for wrong in ([3], [*pages, 3], [pages[0], pages[0]]):
        with pytest.raises(ValueError, match="not in use"):
            pool.free_pages(wrong)
    with pytest.raises(ValueError, match="not in use"):
        pool.add_reference([pages[0], 3])
    with pytest.raises(ValueError, match="cannot allocate -1"):
        pool.allocate_pages(-1)
    with pytest.raises(ValueError, match="num_pages is -1"):
        PagePool(-1)
    assert [pool.references(page) for page in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("damage", ["leak", "twice", "zero", "both"])
def test_the_pool_notices_damage(damage: str) -> None:
    pool = PagePool(4)
    pages = pool.allocate_pages(3) or []
    pool.free_page(pages[0])
    if damage == "leak":
        del pool._references[pages[1]]
    elif damage == "twice":
        pool._returned.append(pages[0])
    elif damage == "zero":
        pool._references[pages[1]] = 0
    else:
        pool._returned.append(pages[1])
    with pytest.raises(IntegrityError):
        pool.check_integrity()
