"""The MemoryGuard: looks how much memory is left, between steps, and makes room before it ends.

One budget for everything: weights, K and V, activations, prefixes, memories, and what Python
itself takes. What other programs leave counts as well. Where little is left, in this order:

1. buffers that MLX keeps for later, and the prefixes that were used longest ago, are freed;
2. no more rows are admitted, and the latest ones are preempted and computed again later;
3. a row that is too large on its own fails with an error.
"""

from __future__ import annotations

import logging
import time

import mlx.core as mx

from mlx_parallm.cache.prefixes.prefix_store import PrefixStore
from mlx_parallm.engine.ranks.turn import Reading
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.models.system_memory import (
    available_bytes,
    resident_bytes,
    return_freed_memory,
)

log = logging.getLogger(__name__)

_LOOK_S = 0.1  # reading what the system says costs about 0.2 ms
_MARGIN = 1 / 32  # of the limit, which is kept free: what a few steps may need until the next look
_LEAST_MARGIN = 64 << 20  # but an eighth of a small limit
_CRITICAL = 1 / 4  # of the margin: now a row has to go


def measure(limit: int) -> Reading:
    """The memory in use now.

    Args:
        limit: bytes that the process may use.
    """
    device = mx.default_device()
    used, found = mx.get_active_memory() + mx.get_cache_memory(), None
    if device.type == mx.DeviceType.cpu:
        used, found = resident_bytes() or used, available_bytes()
    elif "free_memory" in (info := mx.device_info(device)):
        found = int(info["free_memory"])  # CUDA; Metal's memory is limited by what it recommends
    left = limit - used
    return Reading(used, limit, left if found is None else min(left, found))


class MemoryGuard:
    """Keeps one engine within a limit. On the engine's thread.

    Args:
        limit: bytes that the process may use.
        token_bytes: K and V of one token in all layers; 0 for recurrent models.

    Attributes:
        limit: bytes that the process may use.
        use: as it was seen last.
        shared: other ranks compute the same, and do with one reading what this one does.
    """

    def __init__(
        self,
        limit: int,
        scheduler: ContinuousBatchScheduler,
        prefixes: PrefixStore | None,
        token_bytes: int,
    ) -> None:
        self.margin = int(max(limit * _MARGIN, min(limit / 8, _LEAST_MARGIN)))
        self.limit = limit
        self.shared = False
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._token_bytes = max(1, token_bytes)
        self._next_look = 0.0
        self._short = False
        self.use = measure(limit)

    def read(self) -> Reading | None:
        """The memory in use now, where it is time to look again."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_S
        return measure(self.limit)

    def look(self, use: Reading | None) -> bool:
        """Make room where little is left, and bound what is admitted by what is left.

        Args:
            use: the newest reading; None where nothing new is known.

        Returns:
            whether a row has to go although nothing else can be freed.
        """
        if use is None:
            return False
        self.use = use
        # What is freed now shows in the next reading of ranks that share one.
        was_short = self._short or not self.shared
        if self.use.left < self.margin:
            self.make_room(self.margin - self.use.left)
        left = self.use.left - self.margin
        self._say(left < 0)
        used = self._scheduler.kv_tokens_used
        self._scheduler.configure(kv_room=max(0, used + left // self._token_bytes))
        return was_short and self.use.left < self.margin * _CRITICAL

    def make_room(self, nbytes: int | None = None) -> None:
        """Free what nobody needs now: unused buffers, and prefixes.

        Args:
            nbytes: of prefixes; None is all of them.
        """
        prefixes = self._prefixes
        page = 0 if prefixes is None else prefixes.page_nbytes
        if prefixes is not None and page and nbytes is not None:
            prefixes.tree.evict(1 + nbytes // page)
        elif prefixes is not None:
            prefixes.tree.clear()
        mx.clear_cache()
        return_freed_memory()
        if not self.shared:
            self.use = measure(self.limit)

    def _say(self, short: bool) -> None:
        if short and not self._short:
            log.warning(
                "memory is short: %d MB in use, %d MB left; rows wait until there is more",
                self.use.used >> 20,
                max(0, self.use.left) >> 20,
            )
        self._short = short


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed because the device or the system had no memory left for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("out of memory", "unable to allocate", "bad_alloc", "outofmemory")
    )
