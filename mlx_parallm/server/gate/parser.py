"""h11's parser, stricter where leniency lets two servers see two requests in the same bytes."""

from __future__ import annotations

import h11

_MAX_TARGET = 16 * 1024
_MAX_HEADERS = 64 * 1024


class StrictParser(h11.Connection):
    """The server's side of one connection.

    Attributes:
        error: why the last request was refused; its `error_status_hint` is the status.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=_MAX_HEADERS)
        self.error: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: the client's bytes are no request of HTTP/1.
        """
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check(event)
        except h11.RemoteProtocolError as error:
            self.error = error
            raise
        return event


def _check(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("This server speaks HTTP/1.1", error_status_hint=505)
    if b"transfer-encoding" in names:
        # RFC 9112, 6.1 and 6.3: the way to smuggle requests past a proxy.
        if b"content-length" in names:
            raise h11.RemoteProtocolError("Transfer-Encoding and Content-Length exclude each other")
        if request.http_version < b"1.1":
            raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")
    if len(request.target) > _MAX_TARGET:
        raise h11.RemoteProtocolError("The URL is too long", error_status_hint=414)
    if sum(len(name) + len(value) for name, value in request.headers) > _MAX_HEADERS:
        raise h11.RemoteProtocolError("The headers are too long", error_status_hint=431)
