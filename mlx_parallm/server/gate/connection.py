"""One connection: uvicorn's HTTP/1 protocol with time-outs, and refusals in our envelope."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from mlx_parallm.errors import (
    InvalidRequestError,
    ParallmError,
    RequestTimeoutError,
    UnavailableError,
)
from mlx_parallm.server.gate.connections import Connections, address_of, logger
from mlx_parallm.server.gate.parser import StrictParser
from mlx_parallm.server.gate.request_id import new_request_id
from mlx_parallm.server.output.json_text import to_json

# A body that comes at this rate or faster is never overdue.
_BYTES_PER_S = 16 * 1024
# For a client that takes nothing of its answer, and for the rest of an answer at the end.
_STALLED_S = 120.0
_LINGER_S = 10.0
_MAX_SHOWN = 200
# Never wait behind other requests.
_PROBES = (b"GET /health ", b"HEAD /health ", b"GET /ping ")


class _Waits(enum.Enum):
    """What a connection waits for."""

    REQUEST = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()
    ANSWER = enum.auto()


class Connection(H11Protocol):
    """See ConnectionLimits for what may take how long."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: StrictParser = StrictParser()
        self.logger = logger
        self.address = ""
        self._book = server_state
        self._left = False
        self._waits = _Waits.HEADERS
        self._since = self.loop.time()
        self._received = 0
        self._unread = bytearray()
        self._stalled_since: float | None = None
        self._closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = address_of(self.client[0] if self.client else "")
        if self._book.enter(self):
            return
        logger.warning("too many connections: new ones are refused")
        if self._book.has_reserve():
            # Read by the gate, which lets /health through.
            full = UnavailableError("Too many connections are open.")
            self.app_state = {**self.app_state, "refusal": full}
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._left:
            self._left = True
            self._book.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._waits is _Waits.REQUEST:
            self._wait_for(_Waits.HEADERS)
        self._received += len(data)
        if self._unread:
            self._unread += data
        elif self._waits is _Waits.HEADERS and not data.startswith(_PROBES):
            self._unread += data
            self._unset_keepalive_if_required()
            self._book.pace.run(self._read)
        else:
            super().data_received(data)

    def _read(self) -> None:
        """Parse what has come."""
        data = bytes(self._unread)
        self._unread.clear()
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called where the bytes are no request; the parser knows why."""
        error = self.conn.error
        message = str(error)[:_MAX_SHOWN] if error is not None else msg
        self._refuse(
            InvalidRequestError(f"{message.rstrip('.')}.", code="invalid_http"),
            error.error_status_hint if error is not None else 400,
        )

    def give_way(self) -> None:
        """Close, since another connection needs the room."""
        self._left = True
        self._end(UnavailableError("Too many connections are open."))

    def check_time(self, now: float) -> None:
        """Close if the client has taken too long over what it is expected to do."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now > self._closing_since + _LINGER_S:
                self.transport.abort()
        elif self._stalled_since is not None:
            if now > self._stalled_since + _STALLED_S:
                logger.warning("a client took nothing of its answer for %d s", _STALLED_S)
                self.transport.abort()
        elif now > self._since + self._allowed_s():
            if self._waits is not _Waits.REQUEST:
                logger.warning("a client did not send its request in time")
            self._end(RequestTimeoutError("The request did not arrive in time."))

    def _allowed_s(self) -> float:
        limits = self._book.limits
        if self._waits is _Waits.REQUEST:
            return limits.idle_s
        if self._waits is _Waits.HEADERS:
            return limits.header_s
        if self._waits is _Waits.BODY:
            return limits.body_s + self._received / _BYTES_PER_S
        return float("inf")

    def _note(self) -> None:
        """Compare with the parser what is waited for now."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._wait_for(_Waits.BODY)
        elif state is not h11.IDLE:
            self._wait_for(_Waits.ANSWER)
        elif self._waits is not _Waits.HEADERS:
            # Bytes of the next request may have come with those of the last one.
            begun = bool(self.conn.trailing_data[0])
            self._wait_for(_Waits.HEADERS if begun else _Waits.REQUEST)

    def _wait_for(self, waits: _Waits) -> None:
        if waits is self._waits:
            return
        self._waits, self._since, self._received = waits, self.loop.time(), 0
        if not self._left:
            self._book.set_waiting(self, waits is not _Waits.ANSWER)

    def _end(self, error: ParallmError) -> None:
        """Close; with an answer where a request has begun."""
        begun = self._waits is _Waits.BODY or self._received
        if self._waits is _Waits.REQUEST or not begun:
            self.transport.close()
        elif self._unanswered is not None and self._unanswered.response_started:
            self.transport.abort()
        else:
            self._refuse(error, error.status)

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The request that is being answered."""
        cycle: Any = self.cycle  # None before the first one
        return None if cycle is None or cycle.response_complete else cycle

    def _refuse(self, error: ParallmError, status: int) -> None:
        """Answer in place of the app, and close."""
        if (cycle := self._unanswered) is not None:
            # Its task learns that the client is gone.
            cycle.disconnected = True
            cycle.message_event.set()
        body = to_json(error.envelope())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", new_request_id().encode()),
            (b"connection", b"close"),
        ]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        try:
            reason = STATUS_PHRASES[status]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # An answer has been sent already, before all of its request had come.
            self.transport.abort()
        self.transport.close()
