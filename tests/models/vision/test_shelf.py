"""Equal pictures are prepared once, and waiting requests cannot fill the memory with them."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from mlx_parallm.errors import OutOfMemoryError
from mlx_parallm.models.vision.prepared import PreparedPicture
from mlx_parallm.models.vision.shelf import Shelf


def _picture(name: int, nbytes: int = 100) -> PreparedPicture:
    inputs = {"pixel_values": np.zeros(nbytes, np.uint8)}
    return PreparedPicture(bytes([name]), "", 1, None, inputs)


def test_a_picture_is_found_as_long_as_somebody_has_it() -> None:
    shelf = Shelf(max_bytes=1000)  # an eighth of which is for those that nobody has
    held, left = _picture(1), _picture(2)
    shelf.put(held)
    shelf.put(left)
    assert shelf.find(bytes([1])) is held
    assert shelf.find(bytes([2])) is left
    del left
    gc.collect()
    assert shelf.find(bytes([2])) is not None, "the newest one stays for a while"
    shelf.put(_picture(3))
    gc.collect()
    assert shelf.find(bytes([2])) is None
    assert shelf.find(bytes([1])) is held
    assert shelf.nbytes == 200


def test_there_is_a_bound_on_what_requests_hold() -> None:
    shelf = Shelf(max_bytes=1000)
    held = [_picture(name) for name in range(10)]
    for picture in held:
        shelf.put(picture)
    with pytest.raises(OutOfMemoryError):
        shelf.put(_picture(10))
    gc.collect()
    assert shelf.nbytes == 1000
    del held[:5], picture
    gc.collect()
    shelf.put(_picture(11))
    assert shelf.nbytes <= 700
