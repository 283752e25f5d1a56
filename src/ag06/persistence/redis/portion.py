"""How many bytes of events to ask for at once: less after a reply that did not come, more after those that did."""

from __future__ import annotations

from ag06.errors import AG06Error
from ag06.persistence.redis.wire import Wire

_LARGEST = 4 << 20
_SMALLEST = 1 << 10
_STEP = 8
_PATIENCE = 64


class Portion:
    """The bytes of events after which a reply ends; 1: a reply brings one event.

    A server closes the connection of a client for which more waits than `client-output-buffer-limit` allows, or, of
    those for which most waits, when all together exceed `maxmemory-clients`. What failed is tried again after many
    replies that came.
    """

    def __init__(self) -> None:
        self.bytes = _LARGEST
        self._came = 0
        self._failed_alone = 0

    def failed(self) -> bool:
        """Note that a reply broke off or did not come; return whether less can be asked for now."""
        self._came = 0
        if self.bytes == 1:
            self._failed_alone += 1
            return False
        less = self.bytes // _STEP
        self.bytes = less if less >= _SMALLEST else 1
        return True

    def came(self) -> None:
        """Note that a reply came."""
        self._failed_alone = 0
        if self.bytes < _LARGEST:
            self._came += 1
            if self._came >= _PATIENCE:
                self._came = 0
                self.bytes = min(_LARGEST, max(_SMALLEST, self.bytes * _STEP))

    @property
    def is_hopeless(self) -> bool:
        """Whether not even one event comes, though it was asked for twice."""
        return self._failed_alone > 1


async def reply_limits(wire: Wire) -> str:
    """Return the settings of the server that end connections because of large replies, as far as it tells them."""
    buffers, memory = await _setting(wire, "client-output-buffer-limit"), await _setting(wire, "maxmemory-clients")
    words = buffers.split()
    for at in range(0, len(words), 4):  # class, bytes, bytes for some seconds, seconds
        if words[at] == "normal":
            buffers = " ".join(words[at : at + 4])
    return f"client-output-buffer-limit {buffers}, maxmemory-clients {memory}"


async def _setting(wire: Wire, name: str) -> str:
    try:
        reply = await wire.run_command("CONFIG", "GET", name)
    except AG06Error:  # this user may not see it
        reply = ()
    return reply[1].decode() if reply else "(it does not tell)"
