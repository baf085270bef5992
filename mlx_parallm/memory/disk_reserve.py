"""DiskReserve: disk space held back, and freed when the disk is full.

Removing rows from a database needs space too, for its journal.
"""

from __future__ import annotations

from pathlib import Path

RESERVED_BYTES = 1 << 20


class DiskReserve:
    """A file of zeros whose space can be freed.

    Args:
        folder: on the disk in question.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reserve"

    def hold(self) -> None:
        """Take the room, where there is some."""
        try:
            if not self._path.exists() or self._path.stat().st_size < RESERVED_BYTES:
                self._path.write_bytes(b"\0" * RESERVED_BYTES)
        except OSError:
            self.release()  # no room; the next time there is some

    def release(self) -> None:
        """Give the room up."""
        self._path.unlink(missing_ok=True)
