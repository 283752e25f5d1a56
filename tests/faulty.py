"""A log with a journal in front of one in memory that fails as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ag06.errors import StoreUnavailable
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.log import JournaledLog
from ag06.persistence.journal.passing import PassingLog
from ag06.persistence.log import Appended, Durability, EventLog, LogOptions, LogStats, Record, StepSpec
from ag06.persistence.memory import MemoryLog
from journals import leftovers, when
from records import events, record

AWAY = StoreUnavailable("the store is away")


class FaultyLog(PassingLog):
    """A log in memory that raises `error` instead of an append, or waits for `may_go_on` before it."""

    def __init__(self, inner: EventLog) -> None:
        super().__init__(inner)
        self.error: BaseException | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.tried: list[tuple[str, str | None]] = []
        self.calls = 0

    async def _do(self, what: str, how: str | None = None) -> None:
        self.tried.append((what, how))
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error

    async def open(self) -> None:
        await self._do("open")
        await self._inner.open()

    async def archives(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return []

    async def close(self) -> None:
        await self._inner.close()

    def abandon(self) -> None:
        self._inner.abandon()

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        await self._do("append", durability)
        return await self._inner.append(records)

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        await self._do("register", workflow)
        await self._inner.register(workflow, steps)

    async def pending(self, groups: Sequence[str]) -> int:
        return await self._inner.pending(groups)

    async def stats(self) -> LogStats:
        return await self._inner.stats()

    async def maintain(self) -> None:
        await self._inner.maintain()

    async def durability_report(self) -> list[str]:
        return []


class Both:
    """A log with a journal, and the inner one."""

    def __init__(self, directory: Path, options: LogOptions) -> None:
        self.directory = directory
        self.inner = FaultyLog(MemoryLog(directory.as_posix(), LogOptions()))
        self.log = JournaledLog(self.inner, Claims(str(directory), "test"), options)

    def fail(self, error: BaseException | None) -> None:
        self.inner.error = error

    @property
    def state(self) -> Any:
        return self.log.journal_state()

    async def straight(self) -> None:
        async def check() -> bool:
            return not self.state.active and not leftovers(self.directory)

        await when(check)

    async def tried(self, more: int) -> None:
        """Wait until the inner log was asked so many more times."""
        goal = len(self.inner.tried) + more

        async def check() -> bool:
            return len(self.inner.tried) >= goal

        await when(check)

    async def numbers(self) -> list[Any]:
        return [event.data["number"] for event in await events(self.log)]


async def kept(both: Both, *numbers: int, **settings: Any) -> None:
    """Publish while the store is away."""
    both.fail(AWAY)
    outcomes = await both.log.append([record(n, **settings) for n in numbers])
    assert outcomes == [Appended.STORED] * len(numbers)
