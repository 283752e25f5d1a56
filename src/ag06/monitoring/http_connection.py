"""One HTTP/1.1 connection: h11 knows the protocol, this module the waiting, the bounds and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote

import h11
import msgspec

from ag06.monitoring.http_messages import Request, Response, problem

_logger = logging.getLogger("ag06.monitoring")

_READ_BYTES = 8192
_LINGER_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)
_KNOWN = frozenset(HTTPStatus)
_ALWAYS = (("cache-control", "no-store"), ("x-content-type-options", "nosniff"), ("server", "ag06"))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer may cost.

    Attributes:
        connections: most connections at once.
        head_bytes: most bytes of a request's line and headers.
        body_bytes: most bytes of its body.
        idle_seconds: how long a connection may wait for its next request.
        read_seconds: how long a request may take to arrive, from its first byte to its last.
        handle_seconds: how long a handler may take to answer; the pieces of a long answer come after that.
        write_seconds: how long a peer may leave one piece of an answer unread.
    """

    connections: int = 100
    head_bytes: int = 16_384
    body_bytes: int = 1_048_576
    idle_seconds: float = 60.0
    read_seconds: float = 10.0
    handle_seconds: float = 30.0
    write_seconds: float = 10.0


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """The request is answered with this, and the connection ends."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Connection:
    """One peer, from accept to close."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Request], Awaitable[Response]],
        limits: Limits,
    ) -> None:
        """Answer each request by `answer`, which raises nothing."""
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._closing = False
        self._method = "GET"
        self.waiting_since: float | None = None
        """When it began to wait for a whole request, by the clock of its loop; `None` while it has one, or ends."""

    async def serve(self) -> None:
        """Answer requests until the peer, an error, a limit or `finish` ends it."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except (ConnectionError, TimeoutError):
            pass  # the peer went away, or is too slow to be waited for
        finally:
            await self._end()

    def finish(self) -> None:
        """Answer the request there is, and no more."""
        self._closing = True
        if self.waiting_since is not None:
            self.waiting_since = None
            self._writer.close()

    def refuse(self) -> None:
        """Say that there are too many connections, without waiting for a request."""
        head = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self._writer.write(head)
        self._writer.close()

    async def _serve_one(self) -> bool:
        """Answer one request; return whether the connection can take another."""
        self._method = "GET"
        try:
            request = await self._read_request()
            if request is None:
                return False
            response = await self._answer(request)
        except _Refused as refused:
            response = refused.response
        await self._write(response)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self._closing

    async def _read_request(self) -> Request | None:
        """Return the next request, or `None` at the end of the connection."""
        loop = asyncio.get_running_loop()
        self.waiting_since = loop.time()
        if not self._http.trailing_data[0]:
            async with asyncio.timeout(self._limits.idle_seconds):
                await self._receive()
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                head = await self._next_event()
                if not isinstance(head, h11.Request):
                    return None
                self._method = head.method.decode("ascii")
                body = await self._read_body()
        except h11.RemoteProtocolError as error:
            raise _Refused(problem(error.error_status_hint, f"not a request that can be read: {error}")) from error
        except TimeoutError as error:
            detail = f"the request did not arrive within {self._limits.read_seconds:g} s"
            raise _Refused(problem(408, detail)) from error
        self.waiting_since = None
        return _request(head, body)

    async def _read_body(self) -> bytes:
        body = bytearray()
        while True:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return bytes(body)
            if not isinstance(event, h11.Data):
                raise ConnectionResetError("the peer went away in the middle of a request")
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise _Refused(problem(413, f"the body is longer than {self._limits.body_bytes} bytes"))

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        self._http.receive_data(await self._reader.read(_READ_BYTES))

    async def _write(self, response: Response) -> None:
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        headers = [*response.headers.items(), ("content-type", response.content_type), *_ALWAYS]
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(response.body))))
        if self._closing or self._http.their_state is not h11.DONE:
            headers.append(("connection", "close"))
        headers.append(("date", formatdate(usegmt=True)))
        reason = HTTPStatus(response.status).phrase if response.status in _KNOWN else ""
        head = h11.Response(status_code=response.status, headers=headers, reason=reason)
        if isinstance(response.body, bytes):
            body = b"" if self._method == "HEAD" else response.body
            await self._send(head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
        else:
            await self._send(head)
            await self._write_pieces(response.body)

    async def _write_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        if self._method != "HEAD":
            async with contextlib.aclosing(_told_of(pieces)) as told:
                async for piece in told:
                    await self._send(h11.Data(data=piece))
        await self._send(h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        self._writer.write(data)
        async with asyncio.timeout(self._limits.write_seconds):
            await self._writer.drain()

    async def _end(self) -> None:
        if self._http.our_state in {h11.SEND_BODY, h11.ERROR}:
            # The peer must see that the answer is not whole, which without chunks only a reset tells.
            with contextlib.suppress(OSError):  # it may be gone already
                peer = self._writer.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._writer.transport.abort()
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._linger()
        except (OSError, TimeoutError):
            pass
        self._writer.close()
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def _linger(self) -> None:
        """Read what a peer still sends of a refused request: closing at once would reset it before it sees why."""
        if self._http.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED} or self._writer.is_closing():
            return
        self._writer.write_eof()
        while await self._reader.read(_READ_BYTES):
            pass


def _request(head: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    target, _, query = head.target.decode("ascii").partition("?")
    if target.lower().startswith("http://"):  # as a proxy is asked; RFC 9112, 3.2.2: then the target names the host
        headers["host"], slash, rest = target[7:].partition("/")
        target = slash + rest or "/"
    if not target.startswith("/"):
        raise _Refused(problem(400, "the target of a request must be a path"))
    return Request(head.method.decode("ascii"), unquote(target), query, headers, body)


async def _told_of(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the pieces, close them, and tell the log of an error of theirs, which is no error of the peer."""
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        _logger.exception("an answer broke off in its middle")
        raise ConnectionAbortedError("the answer broke off") from error
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
