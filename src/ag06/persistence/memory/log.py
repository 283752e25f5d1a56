"""`MemoryLog`: a log for tests and first steps. It lives as long as someone in this process holds it open."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from ag06.errors import ConfigurationError, StoreError
from ag06.persistence.log import (
    Appended,
    Cut,
    Delivery,
    Durability,
    GroupInfo,
    LogOptions,
    LogStats,
    Query,
    Record,
    Settlement,
    StepSpec,
    Stored,
    StoredDeadLetter,
)
from ag06.persistence.measuring import (
    APPEND,
    COMMIT,
    FETCH,
    MAINTAIN,
    RELEASE,
    RENEW,
    REPLAY,
    START,
    STATS,
    begin,
    settled_by,
)
from ag06.persistence.memory import trimming
from ag06.persistence.memory.state import Group, State
from ag06.persistence.notes import check_note

_PAGE = 1000
_BITE = 1000


class _Named:
    """One log of this process: its state, its lock, and who waits for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.state = State()
        self.holders = 0
        self.waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def wake(self) -> None:
        """Let every waiting fetch look again, in whatever loop it waits."""
        with self.lock:
            waiting, self.waiting = self.waiting, {}
        for event, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # its loop has closed: nobody waits there any more
                continue


_logs: dict[str, _Named] = {}
_logs_lock = threading.Lock()


def _forget_parent() -> None:
    """A child process begins with logs of its own: what it wrote into a copy would be seen by nobody else."""
    global _logs_lock
    _logs_lock = threading.Lock()
    _logs.clear()


os.register_at_fork(after_in_child=_forget_parent)


