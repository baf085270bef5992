"""What a client may still do: requests and tokens a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mlx_parallm.errors import RateLimitError

_MINUTE = 60.0


class Bucket:
    """A token bucket: full at the start, filled again within a minute.

    Args:
        per_minute: its size.
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What is left; below 0 where more was taken than there was."""
        now = self._clock()
        gained = (now - self._at) * self.per_minute / _MINUTE
        self._level, self._at = min(float(self.per_minute), self._level + gained), now
        return self._level

    def take(self, count: float) -> None:
        """Take so much, also below 0."""
        self._level = self.level - count

    def seconds_to(self, level: float) -> float:
        """Until there is that much."""
        return max(0.0, (level - self.level) * _MINUTE / self.per_minute)


class Allowance:
    """The limits of one client; None is no limit.

    How many tokens an answer takes is not known when it begins. So a request is let in where
    any are left, and what it took is paid for before the next one.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = requests_per_minute and Bucket(requests_per_minute, clock)
        self.tokens = tokens_per_minute and Bucket(tokens_per_minute, clock)

    def take_request(self) -> RateLimitError | None:
        """Let one more request in; or why not, and when to come back."""
        if self.requests and self.requests.level < 1:
            return _refusal(self.requests, "requests", 1)
        if self.tokens and self.tokens.level < 1:
            return _refusal(self.tokens, "tokens", 1)
        if self.requests:
            self.requests.take(1)
        return None

    def spend(self, tokens: int) -> None:
        """Tokens of a prompt or an answer."""
        if self.tokens:
            self.tokens.take(tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit-* headers; https://platform.openai.com/docs/guides/rate-limits."""
        found = []
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket:
                left = max(0, math.floor(bucket.level))
                reset = bucket.seconds_to(bucket.per_minute)
                found += [
                    (f"x-ratelimit-limit-{name}", str(bucket.per_minute)),
                    (f"x-ratelimit-remaining-{name}", str(left)),
                    (f"x-ratelimit-reset-{name}", f"{reset:.3f}s"),
                ]
        return [(name.encode(), value.encode()) for name, value in found]


def _refusal(bucket: Bucket, what: str, needed: float) -> RateLimitError:
    error = RateLimitError(
        f"Your key may use {bucket.per_minute} {what} a minute, and they are used up.",
        code=f"{what}_per_minute_exceeded",
    )
    error.retry_after_s = max(1, math.ceil(bucket.seconds_to(needed)))
    return error
