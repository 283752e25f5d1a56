"""Receiving: what is new or ready again for one step, handed to one worker."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from operator import attrgetter
from typing import Any

import msgspec

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown
from ag06.persistence.log import Delivery
from ag06.persistence.measuring import FETCH, begin
from ag06.persistence.outage import Outage
from ag06.persistence.redis.client import Command, GroupLost
from ag06.persistence.redis.portion import Portion, reply_limits
from ag06.persistence.redis.scripts import script
from ag06.persistence.redis.wire import Wire

_logger = logging.getLogger("ag06.persistence.redis")
_CADENCE = 1.0
"""Seconds between looks at what time alone makes ready: leases that end, events that fall due without a wake-up."""
_LATEST_END = 0.5
"""Seconds that a server may end a wait late: 0.1 s with its default `hz`."""
_SWEEP_MS = 250
_LARGEST_FETCH = 1_000
_WITHHELD_MS = 60_000
"""How long an event that the server cannot send is left alone."""
_WITHHELD_BYTES = 32 << 10
"""Smaller events are never put aside: no limit of a server that lets a client work keeps them back."""
_LONGEST_BACKOFF = 5.0
SLACK = 64
"""Entries that a worker may have pending in one stream beyond those it knows of."""
_FROM_ITSELF = 2  # as in fetch.lua
_LAPSED = 2  # as in deliveries.lua
_by_rank = attrgetter("key")

Recovery = Callable[[Wire, str], Awaitable[str | None]]
"""Bring a group back that the server lost; return the type it listens to, or `None` if it was removed on purpose."""


class Receiver:
    """Asks the server for deliveries over a connection of its own, where it may also wait for them."""

    def __init__(
        self,
        wire: Wire,
        group: str,
        worker: str,
        visibility_ms: int,
        *,
        held: dict[str, Delivery],
        recover: Recovery,
        nudge: Callable[[], None],
        prove: Callable[[], Awaitable[None]],
    ) -> None:
        """Receive for `worker` in `group`; every delivery handed out is kept in `held` by its token.

        `nudge` makes the server end a wait of this connection. `prove` raises what prevents leases from being renewed.
        """
        self._nudge = nudge
        self._prove = prove
        self.renewable = False
        """Whether leases can be renewed, as far as known. Where they cannot, nothing is asked for."""
        self._wire = wire
        self._group = group
        self._worker = worker
        self._visibility_ms = visibility_ms
        self._held = held
        self._recover = recover
        self.event_type: str | None = None
        """What the group listens to; `None` while the server does not know the group."""
        self._known_connection = 0
        self._doubtful = False
        self._portion = Portion()
        self._wake_ups: list[bytes] = []
        self._spare: list[Delivery] = []
        self._event_bytes = 1024.0
        self._listen_until = 0.0  # until then (loop time) all there is to learn comes to who listens
        self.client_id: int | None = None
        self.closing = False
        self._outage = Outage(f"step {group}")

    async def receive(self, limit: int, wait: float) -> list[Delivery]:
        """Return up to `limit` deliveries by rank, waiting up to `wait` seconds; never raises for a store away."""
        until = asyncio.get_running_loop().time() + wait
        backoff = 0.05
        while not self.closing:
            try:
                deliveries = await self._attempt(limit, until)
            except ConfigurationError:
                raise
            except AG06Error as error:
                self._doubtful = self.event_type is not None
                self._listen_until = 0.0
                if isinstance(error, GroupLost):
                    self.event_type = None
                if isinstance(error, OutcomeUnknown) and self._portion.failed():
                    _logger.warning(
                        "step %s: a reply of the store did not come whole, it is asked for less: %s", self._group, error
                    )
                else:
                    self._outage.failed(error)
                await asyncio.sleep(min(backoff * random.uniform(0.5, 1.0), max(0.0, _left(until))))  # noqa: S311
                backoff = min(backoff * 2, _LONGEST_BACKOFF)
                deliveries = []
            else:
                self._outage.over()
            if deliveries or _left(until) <= 0:
                return deliveries
        return []

    async def _attempt(self, limit: int, until: float) -> list[Delivery]:
        """Ask once; where there is nothing, wait for news until `until` or until something falls due."""
        if self._spare:
            return self.hand_out([], limit)
        if not await self._ready():
            await asyncio.sleep(min(_CADENCE, max(0.0, _left(until))))
            return []
        now = asyncio.get_running_loop().time()
        if now >= self._listen_until:
            due, more, found = await self._ask(limit)
            if found or more == 1 or self.closing:
                return self.hand_out(found, limit)
            left = min(_left(until), due if 0 <= due < _CADENCE + _LATEST_END else _CADENCE)
            if left <= 0:
                return []
            if more == 2:
                await asyncio.sleep(min(left, 0.02))
                return []
            self._listen_until = now + left
        else:
            left = min(_left(until), self._listen_until - now)
        return self.hand_out(await self._listen(limit, left), limit)

    def hand_out(self, found: list[Delivery], limit: int) -> list[Delivery]:
        """Return the first `limit` of what was found and what was left over, by rank; keep the rest."""
        if self._spare:
            found = self._spare + found
            self._spare = []
        if len(found) > 1:
            found.sort(key=_by_rank)
        if len(found) > limit:
            found, self._spare = found[:limit], found[limit:]
        return found

    async def _ready(self) -> bool:
        """Make sure of the connection and the group. Behind a new connection, give back what was lost with the old."""
        await self._wire.open()
        if self.event_type is None:
            self.event_type = await self._recover(self._wire, self._group)
            if self.event_type is None:
                return False
        if not self.renewable:
            await self._prove()
        if self._known_connection != self._wire.connections:
            current = self._wire.connections
            (self.client_id,) = await self._wire.ask(("CLIENT", "ID"))
            self._known_connection = current
        if self._doubtful:
            # What the server handed out with a reply that never came is pending under this worker, unknown to it.
            if self._portion.is_hopeless:
                await self._withhold()
            await hand_back(self._wire, self._group, self.event_type, self._worker, kept=self._held)
            self._doubtful = False
        return True

    async def _withhold(self) -> None:
        """Put aside an event that the server cannot send, so that others come."""
        arguments = (msgspec.msgpack.encode(list(self._held)), _WITHHELD_MS, _WITHHELD_BYTES)
        for level, identity, size in await self._wire.run(
            "withhold", self._group, self.event_type, self._worker, *arguments
        ):
            self._portion.came()
            _logger.error(
                "step %s: the server closes the connection instead of sending an event of %d bytes (%s in stream %s); "
                "it is put aside for %d s; raise what the server allows for one client: %s",
                self._group,
                size,
                identity.decode(),
                level.decode(),
                _WITHHELD_MS / 1000,
                await reply_limits(self._wire),
            )

    async def _ask(self, limit: int) -> tuple[float, int, list[Delivery]]:
        most = min(limit, _LARGEST_FETCH)
        wakes, self._wake_ups = self._wake_ups, []
        bounds = (most, self._visibility_ms, _SWEEP_MS, self._portion.bytes)
        arguments = (self._group, self.event_type, self._worker, *bounds, *wakes)
        began = begin()
        due, more, news, olds = await self._once(self._wire.call(script("fetch"), *arguments))
        if any(old[3][4] == _FROM_ITSELF for old in olds):
            olds = await self._taken_from_others(olds)
        found = self._note(news, olds)
        FETCH.done(began, len(found))
        return due / 1000 if due >= 0 else -1.0, more, found

    async def _taken_from_others(self, olds: list[Any]) -> list[Any]:
        """Leave out what this worker holds already. Give back what another of its name held, for a lease of its own."""
        mine = [old[0].decode() for old in olds if old[3][4] == _FROM_ITSELF]
        unknown = [token for token in mine if token not in self._held]
        if unknown:
            await self._release(unknown, dead=True)
        return [old for old in olds if old[3][4] != _FROM_ITSELF]

    async def _listen(self, limit: int, wait: float) -> list[Delivery]:
        """Wait for the first news of any level; at most a quarter of `limit` of each, so that they are not too many."""
        prefix = self._wire.address.prefix
        streams = [f"{prefix}s:{self.event_type}:{level}" for level in range(4)]
        streams.append(f"{prefix}wake:{self._group}")
        count = max(1, min(limit // 4, int(self._portion.bytes / 4 / self._event_bytes)))
        command = ("XREADGROUP", "GROUP", self._group, self._worker, "COUNT", count, "BLOCK", max(1, int(wait * 1000)))
        # Only where nothing is known to fall due does it not matter that a server ends a wait late.
        timer = asyncio.get_running_loop().call_later(wait, self._nudge) if wait != _CADENCE else None
        try:
            reply = await self._once((*command, "STREAMS", *streams, ">", ">", ">", ">", ">"), wait)
        finally:
            if timer is not None:
                timer.cancel()
        wake_key = streams[-1].encode()
        news: list[tuple[bytes, Any]] = []
        for key, entries in reply or ():
            if key == wake_key:
                self._wake_ups += [identity for identity, _ in entries]
            else:
                news.append((key[-1:], entries))
            if key == wake_key or len(entries) == count:
                self._listen_until = 0.0  # something is ready again, or there is more than one may take by listening
        if len(news) > 1 and not self._listen_until:
            await self._give_back(news)  # there may be more of a higher rank: the fetch script chooses
            return []
        found = self._note(news, (), await self._out_of_turn(news))
        FETCH.carried(len(found))
        return found

    async def _give_back(self, news: list[tuple[bytes, Any]]) -> None:
        await self._release([(level + b":" + identity).decode() for level, entries in news for identity, _ in entries])

    async def _release(self, tokens: list[str], *, dead: bool = False) -> None:
        bound = len(self._held) + len(tokens) + SLACK
        packed = msgspec.msgpack.encode(tokens)
        await self._wire.run("release", self._group, self.event_type, self._worker, packed, bound, int(dead))

    async def _once(self, command: Command, wait: float = 0.0) -> Any:
        """Return the reply to a command that hands something out: it must not be repeated."""
        (reply,) = await self._wire.request([command], wait + self._wire.timeout)
        if isinstance(reply, Exception):
            raise self._wire.explain(reply)
        self._portion.came()
        return reply

    async def _out_of_turn(self, news: list[tuple[bytes, Any]]) -> set[str]:
        """Return the tokens of events whose subject has an earlier one under way: the server has parked them."""
        pairs = [
            part
            for level, entries in news
            for identity, fields in entries
            if len(fields) > 2
            for part in (level + b":" + identity, fields[3])
        ]
        if not pairs:
            return set()
        parked = await self._wire.run("order", self._group, self.event_type, self._worker, *pairs)
        return {token.decode() for token in parked}

    def _note(self, news: Any, olds: Any, parked: Collection[str] = ()) -> list[Delivery]:
        """Return the deliveries in a reply, noted as held."""
        deliveries: list[Delivery] = []
        for level, entries in news:
            deliveries += _fresh(level, entries)
        if parked:
            deliveries = [delivery for delivery in deliveries if delivery.token not in parked]
        deliveries += [_again(*old) for old in olds]
        if deliveries:
            self._held.update({delivery.token: delivery for delivery in deliveries})
            size = sum([len(delivery.body) for delivery in deliveries]) / len(deliveries)
            self._event_bytes += 0.3 * (max(size, 64.0) - self._event_bytes)
        return deliveries


async def hand_back(
    wire: Wire, group: str, event_type: str, worker: str, *, kept: Collection[str] = (), dead: bool = False
) -> int:
    """Make available what `worker` holds in `group`, apart from the tokens `kept`; return how many deliveries.

    Gently, or, if the worker is `dead`, under suspicion. It leaves the group once it holds nothing.
    """
    total = 0
    packed = msgspec.msgpack.encode(list(kept))
    while count := await wire.run("leave", group, event_type, worker, int(dead), packed):
        total += count
    return total


def _fresh(level: bytes, entries: Any) -> list[Delivery]:
    """Return deliveries of new entries `[id, [b"b", body, b"p", previous of its subject]]`."""
    prefix, number = level.decode() + ":", int(level)
    return [
        Delivery(prefix + identity, int(identity[: identity.index("-")]), number, fields[1], len(fields) > 2)
        for identity, fields in [(raw.decode(), fields) for raw, fields in entries]
    ]


def _again(
    token: bytes, body: bytes, ordered: int, note: list[int], recorded: bytes | None = None, level: bytes | None = None
) -> Delivery:
    """Return a delivery of what was handed out before; `recorded` and `level` come with a dead letter tried again."""
    attempts, first_failed_ms, deaths, suspect, _started = note
    return Delivery(
        token.decode(),
        int(recorded or token[2:].partition(b"-")[0]),
        int(level or token[:1]),
        body,
        bool(ordered),
        attempts,
        first_failed_ms,
        deaths,
        bool(suspect),
        suspect == _LAPSED,
    )


def _left(until: float) -> float:
    return until - asyncio.get_running_loop().time()
