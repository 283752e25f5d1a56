"""Short ways to say what the tests of the journal say all the time."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ag06.event import Event, Priority
from ag06.persistence import EventStore
from ag06.persistence.journal.log import JournaledLog
from ag06.persistence.journal.state import JournalState

SECONDS = 30.0
"""How long a test waits for what must happen, before it calls it a hang."""

TYPE = "order.placed"


async def journaled(store: EventStore) -> JournaledLog:
    """The log of a store in the running loop."""
    log = await store.log()
    assert isinstance(log, JournaledLog)
    return log


async def state(store: EventStore) -> JournalState:
    found = await store.journal_state()
    assert found is not None
    return found


def journals(directory: Path, pattern: str = "*.db") -> list[Path]:
    """The journal files below a directory, of whatever store."""
    return sorted(directory.glob(f"*/{pattern}"))


def leftovers(directory: Path) -> list[str]:
    """What is left below a directory of journals, but for the labels that say which store they are for."""
    return sorted(path.name for path in directory.glob("*/*") if path.name != "store")


async def when(check: Callable[[], Awaitable[object]], seconds: float = SECONDS) -> None:
    """Wait until a check holds; fail loudly when it does not."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.01)


async def diverted(store: EventStore) -> None:
    """Wait until events go to the journal."""

    async def check() -> bool:
        return (await state(store)).active

    await when(check)


async def straight(store: EventStore) -> None:
    """Wait until the journal is empty and events go straight to the store."""

    async def check() -> bool:
        found = await state(store)
        return not found.active and not found.events and found.path is None

    await when(check)


async def gone(directory: Path) -> None:
    """Wait until no file of a journal is left."""

    async def check() -> bool:
        return not leftovers(directory)

    await when(check)


async def replayed(store: EventStore) -> list[Event[Any]]:
    return [event async for event in store.replay()]


class Publishers:
    """Many tasks that publish in every way there is, and remember which ids they were given."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ids: list[str] = []
        self.by_subject: dict[str, list[str]] = defaultdict(list)
        self.errors: list[BaseException] = []
        self.pause = 0.002
        """Seconds between the calls of one task."""

    async def __aenter__(self) -> Publishers:
        ways = [self._plain, self._plain, *[self._ordered] * 4, self._batch, self._delayed, self._chosen, self._keyed]
        ways += [self._uncompared]
        self._tasks = [asyncio.create_task(self._run(way, f"s{at}")) for at, way in enumerate(ways)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()

    async def finish(self) -> None:
        """Let every call that is under way end."""
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), SECONDS)

    async def more(self, count: int) -> None:
        """Wait until so many more ids were returned."""
        goal = len(self.ids) + count

        async def check() -> bool:
            assert not self.errors, self.errors
            return len(self.ids) >= goal

        await when(check)

    async def _run(self, way: Callable[[str, int], Awaitable[list[str | None]]], subject: str) -> None:
        while not self._stop.is_set():
            try:
                found = await way(subject, next(self._numbers))
            except Exception as error:  # the test looks at it
                self.errors.append(error)
                return
            self.ids += [event_id for event_id in found if event_id is not None]
            if None in found:
                self.errors.append(AssertionError(f"{subject}: taken for a duplicate"))
            await asyncio.sleep(self.pause)

    async def _plain(self, subject: str, number: int) -> list[str | None]:
        return [await self._store.persist_event(TYPE, "plain", number)]

    async def _ordered(self, subject: str, number: int) -> list[str | None]:
        level = Priority(number % 4)
        found = await self._store.persist_event(TYPE, "ordered", number, level, subject=subject)
        self.by_subject[subject] += [found] if found else []
        return [found]

    async def _batch(self, subject: str, number: int) -> list[str | None]:
        events = [{"event_type": TYPE, "source": "batch", "data": [number, n], "subject": subject} for n in range(3)]
        found = await self._store.persist_events(events)
        self.by_subject[subject] += [event_id for event_id in found if event_id]
        return found

    async def _delayed(self, subject: str, number: int) -> list[str | None]:
        return [await self._store.persist_event(TYPE, "delayed", number, delay=0.1)]

    async def _chosen(self, subject: str, number: int) -> list[str | None]:
        found = await self._store.persist_event(TYPE, "chosen", number, id=f"mine-{number}")
        assert found == f"mine-{number}"
        return [found]

    async def _keyed(self, subject: str, number: int) -> list[str | None]:
        return [await self._store.persist_event(TYPE, "keyed", "same", idempotency_key=f"key-{number}")]

    async def _uncompared(self, subject: str, number: int) -> list[str | None]:
        return [await self._store.persist_event(TYPE, "uncompared", "same", dedup=False)]

    async def account(self, store: EventStore | None = None) -> None:
        """Hold the log against what was returned: each id once, each subject in the order it was published."""
        assert not self.errors, self.errors
        await check_log(store or self._store, self.ids, self.by_subject)


async def all_due(store: EventStore) -> None:
    """Wait until no event waits for its time any more."""

    async def check() -> bool:
        log = await journaled(store)
        await log.maintain()
        return (await log.stats()).scheduled == 0

    await when(check)


async def check_log(store: EventStore, ids: list[str], by_subject: dict[str, list[str]]) -> None:
    await all_due(store)
    found = await replayed(store)
    times = Counter(event.id for event in found)
    assert not set(ids) - set(times), f"{len(set(ids) - set(times))} of {len(ids)} ids are lost"
    assert len(ids) == len(set(ids))
    assert max(times.values(), default=1) == 1, "an event is stored twice"
    assert not set(times) - set(ids), f"{len(set(times) - set(ids))} events that no publisher was told of"
    for subject, expected in by_subject.items():
        assert [event.id for event in found if event.subject == subject] == expected, subject


class Child:
    """A publisher in a process of its own (`journal_process.py`), and what it was told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ids: list[str] = []
        self.ordered: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while (line := await self.process.stdout.readline()).endswith(b"\n"):
            kind, event_id = line.decode().split()
            self.ids.append(event_id)
            if kind == "ordered":
                self.ordered.append(event_id)

    async def more(self, count: int) -> None:
        """Wait until it was given so many more ids."""
        goal = len(self.ids) + count

        async def check() -> bool:
            assert self.process.returncode is None, "the publisher ended"
            return len(self.ids) >= goal

        await when(check)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.wait(), SECONDS)
        await self._reading


@asynccontextmanager
async def child(url: str, directory: Path, subject: str = "child", window: float = 300.0) -> AsyncIterator[Child]:
    """Run a publisher; at the end it is killed."""
    program = Path(__file__).with_name("journal_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), url, str(directory), subject, str(window), stdout=asyncio.subprocess.PIPE
    )
    publisher = Child(process)
    try:
        yield publisher
    finally:
        await publisher.kill()