class MemoryLog:
    """The port over plain Python objects; `memory://NAME` names one log in this process."""

    def __init__(self, name: str, options: LogOptions, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        if options.durability in ("fsync", "replicated"):
            raise ConfigurationError(
                f"memory:// keeps nothing when the process ends, so it cannot give durability={options.durability!r}; "
                "use sqlite:///PATH"
            )
        self._name = name
        self._options = options
        self._clock = clock
        self._named: _Named | None = None

    async def open(self) -> None:
        """Make the log, or join those who hold it."""
        with _logs_lock:
            self._named = _logs.setdefault(self._name, _Named())
            self._named.holders += 1

    async def close(self) -> None:
        """Let go; the last one to do so drops the log."""
        self.abandon()

    def abandon(self) -> None:
        """Let go; see the port."""
        with _logs_lock:
            if self._named is None:
                return
            self._named.holders -= 1
            if not self._named.holders:
                _logs.pop(self._name, None)
            self._named = None

    @property
    def _log(self) -> _Named:
        if self._named is None:
            raise StoreError(f"the log memory://{self._name} is not open")
        return self._named

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        """Append records; see the port."""
        if durability not in (None, "server"):
            raise ConfigurationError(f"memory:// cannot give durability={durability!r}; use sqlite:///PATH")
        began, log = begin(), self._log
        with log.lock:
            now_ms = self._now_ms()
            log.state.see_clock(now_ms)
            log.state.promote(now_ms)
            outcomes = [log.state.append(record, now_ms, max_backlog) for record in records]
        APPEND.done(began, len(records))
        if log.waiting:
            log.wake()
        return outcomes

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make steps known; see the port."""
        state = self._log.state
        with self._log.lock:
            for spec in steps:
                known = state.groups.get(spec.group)
                if known is not None and known.type != spec.type:
                    raise ConfigurationError(
                        f"step {spec.group!r} listens to {spec.type!r}, but the store knows it as a step of "
                        f"{known.type!r}; give it another name, or run: ag06 steps remove {spec.group}"
                    )
            known_workflow = any(name.rpartition(".")[0] == workflow for name in state.groups)
            for spec in steps:
                if spec.group not in state.groups:
                    state.place(spec, spec.start or ("end" if known_workflow else "beginning"))

    def subscribe(self, group: str, worker: str, visibility: float) -> MemorySubscription:
        """Return a worker's end of a group; see the port."""
        return MemorySubscription(self._log, group, worker, visibility, self._now_ms)

    async def release_worker(self, worker: str) -> int:
        """Hand out again what a dead worker held; see the port."""
        log = self._log
        with log.lock:
            lost = [
                (group, pending)
                for group in log.state.groups.values()
                for pending in group.pending.values()
                if pending.worker == worker
            ]
            for group, pending in lost:
                group.take_over(pending, lapsed=False)
        log.wake()
        return len(lost)

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None = None,
        groups: Collection[str] | None = None,
    ) -> int:
        """Renew the leases of a worker that is known to live; see the port."""
        log = self._log
        with log.lock:
            until_ms = self._now_ms() + visibility * 1000
            count = sum(
                group.vouch(worker, until_ms, None if running is None else running.get(group.name, ()))
                for group in log.state.groups.values()
                if groups is None or group.name in groups
            )
        log.wake()
        return count

    async def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events; see the port."""
        began = begin()
        with self._log.lock:
            found = [
                entry.stored
                for entry in self._log.state.entries.values()
                if query.start_ms <= entry.stored.recorded_ms
                and (query.end_ms is None or entry.stored.recorded_ms < query.end_ms)
                and (query.types is None or entry.type in query.types)
                and entry.stored.position > query.after
                and (query.below is None or entry.stored.position < query.below)
                and (query.level is None or entry.level == query.level)
            ]
        if query.newest is not None:
            found = found[-query.newest :] if query.newest else []
        REPLAY.done(began)
        for start in range(0, len(found), _PAGE):
            yield found[start : start + _PAGE]
            await asyncio.sleep(0)

    async def groups(self) -> list[GroupInfo]:
        """Return every step; see the port."""
        return list((await self.stats()).groups)

    async def remove_group(self, group: str) -> bool:
        """Forget a step; see the port."""
        with self._log.lock:
            return self._log.state.remove(group)

    async def pending(self, groups: Sequence[str]) -> int:
        """Return what these groups have not settled, and what is scheduled; see the port."""
        with self._log.lock:
            state = self._log.state
            return len(state.scheduled) + sum(state.groups[name].backlog for name in groups if name in state.groups)

    async def stats(self) -> LogStats:
        """Return how the log stands; see the port."""
        began = begin()
        with self._log.lock:
            stats = self._log.state.stats()
        STATS.done(began)
        return stats

    async def dead_letters(
        self, group: str | None = None, limit: int = 1000, after: str = ""
    ) -> list[StoredDeadLetter]:
        """Return dead letters, oldest first; see the port."""
        with self._log.lock:
            return self._log.state.letters(group, limit, int(after or 0))

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver dead letters again; see the port."""
        with self._log.lock:
            found = sum(self._log.state.retry(group, event_id) for group, event_id in letters)
        self._log.wake()
        return found

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters; see the port."""
        with self._log.lock:
            return sum(self._log.state.dead.pop(letter, None) is not None for letter in letters)

    async def settled(self, before_ms: int, types: Sequence[str] | None = None) -> list[Cut]:
        """Return what every step is done with; see the port."""
        with self._log.lock:
            return trimming.settled(self._log.state, before_ms, types)

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut; see the port."""
        log = self._log
        with log.lock:
            positions = trimming.positions_in(log.state, cut)
        total, held, start = 0, False, 0
        while start < len(positions) and not held:
            with log.lock:
                count, held = trimming.drop(log.state, positions[start : start + _BITE])
            total += count
            start += _BITE
            await asyncio.sleep(0)
        return total

    async def archives(self) -> list[str]:
        """Return the URLs of the log's archives; see the port."""
        with self._log.lock:
            return list(self._log.state.archives)

    async def add_archive(self, url: str) -> None:
        """Remember an archive; see the port."""
        with self._log.lock:
            self._log.state.archives.setdefault(url)

    async def remove_archive(self, url: str) -> None:
        """Forget an archive; see the port."""
        with self._log.lock:
            self._log.state.archives.pop(url, None)

    async def write_note(self, name: str, body: bytes | None) -> None:
        """Replace or remove a note; see the port."""
        checked = check_note(name, body)
        with self._log.lock:
            if body is None:
                self._log.state.notes.pop(checked, None)
            else:
                self._log.state.notes[checked] = body

    async def read_note(self, name: str) -> bytes | None:
        """Return a note; see the port."""
        checked = check_note(name)
        with self._log.lock:
            return self._log.state.notes.get(checked)

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        """Take, renew or give up a leadership; see the port."""
        with self._log.lock:
            return self._log.state.lead(role, holder, self._now_ms(), seconds * 1000)

    async def maintain(self) -> None:
        """Append what is due, forget what may be forgotten; see the port."""
        began, log = begin(), self._log
        options = self._options
        with log.lock:
            now_ms = self._now_ms()
            log.state.see_clock(now_ms)
            log.state.promote(now_ms)
            log.state.forget(now_ms)
            trimming.trim(log.state, now_ms, options.retention or 0, options.retention_by_type)
        MAINTAIN.done(began)
        log.wake()

    async def durability_report(self) -> list[str]:
        """Say what can be lost."""
        return ["memory:// keeps nothing when the process ends"]


