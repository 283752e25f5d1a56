"""`JournaledLog`: a remote log whose publishers are served while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from ag06.breaker import CircuitBreaker
from ag06.errors import (
    AG06Error,
    CircuitOpen,
    ConfigurationError,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.dead_letter_file import Letters, Retried, retry
from ag06.persistence.journal.depth import Depth, show_letters
from ag06.persistence.journal.draining import Draining, is_refusal
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.journal.orphans import adopt
from ag06.persistence.journal.passing import PassingLog
from ag06.persistence.journal.place import JournalMoved
from ag06.persistence.journal.rescue import Rescue
from ag06.persistence.journal.state import JournalState
from ag06.persistence.journal.waiting import Waiting, WaitingRoom
from ag06.persistence.log import Appended, Durability, EventLog, LogOptions, LogStats, Record, StepSpec, StoreFull
from ag06.persistence.outage import Outage
from ag06.tasks import completed, start_task

_logger = logging.getLogger("ag06.persistence.journal")

PROBE_SECONDS = 0.5
"""How long the breaker in front of the store stays open before it is tried again."""
_ADVICE = "set AG06_JOURNAL or journal= to a directory that can be written"
_ORPHANS_SECONDS = 10.0
_DISK_SECONDS = 1.0
"""How long after a failure the disk is not tried again."""
_OPEN_SECONDS = 5.0
"""How long opening may take before events go to the journal; looking for replicas takes up to two."""
_CLOSING_SECONDS = 5.0
_ANSWER_SECONDS = 1.0
"""How long a store that was away may take to answer at all."""
_GATE_SECONDS = 3.0
"""How long newcomers are held while the rest of the journal is sent; a sync may take a second of it."""


class JournaledLog(PassingLog):
    """Appends to a remote log; while that is away or in doubt, to a journal on the local disk.

    The first refusal opens a circuit breaker: from then on events go to the journal, until it is drained and empty. So
    what one publisher says of a subject stays in order. Events keep their ids, and reach the store once.
    """

    def __init__(
        self,
        inner: EventLog,
        claims: Claims,
        options: LogOptions,
        *,
        clock: Callable[[], float] = time.time,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Stand in front of `inner`, with journals where `claims` says; `clock` gives seconds since the epoch."""
        super().__init__(inner)
        self._claims = claims
        self._options = options
        self._clock = clock
        self.breaker = breaker or CircuitBreaker(
            "store",
            window=1,
            minimum_calls=1,
            failure_rate=1.0,
            open_seconds=PROBE_SECONDS,
            half_open_calls=1,
            record=(StoreUnavailable,),
        )
        self._outage = Outage("the journal")
        self.letters = Letters(claims.directory)
        self._letter_count = self._letters_known = 0
        self._draining = Draining(inner, clock, self.letters)
        self._depth = Depth()
        self._direct = True
        self._reached = False
        self._mistake: str | None = None  # why a store that was never reached refuses this configuration
        self._gate: asyncio.Event | None = None
        self._file: JournalFile | None = None
        self._making: asyncio.Task[JournalFile] | None = None
        self._rescue = Rescue(claims)
        self._disk_failed = float("-inf")
        self._disk_problem = ""
        self._writing = 0
        self._written = asyncio.Event()
        self._room = WaitingRoom()
        self._orphans: deque[JournalFile] = deque()  # and our own ones that are drained, to be closed
        self._looked = self._looked_after = float("-inf")
        self._steps: dict[str, Sequence[StepSpec]] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._problem: str | None = None
        self._full = False  # the problem is that the store takes no new events; it answers all else
        self._closed = False
        self._stay = 0

    # Lifetime

    async def open(self) -> None:
        """Connect, or begin with the journal if the store is away; drain what dead processes left behind."""
        try:
            async with _within(_OPEN_SECONDS):
                await self._inner.open()
            self._reached = True
        except StoreUnavailable as error:
            self._refused(error)
        if problem := await asyncio.to_thread(self._claims.problem):
            self._disk_problem = problem
            _logger.warning("there can be no journal (%s): in an outage publishers wait; %s", problem, _ADVICE)
        await self.count_letters()
        await self._adopt_orphans()
        if self._orphans:
            self._divert()  # what they hold comes before what is published now
        self._show()

    async def close(self) -> None:
        """Drain what can be drained at once, then close; the rest stays for the next process.

        A caller who gives up waits for the end of it all the same: a journal that stays locked is drained by nobody.
        """
        self._closed = True
        await completed(self._close())

    async def _close(self) -> None:
        if self._recovery is not None:
            if self._problem is None:
                await asyncio.wait([self._recovery], timeout=min(_CLOSING_SECONDS, self._options.timeout))
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        if self._making is not None:
            await asyncio.wait([self._making])
        while self._writing:
            await self._all_written()
        self._room.end(StoreUnavailable("the log was closed while the store was away; the event is not durable"))
        await self._look_after_files()
        await self._rescue.finish()
        stay = 0
        for file in self._files():
            if left := await file.close():
                stay += left
                _logger.warning(
                    "%d events stay in the journal %s; the next process that opens this store hands them on",
                    left,
                    file.path,
                )
        self._orphans.clear()
        self._file = None
        self._show()
        self._stay = stay
        await self._inner.close()

    def abandon(self) -> None:
        """Let go; see the port."""
        for file in self._files():
            file.abandon()
        self._depth.show(0, None, self._clock() * 1000)
        self._inner.abandon()

    # What a store that is away would refuse

    async def append(
        self, records: Sequence[Record], *, durability: Durability | None = None, max_backlog: int = 0
    ) -> list[Appended]:
        """Append to the store, or to the journal while the store is away; see the port.

        `durability="replicated"` is nothing that a journal can give: then this raises what the store says.
        """
        error: StoreUnavailable | None = None
        replicated = (durability or self._options.durability) == "replicated"
        while True:
            if self._direct:
                try:
                    return await self._inner.append(records, durability=durability, max_backlog=max_backlog)
                except StoreUnavailable as problem:
                    error = problem
                self._refused(error)
            if replicated:
                raise error or StoreUnavailable(self._not_replicated())
            if self._gate is None:
                synced = (durability or self._options.durability) == "fsync"
                if self._closed:
                    raise error or StoreUnavailable("the log is closed; nothing was stored")
                return await self._keep(_stamped(records, error, int(self._clock() * 1000)), synced)
            await self._gate.wait()
            if error is not None:
                self._divert()

    def _not_replicated(self) -> str:
        return (
            f"the store is away ({self._problem or 'its journal is being drained'}), and a journal cannot give "
            "durability='replicated'; nothing was stored"
        )

    async def register(self, workflow: str, steps: Sequence[StepSpec]) -> None:
        """Make the steps known; where the store is away, raise that, and do it before the journal is drained.

        Raises `ConfigurationError` as well if the store was away at the opening and refuses the configuration since.
        """
        if self._mistake is not None:
            raise ConfigurationError(self._mistake)
        if not self._reached or (self.breaker.state != "closed" and not self._full):
            self._steps[workflow] = tuple(steps)
            raise StoreUnavailable(f"the store is away: {self._problem}")
        try:
            await self._inner.register(workflow, steps)
        except StoreUnavailable as error:
            self._steps[workflow] = tuple(steps)
            self._refused(error)
            raise

    async def pending(self, groups: Sequence[str]) -> int:
        """Return what these groups have not acknowledged, and what is still in the journal."""
        return await self._inner.pending(groups) + self.journal_state().events

    async def stats(self) -> LogStats:
        """Return how the log stands, and its journal."""
        stats = await self._inner.stats()
        return msgspec.structs.replace(stats, duplicates=stats.duplicates + self._draining.found_late)

    async def maintain(self) -> None:
        """Do the store's housekeeping; look for journals whose process died since."""
        await self._inner.maintain()
        now = time.monotonic()
        if now - self._looked >= _ORPHANS_SECONDS:
            await self.count_letters()
            await self._adopt_orphans()
            if self._orphans:
                self._begin_recovery()
        self._show()

    async def durability_report(self) -> list[str]:
        """Say in plain words what a crash of the store can lose, and where events go while it is away."""
        words = await self._inner.durability_report()
        return [*words, f"while the store is away, events wait in a journal under {self._claims.directory}"]

    def journal_state(self) -> JournalState:
        """Return how the journal stands; asks nobody."""
        files = self._files()
        oldest = [file.oldest_ms for file in files if file.oldest_ms is not None]
        waiting = self._room.first()
        if waiting is not None:
            oldest.append(waiting.records[0].persisted_ms)
        return JournalState(
            active=not self._direct,
            events=sum(file.events for file in files) + self._room.events + self._stay,
            oldest_ms=min(oldest, default=None),
            in_memory=self._room.events,
            late_duplicates=self._draining.late,
            refused=self._draining.refused,
            path=None if self._file is None else str(self._file.path),
            problem=self._problem,
            disk_problem=self._disk_problem or None,
            dead_letters=self._letter_count,
        )

    async def retry_letters(self, numbers: Sequence[int] | None) -> Retried:
        """Send dead letters of the journal to the store again; raise `StoreUnavailable` while it is away."""
        if not self._direct:
            raise StoreUnavailable(
                f"the store is away ({self._problem or 'its journal is being drained'}); retry later"
            )
        try:
            return await retry(self._inner, self.letters, numbers, int(self._clock() * 1000))
        finally:
            await self.count_letters()

    async def count_letters(self) -> None:
        """Look how many dead letters there are now."""
        try:
            self._letter_count = await asyncio.to_thread(self.letters.count)
        except StoreUnavailable as error:
            _logger.warning("%s", error)
        self._show()

    async def _show_refused(self) -> None:
        """Let the metrics say how the journal stands, with what was set aside since."""
        if self._letters_known == self._draining.refused:
            self._show()
            return
        self._letters_known = self._draining.refused
        await self.count_letters()

    def _show(self) -> None:
        """Let the metrics say how the journal stands."""
        state = self.journal_state()
        self._depth.show(state.events, state.oldest_ms, self._clock() * 1000)
        show_letters(self.letters.path, state.dead_letters)

    # Into the journal

    def _refused(self, error: StoreUnavailable) -> None:
        """Note that the store refused: from now on events go to the journal."""
        self._problem, self._full = str(error), isinstance(error, StoreFull)
        try:
            with self.breaker:
                raise error
        except (StoreUnavailable, CircuitOpen):
            self._divert()

    def _divert(self) -> None:
        self._direct = False
        self._begin_recovery()

    def _begin_recovery(self) -> None:
        if not self._closed and (self._recovery is None or self._recovery.done()):
            self._recovery = start_task(self._recover(), "ag06 journal")

    async def _keep(self, records: Sequence[Record], synced: bool) -> list[Appended]:
        """Write to the journal; where no disk takes it, wait in memory until something does."""
        if not self._room.events and time.monotonic() - self._disk_failed >= _DISK_SECONDS:
            self._writing += 1
            try:
                return await self._write(records, synced)
            except (StoreError, OSError) as error:
                self._disk_failed, self._disk_problem = time.monotonic(), str(error)
                _logger.warning("publishers wait, for no disk takes their events (%s); %s", error, _ADVICE)
            finally:
                self._writing -= 1
                self._written.set()
        self._begin_recovery()
        return await self._room.wait(records, self._disk_problem, synced=synced)

    async def _write(self, records: Sequence[Record], synced: bool) -> list[Appended]:
        """Write to the journal, wherever it has to be for that."""
        file = await self._journal()
        try:
            return await file.append(records, synced=synced)
        except JournalMoved:
            try:
                await self._rescue.save(file)
            except StoreError:
                if not file.broken:
                    raise
                await self._open_anew()
                file = await self._journal()
            return await file.append(records, synced=synced)

    async def _look_after_files(self) -> None:
        """Save journals whose files were moved away, though nobody publishes at the moment."""
        now = time.monotonic()
        if now - self._looked_after < PROBE_SECONDS and not self._closed:
            return
        self._looked_after = now
        for file in self._files():
            try:
                await self._rescue.save(file)
            except StoreError as error:
                self._disk_problem = str(error)

    def _files(self) -> list[JournalFile]:
        return [*self._orphans, *([] if self._file is None else [self._file])]

    async def _all_written(self) -> None:
        self._written.clear()
        await self._written.wait()

    async def _journal(self) -> JournalFile:
        """Return the journal of this log, made at its first use; a caller who gives up does not stop that."""
        if self._file is not None:
            return self._file
        if self._making is None:
            self._making = start_task(self._make(), "ag06 new journal")
        return await asyncio.shield(self._making)

    async def _make(self) -> JournalFile:
        try:
            file = JournalFile(await asyncio.to_thread(self._claims.new))
            try:
                await file.open()
            except BaseException:
                await asyncio.to_thread(file.claim.let_go, delete=True)
                raise
            self._file, self._disk_problem = file, ""
            return file
        finally:
            self._making = None

    async def _adopt_orphans(self) -> None:
        """Take over the journals of processes that are gone."""
        self._looked = time.monotonic()
        found = await adopt(self._claims)
        if self._closed:  # meanwhile: they are for the next one
            for file in found:
                await file.close()
            return
        self._orphans += found

    async def _open_anew(self) -> None:
        """Close journals that cannot be read any more and take them over like those of the dead, which saves a lot."""
        if self._file is not None and self._file.broken:
            self._orphans.append(self._file)
            self._file = None
        broken = [file for file in self._orphans if file.broken]
        for file in broken:
            await file.close()
            self._orphans.remove(file)
        if broken:
            await self._adopt_orphans()

    # Out of the journal

    async def _recover(self) -> None:
        """Drain until everything is in the store and events go there straight."""
        while self._orphans or not self._direct:
            await self._show_refused()  # at least twice a second: the longest that the breaker is waited for
            await self._look_after_files()
            try:
                async with self.breaker:
                    await self._reach()
                    went_on = await self._next()
                if went_on:
                    self._problem = None
            except CircuitOpen as error:
                await asyncio.sleep(max(0.001, error.retry_after))
            except StoreUnavailable as error:
                await self._waits(error)
            except Exception as error:
                if _words(error) != self._problem:
                    known = isinstance(error, AG06Error)
                    # A traceback only where nothing but that says what happened.
                    _logger.error("draining the journal failed, it is tried again: %s", error, exc_info=not known)  # noqa: TRY400
                await self._open_anew()
                await self._waits(error)
                await asyncio.sleep(PROBE_SECONDS)  # the breaker stays closed for it
        self._outage.over()
        await self._show_refused()

    async def _waits(self, error: Exception) -> None:
        """Note why nothing can be handed on; let those who wait in memory go, if a disk takes their events by now."""
        self._problem, self._full = _words(error), isinstance(error, StoreFull)
        self._outage.failed(error)
        try:
            while (call := self._room.first()) is not None:
                self._room.done(call, await self._write(call.records, call.synced))
        except (StoreError, OSError) as problem:
            self._disk_problem = str(problem)

    async def _reach(self) -> None:
        """Open the store if it never was, and make known the steps that it does not know yet."""
        if not self._reached:
            try:
                await self._inner.open()
            except ConfigurationError as error:
                self._mistake = str(error)
                raise
            self._reached, self._mistake = True, None
        elif self.breaker.state != "closed":
            async with _within(_ANSWER_SECONDS):
                await self._inner.archives()  # anything that is answered at once
        for workflow, steps in list(self._steps.items()):
            try:
                await self._inner.register(workflow, steps)
            except ConfigurationError as error:  # whoever runs these steps is told so too; the journal waits for nobody
                _logger.error("workflow %s: %s", workflow, error)  # noqa: TRY400 - the traceback says no more
            if self._steps.get(workflow) is steps:  # not others that came meanwhile
                del self._steps[workflow]

    async def _next(self) -> bool:
        """Hand on a page, of orphans first; where little is left, switch over. Return whether the store took it."""
        if self._orphans:
            if await self._draining.some(self._orphans[0]):
                return True
            await self._orphans[0].close()
            self._orphans.popleft()
            return self._direct
        if self.breaker.state != "closed":  # a trial: nobody must wait for it
            return self._file is not None and await self._draining.some(self._file)
        if self._file is None or not await self._draining.some(self._file, leave_last=True):
            async with _within(_GATE_SECONDS):
                await self._switch_over()
        return True

    async def _switch_over(self) -> None:
        """Drain the rest while new events wait, so that the journal is truly empty when they go straight again."""
        if self._direct:
            return
        gate = self._gate = asyncio.Event()
        try:
            while self._writing:
                await self._all_written()
            while self._file is not None and await self._draining.some(self._file):
                continue
            while (call := self._room.first()) is not None:
                await self._let_in(call)
            if self._file is not None:
                self._orphans.append(self._file)
            self._file = None
            self._direct = True
        finally:
            self._gate = None
            gate.set()

    async def _let_in(self, call: Waiting) -> None:
        """Send what waits in memory; its publishers are told if the store refuses it."""
        try:
            outcomes = await self._draining.send(call.records, synced=call.synced)
        except Exception as error:
            if isinstance(error, StoreUnavailable) or not is_refusal(error):
                raise
            self._room.refuse(call, error)
        else:
            self._room.done(call, outcomes)


def _words(error: Exception) -> str:
    return str(error) or repr(error)


def _stamped(records: Sequence[Record], error: StoreUnavailable | None, now_ms: int) -> list[Record]:
    """Return records as a journal keeps them: with the time, and with what is in doubt about an earlier try."""
    doubts = error.doubts if isinstance(error, OutcomeUnknown) else ()
    return [
        msgspec.structs.replace(record, persisted_ms=now_ms, doubt=doubts[index] if index < len(doubts) else None)
        for index, record in enumerate(records)
    ]


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StoreUnavailable(f"the store did not answer within {seconds:g} s") from None
