"""One connection to the server: requests, replies, and what an error means. The only module that imports `redis`."""

from __future__ import annotations

import asyncio
import os
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown, StoreError, StoreUnavailable
from ag06.monitoring.instruments import ACTIVE_CONNECTIONS
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.scripts import NAMES, Script, script

try:
    import redis
    from redis.asyncio.connection import Connection, parse_url
except ImportError:  # pragma: no cover - the tests install it
    raise ConfigurationError(
        "a Redis or Valkey store needs its client: pip install 'ag06[redis]' (in a checkout: pip install '.[redis]')"
    ) from None

Command = tuple[Any, ...]

_REFUSALS = {
    "OOM": "is out of memory (maxmemory); free memory or raise the limit",
    "READONLY": "is a read-only replica; write to the primary",
    "MISCONF": "cannot save to its disk and refuses to write; look at its log",
    "LOADING": "is still loading its data",
    "MASTERDOWN": "is a replica that lost its primary",
    "NOREPLICAS": "has too few replicas to write (min-replicas-to-write)",
    "BUSY": "is busy with somebody's script",
    "CLUSTERDOWN": "is in a cluster that is down",
    "TRYAGAIN": "is moving data in its cluster",
    "MOVED": "moved the log to another node of its cluster",
    "ASK": "is moving the log to another node of its cluster",
    "UNBLOCKED": "changed its role",
    "NOSCRIPT": "lost its scripts again",
}
_FORBIDDEN = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid username-password", "without any password configured")
_CODE = re.compile(r"\b([A-Z]{3,})\b")
_WRONG_SERVER = (
    redis.exceptions.MovedError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.ConnectionError,  # the client counts BusyLoadingError and AuthenticationError among these
)
_WRONG_ROLE = re.compile(r"\b(READONLY|UNBLOCKED)\b")
"""Codes that stand within a message: of a script on Redis 6.2, and of what ends a wait."""
_KEYLESS = (b"WAIT", b"WAITAOF", "WAIT", "WAITAOF")


class GroupLost(StoreUnavailable):
    """The server does not know a group any more: it was emptied, or the group was destroyed."""


class Wire:
    """One connection, opened at its first request and again after it broke. Requests take turns."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Speak to `address`; wait `timeout` seconds for a connection and for each reply."""
        self.address = address
        self.timeout = timeout
        self.connections = 0
        self._node = address
        self._connection: Any = None
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
        arguments: dict[str, Any] = dict(parse_url(self._node.url))
        kind: type[Any] = arguments.pop("connection_class", Connection)
        connection = kind(
            **{
                **arguments,
                "socket_timeout": None,
                "socket_connect_timeout": self.timeout,
                "protocol": 2,
                "client_name": "ag06",
            }
        )
        try:
            async with asyncio.timeout(self.timeout):
                await connection.connect()
        except (redis.RedisError, OSError, TimeoutError) as error:
            await connection.disconnect(nowait=True)
            self._node = self.address
            raise self.explain(error) from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        self._uncount = _count(connection)
        self.connections += 1

    async def request(self, commands: Sequence[Command], patience: float | None = None) -> list[Any]:
        """Send commands at once and return a reply for each; a refused one has an exception in its place.

        Raises `StoreUnavailable` if nothing was sent, `OutcomeUnknown` if the connection was lost after that.
        """
        async with self._turn:
            await self.open()
            replies = await self._exchange(commands, patience or self.timeout)
            if self._connection is None and _all_moved(commands, replies):
                await self.open()
                replies = await self._exchange(commands, patience or self.timeout)
            if self._connection is not None and any(map(_is_missing, replies)):
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
        try:
            async with asyncio.timeout(patience):
                await connection.send_packed_command(b"".join(map(_packed, commands)))
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except redis.ResponseError as error:
                        replies.append(error)
        except (redis.exceptions.BusyLoadingError, redis.exceptions.AuthenticationError) as error:
            # An answer, although the client takes it for a broken connection: nothing was done.
            replies += [error] * (len(commands) - len(replies))
        except TimeoutError:
            await self._drop()
            raise OutcomeUnknown(
                f"{self.address.shown} did not answer within {patience:g} s; the outcome is unknown"
            ) from None
        except (redis.RedisError, OSError) as error:
            await self._drop()
            raise OutcomeUnknown(
                f"the connection to {self.address.shown} was lost before its reply ({error}); the outcome is unknown"
            ) from None
        except BaseException:
            await self._drop()  # replies left in it would be taken for those of the next request
            raise
        if any(isinstance(reply, Exception) for reply in replies):
            await self._mind(replies)
        elif commands[0][0] == b"EVALSHA":
            self.address.used.set()
        return replies

    async def _with_scripts(self, commands: Sequence[Command], replies: list[Any], patience: float) -> list[Any]:
        """Load what the server does not know (it was restarted) and send again what was not done for that reason."""
        missing = {commands[i][1] for i, reply in enumerate(replies) if _is_missing(reply)}
        sources = [(b"SCRIPT", b"LOAD", known.source) for known in map(script, NAMES) if known.sha in missing]
        left = [i for i, reply in enumerate(replies) if _is_missing(reply) or commands[i][0] != b"EVALSHA"]
        again = await self._exchange([*sources, *(commands[i] for i in left)], patience)
        refusal = next((reply for reply in again[: len(sources)] if isinstance(reply, Exception)), None)
        for i, reply in zip(left, again[len(sources) :], strict=True):
            replies[i] = refusal if refusal is not None and _is_missing(reply) else reply
        return replies

    async def _mind(self, replies: list[Any]) -> None:
        """Connect anew after replies that say that this server is the wrong one or will not stay."""
        wrong = next((reply for reply in replies if _is_wrong_server(reply)), None)
        if wrong is not None:
            self._node = _next_node(wrong, self._node, self.address)
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
        meaning = explain(error, self.address.shown)
        if self.address.used.is_set() and isinstance(meaning, ConfigurationError):
            return StoreUnavailable(f"{meaning}; nothing was done")
        return meaning


