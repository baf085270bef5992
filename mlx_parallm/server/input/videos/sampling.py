"""Which frames of a video are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_parallm.errors import InvalidRequestError

DEFAULT_FRAMES = 32
"""Of a file, where the request says nothing; as vLLM's."""
ALL = -1
_PARAM = "media_io_kwargs.video"


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a request may have.

    Attributes:
        count: videos.
        frames: that are shown of a video.
        num_bytes: of a video's file.
        num_pixels: of all frames that are shown of a video together.
        seconds: that a video may take.
    """

    count: int = 4
    frames: int = 128
    num_bytes: int = 64 * 1024**2
    num_pixels: int = 64_000_000
    seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """As a request wants it, vLLM's `media_io_kwargs`.

    Attributes:
        num_frames: to be shown, spread evenly; -1 are all, None leaves it to `fps`.
        fps: of a file: frames to be shown of each second. Of a list of frames: how many of them
            are one second.
    """

    num_frames: int | None = None
    fps: float | None = None

    def of_file(self, total: int, seconds: float, limits: VideoLimits, param: str) -> list[int]:
        """The numbers of the frames to show of a file that has `total`.

        Raises:
            InvalidRequestError: these are more than may be.
        """
        wanted = DEFAULT_FRAMES if self.fps is None else max(1, int(seconds * self.fps))
        if self.num_frames == ALL:
            wanted = total if self.fps is None else wanted
        elif self.num_frames is not None:
            wanted = self.num_frames if self.fps is None else min(wanted, self.num_frames)
        elif self.fps is None:
            wanted = min(wanted, limits.frames)
        return self._spread(min(wanted, total), total, limits, param)

    def of_list(self, total: int, limits: VideoLimits, param: str) -> list[int]:
        """The same of a list of frames, all of which are shown unless fewer are wanted.

        Raises:
            InvalidRequestError: there are none, or more than may be.
        """
        if total < 1:
            raise InvalidRequestError("The video has no frames.", param=param)
        wanted = total if self.num_frames in (None, ALL) else min(self.num_frames or 1, total)
        return self._spread(wanted, total, limits, param)

    @property
    def list_fps(self) -> float:
        """Frames that are one second of a list; vLLM's default."""
        return 1.0 if self.fps is None else self.fps

    def _spread(self, wanted: int, total: int, limits: VideoLimits, param: str) -> list[int]:
        if wanted > limits.frames:
            raise InvalidRequestError(
                f"{wanted} frames of the video are to be shown, and this server shows "
                f"{limits.frames} at most (--max-video-frames); see {_PARAM}.",
                param=param,
            )
        return [int(place) for place in np.linspace(0, total - 1, wanted).round()]
