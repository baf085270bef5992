"""A server for a command: one that runs already, or one that lives as long as the command."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence


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
        yield _address(process)
    finally:
        process.terminate()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    found = re.search(r"https?://\S+:\d+", line)
    if found is None:
        raise ServerStartError("the server did not start; its reason is above")
    return found[0]
