"""AskedPicture: a picture as a request names it, before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_parallm.models.vision.picture import DETAILS, Detail
from mlx_parallm.server.input.asked import Asked
from mlx_parallm.server.schemas.base import wrong

# Base64 has no colon.
_MAX_SCHEME = 16


@dataclass(frozen=True, slots=True)
class AskedPicture(Asked):
    """Where a picture is to be had.

    Attributes:
        url: of the scheme data or https.
        detail: how finely to look at it.
    """

    url: str
    detail: Detail = "auto"


def asked_picture(value: Any, path: str) -> AskedPicture:
    """The value of `image_url`, as OpenAI's chats have it: an object, or the URL alone.

    Args:
        path: of the value below the validated field, for errors.

    Raises:
        PydanticCustomError: it is something else.
    """
    if isinstance(value, str):
        return AskedPicture(value)
    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        raise wrong("expected an object with a url", path)
    return AskedPicture(value["url"], detail_of(value.get("detail"), f"{path}.detail"))


def detail_of(value: Any, path: str) -> Detail:
    """A `detail`; null is "auto".

    Raises:
        PydanticCustomError: none of them.
    """
    if value is None:
        return "auto"
    if value not in DETAILS:
        raise wrong(f"expected one of {', '.join(DETAILS)}", path)
    detail: Detail = value
    return detail


def data_url(encoded: str, media_type: str = "image/png") -> str:
    """The URL of base64 that came without one; its type is read from the bytes later."""
    return f"data:{media_type};base64,{encoded}"


def listed_pictures(images: Sequence[str], path: str) -> list[AskedPicture]:
    """Those of a list of URLs, or of base64 without one.

    Args:
        path: of the list in the client's body.
    """
    return [
        AskedPicture(image if ":" in image[:_MAX_SCHEME] else data_url(image), param=f"{path}.{at}")
        for at, image in enumerate(images)
    ]
