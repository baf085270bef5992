"""A server for a command: one that runs already, or one that lives as long as the command."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType


class ServerStartError(RuntimeError):
    """The server did not start; it has said why on stderr."""


@contextlib.contextmanager
def running_server(url: str | None, arguments: Sequence[str]) -> Iterator[str]:
    """The address of a running server, or of one that runs until the block ends.

    Args:
        arguments: options of mlx_parallm_serve for a server of our own.
    """
    if url is not None:
        yield url.rstrip("/")
        return
    command = [sys.executable, "-m", "mlx_parallm", "serve", "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in the terminal is the command's, not the server's
    )
    try:
        with _ends_in_order():
            yield _address(process)
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def _ends_in_order() -> Iterator[None]:
    """SIGTERM and a closed terminal raise SystemExit, so that the server ends too."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    found = re.search(r"https?://\S+:\d+", line)
    if found is None:
        raise ServerStartError("the server did not start; its reason is above")
    return found[0]
