"""`RedisLog`: the event log on one Redis or Valkey server, or one slot of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from ag06.errors import ConfigurationError, StoreError, StoreUnavailable
from ag06.persistence.log import (
    Appended,
    Cut,
    Durability,
    GroupInfo,
    LogOptions,
    LogStats,
    Query,
    Record,
    StepSpec,
    Stored,
    StoredDeadLetter,
    Subscription,
)
from ag06.persistence.measuring import MAINTAIN, STATS, begin
from ag06.persistence.notes import check_note
from ag06.persistence.redis import durability as durable
from ag06.persistence.redis.address import read_address
from ag06.persistence.redis.appending import Appender
from ag06.persistence.redis.blocking import BlockingWire
from ag06.persistence.redis.client import Command
from ag06.persistence.redis.dead_letters import DeadLetters
from ag06.persistence.redis.mistakes import check_files
from ag06.persistence.redis.reading import read_pages
from ag06.persistence.redis.registry import Registry
from ag06.persistence.redis.scripts import script
from ag06.persistence.redis.subscription import RedisSubscription
from ag06.persistence.redis.upkeep import Upkeep
from ag06.persistence.redis.wire import Wire

_RETENTION = 7 * 86_400.0
_SYNC_SECONDS = 2.0
"""What a sync may take on top: up to a second goes by under `appendfsync everysec`."""
_LONGEST_APPEND = 120.0
"""What an append may take behind a journal in the end: a proxy may hide how slow the link behind it is."""
_OLDEST_SERVER = (6, 2)


class RedisLog:
    """The log on Redis Streams (6.2 or newer) or Valkey. Every check-and-write is one Lua script.

    One stream holds one type at one level of priority; a step is a consumer group of the four streams of its type.
    """

    def __init__(self, url: str, options: LogOptions) -> None:
        """Take `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?log=NAME]`; `rediss` means TLS."""
        self._address = read_address(url)
        self._timeout = options.timeout
        self._options = options
        self._durability: Durability = options.durability or "server"
        retention = _RETENTION if options.retention is None else options.retention
        self._control = Wire(self._address, options.timeout)
        self._appenders: dict[Durability, Appender] = {}
        self._registry = Registry(self._control)
        self._letters = DeadLetters(self._control, self._registry)
        self._upkeep = Upkeep(self._control, self._registry, retention, options.retention_by_type)
        self._writer = os.urandom(8).hex()
        self._written = 0
        self._closed = False
        self._subscriptions: weakref.WeakSet[RedisSubscription] = weakref.WeakSet()

    @property
    def place(self) -> str:
        """The log's name, the same however its URL is written and whoever logs in."""
        return self._address.place

    async def open(self) -> None:
        """Connect; check the server's version, what this user may do, and that it can give the durability asked for.

        What no waiting heals is a `ConfigurationError`, unless the store has worked in this process.
        """
        check_files(self._address)
        try:
            (info,) = await self._control.ask(("INFO", "server"))
        except StoreUnavailable:
            raise
        except StoreError as error:  # not such a server
            raise ConfigurationError(f"store {error}; correct the URL") from None
        lines = (line.partition(":") for line in info.decode().splitlines())
        version = {key: value for key, _, value in lines}.get("redis_version", "0.0")
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_SERVER:
            raise ConfigurationError(f"{self._address.shown} is Redis {version}; 6.2 or newer, or Valkey, is needed")
        refused = await asyncio.to_thread(self._ask_what_is_refused)
        if refused:
            raise ConfigurationError(
                f"{self._address.shown}: this user may not run {', '.join(refused)}, or the server does not have it; "
                f"allow it for the keys {self._address.prefix}*, or use another user"
            )
        await self._appender(self._durability).open()

    def _ask_what_is_refused(self) -> list[str]:
        """Return the commands that are needed and refused; ask over the kind of connection that renews leases."""
        with contextlib.closing(BlockingWire(self._address, self._timeout)) as wire:
            return [name.decode() for name in wire.run("allowed")]

    async def close(self) -> None:
        """Finish what was accepted and disconnect."""
        self._closed = True
        subscriptions = list(self._subscriptions)
        ends = await asyncio.gather(*(one.close() for one in subscriptions), return_exceptions=True)
        for appender in self._appenders.values():
            await appender.close()
        self._appenders.clear()
        await self._control.close()
        for outcome in ends:
            # Where the store is away, their deliveries are taken over when the leases end.
            if isinstance(outcome, BaseException) and not isinstance(outcome, (StoreUnavailable, TimeoutError)):
                raise outcome

    def abandon(self) -> None:
        """Let go; see the port. There are only connections, and they end with what held them."""
        self._control.abandon()
        for appender in self._appenders.values():
            appender.abandon()
        for subscription in self._subscriptions:
            subscription.abandon()

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        """Append records in order; see `EventLog.append`."""
        if not records:
            return []
        if self._closed:
            raise StoreError(f"the log at {self._address.shown} is not open")
        return await self._appender(durability or self._durability).append(records, max_backlog)

    def _appender(self, level: Durability) -> Appender:
        appender = self._appenders.get(level)
        if appender is None:
            longest = None if self._options.append_timeout is None else _LONGEST_APPEND
            appender = Appender(self._address, self._append_timeout(level), level, longest)
            self._appenders[level] = appender
        return appender

    def _append_timeout(self, level: Durability) -> float:
        if self._options.append_timeout is None:
            return self._timeout
        sync = 0.0 if level == "server" else _SYNC_SECONDS
        return min(self._timeout, self._options.append_timeout + sync)

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make the steps known; see `EventLog.register`."""
        await self._registry.register(workflow, steps)

    def subscribe(self, group: str, worker: str, visibility: float) -> Subscription:
        """Return `worker`'s end for a registered group; leases last `visibility` seconds unless renewed."""
        subscription = RedisSubscription(
            self._address, self._timeout, self._durability, group, worker, visibility, self._registry.recover
        )
        self._subscriptions.add(subscription)
        return subscription

    async def release_worker(self, worker: str) -> int:
        """Hand out again, at once, what a worker held that is known to be dead; return how many deliveries."""
        return await self._registry.release_worker(worker)

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None = None,
        groups: Collection[str] | None = None,
    ) -> int:
        """Renew the leases of a worker that is known to live; see the port.

        The server has kept the length of the worker's leases since its last fetch, and counts from the renewal.
        """
        return await self._registry.vouch(worker, running, groups)

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events in the order of the log, over a connection of its own."""
        wire = Wire(self._address, self._timeout)
        try:
            async for page in read_pages(wire, query):
                yield page
        finally:
            await asyncio.shield(wire.close())

    async def groups(self) -> list[GroupInfo]:
        """Return every step the store knows."""
        began = begin()
        groups = await self._registry.groups()
        STATS.done(began)
        return groups

    async def remove_group(self, group: str) -> bool:
        """Forget a step: its place, its waiting deliveries, its hold on the log. Its dead letters stay."""
        return await self._registry.remove(group)

    async def pending(self, groups: Sequence[str]) -> int:
        """Return how many events these groups have not acknowledged, plus all events that are due later."""
        return await self._registry.pending(groups)

    async def stats(self) -> LogStats:
        """Return how the log stands."""
        began = begin()
        stats = await self._registry.stats()
        STATS.done(began)
        return stats

    async def dead_letters(
        self, group: str | None = None, limit: int = 1000, after: str = ""
    ) -> list[StoredDeadLetter]:
        """Return dead letters, oldest first; see `EventLog.dead_letters`."""
        return await self._letters.read(group, limit, after)

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver `(group, event id)` again to that group alone, attempts at zero; return how many were found."""
        return await self._letters.retry(letters)

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters for good; return how many were found."""
        return await self._letters.discard(letters)

    async def settled(self, before_ms: int, types: Sequence[str] | None = None) -> list[Cut]:
        """Return what every step is done with; see `EventLog.settled`."""
        return await self._upkeep.settled(before_ms, types)

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut, in bounded bites; see `EventLog.drop`."""
        return await self._upkeep.drop(cut)

    async def archives(self) -> list[str]:
        """Return the URLs of the archives that hold events of this log, in the order they were added."""
        urls = await self._control.run_command("LRANGE", f"{self._address.prefix}archives", 0, -1)
        return [url.decode() for url in urls]

    async def add_archive(self, url: str) -> None:
        """Remember, at the log's level of durability, that an archive holds events of this log."""
        await self._write(self._control.call(script("archive"), url, 1))

    async def remove_archive(self, url: str) -> None:
        """Forget an archive, at the log's level of durability."""
        await self._write(self._control.call(script("archive"), url, 0))

    async def write_note(self, name: str, body: bytes | None) -> None:
        """Replace or remove a note, at the log's level of durability; see `EventLog.write_note`."""
        checked = check_note(name, body)
        self._written += 1
        rest = (0, b"") if body is None else (1, bytes(body))
        await self._write(self._control.call(script("note"), checked, self._writer, self._written, *rest))

    async def read_note(self, name: str) -> bytes | None:
        """Return a note; see `EventLog.read_note`."""
        # GETEX counts as a write, though this one changes nothing: a replica refuses it, where it would answer GET.
        note = await self._control.run_command("GETEX", f"{self._address.prefix}note:{check_note(name)}")
        return None if note is None else bytes(note)

    async def _write(self, command: Command) -> None:
        """Send a write that may be repeated; return when it is as durable as the log."""
        try:
            sync = await durable.find_sync(self._control, self._durability)
        except ConfigurationError as error:  # it gave this level when the log was opened: an outage
            raise StoreUnavailable(f"{error}; nothing was done") from None
        if sync is None:
            await self._control.ask(command)
        else:
            _, waited = await self._control.ask(command, sync.command)
            await durable.confirm(sync, self._control, waited)

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        """Take or renew the leadership of a role for `seconds`, 0: give it up; see `EventLog.lead`."""
        return bool(await self._control.run("lead", role, holder, int(seconds * 1000)))

    async def maintain(self) -> None:
        """Do the housekeeping that is due: append what was scheduled, trim, forget subjects that are gone."""
        began = begin()
        await self._upkeep.run()
        MAINTAIN.done(began)

    async def durability_report(self) -> list[str]:
        """Say in plain words what a crash of the server can lose, given its own settings."""
        return await durable.report(self._control)
