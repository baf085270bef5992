"""How tests wait: for an event, with a limit that only a defect reaches.

Machines that run tests are shared: what takes 50 ms here may take 5 s there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Poll until it is true."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not become true"
        time.sleep(0.002)
