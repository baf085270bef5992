"""What can go wrong with what is stored of memories."""

from __future__ import annotations

from mlx_parallm.errors import ParallmError


class MemoryStoreError(ParallmError):
    """The store of the memories failed or cannot be reached."""

    status = 503
    type = "service_unavailable_error"
    code = "memory_store_error"
    retry_after_s = 5


class MissingPayloadError(MemoryStoreError):
    """The store works, but a document's K and V are not in it."""

    def __init__(self, uid: str) -> None:
        super().__init__(f"The memories of document {uid} are gone.")


class DiskFullError(MemoryStoreError):
    """There is no room on the store's disk; removing memories makes some."""


class DamagedMemoriesError(ParallmError):
    """What is stored of a collection is not what was stored."""

    status = 409
    type = "invalid_request_error"
    code = "memory_damaged"
