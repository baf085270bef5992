"""A process that is started, watched, started again where it ends, and ended cleanly."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence

# How long a process that ends again and again waits before it is started.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SETTLED_S = 60.0


class Child:
    """A process and, where it ends, its successors.

    Args:
        name: for messages.
        command: starts it.
        environment: further variables; secrets belong here, as a command is seen by everybody.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.restarts = 0
        self.command = list(command)
        self._environment = environment or {}
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0
        self._start_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of its last process; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process. A group of its own: Ctrl-C is for its supervisor."""
        environment = os.environ | self._environment
        self._process = subprocess.Popen(self.command, start_new_session=True, env=environment)
        self._started_at = time.monotonic()

    def look(self, now: float) -> bool:
        """Start it again where it ended; later and later where it ends again and again.

        Args:
            now: of time.monotonic().

        Returns:
            whether it has ended since the last look.
        """
        if self.alive:
            if now - self._started_at > _SETTLED_S:
                self._pause_s = _FIRST_PAUSE_S
            return False
        if self._start_at is None:
            self._start_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return True
        if now >= self._start_at:
            self._start_at = None
            self.restarts += 1
            self.start()
        return False

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.alive and self._process is not None:
            self._process.send_signal(number)

    def join(self, timeout_s: float) -> None:
        """Wait for its end; kill it afterwards."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
