"""A link that is slower than loopback: bytes arrive later by a fixed time."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import time

_PIECE = 1 << 20


class SlowLink:
    """Listens on a port of this machine and passes everything on to another, later.

    Args:
        to_port: where the connection goes.
        added_s: how much later each byte arrives, either way.
    """

    def __init__(self, to_port: int, added_s: float) -> None:
        self._to = ("127.0.0.1", to_port)
        self._added_s = added_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = self._connect()
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _connect(self) -> socket.socket:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(self._to)
            time.sleep(0.01)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        waiting: collections.deque[tuple[float, bytes]] = collections.deque()
        more = threading.Semaphore(0)

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    more.acquire()
                    due, data = waiting.popleft()
                    time.sleep(max(0.0, due - time.perf_counter()))
                    target.sendall(data)

        threading.Thread(target=send, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                waiting.append((time.perf_counter() + self._added_s, data))
                more.release()
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
