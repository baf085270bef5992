"""The bytes of a data: URL, as RFC 2397 has it, base64 only."""

from __future__ import annotations

import base64
import binascii

from mlx_parallm.errors import InvalidRequestError

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
# Also written so, though it is not registered.
_OTHER_NAMES = ("image/jpg",)
_MAX_HEADER = 200


def is_data_url(url: str) -> bool:
    """Whether it is one; the scheme's case does not matter."""
    return url[:5].lower() == "data:"


def bytes_of(url: str, limit: int, param: str) -> bytes:
    """What a data: URL holds.

    Args:
        limit: bytes that it may hold.

    Raises:
        InvalidRequestError: it is too large, or no base64 of a kind of picture.
    """
    comma = url.find(",", 0, _MAX_HEADER)
    header = url[5:comma].lower() if comma >= 0 else ""
    kind, *marks = (part.strip() for part in header.split(";"))
    if "base64" not in marks:
        raise InvalidRequestError(
            "A data URL of a picture is data:image/png;base64, and base64.", param=param
        )
    if kind not in (*MEDIA_TYPES, *_OTHER_NAMES):
        raise InvalidRequestError(
            f"Pictures of type {kind[:40]!r} are not supported; send one of "
            f"{', '.join(MEDIA_TYPES)}.",
            param=param,
        )
    encoded = len(url) - comma - 1
    if encoded * 3 // 4 > limit + 2:
        raise too_large(limit, param)
    try:
        found = base64.b64decode(url[comma + 1 :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError("The picture is no valid base64.", param=param) from None
    if len(found) > limit:
        raise too_large(limit, param)
    return found


def too_large(limit: int, param: str) -> InvalidRequestError:
    """The error of a picture with more than `limit` bytes."""
    return InvalidRequestError(
        f"The picture has more than {limit} bytes (--max-image-bytes).", param=param
    )
