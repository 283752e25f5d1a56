"""One connection to the server in an event loop: requests, replies, and which server to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ag06.errors import (
    AG06Error,
    ConfigurationError,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
    TooLarge,
)
from ag06.persistence.log import Disconnected
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.client import (
    ANSWERS,
    ClientError,
    Command,
    ErrorReply,
    are_moved,
    count,
    explain,
    explain_handshake,
    for_now,
    is_cut_short,
    is_missing,
    is_wrong_server,
    new_connection,
    next_node,
    packed,
)
from ag06.persistence.redis.mistakes import find_other_protocol
from ag06.persistence.redis.progress import Meter, Patience, carrying_time
from ag06.persistence.redis.scripts import NAMES, Script, script

_KEYLESS = (b"WAIT", b"WAITAOF", "WAIT", "WAITAOF")
_SMALL_REQUEST = 1_000_000
"""Bytes that every server takes."""
_LIMITS = {"proto-max-bulk-len": 512 << 20, "client-query-buffer-limit": 1 << 30}
"""Settings of a server, and their values unless it tells others: for one argument, and for all of a command."""
_HANDSHAKE_SECONDS = 2.0
"""How long a first connection may take before somebody asks whether the server speaks another protocol."""


class Wire:
    """One connection, opened at its first request and again after it broke. Requests take turns."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Speak to `address`; wait `timeout` seconds for a connection, and in a request while nothing moves."""
        self.address = address
        self.timeout = timeout
        self.connections = 0
        self.moved_at = 0.0
        """When a request that took long was last seen to move bytes, by the loop's clock."""
        self._node = address
        self._connection: Any = None
        self._limits: dict[str, int] | None = None
        self._uncount: Callable[[], object] = _nothing
        self._turn = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        """Connect if there is no connection; raise `StoreUnavailable` or `ConfigurationError`."""
        if self._closed:
            raise StoreError(f"{self.address.shown} was closed here; open it again")
        if self._connection is not None:
            if self._connection.is_connected and not _is_stale(self._connection):
                return
            await self._drop()
        connection = await self._connected()
        self._connection, self._limits = connection, None
        self._meter = Meter(connection._reader, connection._writer)
        self._uncount = count(connection)
        self.connections += 1

    async def _connected(self) -> Any:
        """Return a new connection that is open."""
        known = self.address.used.is_set()
        first = self.timeout if known else min(_HANDSHAKE_SECONDS, self.timeout / 2)
        shares = (first,) if known else (first, self.timeout - first)
        for seconds in shares:
            connection = new_connection(self._node, self.timeout)
            try:
                async with asyncio.timeout(seconds):
                    await connection.connect()
            except (ClientError, OSError, TimeoutError) as error:
                await connection.disconnect(nowait=True)
                failure = await self._failed(error, known=known)
                if isinstance(failure, ConfigurationError) or not isinstance(error, TimeoutError):
                    break
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            else:
                return connection
        self._node = self.address
        raise failure from None

    async def _failed(self, error: Exception, *, known: bool) -> AG06Error:
        """Return what it means that no connection could be made."""
        if not known and is_cut_short(error) and (wrong := await find_other_protocol(self._node)) is not None:
            return ConfigurationError(f"{self.address.shown} cannot be used: {wrong}")
        return for_now(self.address, explain_handshake(error, self.address))

    async def request(
        self, commands: Sequence[Command], patience: float | None = None, *, most_reply: int | None = None
    ) -> list[Any]:
        """Send commands at once and return a reply for each; a refused one has an exception in its place.

        `patience`: how many seconds may pass without a byte sent or received, `timeout` unless given; a large request
        has more, see `carrying_time`. `most_reply`: of a larger reply, in bytes, the rest is not waited for.

        Raises `StoreUnavailable` if nothing was sent, `Disconnected` if the connection was lost after that, and
        `OutcomeUnknown` if there was no reply in time.
        """
        async with self._turn:
            await self.open()
            self._meter.allow(most_reply)
            replies = await self._exchange(commands, patience or self.timeout)
            if self._connection is None and _all_moved(commands, replies):
                await self.open()
                replies = await self._exchange(commands, patience or self.timeout)
            if self._connection is not None and any(map(is_missing, replies)):
                replies = await self._with_scripts(commands, replies, patience or self.timeout)
            return replies

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the replies to commands that may be repeated: a connection that went stale is replaced once.

        Raises `StoreUnavailable`, or what an error reply means.
        """
        try:
            try:
                replies = await self.request(commands)
            except OutcomeUnknown:
                replies = await self.request(commands)
        except OutcomeUnknown as error:
            raise StoreUnavailable(str(error)) from None
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.explain(reply) from None
        return replies

    async def run(self, name: str, *arguments: Any) -> Any:
        """Run a script that may be repeated; return its reply."""
        (reply,) = await self.ask(self.call(script(name), *arguments))
        return reply

    async def run_command(self, *command: Any) -> Any:
        """Return the reply to one command that may be repeated."""
        (reply,) = await self.ask(command)
        return reply

    def call(self, what: Script, *arguments: Any) -> Command:
        """Return the command that runs a script on this log."""
        return (b"EVALSHA", what.sha, 1, self.address.prefix, *arguments)

    async def _exchange(self, commands: Sequence[Command], patience: float) -> list[Any]:
        connection = self._connection
        replies: list[Any] = []
        request = b"".join(map(packed, commands))
        if len(request) > _SMALL_REQUEST:
            await self._check_sizes(commands)
        patience += carrying_time(len(request))
        limit = Patience(self._meter, patience)
        try:
            async with limit:
                await connection.send_packed_command(request)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except ErrorReply as error:
                        replies.append(error)
        except ANSWERS as error:
            # An answer, although the client takes it for a broken connection: nothing was done.
            replies += [error] * (len(commands) - len(replies))
        except TimeoutError:
            await self._drop()
            raise OutcomeUnknown(
                f"{self.address.shown} neither took nor sent a byte for {patience:g} s; the outcome is unknown"
            ) from None
        except (ClientError, OSError) as error:
            await self._drop()
            raise Disconnected(
                f"the connection to {self.address.shown} was lost before its reply ({error}); the outcome is unknown"
            ) from None
        except BaseException:
            await self._drop()  # replies left in it would be taken for those of the next request
            raise
        finally:
            self.moved_at = limit.moved_at or self.moved_at
        if any(isinstance(reply, Exception) for reply in replies):
            await self._mind(replies)
        elif commands[0][0] == b"EVALSHA":
            self.address.used.set()
        return replies

    async def _check_sizes(self, commands: Sequence[Command]) -> None:
        """Raise `TooLarge` for what the server would refuse by closing the connection, each time it is repeated."""
        known, limits = self._limits is not None, self._limits or await self._ask_limits()
        if known and _too_large(commands, limits):  # somebody may have raised the setting since
            limits = await self._ask_limits()
        if found := _too_large(commands, limits):
            name, size = found
            raise TooLarge(
                f"{self.address.shown} takes at most {limits[name]} bytes at once ({name}), not {size}; publish less "
                "at once, or raise that setting; nothing was done"
            )

    async def _ask_limits(self) -> dict[str, int]:
        replies = await self._exchange([("CONFIG", "GET", name) for name in _LIMITS], self.timeout)
        told = [reply and not isinstance(reply, Exception) for reply in replies]
        self._limits = {
            name: int(reply[1]) if tells else default
            for (name, default), reply, tells in zip(_LIMITS.items(), replies, told, strict=True)
        }
        return self._limits

    async def _with_scripts(self, commands: Sequence[Command], replies: list[Any], patience: float) -> list[Any]:
        """Load what the server does not know (it was restarted) and send again what was not done for that reason."""
        missing = {commands[i][1] for i, reply in enumerate(replies) if is_missing(reply)}
        sources = [(b"SCRIPT", b"LOAD", known.source) for known in map(script, NAMES) if known.sha in missing]
        left = [i for i, reply in enumerate(replies) if is_missing(reply) or commands[i][0] != b"EVALSHA"]
        again = await self._exchange([*sources, *(commands[i] for i in left)], patience)
        refusal = next((reply for reply in again[: len(sources)] if isinstance(reply, Exception)), None)
        for i, reply in zip(left, again[len(sources) :], strict=True):
            replies[i] = refusal if refusal is not None and is_missing(reply) else reply
        return replies

    async def _mind(self, replies: list[Any]) -> None:
        """Connect anew after replies that say that this server is the wrong one or will not stay."""
        wrong = next((reply for reply in replies if is_wrong_server(reply)), None)
        if wrong is not None:
            self._node = next_node(wrong, self._node, self.address)
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._uncount()
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the connection, after a request that may be under way."""
        self._closed = True
        async with self._turn:
            await self._drop()

    def abandon(self) -> None:
        """Count the connection off: the event loop that it belongs to has ended, and it ends with what held it."""
        self._uncount()

    def explain(self, error: Exception) -> AG06Error:
        """Return what an error of the client or an error reply means to a caller; nothing was done.

        A user who is refused is a mistake of configuration at the start, and an outage later on.
        """
        return for_now(self.address, explain(error, self.address.shown))


def _nothing() -> None:
    """Do nothing."""


def _is_stale(connection: Any) -> bool:
    """Whether the server has closed its end already: then what is sent now is certainly not done."""
    reader = getattr(connection, "_reader", None)
    return reader is not None and (reader.at_eof() or reader.exception() is not None)


def _all_moved(commands: Sequence[Command], replies: Sequence[Any]) -> bool:
    """Whether nothing was done, because another node has the log. What has no key is done anywhere."""
    return are_moved([reply for command, reply in zip(commands, replies, strict=True) if command[0] not in _KEYLESS])


def _too_large(commands: Sequence[Command], limits: dict[str, int]) -> tuple[str, int] | None:
    """Return the setting of the server that a command exceeds, and the size that does; `None` if none does."""
    for command in commands:
        sizes = [len(part if type(part) is bytes else str(part).encode()) for part in command]
        for (name, limit), size in zip(limits.items(), (max(sizes), sum(sizes)), strict=True):
            if size > limit:
                return name, size
    return None
