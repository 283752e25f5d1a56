"""A connection for a plain thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ag06.persistence.redis.address import Address
from ag06.persistence.redis.client import (
    ClientError,
    Command,
    ErrorReply,
    Moved,
    count,
    explain,
    explain_handshake,
    for_now,
    is_missing,
    is_wrong_server,
    new_blocking_connection,
    next_node,
    packed,
)
from ag06.persistence.redis.scripts import script


class BlockingWire:
    """One connection, opened at its first request and again after it broke. For one thread at a time."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Speak to `address`; wait `timeout` seconds for a connection and for each reply."""
        self._address = address
        self._timeout = timeout
        self._node = address
        self._connection: Any = None
        self._uncount: Callable[[], object] | None = None

    def run(self, name: str, *arguments: Any) -> Any:
        """Run a script that may be repeated; raise `StoreUnavailable` or what an error reply means."""
        what = script(name)
        command = (b"EVALSHA", what.sha, 1, self._address.prefix, *arguments)
        try:
            reply = self._ask(command)
            if is_missing(reply):
                reply = self._ask((b"EVAL", what.source, *command[2:]))
        except (ClientError, OSError) as error:
            self.close()
            raise for_now(self._address, explain(error, self._address.shown)) from None
        if isinstance(reply, Exception):
            raise for_now(self._address, explain(reply, self._address.shown)) from None
        self._address.used.set()
        return reply

    def _ask(self, command: Command) -> Any:
        """Return the reply; ask another node if the log moved there, and once more if the connection is stale."""
        was_open = self._connection is not None
        try:
            reply = self._exchange(command)
        except (ClientError, OSError):
            if not was_open:
                raise
            self._leave(self._address)
            reply = self._exchange(command)
        if is_wrong_server(reply):
            self._leave(next_node(reply, self._node, self._address))
            if isinstance(reply, Moved):
                reply = self._exchange(command)
        return reply

    def _exchange(self, command: Command) -> Any:
        if self._connection is None:
            self._open()
        self._connection.send_packed_command([packed(command)])
        try:
            return self._connection.read_response()
        except ErrorReply as reply:
            return reply

    def _open(self) -> None:
        connection = new_blocking_connection(self._node, self._timeout)
        try:
            connection.connect()
        except (ClientError, OSError) as error:
            connection.disconnect()
            self._node = self._address
            raise for_now(self._address, explain_handshake(error, self._address)) from None
        self._connection = connection
        self._uncount = count(connection)

    def _leave(self, node: Address) -> None:
        self.close()
        self._node = node

    def close(self) -> None:
        """Close the connection; the next request opens one again."""
        connection, self._connection = self._connection, None
        if self._uncount is not None:
            self._uncount()
            self._uncount = None
        if connection is not None:
            connection.disconnect()
