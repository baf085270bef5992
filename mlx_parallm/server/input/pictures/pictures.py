"""Pictures: everything between what requests name and what the model's prompt needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.pictures.data_urls import bytes_of, is_data_url
from mlx_parallm.server.input.pictures.decoding import decode
from mlx_parallm.server.input.pictures.fetching import Fetcher

_T = TypeVar("_T")

# Pictures that are decoded at the same time, of all requests: each may take some 200 MB then.
WORKERS = 2
# Pictures that are fetched at the same time, of all requests.
_FETCHES = 16


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """count: of one request; num_bytes, num_pixels: of one picture."""

    count: int = 16
    num_bytes: int = 16 * 1024**2
    num_pixels: int = 24_000_000


class Pictures:
    """Reads, fetches, decodes and prepares. For the event loop; the work is on threads of its own.

    Args:
        hosts: from which pictures may be fetched.
        fetch_timeout_s: for one of them.
    """

    def __init__(
        self, limits: PictureLimits, hosts: Sequence[str] = (), fetch_timeout_s: float = 10.0
    ) -> None:
        self._limits = limits
        self._fetcher = Fetcher(hosts, fetch_timeout_s, limits.num_bytes)
        # Their threads begin with the first picture.
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
        self._fetches = asyncio.Semaphore(_FETCHES)

    async def gather(self, asked: Sequence[AskedPicture], use: Callable[[Picture], _T]) -> list[_T]:
        """What `use` makes of each picture, in their order.

        Args:
            use: called beside the decoding, so that no pixels are kept for longer.

        Raises:
            InvalidRequestError: the first that is wrong; or there are too many.
        """
        if len(asked) > self._limits.count:
            raise asked[self._limits.count].refused(
                f"There are {len(asked)} pictures in the request, and this server takes "
                f"{self._limits.count} (--max-images)."
            )
        tasks = [asyncio.ensure_future(self._one(one, use)) for one in asked]
        try:
            return [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Decode nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _one(self, asked: AskedPicture, use: Callable[[Picture], _T]) -> _T:
        try:
            return await self._used(asked, use)
        except InvalidRequestError as error:
            raise asked.refused(error.message) from None

    async def _used(self, asked: AskedPicture, use: Callable[[Picture], _T]) -> _T:
        fetched: bytes | None = None
        if not is_data_url(asked.url):
            async with self._fetches:
                fetched = await self._fetcher.fetch(asked.url, asked.param)

        def made() -> _T:
            data = fetched
            if data is None:
                data = bytes_of(asked.url, self._limits.num_bytes, asked.param)
            picture = decode(
                data, detail=asked.detail, max_pixels=self._limits.num_pixels, param=asked.param
            )
            return use(picture)

        return await asyncio.get_running_loop().run_in_executor(self._executor, made)
