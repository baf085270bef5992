"""PagedKVCache: what is in the pages. K and V of finished prefixes, shared by rows.

Rows compute on contiguous buffers of their own (batch.py); a page is read when a
row starts and written once, when a prefix is finished. So pages that are written
together stay together, as one immutable array a layer, a run. Against buffers
indexed by page number this was measured at a twentieth of the time to write and
half of the time to read (64 pages, 8 layers, CPU), and since nothing is ever updated
in place, no array that is still being read has to be copied.

Pages of a run can be freed one by one. When a quarter of it is gone, or memory is
short, the rest is copied to a smaller run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_parallm.cache.prefixes.page_pool import IntegrityError, PagePool
from mlx_parallm.cache.prefixes.prefix_contract import PAGE_SIZE
from mlx_parallm.models.adapting.layer_spec import LayerSpec
from mlx_parallm.models.qwen3_config import Qwen3Config

KeysValues = tuple[mx.array, mx.array]
_PLANES = ("k", "v")
_RUN_PAGES = 64  # bounds what compaction copies at once


@dataclass(eq=False, slots=True)
class _Run:
    """Pages in one array a plane; planes are K of layer 0, V of layer 0, K of layer 1, ...

    Attributes:
        pages: page numbers, in the arrays' order; None where one was freed.
        planes: (kv_heads, len(pages) * page_size, dim) each; None before it is written.
    """

    pages: list[int | None]
    planes: list[mx.array | None]

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes if plane is not None)

    @property
    def dead(self) -> int:
        return self.pages.count(None)

    @property
    def complete(self) -> bool:
        return all(plane is not None for plane in self.planes)


def page_nbytes(layers: Sequence[LayerSpec], page_size: int, dtype: mx.Dtype) -> int:
    """Bytes of one page in all layers."""
    width = sum(spec.kv_heads * (spec.k_dim + spec.v_dim) for spec in layers)
    return width * page_size * dtype.size


class PagedKVCache:
    """Pages of K and V of all attention layers, reference counted. One thread only.

    Args:
        layers: what each layer keeps.
        num_pages: pages at most; or
        memory: bytes at most.
        page_size: tokens a page.
        dtype: of K and V.

    Raises:
        ValueError: neither num_pages nor memory, or memory for layers that keep nothing.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        num_pages: int | None = None,
        *,
        memory: int | None = None,
        page_size: int = PAGE_SIZE,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        self.layers = tuple(layers)
        self.page_size = page_size
        self.dtype = dtype
        if num_pages is None:
            if memory is None or not self.page_nbytes:
                raise ValueError("num_pages, or memory for at least one layer, must be given")
            num_pages = memory // self.page_nbytes
        self.pool = PagePool(num_pages, on_free=self._drop)
        self._where: dict[int, tuple[_Run, int]] = {}
        self._nbytes = 0

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page in all layers."""
        return page_nbytes(self.layers, self.page_size, self.dtype)

    @property
    def num_pages(self) -> int:
        """Pages there can be."""
        return self.pool.num_pages

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    # Whose pages

    def allocate_pages(self, num_pages: int) -> list[int] | None:
        """Pages with one reference each, or None where that many are not free."""
        return self.pool.allocate_pages(num_pages)

    def add_reference(self, page_ids: Sequence[int]) -> None:
        """One more reference to each page."""
        self.pool.add_reference(page_ids)

    def free_pages(self, page_ids: Sequence[int]) -> None:
        """One reference less to each page; what is in those without any is dropped."""
        self.pool.free_pages(page_ids)

    # All layers at once

    def write_all(self, page_ids: Sequence[int], layers: Sequence[KeysValues]) -> None:
        """Fill pages in all layers, and wait for it.

        Waiting matters: a row's buffer that is still being read would be copied
        as a whole when the next step writes to it.

        Args:
            layers: K and V of each layer, (kv_heads, len(page_ids) * page_size, dim).

        Raises:
            ValueError: a page that is free or was written, or a wrong shape or type;
                nothing was changed.
        """
        planes = [plane for keys_values in layers for plane in keys_values]
        if len(planes) != 2 * len(self.layers):
            raise ValueError(f"{len(layers)} layers were given for {len(self.layers)}")
        self._require_unwritten(page_ids)
        for index, plane in enumerate(planes):
            self._require_shape(plane, index, len(page_ids))
        runs = [
            _Run(list(page_ids[start:stop]), [self._cut(plane, start, stop) for plane in planes])
            for start, stop in _spans(len(page_ids))
        ]
        mx.eval([run.planes for run in runs])
        for run in runs:
            self._place(run)
            self._nbytes += run.nbytes
        self._stay_in_memory()

    def gather_all(self, page_ids: Sequence[int], seq_len: int | None = None) -> list[KeysValues]:
        """K and V of each layer, (kv_heads, seq_len, dim), in the order of the pages.

        Lazy; safe to evaluate after the pages were freed.

        Args:
            seq_len: tokens wanted; None is all that the pages hold.

        Raises:
            ValueError: a page that holds nothing, or more tokens than pages hold.
        """
        parts = self._parts(page_ids, self._tokens(page_ids, seq_len))
        planes = [self._join(parts, index) for index in range(2 * len(self.layers))]
        return list(zip(planes[0::2], planes[1::2], strict=True))

    # One layer's K or V, tokens first

    def write_pages(
        self, page_ids: Sequence[int], data: mx.array, cache_type: str = "k", layer: int = 0
    ) -> None:
        """Fill pages with K or V of one layer.

        The other layers' must be written with the same list of pages.

        Args:
            data: (len(page_ids) * page_size, kv_heads, dim).
            cache_type: "k" or "v".

        Raises:
            ValueError: as in write_all.
        """
        index = self._plane(cache_type, layer)
        plane = data.swapaxes(0, 1)
        self._require_shape(plane, index, len(page_ids))
        runs = [self._open_run(page_ids[a:b], index) for a, b in _spans(len(page_ids))]
        cuts = [self._cut(plane, start, stop) for start, stop in _spans(len(page_ids))]
        mx.eval(cuts)
        for run, cut in zip(runs, cuts, strict=True):
            self._place(run)
            run.planes[index] = cut
            self._nbytes += cut.nbytes
        self._stay_in_memory()

    def gather_pages(
        self, page_ids: Sequence[int], seq_len: int, cache_type: str = "k", layer: int = 0
    ) -> mx.array:
        """K ("k") or V ("v") of one layer in the order of the pages: (seq_len, heads, dim).

        Raises:
            ValueError: as in gather_all.
        """
        index = self._plane(cache_type, layer)
        parts = self._parts(page_ids, self._tokens(page_ids, seq_len))
        return self._join(parts, index).swapaxes(0, 1)

    def get_page(self, page_id: int, cache_type: str = "k", layer: int = 0) -> mx.array:
        """K ("k") or V ("v") of one page and layer: (page_size, heads, dim).

        Raises:
            ValueError: as in gather_all.
        """
        return self.gather_pages([page_id], self.page_size, cache_type, layer)

    # Runs

    def _open_run(self, page_ids: Sequence[int], index: int) -> _Run:
        """The run that these pages lie in, or a new one."""
        placed = self._where.get(page_ids[0])
        if placed is None:
            self._require_unwritten(page_ids)
            return _Run(list(page_ids), [None for _ in range(2 * len(self.layers))])
        run = placed[0]
        if run.pages != list(page_ids):
            raise ValueError("all layers must be written with the same list of pages")
        if run.planes[index] is not None:
            raise ValueError(f"page {page_ids[0]} was written already")
        return run

    def _place(self, run: _Run) -> None:
        for place, page in enumerate(run.pages):
            if page is not None:
                self._where[page] = (run, place)

    def _cut(self, plane: mx.array, first: int, last: int) -> mx.array:
        """Pages [first, last) of a plane as an array of their own."""
        return _copied(plane[:, first * self.page_size : last * self.page_size])

    def _parts(self, page_ids: Sequence[int], tokens: int) -> list[tuple[_Run, int, int]]:
        """(run, first token, last token) for neighbouring pages together."""
        parts: list[tuple[_Run, int, int]] = []
        size = self.page_size
        for page in page_ids[: -(-tokens // size)]:
            if page not in self._where:
                raise ValueError(f"page {page} holds nothing")
            run, place = self._where[page]
            if parts and parts[-1][0] is run and parts[-1][2] == place * size:
                parts[-1] = (run, parts[-1][1], (place + 1) * size)
            else:
                parts.append((run, place * size, (place + 1) * size))
        if tokens % size:
            run, start, stop = parts[-1]
            parts[-1] = (run, start, stop - size + tokens % size)
        return parts

    def _join(self, parts: Sequence[tuple[_Run, int, int]], index: int) -> mx.array:
        pieces = []
        for run, start, stop in parts:
            plane = run.planes[index]
            if plane is None:
                kind, layer = _PLANES[index % 2], index // 2
                raise ValueError(f"{kind} of layer {layer} was not written to these pages")
            pieces.append(plane[:, start:stop])
        if not pieces:
            spec = self.layers[index // 2]
            return mx.zeros((spec.kv_heads, 0, _width(spec, index)), self.dtype)
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)

    def _drop(self, pages: Iterable[int]) -> None:
        """Drop the contents of pages that are free again."""
        touched: dict[int, _Run] = {}
        for page in pages:
            if page in self._where:  # else it was never written
                run, place = self._where.pop(page)
                run.pages[place] = None
                touched[id(run)] = run
        for run in touched.values():
            if 4 * run.dead >= len(run.pages) or not run.complete:
                self._compact(run)

    def _compact(self, run: _Run) -> None:
        """Move what is left of a run to memory of its size."""
        self._nbytes -= run.nbytes
        alive = [place for place, page in enumerate(run.pages) if page is not None]
        size = self.page_size
        spans: list[tuple[_Run, int, int]] = []
        for place in alive:
            if spans and spans[-1][2] == place * size:
                spans[-1] = (run, spans[-1][1], (place + 1) * size)
            else:
                spans.append((run, place * size, (place + 1) * size))
        if not spans:
            return
        run.planes = [
            None if plane is None else _copied(self._join(spans, index))
            for index, plane in enumerate(run.planes)
        ]
        run.pages = [run.pages[place] for place in alive]
        # Evaluated now: a lazy copy keeps the old arrays alive.
        mx.eval([plane for plane in run.planes if plane is not None])
        self._place(run)
        self._nbytes += run.nbytes

    def _stay_in_memory(self) -> None:
        """Compact every run, where freed pages take the memory of new ones."""
        if self._nbytes > self.num_pages * self.page_nbytes:
            for run in {id(run): run for run, _ in self._where.values()}.values():
                if run.dead:
                    self._compact(run)

    # Checks

    def _plane(self, cache_type: str, layer: int) -> int:
        if cache_type not in _PLANES:
            raise ValueError(f"cache_type is {cache_type!r}, not 'k' or 'v'")
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"there is no layer {layer}")
        return 2 * layer + _PLANES.index(cache_type)

    def _tokens(self, page_ids: Sequence[int], seq_len: int | None) -> int:
        held = len(page_ids) * self.page_size
        if seq_len is None:
            return held
        if not 0 <= seq_len <= held:
            raise ValueError(f"{len(page_ids)} pages do not hold {seq_len} tokens")
        return seq_len

    def _require_unwritten(self, page_ids: Sequence[int]) -> None:
        if len(set(page_ids)) < len(page_ids):
            raise ValueError("a page is given twice")
        for page in page_ids:
            if not self.pool.references(page):
                raise ValueError(f"page {page} is free")
            if page in self._where:
                raise ValueError(f"page {page} was written already")

    def _require_shape(self, plane: mx.array, index: int, pages: int) -> None:
        spec = self.layers[index // 2]
        shape = (spec.kv_heads, pages * self.page_size, _width(spec, index))
        if plane.shape != shape or plane.dtype != self.dtype:
            raise ValueError(
                f"{_PLANES[index % 2]} of layer {index // 2} is {plane.shape} {plane.dtype}, "
                f"not {shape} {self.dtype}"
            )

    def check_integrity(self) -> None:
        """Raise IntegrityError unless what is held is what the pool says."""
        self.pool.check_integrity()
        runs = {id(run): run for run, _ in self._where.values()}
        for page, (run, place) in self._where.items():
            if not self.pool.references(page):
                raise IntegrityError(f"page {page} is free and holds K and V")
            if run.pages[place] != page:
                raise IntegrityError(f"page {page} is not where the books say")
        if sum(len(run.pages) - run.dead for run in runs.values()) != len(self._where):
            raise IntegrityError("a run has pages that the books do not know")
        if sum(run.nbytes for run in runs.values()) != self._nbytes:
            raise IntegrityError(f"{self._nbytes} bytes are in the books, others are held")


def _copied(array: mx.array) -> mx.array:
    """The same bits in memory of their own."""
    # mx.contiguous is slower on a CPU, and may keep a much larger array alive.
    return array - 0


def _width(spec: LayerSpec, index: int) -> int:
    return spec.v_dim if index % 2 else spec.k_dim


def _spans(pages: int) -> list[tuple[int, int]]:
    """Pages [first, last) of each run."""
    starts = range(0, pages, _RUN_PAGES)
    return [(start, min(start + _RUN_PAGES, pages)) for start in starts]


class KVCacheAllocator:
    """Pages one at a time, on a PagedKVCache.

    Args:
        layers: what each layer keeps, or the config of a model, which says so.
        num_pages, memory, page_size, dtype: those of PagedKVCache.
        max_batch_size, max_seq_length: pages for so many sequences of so many tokens, where
            neither num_pages nor memory is given. A page takes memory when it is written.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec] | Qwen3Config,
        num_pages: int | None = None,
        *,
        memory: int | None = None,
        max_batch_size: int = 64,
        max_seq_length: int = 32768,
        page_size: int = PAGE_SIZE,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        if max_batch_size < 1 or max_seq_length < 1:
            raise ValueError("max_batch_size and max_seq_length are at least 1")
        if num_pages is None and memory is None:
            num_pages = max_batch_size * -(-max_seq_length // page_size)
        specs = layers.kv_layers() if isinstance(layers, Qwen3Config) else layers
        self.cache = PagedKVCache(specs, num_pages, memory=memory, page_size=page_size, dtype=dtype)

    def allocate_page(self) -> int:
        """A free page.

        Raises:
            PagesExhaustedError: a RuntimeError; all are in use.
        """
        return self.cache.pool.allocate_page()

    def free_page(self, page_id: int) -> None:
        """One reference less; a page without any is free."""
        self.cache.pool.free_page(page_id)

    def add_page_reference(self, page_id: int) -> None:
        """One more reference."""
        self.cache.pool.add_reference([page_id])

    def get_page(self, page_id: int, cache_type: str = "k", layer: int = 0) -> mx.array:
        """K or V of one page: (page_size, heads, dim)."""
        return self.cache.get_page(page_id, cache_type, layer)

    def gather_pages(
        self, page_ids: Sequence[int], seq_len: int, cache_type: str = "k", layer: int = 0
    ) -> mx.array:
        """K or V of these pages' first seq_len tokens: (seq_len, heads, dim)."""
        return self.cache.gather_pages(page_ids, seq_len, cache_type, layer)

    def write_pages(
        self, page_ids: Sequence[int], data: mx.array, cache_type: str = "k", layer: int = 0
    ) -> None:
        """Write (n, heads, dim), as dtype; the last page may be filled in part, then zeros.

        A page is written once: tokens that come later need a page of their own.
        """
        data = data.astype(self.cache.dtype)
        missing = len(page_ids) * self.cache.page_size - data.shape[0]
        if 0 < missing < self.cache.page_size:
            data = mx.concatenate([data, mx.zeros((missing, *data.shape[1:]), data.dtype)])
        self.cache.write_pages(page_ids, data, cache_type, layer)
