"""How many connections there may be, and how long each may take over a request."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_parallm.settings import Settings

DEFAULT_CONNECTIONS = 4096
# Files that are not connections: the model's, memories, cached prefixes, pipes.
_OTHER_FILES = 256
_FEWEST = 16


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one server. Times in seconds.

    Args:
        most: open connections at most.
        most_per_address: of them, from one address (IPv6: one /64 network).
        header_s: from its first byte until a request's headers are complete.
        body_s: from there until its body is complete; a large body gets a second more for
            each 16 KiB of it that have come.
        idle_s: until the next request begins.
    """

    most: int = DEFAULT_CONNECTIONS
    most_per_address: int = DEFAULT_CONNECTIONS * 3 // 4
    header_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 30.0

    @classmethod
    def of(cls, settings: Settings, open_files: int) -> ConnectionLimits:
        """What the settings say.

        Args:
            open_files: that this process may have; connections are a part of them.
        """
        room = max(_FEWEST, open_files - _OTHER_FILES)
        most = min(settings.max_connections or DEFAULT_CONNECTIONS, room)
        # Three quarters: one address alone cannot keep all others out.
        per_address = settings.max_connections_per_address or -(-most * 3 // 4)
        return cls(
            most=most,
            most_per_address=min(per_address, most),
            header_s=settings.header_timeout,
            body_s=settings.body_timeout,
            idle_s=settings.idle_timeout,
        )
