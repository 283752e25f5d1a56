"""The store of a simulation: one memory log, and the ways to it, on which everything may happen to a call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import (
    Appended,
    Delivery,
    Durability,
    LogOptions,
    Query,
    Record,
    Settlement,
    StepSpec,
    Stored,
    Subscription,
)
from ag06.persistence.memory import MemoryLog

from .plan import Plan
from .process import Process
from .watch import Watch

R = TypeVar("R")

LATEST = 3.0
"""How long a call may be on its way, in seconds."""


_IN_THE_LOG = frozenset((Appended.STORED, Appended.REPEATED))


class Store:
    """The server: what it does is done in a process of its own, whatever becomes of who asked for it."""

    def __init__(self, plan: Plan, process: Process, clock: Callable[[], float], note: Callable[..., None]) -> None:
        """Serve on `clock` (seconds since the epoch); `note` writes into the trace."""
        self.plan = plan
        self.process = process
        self.note = note
        self.away = False
        self.calm = False
        """Whether faults are over."""
        self.rng = random.Random(f"network {plan.seed}")
        self.log = MemoryLog("simulation", LogOptions(retention=3600.0), clock=clock)
        self.watch = Watch(lambda: reversed(self.log._log.state.entries.values()))
        self.visibility = plan.visibility
        self.now_ms = lambda: int(clock() * 1000)
        self._fetches: dict[Process, dict[asyncio.Task[Any], None]] = {}

    def connect(self, client: Process) -> FaultyLog:
        """Return the log as a process sees it."""
        return FaultyLog(self, client)

    def serve(self, work: Awaitable[R], wait: float = 0.0) -> asyncio.Task[R]:
        """Do what a call asks for, `wait` seconds from now, unless the store is away then."""
        return self.process.spawn(self._serve(work, wait), "store")

    async def _serve(self, work: Any, wait: float) -> Any:
        if wait:
            await asyncio.sleep(wait)
        if self.away:
            work.close()
            raise StoreUnavailable("the store went away")
        return await work

    def fetching(self, client: Process, work: Awaitable[list[Delivery]]) -> asyncio.Task[list[Delivery]]:
        """Serve a fetch, which waits in the store until there is something; it ends with the connection."""
        task = self.serve(work)
        mine = self._fetches.setdefault(client, {})
        mine[task] = None
        task.add_done_callback(lambda task: mine.pop(task, None))
        return task

    def hang_up(self, client: Process) -> None:
        """Notice that a client is gone."""
        for task in list(self._fetches.pop(client, ())):
            task.cancel()

    def go_away(self) -> None:
        """Be down: nothing gets through, and no reply comes back."""
        self.away = True
        for client in list(self._fetches):
            self.hang_up(client)

    def come_back(self) -> None:
        """Be up again, with everything that was accepted."""
        self.away = False


class _Way:
    """What the logs and subscriptions of one process have in common: the way of a call to the store and back."""

    def __init__(self, store: Store, client: Process) -> None:
        self.store = store
        self.client = client

    async def travel(self) -> None:
        """Be on the way for a moment."""
        longest = self.store.plan.delay
        if longest and not (self.store.calm and longest > 0.01):
            await asyncio.sleep(self.store.rng.uniform(0.0, longest))

    def chance(self, rate: float) -> bool:
        """Whether a fault of this rate happens now."""
        return bool(rate) and not self.store.calm and self.store.rng.random() < rate

    async def call(
        self,
        name: str,
        work: Callable[[], Awaitable[R]],
        detail: object = "",
        *,
        is_final: Callable[[R], bool] = lambda _: True,
    ) -> R:
        """Do `work` in the store, and return what it says, if all goes well.

        A call that was sent twice has its effect twice: before the one that is answered, or later, if the answer
        `is_final`. A store must not say "nothing was stored" while another copy of the call is on its way.
        """
        store, plan = self.store, self.store.plan
        await self.travel()
        if self.chance(plan.dies):
            store.note(self.client.name, "dies before", name)
            await self.client.killed()
        if store.away or self.chance(plan.refused):
            store.note(self.client.name, name, "refused", detail)
            raise StoreUnavailable("the call did not reach the store")
        if self.chance(plan.late):
            store.serve(work(), store.rng.uniform(0.05, LATEST)).add_done_callback(_look_away)
            store.note(self.client.name, name, "late", detail)
            await asyncio.sleep(store.rng.uniform(0.0, 1.0))
            raise OutcomeUnknown("the store did not answer in time")
        is_doubled, is_early = self.chance(plan.doubled), store.rng.random() < 0.5
        if is_doubled and is_early:
            store.serve(work()).add_done_callback(_look_away)
            await self.travel()
        try:
            answer = await asyncio.shield(store.serve(work()))
        except StoreUnavailable as error:
            if is_doubled and is_early:  # one of the two may have come through
                raise OutcomeUnknown(str(error)) from None
            raise
        if is_doubled and not is_early and is_final(answer):
            store.serve(work(), store.rng.uniform(0.0, LATEST)).add_done_callback(_look_away)
        store.note(self.client.name, name, answer, detail)
        if self.chance(plan.dies):
            store.note(self.client.name, "dies after", name)
            await self.client.killed()
        await self.travel()
        if store.away or self.chance(plan.unheard):
            store.note(self.client.name, name, "unheard")
            raise OutcomeUnknown("the reply was lost")
        return answer


def _look_away(task: asyncio.Task[Any]) -> None:
    """Nobody hears what became of it, unless a promise was broken."""
    if not task.cancelled():
        error = task.exception()
        if error is not None and not isinstance(error, StoreUnavailable):
            task.get_loop().call_exception_handler({"message": "in the store", "exception": error})


class FaultyLog(_Way):
    """The log port as a process has it: a client of the store over a network that does what the plan says."""

    async def open(self) -> None:
        await self.call("open", _nothing)

    async def close(self) -> None:
        """Hang up."""

    def abandon(self) -> None:
        """Hang up."""

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        async def work() -> list[Appended]:
            self.store.watch.records(records, self.store.now_ms())
            outcomes = await self.store.log.append(records, max_backlog=max_backlog)
            self.store.watch.look()
            return outcomes

        detail = [(record.id, record.body) for record in records]
        return await self.call("append", work, detail, is_final=_IN_THE_LOG.issuperset)

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        await self.call("register", lambda: self.store.log.register(workflow, steps))

    def subscribe(self, group: str, worker: str, visibility: float) -> Subscription:
        return FaultySubscription(self.store, self.client, group, worker, visibility)

    async def release_worker(self, worker: str) -> int:
        async def work() -> int:
            count = await self.store.log.release_worker(worker)
            self.store.watch.dismissed(worker)
            return count

        return await self.call("release_worker", work, worker)

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        pages = await self.call("read", lambda: _collected(self.store.log.read(query)))
        for page in pages:
            yield page

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        async def work() -> int:
            found = [letter for letter in letters if letter in self.store.watch.dead]
            count = await self.store.log.retry_dead_letters(letters)
            if count != len(found):
                raise AssertionError(f"{count} of {len(found)} dead letters were found")
            self.store.watch.retried(found)
            return count

        return await self.call("retry_dead_letters", work, letters)

    async def maintain(self) -> None:
        async def work() -> None:
            await self.store.log.maintain()
            self.store.watch.look()

        await self.call("maintain", work)

    def __getattr__(self, name: str) -> Any:
        """Ask the store what changes nothing in it."""
        method = getattr(self.store.log, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await self.call(name, lambda: method(*args, **kwargs))

        return ask


class FaultySubscription(_Way):
    """A worker's end of a group, over the network of the plan."""

    def __init__(self, store: Store, client: Process, group: str, worker: str, visibility: float) -> None:
        super().__init__(store, client)
        self._inner = store.log.subscribe(group, worker, visibility)
        self._group = group
        self._worker = worker
        self._unheard: list[Delivery] = []

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return deliveries. What was handed out in a reply that was lost comes with the next, as adapters do it."""
        if self._unheard:
            deliveries, self._unheard = self._unheard[:limit], self._unheard[limit:]
            return deliveries
        await self.travel()
        if self.store.away or self.chance(self.store.plan.refused):
            raise StoreUnavailable("the call did not reach the store")
        asked = self.store.fetching(self.client, self._fetch(limit, wait))
        try:
            deliveries = await asyncio.shield(asked)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                asked.cancel()
                raise
            raise StoreUnavailable("the connection was lost") from None
        if self.chance(self.store.plan.dies):
            await self.client.killed()
        if deliveries and (self.store.away or self.chance(self.store.plan.unheard)):
            self._unheard += deliveries
            raise OutcomeUnknown("the reply was lost")
        return deliveries

    async def _fetch(self, limit: int, wait: float) -> list[Delivery]:
        deliveries = await self._inner.fetch(limit, wait)
        now_ms = self.store.now_ms()
        self.store.watch.handed(self._group, self._worker, deliveries, now_ms, now_ms + self.store.visibility * 1000)
        if deliveries:
            self.store.note(self._worker, "fetch", [(d.token, d.attempts, d.deaths, d.suspect) for d in deliveries])
        return deliveries

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        async def work() -> list[bool]:
            for settlement in settlements:
                self.store.watch.records(getattr(settlement, "outputs", ()), self.store.now_ms())
            kept = await self._inner.commit(settlements)
            self.store.watch.committed(self._group, self._worker, settlements, kept, self.store.now_ms())
            return kept

        return await self.call("commit", work, [_brief(settlement) for settlement in settlements])

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        async def work() -> None:
            await self._inner.mark_started(deliveries)
            self.store.watch.started(self._group, self._worker, deliveries, self.store.now_ms())

        await self.call("mark_started", work)

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        async def work() -> None:
            await self._inner.survived(deliveries, attempts)
            self.store.watch.survived(self._group, deliveries)

        await self.call("survived", work)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        async def work() -> None:
            await self._inner.release(deliveries)
            self.store.watch.released(self._group, self._worker, deliveries)

        await self.call("release", work)

    def renew(self) -> None:
        if self.store.away or self.chance(self.store.plan.refused):
            raise StoreUnavailable("the call did not reach the store")
        self._inner.renew()
        now_ms = self.store.now_ms()
        self.store.watch.renewed(self._worker, self._group, now_ms, now_ms + self.store.visibility * 1000)
        if self.chance(self.store.plan.unheard):
            raise OutcomeUnknown("the reply was lost")

    async def close(self) -> None:
        async def work() -> None:
            await self._inner.close()
            self.store.watch.left(self._group, self._worker)

        await self.call("close", work)


async def _nothing() -> None:
    """Do nothing."""


async def _collected(pages: AsyncIterator[list[Stored]]) -> list[list[Stored]]:
    return [page async for page in pages]


def _brief(settlement: Settlement) -> tuple[Any, ...]:
    deliveries = getattr(settlement, "deliveries", None) or (settlement.delivery,)  # type: ignore[union-attr]
    outputs = [record.id for record in getattr(settlement, "outputs", ())]
    return type(settlement).__name__, [delivery.token for delivery in deliveries], outputs
