"""How every connection to a server is made, and what errors mean. The only module that imports `redis`."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ag06.errors import AG06Error, ConfigurationError, StoreError, StoreUnavailable, Unstorable
from ag06.monitoring.instruments import ACTIVE_CONNECTIONS
from ag06.persistence.log import StoreFull
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.mistakes import in_handshake, is_tls_error

try:
    import redis
    from redis import connection as blocking
    from redis.asyncio import connection as loops
except ImportError:  # pragma: no cover - the tests install it
    raise ConfigurationError(
        "a Redis or Valkey store needs its client: pip install 'ag06[redis]' (in a checkout: pip install '.[redis]')"
    ) from None

try:  # from redis-py 8 on each connection reads the version of the package from the disk, unless it is given
    from redis.driver_info import DriverInfo

    _DRIVER: dict[str, Any] = {"driver_info": DriverInfo()}
except ImportError:
    _DRIVER = {}

Command = tuple[Any, ...]

ClientError = redis.RedisError
ErrorReply = redis.ResponseError
Moved = redis.exceptions.MovedError
ANSWERS = (redis.exceptions.BusyLoadingError, redis.exceptions.AuthenticationError)
"""Error replies that the client counts among broken connections."""

_REFUSALS = {
    "OOM": "is over its memory limit (maxmemory) and takes no new events; drain it, or raise the limit",
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
"""What passes by itself, or once somebody looks after the server."""
_FORBIDDEN = {"NOAUTH", "WRONGPASS", "NOPERM"}
_CLASSES = {
    redis.exceptions.AuthenticationError: "NOAUTH",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.MovedError: "MOVED",
    redis.exceptions.AskError: "ASK",
    redis.exceptions.NoScriptError: "NOSCRIPT",
}
"""Of errors whose code the client strips from the message."""
_IN_SCRIPT = re.compile(r"(?:Error (?:running|compiling) script [^:]*: )?(?:@?user_script: ?\d+: )*-?(?:ERR )?")
"""What Redis 6.2 puts before the error of a command in a script. From 7 on it comes behind the message."""
_CODE = re.compile(r"([A-Z]{3,}) ")
_NOPERM_IN_SCRIPT = "ACL failure in script: "
"""How a command that a user may not run is refused within a script, from Redis 7 on: under the code ERR."""
_WRONG_SERVER = (
    redis.exceptions.MovedError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.ConnectionError,  # the client counts BusyLoadingError and AuthenticationError among these
)
_WRONG_ROLE = {"READONLY", "UNBLOCKED"}
"""Codes of a server that is a replica, and of what ends a wait when it becomes one."""


class GroupLost(StoreUnavailable):
    """The server does not know a group any more: it was emptied, or the group was destroyed."""


def new_connection(node: Address, timeout: float) -> Any:
    """Return a connection for an event loop, not open yet; what is sent and received has no time limit of its own."""
    return _made(loops, node, timeout, None, "ag06")


def new_blocking_connection(node: Address, timeout: float) -> Any:
    """Return a connection for a plain thread, not open yet; each wait for the other side takes `timeout` seconds."""
    return _made(blocking, node, timeout, timeout, "ag06-leases")


def _made(kinds: Any, node: Address, timeout: float, wait: float | None, name: str) -> Any:
    """Both kinds are made here alike, so that what one of them can do, the other can do too.

    They speak RESP2, as every server and proxy does, whereas RESP3 needs the command HELLO.
    """
    settings: dict[str, Any] = dict(kinds.parse_url(node.url))
    kind: type[Any] = settings.pop("connection_class", kinds.Connection)
    settings |= _DRIVER
    settings |= {
        "socket_timeout": wait,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        "protocol": 2,
        "client_name": name,
    }
    return kind(**settings)


def count(connection: object) -> Callable[[], object]:
    """Count an open connection; return what to call when it is closed. One that is only dropped is counted off too."""
    ACTIVE_CONNECTIONS.inc()
    counted = weakref.finalize(connection, _count_off, os.getpid())
    counted.atexit = False
    return counted


def _count_off(pid: int) -> None:
    if pid == os.getpid():  # a child process has counted none of its parent's
        ACTIVE_CONNECTIONS.dec()


def packed(command: Command) -> bytes:
    """Return a command as RESP arrays of bulk strings: the library's own way takes five times as long."""
    parts = [b"*%d" % len(command)]
    for argument in command:
        data = argument if type(argument) is bytes else str(argument).encode()
        parts += (b"$%d" % len(data), data)
    parts.append(b"")
    return b"\r\n".join(parts)


