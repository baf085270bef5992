"""The Shelf: prepared pictures and videos by content, and a bound on what all of them hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from weakref import WeakValueDictionary

from mlx_parallm.errors import OutOfMemoryError
from mlx_parallm.models.vision.prepared import Prepared

_SHARE_KEPT = 8  # of the bytes at most, those of pictures that no request has any more


class Shelf:
    """Equal pictures of requests that live at the same time, and of the newest ones, are one.

    Args:
        max_bytes: of all pictures that some request holds.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: WeakValueDictionary[bytes, Prepared] = WeakValueDictionary()
        self._newest: OrderedDict[bytes, Prepared] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Held now."""
        return sum(picture.nbytes for picture in list(self._held.values()))

    def find(self, key: bytes) -> Prepared | None:
        """What was prepared already."""
        with self._lock:
            found = self._held.get(key)
            if key in self._newest:
                self._newest.move_to_end(key)
            return found

    def put(self, picture: Prepared) -> None:
        """Keep a picture as long as somebody holds it, and a while longer.

        Raises:
            OutOfMemoryError: requests hold so many pictures that there is no room for it.
        """
        with self._lock:
            self._held[picture.key] = picture
            self._newest[picture.key] = picture
            kept = sum(one.nbytes for one in self._newest.values())
            while kept > self.max_bytes // _SHARE_KEPT and self._newest:
                kept -= self._newest.popitem(last=False)[1].nbytes
            if self.nbytes > self.max_bytes:
                self._newest.pop(picture.key, None)
                raise OutOfMemoryError("There is no memory for more pictures now.")