def _count(connection: object) -> Callable[[], object]:
    """Count an open connection; return what to call when it is closed. One that is only dropped is counted off too."""
    ACTIVE_CONNECTIONS.inc()
    counted = weakref.finalize(connection, _count_off, os.getpid())
    counted.atexit = False
    return counted


def _count_off(pid: int) -> None:
    if pid == os.getpid():  # a child process has counted none of its parent's
        ACTIVE_CONNECTIONS.dec()


def _nothing() -> None:
    """Do nothing."""


def _is_stale(connection: Any) -> bool:
    """Whether the server has closed its end already: then what is sent now is certainly not done."""
    reader = getattr(connection, "_reader", None)
    return reader is not None and (reader.at_eof() or reader.exception() is not None)


def _packed(command: Command) -> bytes:
    """Return a command as RESP arrays of bulk strings: the library's own way takes five times as long."""
    parts = [b"*%d" % len(command)]
    for argument in command:
        data = argument if type(argument) is bytes else str(argument).encode()
        parts += (b"$%d" % len(data), data)
    parts.append(b"")
    return b"\r\n".join(parts)


def _is_missing(reply: Any) -> bool:
    return isinstance(reply, redis.exceptions.NoScriptError)


def _is_wrong_server(reply: Any) -> bool:
    """Whether a reply says to ask another server: the client strips the code from most messages, not from all."""
    return isinstance(reply, _WRONG_SERVER) or (
        isinstance(reply, redis.ResponseError) and _WRONG_ROLE.search(str(reply)) is not None
    )


def _all_moved(commands: Sequence[Command], replies: Sequence[Any]) -> bool:
    """Whether nothing was done, because another node has the log. What has no key is done anywhere."""
    keyed = [reply for command, reply in zip(commands, replies, strict=True) if command[0] not in _KEYLESS]
    return bool(keyed) and all(isinstance(reply, redis.exceptions.MovedError) for reply in keyed)


def _next_node(error: Exception, node: Address, home: Address) -> Address:
    """Return where to ask after an error: where it points to, or `home`, which may mean another server by now."""
    if not isinstance(error, redis.exceptions.MovedError):
        return home
    known = parse_url(node.url).get("host", "localhost")
    return home.at(error.host if error.host not in ("", "?") else known, error.port)


def explain(error: Exception, shown: str) -> AG06Error:
    """Return what an error of the client library means, for the server `shown`; nothing was done."""
    text = str(error)
    if isinstance(error, (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)) or any(
        word in text for word in _FORBIDDEN
    ):
        return ConfigurationError(f"{shown} refuses this user: {text}")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return StoreUnavailable(f"{shown} {_REFUSALS['LOADING']}; nothing was done")
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{shown} did not accept a connection in time; is the server up?")
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return StoreUnavailable(f"cannot reach {shown}: {text.rstrip('.')}; is the server up?")
    if "NOGROUP" in text:
        return GroupLost(f"{shown} does not know the group any more")
    codes = {type(error).__name__.removesuffix("Error").upper(), *_CODE.findall(text)}
    for code, meaning in _REFUSALS.items():
        if code in codes or (code == "OOM" and isinstance(error, redis.exceptions.OutOfMemoryError)):
            return StoreUnavailable(f"{shown} {meaning}; nothing was done")
    return StoreError(f"{shown} refused: {text}")


class BlockingWire:
    """A connection for a plain thread."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Speak to `address`; wait `timeout` seconds for each answer."""
        self._address = address
        self._timeout = timeout
        self._uncount: Callable[[], object] | None = None
        self._connect(address)

    def _connect(self, node: Address) -> None:
        self._node = node
        self._client: Any = redis.Redis.from_url(
            node.url, socket_timeout=self._timeout, socket_connect_timeout=self._timeout, client_name="ag06-leases"
        )

    def run(self, name: str, *arguments: Any) -> Any:
        """Run a script that may be repeated; raise `StoreUnavailable` or what an error reply means."""
        try:
            try:
                reply = self._run(script(name), *arguments)
            except redis.exceptions.MovedError as moved:
                self._reconnect(moved)
                reply = self._run(script(name), *arguments)
        except (redis.RedisError, OSError) as error:
            self._reconnect(error)
            raise explain(error, self._address.shown) from None
        if self._uncount is None:
            self._uncount = _count(self._client)
        return reply

    def _run(self, what: Script, *arguments: Any) -> Any:
        try:
            return self._client.execute_command("EVALSHA", what.sha, 1, self._address.prefix, *arguments)
        except redis.exceptions.NoScriptError:
            return self._client.execute_command("EVAL", what.source, 1, self._address.prefix, *arguments)

    def _reconnect(self, error: Exception) -> None:
        self.close()
        self._connect(_next_node(error, self._node, self._address))

    def close(self) -> None:
        """Close the connection."""
        if self._uncount is not None:
            self._uncount()
            self._uncount = None
        self._client.close()
