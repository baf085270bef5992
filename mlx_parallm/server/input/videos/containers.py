"""Files of videos, MP4 and WebM, through PyAV: what is in them is checked before it is decoded."""

from __future__ import annotations

import io
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn

import numpy as np

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.server.input.videos.frame_lists import too_long
from mlx_parallm.server.input.videos.sampling import Sampling, VideoLimits

logger = logging.getLogger(__name__)

INSTALL = "Install the extra for files of videos: pip install 'mlx_parallm[video]'."
# Others have had no need to be open to strangers' bytes.
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
# Frames that a file may have at all, and pixels that may be decoded on the way to those that are
# shown: half a minute of one core.
_MOST_FRAMES = 500_000
_MOST_DECODED = 10_000_000_000


@dataclass(frozen=True, slots=True)
class _Index:
    """What the packets of a file say, in the stream's own units of time.

    Attributes:
        times: of each frame, ascending.
        keys: of those at which decoding may begin.
        spacing: from one to the next.
    """

    times: list[int]
    keys: list[int]
    spacing: float


class VideoFile:
    """The bytes of one video.

    Args:
        limits: of the video; max_pixels: of one frame.
        param: its place in the request.
    """

    def __init__(self, data: bytes, limits: VideoLimits, max_pixels: int, param: str) -> None:
        self._data = data
        self._limits = limits
        self._max_pixels = min(max_pixels, limits.num_pixels)
        self._param = param

    def shown(self, sampling: Sampling) -> Video:
        """Some of its frames. Slow: not for the event loop.

        Raises:
            UnsupportedError: PyAV is not installed.
            InvalidRequestError: no MP4 or WebM, another codec, above a limit, or damaged.
        """
        if find_spec("av") is None:
            raise UnsupportedError(
                f"This server decodes no files of videos. {INSTALL}", param=self._param
            )
        try:
            return self._shown(sampling)
        except InvalidRequestError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders fail in many ways at what strangers send
            logger.info("a video cannot be decoded: %s", error)
            raise self._damaged() from None

    def _shown(self, sampling: Sampling) -> Video:
        with self._opened() as (container, stream):
            index = self._index(container, stream)
        unit = float(stream.time_base)
        seconds = (index.times[-1] - index.times[0] + index.spacing) * unit
        if not seconds <= self._limits.seconds:
            raise too_long(self._limits, self._param)
        places = sampling.of_file(len(index.times), seconds, self._limits, self._param)
        with self._opened() as (container, stream):
            self._check_pixels(stream.width, stream.height, len(places))
            wanted = [index.times[place] for place in places]
            frames = tuple(map(Picture, self._decoded(container, stream, wanted, index.keys)))
        return Video(frames, tuple((at - index.times[0]) * unit for at in wanted), seconds)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and its first stream of pictures; nothing else is ever opened."""
        import av

        options = {
            "max_pixels": str(self._max_pixels),
            "codec_whitelist": ",".join(sorted({*CODECS, "libdav1d"})),
            "protocol_whitelist": "none",
        }
        with av.open(
            io.BytesIO(self._data),
            format=self._format(),
            options=options,
            metadata_errors="replace",
            io_open=_refuse,
        ) as container:
            if not container.streams.video:
                raise InvalidRequestError("The file has no pictures.", param=self._param)
            stream = container.streams.video[0]
            codec = stream.codec_context.codec.canonical_name
            if codec not in CODECS:
                raise InvalidRequestError(
                    f"Videos in {codec} are not supported; send one of "
                    f"{', '.join(sorted(CODECS))}.",
                    param=self._param,
                )
            stream.codec_context.thread_count = 1
            yield container, stream

    def _format(self) -> str:
        """By the first bytes, whatever anybody says of it: no playlists, which name files."""
        if self._data[4:8] == b"ftyp":
            return "mov"
        if self._data.startswith(b"\x1a\x45\xdf\xa3"):
            return "matroska"
        raise InvalidRequestError("This is no video in the format MP4 or WebM.", param=self._param)

    def _index(self, container: Any, stream: Any) -> _Index:
        """Read all packets, without decoding: headers may say anything."""
        times: list[int] = []
        keys: list[int] = []
        count = 0
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            count += 1
            if packet.is_corrupt or count > _MOST_FRAMES:
                raise self._damaged()
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:
                times.append(packet.pts)
        if not times or count < stream.frames:
            raise self._damaged()
        times.sort()
        spacing = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return _Index(times, sorted(keys), spacing or _of_one(stream))

    def _check_pixels(self, width: int, height: int, count: int) -> None:
        if width < 1 or height < 1:
            raise InvalidRequestError("The video has no pixels.", param=self._param)
        if width * height > self._max_pixels or width * height * count > self._limits.num_pixels:
            raise InvalidRequestError(
                f"The video is too large: {count} frames of {width} x {height}, and this server "
                f"takes {self._max_pixels} pixels of a frame (--max-image-pixels) and "
                f"{self._limits.num_pixels} of all that are shown (--max-video-pixels).",
                param=self._param,
            )

    def _decoded(
        self, container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """(height, width, 3) of each frame wanted, through as few others as there can be."""
        frames: Iterator[Any] = iter(())
        frame, left = None, _MOST_DECODED
        for time in wanted:
            key = keys[max(0, bisect_right(keys, time) - 1)] if keys else wanted[0]
            if frame is None or frame.pts < key:
                container.seek(key, stream=stream)
                frames, frame = container.decode(stream), None
            while frame is None or frame.pts < time:
                frame = next(frames, None)
                if frame is None or frame.pts is None or frame.is_corrupt:
                    raise self._damaged()
                self._check_pixels(frame.width, frame.height, 1)
                left -= frame.width * frame.height
                if left < 0:
                    raise InvalidRequestError(
                        "The video takes too long to decode; send a shorter or smaller one.",
                        param=self._param,
                    )
            yield _as_rgb(frame)

    def _damaged(self) -> InvalidRequestError:
        return InvalidRequestError("The video is damaged: it cannot be decoded.", param=self._param)


def _of_one(stream: Any) -> float:
    """Units of time that the only frame of a video is seen."""
    rate = stream.average_rate
    return float(1 / (rate * stream.time_base)) if rate else float(1 / stream.time_base)


def _as_rgb(frame: Any) -> np.ndarray:
    """Turned as the file says that it is to be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _refuse(*_args: Any) -> NoReturn:
    raise PermissionError("a video that names other files")
