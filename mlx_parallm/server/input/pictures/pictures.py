"""Pictures and videos: all between what requests name and what the model's prompt needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.server.input.data_urls import PICTURE, VIDEO, is_data_url
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.pictures.data_urls import bytes_of
from mlx_parallm.server.input.pictures.decoding import decode
from mlx_parallm.server.input.pictures.fetching import Fetcher
from mlx_parallm.server.input.pictures.limits import PictureLimits
from mlx_parallm.server.input.videos.asked import AskedVideo
from mlx_parallm.server.input.videos.sampling import Sampling, VideoLimits
from mlx_parallm.server.input.videos.videos import video_of

_T = TypeVar("_T")

AskedMedia = AskedPicture | AskedVideo

# Pictures that are decoded at the same time, of all requests: each may take some 200 MB then.
WORKERS = 2
# The same for videos, which do not hold pictures up.
_VIDEO_WORKERS = 2
# What is fetched at the same time, of all requests.
_FETCHES = 16


class Pictures:
    """Reads, fetches, decodes and prepares. For the event loop; the work is on threads of its own.

    Args:
        limits, video_limits: of pictures, also those that a video is made of, and of videos.
        hosts: from which they may be fetched.
        fetch_timeout_s: for one of them.
    """

    def __init__(
        self,
        limits: PictureLimits,
        hosts: Sequence[str] = (),
        fetch_timeout_s: float = 10.0,
        video_limits: VideoLimits | None = None,
    ) -> None:
        self._limits = limits
        self._video_limits = video_limits or VideoLimits()
        self._fetcher = Fetcher(hosts, fetch_timeout_s)
        # Their threads begin with the first picture.
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
        self._video_executor = ThreadPoolExecutor(_VIDEO_WORKERS, thread_name_prefix="videos")
        self._fetches = asyncio.Semaphore(_FETCHES)

    async def gather(
        self,
        asked: Sequence[AskedMedia],
        use: Callable[[Picture | Video], _T],
        sampling: Sampling | None = None,
    ) -> list[_T]:
        """What `use` makes of each picture and video, in their order.

        Args:
            use: called beside the decoding, so that no pixels are kept for longer.
            sampling: which frames of videos are used.

        Raises:
            InvalidRequestError: the first that is wrong; or there are too many.
        """
        _check_count(
            [one for one in asked if isinstance(one, AskedPicture)],
            self._limits.count,
            "pictures",
            "--max-images",
        )
        _check_count(
            [one for one in asked if isinstance(one, AskedVideo)],
            self._video_limits.count,
            "videos",
            "--max-videos",
        )
        tasks = [
            asyncio.ensure_future(self._one(one, use, sampling or Sampling())) for one in asked
        ]
        try:
            return [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Decode nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._video_executor.shutdown(wait=False, cancel_futures=True)

    async def _one(
        self, asked: AskedMedia, use: Callable[[Picture | Video], _T], sampling: Sampling
    ) -> _T:
        try:
            fetched = await self._fetched(asked)
            is_video = isinstance(asked, AskedVideo)
            executor = self._video_executor if is_video else self._executor
            read = partial(self._read, asked, fetched, sampling)
            return await asyncio.get_running_loop().run_in_executor(executor, lambda: use(read()))
        except InvalidRequestError as error:
            raise asked.refused(error.message, type(error)) from None

    async def _fetched(self, asked: AskedMedia) -> bytes | None:
        """The file that a URL leads to; None where it is in the request."""
        if not isinstance(asked.url, str) or is_data_url(asked.url):
            return None
        kind, limit = PICTURE, self._limits.num_bytes
        if isinstance(asked, AskedVideo):
            kind, limit = VIDEO, self._video_limits.num_bytes
        async with self._fetches:
            return await self._fetcher.fetch(asked.url, kind, limit, asked.param)

    def _read(
        self, asked: AskedMedia, fetched: bytes | None, sampling: Sampling
    ) -> Picture | Video:
        if isinstance(asked, AskedVideo):
            return video_of(asked, fetched, sampling, self._video_limits, self._limits)
        if fetched is None:
            fetched = bytes_of(asked.url, self._limits.num_bytes, asked.param)
        return decode(
            fetched, detail=asked.detail, max_pixels=self._limits.num_pixels, param=asked.param
        )


def _check_count(asked: Sequence[AskedMedia], most: int, noun: str, option: str) -> None:
    if len(asked) > most:
        raise asked[most].refused(
            f"There are {len(asked)} {noun} in the request, and this server takes {most} "
            f"({option})."
        )