def is_missing(reply: Any) -> bool:
    """Whether a reply says that the server does not know the script."""
    return isinstance(reply, redis.exceptions.NoScriptError)


def is_wrong_server(reply: Any) -> bool:
    """Whether a reply says to ask another server: the client strips the code from most messages, not from all."""
    return isinstance(reply, _WRONG_SERVER) or (isinstance(reply, redis.ResponseError) and _code(reply) in _WRONG_ROLE)


def are_moved(replies: Sequence[Any]) -> bool:
    """Whether all replies say that another node has the log, so that nothing was done."""
    return bool(replies) and all(isinstance(reply, redis.exceptions.MovedError) for reply in replies)


def next_node(error: Exception, node: Address, home: Address) -> Address:
    """Return where to ask after an error: where it points to, or `home`, which may mean another server by now."""
    if not isinstance(error, redis.exceptions.MovedError):
        return home
    known = loops.parse_url(node.url).get("host", "localhost")
    return home.at(error.host if error.host not in ("", "?") else known, error.port)


def _code(error: Exception) -> str | None:
    """Return the code of an error reply; `None` if it has none of its own."""
    for kind in type(error).__mro__:
        if kind in _CLASSES:
            return _CLASSES[kind]
    if not isinstance(error, redis.ResponseError):
        return None
    text = str(error)
    before = _IN_SCRIPT.match(text)
    text = text[before.end() :] if before else text
    if text.startswith(_NOPERM_IN_SCRIPT):
        return "NOPERM"
    found = _CODE.match(text)
    return found[1] if found else None


def explain_handshake(error: Exception, node: Address) -> AG06Error:
    """Return what an error means that came while a connection was made: nothing was asked for yet.

    What no waiting heals is a `ConfigurationError`: a certificate, a protocol, a user, a database.
    """
    shown = node.shown
    if isinstance(error, redis.exceptions.InvalidResponse):
        return ConfigurationError(
            f"{shown} does not answer as a Redis or Valkey server does ({error}); correct host, port or scheme"
        )
    if (mistake := in_handshake(error)) is not None:
        return ConfigurationError(f"{shown} cannot be used: {mistake}")
    if isinstance(error, redis.ResponseError) and _code(error) not in {*_REFUSALS, *_FORBIDDEN}:
        return ConfigurationError(
            f"{shown} refuses the connection: {error}; correct the user, the password or the database in the URL"
        )
    return explain(error, shown)


def is_cut_short(error: Exception) -> bool:
    """Whether a connection was accepted, but then closed, or answered with something that nobody expected."""
    if isinstance(error, (redis.ResponseError, *ANSWERS)):
        return False
    if is_tls_error(error):
        return True
    cause = error.__cause__ or error.__context__
    return isinstance(error, redis.exceptions.InvalidResponse | TimeoutError | redis.TimeoutError) or (
        isinstance(error, redis.ConnectionError)
        and (not isinstance(cause, OSError) or isinstance(cause, ConnectionResetError | BrokenPipeError))
    )


def for_now(address: Address, meaning: AG06Error) -> AG06Error:
    """Return `meaning`; where the store has worked in this process, a mistake of configuration is an outage.

    A password that is changed, or a certificate that expires, while a workflow runs must not end it.
    """
    if address.used.is_set() and isinstance(meaning, ConfigurationError):
        return StoreUnavailable(f"{meaning}; nothing was done")
    return meaning


def explain(error: Exception, shown: str) -> AG06Error:
    """Return what an error of the client library means, for the server `shown`; nothing was done."""
    text = str(error)
    code = _code(error)
    if code in _FORBIDDEN:
        return ConfigurationError(f"{shown} refuses this user: {text}")
    if code in _REFUSALS:
        kind = StoreFull if code == "OOM" else StoreUnavailable
        return kind(f"{shown} {_REFUSALS[code]}; nothing was done")
    if code == "NOGROUP":
        return GroupLost(f"{shown} does not know the group any more")
    if code == "UNFIT":
        return Unstorable(f"{shown}: {text.partition('UNFIT ')[2]}; move it away, then try again")
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{shown} did not accept a connection in time; is the server up?")
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return StoreUnavailable(f"cannot reach {shown}: {text.rstrip('.')}; is the server up?")
    return StoreError(f"{shown} refused: {text}")
