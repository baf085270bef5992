"""AskedVideo: a video as a request names it, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_parallm.server.input.asked import Asked
from mlx_parallm.server.schemas.base import wrong


@dataclass(frozen=True, slots=True)
class AskedVideo(Asked):
    """Where a video is to be had.

    Attributes:
        url: of the scheme data or https; or data: URLs of its frames, which are pictures.
    """

    url: str | tuple[str, ...]


def asked_video(value: Any, path: str) -> AskedVideo:
    """The value of `video_url`, as vLLM's chats have it: an object, or the URL alone.

    Args:
        path: of the value below the validated field, for errors.

    Raises:
        PydanticCustomError: it is something else.
    """
    if isinstance(value, str):
        return AskedVideo(value)
    url = value.get("url") if isinstance(value, dict) else None
    if isinstance(url, str):
        return AskedVideo(url)
    if not isinstance(url, list):
        raise wrong("expected an object with a url, or with a list of URLs of frames", path)
    for place, frame in enumerate(url):
        if not isinstance(frame, str):
            raise wrong("expected a string", f"{path}.url.{place}")
    return AskedVideo(tuple(url))
