"""Bytes of a picture as a Picture: the format by its first bytes, its size before any pixel."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.vision.picture import Detail, Picture

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_WHITE = (255, 255, 255, 255)


def decode(data: bytes, *, detail: Detail, max_pixels: int, param: str) -> Picture:
    """A picture as RGB: turned as its EXIF data say, the first frame of an animation,
    transparent parts on white. Slow: not for the event loop.

    Args:
        max_pixels: that it may have; looked up in its header, before anything is decoded.
        param: its place in the request.

    Raises:
        InvalidRequestError: no PNG, JPEG, WebP or GIF, too many pixels, or damaged.
    """
    from PIL import Image

    if _format_of(data) is None:
        raise InvalidRequestError(
            "This is no picture in the format PNG, JPEG, WebP or GIF.", param=param
        )
    # What Pillow only warns of is far above any limit of ours.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(data), formats=(str(_format_of(data)),)) as image:
            _check_size(image.size, max_pixels, param)
            pixels = _as_rgb(image)
    except InvalidRequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(max_pixels, param) from None
    except Exception as error:  # noqa: BLE001 - decoders fail in many ways at what strangers send
        logger.info("a picture cannot be decoded: %s", error)
        raise InvalidRequestError(
            "The picture is damaged: it cannot be decoded.", param=param
        ) from None
    return Picture(pixels, detail)


def _format_of(data: bytes) -> str | None:
    """By the first bytes, whatever anybody says of it."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _check_size(size: tuple[int, int], max_pixels: int, param: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidRequestError("The picture has no pixels.", param=param)
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels, param, f"{width} x {height}, ")


def _too_many_pixels(max_pixels: int, param: str, size: str = "") -> InvalidRequestError:
    return InvalidRequestError(
        f"The picture is too large: {size}and this server takes {max_pixels} pixels "
        "(--max-image-pixels).",
        param=param,
    )


def _as_rgb(image: Any) -> np.ndarray:
    from PIL import ImageOps

    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith(("I", "F")):
        return _of_deep_grey(np.asarray(turned))
    if turned.mode != "RGB":
        turned = _on_white(turned)
    return np.array(turned)


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    ground = Image.new("RGBA", whole.size, _WHITE)
    ground.alpha_composite(whole)
    return ground.convert("RGB")


def _of_deep_grey(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, as PNG has it."""
    grey = (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
