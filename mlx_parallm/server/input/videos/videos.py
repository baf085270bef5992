"""Videos: from what a request names to the frames that its model is shown."""

from __future__ import annotations

from mlx_parallm.models.vision.video import Video
from mlx_parallm.server.input.data_urls import VIDEO, decoded, media_type_of
from mlx_parallm.server.input.pictures.limits import PictureLimits
from mlx_parallm.server.input.videos.asked import AskedVideo
from mlx_parallm.server.input.videos.containers import VideoFile
from mlx_parallm.server.input.videos.frame_lists import FrameList
from mlx_parallm.server.input.videos.sampling import Sampling, VideoLimits

# What vLLM calls a list of JPEG files, with commas between them.
FRAMES_TYPE = "video/jpeg"
FILE_TYPES = ("video/mp4", "video/webm", "video/quicktime", "video/x-matroska")


def video_of(
    asked: AskedVideo,
    fetched: bytes | None,
    sampling: Sampling,
    limits: VideoLimits,
    frame: PictureLimits,
) -> Video:
    """Decode a video. Slow: not for the event loop.

    Args:
        fetched: its file, where it is not in the URL.
        frame: limits of each.

    Raises:
        UnsupportedError: it needs what is not installed.
        InvalidRequestError: it is no video within all limits.
    """
    if isinstance(asked.url, tuple):
        return FrameList(asked.url, frame, limits, asked.param).shown(sampling)
    if fetched is None:
        media_type, encoded = media_type_of(asked.url, VIDEO, asked.param)
        if media_type == FRAMES_TYPE:
            frames = encoded.split(",") if encoded else []
            return FrameList(frames, frame, limits, asked.param).shown(sampling)
        if media_type not in FILE_TYPES:
            raise VIDEO.unsupported(media_type, (FRAMES_TYPE, *FILE_TYPES), asked.param)
        fetched = decoded(encoded, limits.num_bytes, VIDEO, asked.param)
    return VideoFile(fetched, limits, frame.num_pixels, asked.param).shown(sampling)
