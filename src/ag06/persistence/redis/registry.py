"""The groups: which steps the server knows, where they begin, how they stand."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from ag06.errors import ConfigurationError, StoreError, StoreUnavailable
from ag06.persistence.log import GroupInfo, LogStats, StepSpec
from ag06.persistence.redis.client import GroupLost
from ag06.persistence.redis.reading import id_of, position_of
from ag06.persistence.redis.receiving import hand_back
from ag06.persistence.redis.wire import Wire

_logger = logging.getLogger("ag06.persistence.redis")
_pack = msgspec.msgpack.Encoder().encode
_unpack_group = msgspec.msgpack.Decoder(tuple[str, str]).decode


class Registry:
    """The groups of one log, over the log's own connection."""

    def __init__(self, wire: Wire) -> None:
        """Ask over `wire`."""
        self._wire = wire
        self._prefix = wire.address.prefix
        self._workflows: dict[str, tuple[str, list[StepSpec]]] = {}

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make the steps known, atomically for the workflow, and remember them for the day the server forgets them."""
        await self._register(self._wire, workflow, steps)
        for step in steps:
            self._workflows[step.group] = (workflow, list(steps))

    async def _register(self, wire: Wire, workflow: str, steps: Sequence[StepSpec]) -> None:
        rows = [(step.group, step.type, *await self._start(wire, step)) for step in steps]
        clash = await wire.run("register", workflow, _pack(rows))
        if clash:
            group, event_type = (part.decode() for part in clash)
            raise ConfigurationError(
                f"step {group!r} is known to the store and listens to {event_type!r}; to let it listen to another type "
                f"forget its place first: ag06 steps remove {group}"
            )

    async def _start(self, wire: Wire, step: StepSpec) -> tuple[str, int, str]:
        """Return the start as the script takes it; for a time also how many events lie before it, and the last id.

        A time that is still to come is the end of the log: what is skipped until then would count as never done.
        """
        if not isinstance(step.start, int):
            return step.start or "", 0, ""
        if await wire.run_command("HEXISTS", f"{self._prefix}groups", step.group):
            return "end", 0, ""
        last, added = await wire.ask(("GET", f"{self._prefix}clock"), ("HGET", f"{self._prefix}added", step.type))
        end_position = position_of(last) if last else 0
        first = min(max(step.start << 20, 1) - 1, end_position)
        behind, end, later = id_of(first), id_of(end_position), 0
        for level in range(4):
            key, at = f"{self._prefix}s:{step.type}:{level}", f"{step.start}-0"
            while True:
                count, last_counted = await wire.run("tally", key, at, end)
                if not count:
                    break
                later += count
                at = f"({last_counted.decode()}"
        return "at", int(added or 0) - later, behind

    async def recover(self, wire: Wire, group: str) -> str | None:
        """Return what a group listens to; bring it back if the server lost it, unless it was removed on purpose."""
        kept, removed = await wire.ask(
            ("HGET", f"{self._prefix}groups", group), ("HEXISTS", f"{self._prefix}removed", group)
        )
        if kept is not None:
            event_type, workflow = _unpack_group(kept)
            await self._register(wire, workflow, [StepSpec(group, event_type)])
            return event_type
        if removed:
            _logger.warning("step %s was removed from the store: it receives nothing until registered again", group)
            return None
        if group not in self._workflows:
            raise ConfigurationError(f"the store knows no step {group!r}; register its workflow first")
        workflow, steps = self._workflows[group]
        _logger.warning("the server was emptied: workflow %s is registered again and begins at the beginning", workflow)
        await self._register(wire, workflow, [StepSpec(step.group, step.type, "beginning") for step in steps])
        return next(step.type for step in steps if step.group == group)

    async def release_worker(self, worker: str) -> int:
        """Hand out again, at once, what a dead worker held in any group; return how many deliveries."""
        return sum(
            [
                await hand_back(self._wire, group, event_type, worker, dead=True)
                for group, event_type in await self.types()
            ]
        )

    async def vouch(
        self, worker: str, running: Mapping[str, Collection[str]] | None, groups: Collection[str] | None
    ) -> int:
        """Begin the leases of a worker anew; give back all but the `running`, unless `None`; return how many.

        Of all `groups`, every one of the log if `None`; then raise what one of them has failed with.
        """
        count = 0
        failure: StoreError | None = None
        for group, event_type in await self.types():
            if groups is not None and group not in groups:
                continue
            names = [] if running is None else list(running.get(group, ()))
            try:
                count += await self._wire.run("vouch", group, event_type, worker, int(running is None), _pack(names))
            except StoreError as error:
                if isinstance(error, StoreUnavailable) and not isinstance(error, GroupLost):
                    raise
                failure = failure or error
        if failure is not None:
            raise failure
        return count

    async def remove(self, group: str) -> bool:
        """Forget a group; return whether it was known."""
        kept = await self._wire.run_command("HGET", f"{self._prefix}groups", group)
        if kept is None:
            return False
        return bool(await self._wire.run("remove", group, _unpack_group(kept)[0]))

    async def type_of(self, group: str) -> str | None:
        """Return what a group listens to, if the store knows it."""
        kept = await self._wire.run_command("HGET", f"{self._prefix}groups", group)
        return None if kept is None else _unpack_group(kept)[0]

    async def types(self) -> list[tuple[str, str]]:
        """Return every group and what it listens to."""
        known = await self._wire.run_command("HGETALL", f"{self._prefix}groups")
        return [(key.decode(), _unpack_group(value)[0]) for key, value in zip(known[::2], known[1::2], strict=True)]

    async def groups(self, names: Sequence[str] = ()) -> list[GroupInfo]:
        """Return how some groups stand, or all of them."""
        census = await self._wire.run("census", _pack(list(names)))
        found = [
            GroupInfo(group.decode(), event_type.decode(), backlog, in_flight, dead, oldest if oldest >= 0 else None)
            for group, event_type, backlog, in_flight, dead, oldest in census
        ]
        return sorted(found, key=lambda info: info.group)

    async def pending(self, names: Sequence[str]) -> int:
        """Return how many events some groups have not acknowledged, plus all events that are due later."""
        scheduled = await self._wire.run_command("ZCARD", f"{self._prefix}scheduled")
        infos = await self.groups(names) if names else []
        if len(infos) < len(names) and await self._bring_back(set(names) - {info.group for info in infos}):
            infos = await self.groups(names)
        return int(scheduled) + sum([info.backlog for info in infos])

    async def _bring_back(self, missing: Collection[str]) -> bool:
        """Register groups again that an emptied server forgot, so that what waits for them is counted."""
        removed = await self._wire.run_command("HKEYS", f"{self._prefix}removed")
        lost = [group for group in missing if group in self._workflows and group.encode() not in removed]
        for group in lost:
            await self.recover(self._wire, group)
        return bool(lost)

    async def stats(self) -> LogStats:
        """Return how the log stands."""
        prefix = self._prefix
        types, duplicates, scheduled, dead = await self._wire.ask(
            ("HKEYS", f"{prefix}added"),
            ("HGET", f"{prefix}counters", "duplicates"),
            ("ZCARD", f"{prefix}scheduled"),
            ("ZCARD", f"{prefix}dead"),
        )
        lengths: list[Any] = []
        if types:
            keys = [f"{prefix}s:{known.decode()}:{level}" for known in types for level in range(4)]
            lengths = await self._wire.ask(*[("XLEN", key) for key in keys])
        return LogStats(sum(lengths), int(duplicates or 0), scheduled, dead, tuple(await self.groups()))