class MemorySubscription:
    """One step's end of a log in memory, in one worker."""

    def __init__(self, log: _Named, group: str, worker: str, visibility: float, now_ms: Callable[[], int]) -> None:
        """Made by `MemoryLog.subscribe`."""
        self._log = log
        self._name = group
        self._worker = worker
        self._visibility_ms = visibility * 1000
        self._now_ms = now_ms
        self._closed = False
        if group not in log.state.groups:
            raise ConfigurationError(f"step {group!r} is not registered")

    @property
    def _group(self) -> Group:
        group = self._log.state.groups.get(self._name)
        # Removed while it ran: it comes back at the end of the log, as a step does that is added later.
        return group if group is not None else Group(self._name, "")

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return deliveries; see the port."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while limit > 0 and not self._closed:
            arrived = asyncio.Event()
            with self._log.lock:
                began = begin()
                deliveries = self._take(limit)
                FETCH.done(began, len(deliveries))
                left = deadline - loop.time()
                if deliveries or left <= 0:
                    return deliveries
                self._log.waiting[arrived] = loop
                due = self._next_due_ms()
            timeout = left if due is None else min(left, max(0.001, (due - self._now_ms()) / 1000))
            try:
                async with asyncio.timeout(timeout):
                    await arrived.wait()
            except TimeoutError:
                continue
            finally:
                with self._log.lock:
                    self._log.waiting.pop(arrived, None)
        return []

    def _take(self, limit: int) -> list[Delivery]:
        now_ms = self._now_ms()
        self._log.state.see_clock(now_ms)
        self._log.state.promote(now_ms)
        group = self._group
        if group.first_expiry_ms <= now_ms:
            self._extend(group)  # whoever fetches is alive: it takes over from others alone
        group.expire(now_ms)
        deliveries: list[Delivery] = []
        while len(deliveries) < limit and (pending := group.next_runnable()) is not None:
            deliveries.append(group.lease(pending, self._worker, self, now_ms, self._visibility_ms))
        return deliveries

    def _next_due_ms(self) -> float | None:
        group, scheduled = self._group, self._log.state.scheduled
        times = [group.first_expiry_ms]
        times += [group.delayed[0][0]] if group.delayed else []
        times += [scheduled[0][0]] if scheduled else []
        first = min(times)
        return None if first == float("inf") else first

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; see the port."""
        began = begin()
        with self._log.lock:
            now_ms = self._now_ms()
            self._log.state.see_clock(now_ms)
            group = self._group
            kept = [self._log.state.settle(group, settlement, self._worker, now_ms) for settlement in settlements]
        COMMIT.done(began, settled_by(settlements))
        if self._log.waiting:
            self._log.wake()
        return kept

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        """Note that these run now; see the port."""
        began = begin()
        with self._log.lock:
            for delivery in deliveries:
                pending = self._group.held(delivery.token, self._worker)
                if pending is not None:
                    pending.started = True
        START.done(began)

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        """Take back what was charged for this worker; see the port."""
        with self._log.lock:
            for delivery in deliveries:
                self._group.absolve(delivery.token, self._worker, attempts)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back; see the port."""
        began = begin()
        with self._log.lock:
            group = self._group
            for delivery in deliveries:
                pending = group.held(delivery.token, self._worker)
                if pending is not None:
                    pending.started = False
                    group.make_ready(pending)
        RELEASE.done(began)
        self._log.wake()

    def renew(self) -> None:
        """Extend the lease of everything held; see the port."""
        began = begin()
        with self._log.lock:
            self._log.state.see_clock(self._now_ms())
            self._extend(self._group)
        RENEW.done(began)

    def _extend(self, group: Group) -> None:
        until_ms = self._now_ms() + self._visibility_ms
        for pending in group.pending.values():
            if pending.worker is not None and pending.holder is self:
                pending.until_ms = until_ms

    async def close(self) -> None:
        """Give everything back; see the port."""
        self._closed = True
        with self._log.lock:
            group = self._group
            for pending in group.pending.values():
                if pending.worker == self._worker:
                    pending.started = False
                    group.make_ready(pending)
        self._log.wake()
