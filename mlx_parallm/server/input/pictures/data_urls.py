"""The bytes of a picture's data: URL."""

from __future__ import annotations

from mlx_parallm.server.input.data_urls import PICTURE, decoded, media_type_of

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
# Also written so, though it is not registered.
_OTHER_NAMES = ("image/jpg",)


def bytes_of(url: str, limit: int, param: str) -> bytes:
    """What a data: URL holds.

    Args:
        limit: bytes that it may hold.

    Raises:
        InvalidRequestError: it is too large, or no base64 of a kind of picture.
    """
    media_type, encoded = media_type_of(url, PICTURE, param)
    if media_type not in (*MEDIA_TYPES, *_OTHER_NAMES):
        raise PICTURE.unsupported(media_type, MEDIA_TYPES, param)
    return decoded(encoded, limit, PICTURE, param)
