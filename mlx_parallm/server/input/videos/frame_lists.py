"""Videos that come as lists of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.server.input.data_urls import PICTURE, decoded, is_data_url
from mlx_parallm.server.input.pictures.data_urls import bytes_of
from mlx_parallm.server.input.pictures.decoding import decode
from mlx_parallm.server.input.pictures.limits import PictureLimits
from mlx_parallm.server.input.videos.sampling import Sampling, VideoLimits


class FrameList:
    """Frames of one video, of which some are decoded.

    Args:
        frames: each a data: URL, or base64 without one.
        each: limits of a frame; limits: of the video.
        param: its place in the request.
    """

    def __init__(
        self, frames: Sequence[str], each: PictureLimits, limits: VideoLimits, param: str
    ) -> None:
        self._frames = frames
        self._each, self._limits = each, limits
        self._param = param

    def shown(self, sampling: Sampling) -> Video:
        """The video. Slow: not for the event loop.

        Raises:
            InvalidRequestError: no frames or too many, or one that is no picture within all
                limits or not as large as the others.
        """
        places = sampling.of_list(len(self._frames), self._limits, self._param)
        seconds = len(self._frames) / sampling.list_fps
        self._check_seconds(seconds)
        frames: list[Picture] = []
        left = self._limits.num_pixels
        for place in places:
            frame = self._decoded(place, min(left, self._each.num_pixels))
            if frames and frame.pixels.shape != frames[0].pixels.shape:
                raise InvalidRequestError(
                    f"Frame {place} of the video is not as large as the first.", param=self._param
                )
            left -= frame.width * frame.height
            frames.append(frame)
        return Video(tuple(frames), tuple(p / sampling.list_fps for p in places), seconds)

    def _check_seconds(self, seconds: float) -> None:
        if not seconds <= self._limits.seconds:
            raise too_long(self._limits, self._param)

    def _decoded(self, place: int, max_pixels: int) -> Picture:
        """One frame; whatever is wrong with it is said of it by its number."""
        try:
            data = self._bytes_of(self._frames[place])
            return decode(data, detail="auto", max_pixels=max_pixels, param=self._param)
        except InvalidRequestError as error:
            together = ""
            if max_pixels < self._each.num_pixels:
                together = f" All frames have {self._limits.num_pixels} (--max-video-pixels)."
            raise InvalidRequestError(
                f"Frame {place} of the video: {error.message}{together}", param=self._param
            ) from None

    def _bytes_of(self, frame: str) -> bytes:
        if ":" not in frame[:16]:
            return decoded(frame, self._each.num_bytes, PICTURE, self._param)
        if not is_data_url(frame):
            raise InvalidRequestError(
                "Frames are taken from data: URLs only; the server opens no files.",
                param=self._param,
            )
        return bytes_of(frame, self._each.num_bytes, self._param)


def too_long(limits: VideoLimits, param: str) -> InvalidRequestError:
    """The error of a video that takes more seconds than it may."""
    return InvalidRequestError(
        f"The video is longer than {limits.seconds:g} seconds (--max-video-seconds).", param=param
    )
