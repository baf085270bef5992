"""data: URLs as RFC 2397 has them, base64 only."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from mlx_parallm.errors import InvalidRequestError

_MAX_HEADER = 200


@dataclass(frozen=True, slots=True)
class Kind:
    """What is in the bytes, for errors.

    Attributes:
        noun: such as "picture".
        option: of the server that limits its bytes.
    """

    noun: str
    option: str

    def too_large(self, limit: int, param: str) -> InvalidRequestError:
        """The error of one with more than `limit` bytes."""
        return InvalidRequestError(
            f"The {self.noun} has more than {limit} bytes ({self.option}).", param=param
        )

    def unsupported(
        self, media_type: str, supported: tuple[str, ...], param: str
    ) -> InvalidRequestError:
        """The error of one that is of no type that is read."""
        return InvalidRequestError(
            f"{self.noun.capitalize()}s of type {media_type[:40]!r} are not supported; send one of "
            f"{', '.join(supported)}.",
            param=param,
        )


PICTURE = Kind("picture", "--max-image-bytes")
VIDEO = Kind("video", "--max-video-bytes")


def is_data_url(url: str) -> bool:
    """Whether it is one; the scheme's case does not matter."""
    return url[:5].lower() == "data:"


def media_type_of(url: str, kind: Kind, param: str) -> tuple[str, str]:
    """The media type of a data: URL, in small letters, and what is behind the comma.

    Raises:
        InvalidRequestError: it is not base64.
    """
    comma = url.find(",", 0, _MAX_HEADER)
    header = url[5:comma].lower() if comma >= 0 else ""
    media_type, *marks = (part.strip() for part in header.split(";"))
    if "base64" not in marks:
        example = "video/mp4" if kind is VIDEO else "image/png"
        raise InvalidRequestError(
            f"A data URL of a {kind.noun} is data:{example};base64, and base64.", param=param
        )
    return media_type, url[comma + 1 :]


def decoded(encoded: str, limit: int, kind: Kind, param: str) -> bytes:
    """What base64 stands for.

    Args:
        limit: bytes that it may be.

    Raises:
        InvalidRequestError: more bytes, or no base64.
    """
    if len(encoded) * 3 // 4 > limit + 2:
        raise kind.too_large(limit, param)
    try:
        found = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"The {kind.noun} is no valid base64.", param=param) from None
    if len(found) > limit:
        raise kind.too_large(limit, param)
    return found
