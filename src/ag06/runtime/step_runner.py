"""One step in one worker: fetch, dispatch, call, settle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.error_text import describe
from ag06.errors import AG06Error, StoreError, Unstorable
from ag06.event import Event, decode_event
from ag06.failure import decide, is_refusal
from ag06.knob import Knob
from ag06.monitoring.tracing import TRACING
from ag06.persistence.admission import Admission
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Settlement, Subscription, deliveries_of
from ag06.persistence.outage import Outage
from ag06.retry import RetryBudget
from ag06.runtime.call_board import CallBoard
from ag06.runtime.callers import Callers, Spawn
from ag06.runtime.committer import Committer, instead_of
from ag06.runtime.context import Context
from ag06.runtime.grace import Grace, cancel
from ag06.runtime.heartbeat import Heartbeat
from ag06.runtime.intake import Intake, Prefetch
from ag06.runtime.interruption import failure_of
from ag06.runtime.invocation import invoke
from ag06.runtime.isolation import Isolation
from ag06.runtime.knobs import Following
from ag06.runtime.observing import StepObserver
from ag06.runtime.outcome import Listener
from ag06.runtime.quarantine import Quarantine, must_run_alone
from ag06.runtime.reporting import Reporter, log_dead_letter, log_postponed
from ag06.runtime.shutdown_report import ShutdownCounts
from ag06.runtime.step import Step
from ag06.runtime.threads import CallThreads
from ag06.runtime.variants import SPLITS
from ag06.runtime.verdict import (
    bury,
    bury_killer,
    bury_slow,
    failed_before,
    judge,
    killed_workers,
    wait_apart,
    wait_for_budget,
    wait_for_sign_of_life,
)
from ag06.stopping import asks_to_stop
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.monitoring.spans import Span

_logger = logging.getLogger("ag06.runtime")
_FETCH_WAIT = 5.0
_LARGEST_PREFETCH = 1_000
_TURN = 16  # calls in a row before other tasks of the loop get a turn, where no call suspends


class Shared(msgspec.Struct, frozen=True):
    """What the steps of one worker have in common."""

    workflow: str
    admission: Admission
    budget: RetryBudget
    quarantine: Quarantine
    listeners: list[Listener]
    commit_wait: Knob
    max_output_bytes: int
    visibility: float
    heartbeat: Heartbeat
    board: CallBoard | None


class StepRunner:
    """Runs one step: a feeder fills the intake, `concurrency` callers empty it, a committer settles.

    The knobs of the step may move meanwhile, in any thread. What a request to the store has been asked for by then, it
    may still bring.
    """

    def __init__(self, step: Step, subscription: Subscription, shared: Shared) -> None:
        """Run `step` on what `subscription` hands out."""
        self.step = step
        self.subscription = subscription
        self._shared = shared
        self._heartbeat = shared.heartbeat
        self._board = shared.board
        self._slots: dict[int, int] = {}
        self._intake = Intake()
        self._suspects = Intake()
        self._per_call = 1
        self._prefetch = Prefetch(1, _LARGEST_PREFETCH)
        self._held = 0
        self.settled_count = 0
        self._held_suspects = 0
        self._suspect_calls: set[asyncio.Task[None]] = set()
        self._suspect_ends: dict[int, asyncio.Event] = {}
        self._spawn: Spawn | None = None
        self._callers = Callers(step.concurrency)
        self._room = asyncio.Event()
        self._report = Reporter(step.name, shared.listeners)
        self._observer = StepObserver(shared.workflow, step)
        self._committer = Committer(
            step.group,
            subscription,
            self._settled,
            wait=shared.commit_wait,
            held=lambda: self.in_flight,
            give_up=self._give_up,
        )
        self._stopping = False
        self._cutting = False
        self._calls: set[Context] = set()
        self._finished = 0
        self._unstarted: list[Delivery] = []
        self._cut_off: list[str] = []
        self._isolation = Isolation()
        self._executor = None if step.is_async else CallThreads(step.concurrency, f"ag06-{step.name}")
        self._following: Following | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._suspect_caller: asyncio.Task[None] | None = None
        self._commits: asyncio.Task[None] | None = None

    def start(self, spawn: Spawn) -> None:
        """Start the tasks of this step with `spawn(coroutine, name)`, which watches over them."""
        name = self.step.group
        self._spawn = spawn
        self._following = Following(self.step.knobs, self._adapt)
        self._adapt()
        self._commits = spawn(self._committer.run(), f"{name}: commit")
        call = self._call_batches if self.step.is_batch else self._call_singly
        self._callers.start(spawn, call, f"{name}: call")
        self._suspect_caller = spawn(self._call_suspects(), f"{name}: suspects")
        self._feeder = spawn(self._feed(), f"{name}: fetch")

    def _adapt(self) -> None:
        """Run as the knobs say now."""
        concurrency = self.step.concurrency
        self._per_call = self.step.max_size or 1
        self._prefetch.floor = concurrency * self._per_call
        self._prefetch.seconds = self.step.knobs.prefetch.value
        if self._executor is not None:
            self._executor.resize(concurrency)
        self._callers.resize(concurrency)
        self._intake.wake_all()  # some may be one too many, or wait for company no longer
        self._room.set()

    def _settle_down(self) -> None:
        """Move no more: the end has begun."""
        self._stopping = True
        self._callers.freeze()
        if self._following is not None:
            self._following.close()

    def refuse(self) -> None:
        """Take no more deliveries and begin no more calls, from this moment on."""
        self._settle_down()
        if self._feeder is not None:
            self._feeder.cancel()
        self._unstarted += self._intake.close() + self._suspects.close()

    async def stop(self, grace: Grace) -> ShutdownCounts:
        """Stop fetching, let calls finish within `grace`, give the rest back. Again after a cancellation: go on."""
        self.refuse()
        await cancel([self._feeder])
        unstarted = self._unstarted + self._intake.close() + self._suspects.close()
        released = len(unstarted) if await self._quietly(self.subscription.release(unstarted), grace) else 0
        callers = self._calling
        await grace.wait(callers)
        self._cutting = True
        await cancel(callers)
        await self._quietly(self._committed(), grace)
        await cancel([self._commits])
        is_left = await self._quietly(self.subscription.close(), grace)
        if self._executor is not None:
            self._executor.shutdown()
        return self._counts(released, everything=is_left)

    def _counts(self, released: int, *, everything: bool) -> ShutdownCounts:
        """Return what became of the deliveries: so many were `released` early, and `everything` else too or not."""
        cut_off = [*self._cut_off, *(event_id for call in self._calls for event_id in call.event_ids)]
        uncalled = max(0, self.in_flight - len(cut_off))
        given_back = uncalled if everything else min(released, uncalled)
        return ShutdownCounts(
            finished=self._finished,
            given_back=given_back,
            cut_off=cut_off,
            left=0 if everything else self.in_flight - given_back,
        )

    @property
    def in_flight(self) -> int:
        """How many deliveries it holds: waiting for a call, in one, or to be settled."""
        return self._held + self._held_suspects

    def abort(self) -> None:
        """End at once, without taking leave: the event loop is torn down."""
        self._settle_down()
        self._cutting = True
        for task in (self._feeder, *self._calling, self._commits):
            if task is not None:
                task.cancel()

    @property
    def _is_cut_off(self) -> bool:
        """Whether a cancelled call was cancelled by the shutdown, or by an event loop that cancels all tasks."""
        return self._cutting or (self._commits is not None and self._commits.cancelling() > 0)

    @property
    def _calling(self) -> list[asyncio.Task[None]]:
        return [*self._callers.tasks, *self._suspect_calls, *filter(None, [self._suspect_caller])]

    async def _committed(self) -> None:
        """Wait until everything is settled, or nothing more can be: the committer ended."""
        drained = start_task(self._committer.drained())
        try:
            await asyncio.wait([drained, *filter(None, [self._commits])], return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()

    async def _quietly(self, work: Coroutine[Any, Any, None], grace: Grace) -> bool:
        """Do a part of the shutdown that may fail; return whether it worked. If not, other workers take over later."""
        try:
            await grace.run(work)
        except (AG06Error, TimeoutError) as error:
            _logger.warning("step %s did not end cleanly, other workers take over later: %r", self.step.group, error)
            return False
        return True

    # Fetch

    async def _feed(self) -> None:
        outage = Outage(f"fetch of step {self.step.group}")
        wait = 0.05
        while True:
            target = self._prefetch.target
            # What was taken over may take its time, one after the other: nothing else waits for it.
            held = self._held + max(0, self._held_suspects - _LARGEST_PREFETCH)
            room = target - held
            # A call that is free takes an event at once: the others may never end.
            is_one_free = held <= (self._callers.limit - 1) * self._per_call
            if room < max(1, target // 4) and not is_one_free:
                self._room.clear()
                await self._room.wait()
                continue
            missed = self._heartbeat.missed
            try:
                deliveries = await self.subscription.fetch(min(room, self.step.knobs.fetch_size.value), _FETCH_WAIT)
            except StoreError as error:
                outage.failed(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)
                continue
            outage.over()
            wait = 0.05
            if missed != self._heartbeat.missed:  # fetched while the loop was blocked, perhaps lost since
                await self._give_back(deliveries)
                continue
            self._accept(deliveries)
            await asyncio.sleep(0)  # let the calls start before the next fetch takes its time

    def _accept(self, deliveries: Sequence[Delivery]) -> None:
        suspects = [delivery for delivery in deliveries if delivery.suspect]
        self._held += len(deliveries) - len(suspects)
        if suspects:
            self._held_suspects += len(suspects)
            self._observer.taken_over(len(suspects))
            self._suspects.put(suspects)
            self._intake.put(delivery for delivery in deliveries if not delivery.suspect)
        else:
            self._intake.put(deliveries)

    # Call

    async def _call_singly(self) -> None:
        TRACING.shield()
        turn = 0
        while (delivery := await self._next()) is not None:
            async with self._callers:
                await self._process(delivery)
            turn += 1
            if turn == _TURN or self._heartbeat.is_due:
                turn = 0
                await self._yield()

    async def _next(self) -> Delivery | None:
        """Return the delivery that a caller is to take; `None` if it is to end."""
        while not (self._intake.closed or self._callers.dismiss()):
            delivery = self._intake.take()
            if delivery is not None:
                return delivery
            await self._intake.wait()
            if self._heartbeat.is_late:
                await self._give_back_unstarted()
        return None

    async def _yield(self) -> None:
        """Let other tasks of the loop have their turn, behind a call that may have blocked it."""
        if self._heartbeat.is_late:
            await self._give_back_unstarted()
        await asyncio.sleep(0)

    async def _give_back_unstarted(self) -> None:
        """Give back what waits for a call: the loop was blocked for so long that it was lost, or is about to be."""
        unstarted = [*self._intake.clear(), *(suspects := self._suspects.clear())]
        self._held -= len(unstarted) - len(suspects)
        self._held_suspects -= len(suspects)
        await self._give_back(unstarted)
        self._room.set()

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            await self._insist(lambda: self.subscription.release(deliveries), "release")

    async def _call_suspects(self) -> None:
        TRACING.shield()
        while (delivery := await self._suspects.get()) is not None:
            async with contextlib.AsyncExitStack() as turn:
                await turn.enter_async_context(self._callers)
                if must_run_alone(delivery, self.step.retry):
                    await turn.enter_async_context(self._shared.quarantine.alone())
                if self._stopping or self._spawn is None:
                    return  # what is still held is given back when the subscription closes
                work = self._call_suspect(delivery, turn.pop_all())
                call = self._spawn(work, f"{self.step.group}: quarantine")
                self._suspect_calls.add(call)
                call.add_done_callback(self._suspect_calls.discard)

    async def _call_suspect(self, delivery: Delivery, turn: contextlib.AsyncExitStack) -> None:
        """Call the step for one delivery in quarantine; the turn ends once the store knows the result.

        A death of this process before that would still be charged to it.
        """
        ended = self._suspect_ends[id(delivery)] = asyncio.Event()
        try:
            async with turn:
                await self._process(delivery)
                await ended.wait()
        finally:
            del self._suspect_ends[id(delivery)]

    async def _call_batches(self) -> None:
        TRACING.shield()
        while (delivery := await self._next()) is not None:
            # What failed before runs alone: no company is worth waiting for.
            batch = [delivery] if failed_before(delivery) else await self._gather(delivery)
            async with self._callers:
                await self._process_batch(batch)
            await self._yield()

    async def _gather(self, first: Delivery) -> list[Delivery]:
        """Return `first` and what else is there within `max_wait`, up to `max_size`."""
        batch = [first]
        began = asyncio.get_running_loop().time()
        while len(batch) < self.step.max_size and not self._intake.closed:
            following = self._intake.take()
            if following is not None:
                batch.append(following)
                continue
            try:
                async with asyncio.timeout_at(began + self.step.max_wait):
                    await self._intake.wait()
            except TimeoutError:
                break
        return batch

    async def _process(self, delivery: Delivery) -> None:
        """Call the step for one delivery and queue what follows."""
        started = time.time()
        event = await self._admit(delivery)
        if event is None:
            return
        await self._try(delivery, event, started, first=not failed_before(delivery))

    async def _try(self, delivery: Delivery, event: Event[Any], started: float, *, first: bool) -> bool:
        """Call the step for one admitted event; return whether it worked."""
        self._show(delivery, event)
        context = self._context([event], delivery)
        failure, span = await self._attempt([event], context, first_attempts=int(first))
        outputs = context.close()
        if failure is None:
            self._settle(Acknowledge((delivery,), outputs), (event.id,), started, span=span)
            return True
        self._fail(delivery, event, started, failure, span)
        return False

    def _show(self, delivery: Delivery, event: Event[Any]) -> None:
        """Show the supervisor, if there is one, that the call of a delivery begins; until it is settled."""
        if self._board is not None and id(delivery) not in self._slots:
            self._slots[id(delivery)] = self._board.begin(self.step.group, delivery.name, event.id)

    def _fail(
        self, delivery: Delivery, event: Event[Any], started: float, failure: BaseException, span: Span | None = None
    ) -> None:
        verdict = judge(delivery, failure, self.step.retry)
        if isinstance(verdict, Postpone):
            with self._observer.about(delivery, event):
                log_postponed(self.step, verdict, event.id, failure)
        self._settle(verdict, (event.id,), started, failure, span)

    async def _process_batch(self, deliveries: list[Delivery]) -> None:
        """Call the step for many deliveries; what failed before runs alone."""
        alone = [delivery for delivery in deliveries if failed_before(delivery)]
        together = [delivery for delivery in deliveries if not failed_before(delivery)]
        if len(together) > 1:
            await self._process_together(together)
        else:
            alone = together + alone
        for delivery in alone:
            await self._process(delivery)

    async def _process_together(self, deliveries: list[Delivery]) -> None:
        """Call the step once for many deliveries; after a failure for each alone: one must not spoil the others."""
        started = time.time()
        events = [(delivery, await self._admit(delivery)) for delivery in deliveries]
        batch = [(delivery, event) for delivery, event in events if event is not None]
        if not batch:
            return
        for delivery, event in batch:
            self._show(delivery, event)
        arguments = [event for _, event in batch]
        context = self._context(arguments, batch[0][0])
        failure, span = await self._attempt(arguments, context, first_attempts=len(batch))
        outputs = context.close()
        if failure is None:
            called = tuple(delivery for delivery, _ in batch)
            self._settle(Acknowledge(called, outputs), tuple(event.id for event in arguments), started, span=span)
        else:
            await self._try_each(batch, started, failure)

    async def _try_each(self, batch: list[tuple[Delivery, Event[Any]]], started: float, failure: BaseException) -> None:
        """Tell the good events of a failed batch from the bad ones: each is judged by a call of its own.

        A try alone is free after one that worked, or takes from the budget as a retry does. Without budget the
        event comes back later to be tried alone, at no cost; so do all of a batch that asks for a wait. What a breaker
        refuses was not tried: it comes back as it was.
        """
        _logger.warning(
            "step %s failed on %d events, trying each alone: %s", self.step.name, len(batch), describe(failure)
        )
        decision = decide(failure, self.step.retry.on)
        asks_to_wait = decision.kind == "passing" and decision.wait is not None
        worked = False
        for delivery, event in batch:
            if decision.kind == "refused":
                self._fail(delivery, event, started, failure)
            elif not asks_to_wait and (worked or self._shared.budget.withdraw()):
                worked = await self._try_again(delivery)
            else:
                apart = wait_apart(delivery, self.step.retry, decision.wait if asks_to_wait else None)
                self._settle(apart, (event.id,), started, failure)

    async def _try_again(self, delivery: Delivery) -> bool:
        """Call the step with the event as it is stored: the failed call may have changed the one it got."""
        event = self._decode(delivery)
        return event is not None and await self._try(delivery, event, time.time(), first=False)

    @property
    def _counts_starts(self) -> bool:
        """Whether every start is noted in the store: with a single attempt, the first death must count.

        Not for batches, where one death would condemn them all: there only suspects are noted, each running alone.
        """
        return self.step.retry.attempts == 1 and not self.step.is_batch

    async def _admit(self, delivery: Delivery) -> Event[Any] | None:
        """Return the event if it may run now; otherwise settle the delivery and return `None`."""
        if delivery.suspect or delivery.deaths or failed_before(delivery) or self._counts_starts:
            if (end := self._condemn(delivery)) is not None:
                self._settle(end, (), time.time())
                return None
            if failed_before(delivery) and not self._shared.budget.withdraw():
                self._settle(wait_for_budget(delivery), (), time.time())
                return None
            if (delivery.suspect or self._counts_starts) and not await self._note_start(delivery):
                return None
        return self._decode(delivery)

    def _decode(self, delivery: Delivery) -> Event[Any] | None:
        """Return the event as the step's annotation asks for it; otherwise settle the delivery and return `None`."""
        try:
            return decode_event(delivery.body, delivery.recorded_ms, self.step.decode)
        except BaseException as error:  # a data class of the user's may raise anything
            if asks_to_stop(error):
                raise
            self._observer.refused()
            self._settle(bury(delivery, error, "invalid", int(time.time() * 1000)), (), time.time(), error)
            return None

    def _condemn(self, delivery: Delivery) -> Settlement | None:
        """Return the settlement of an event that must not run again, or not yet, because of its earlier workers."""
        retry, now_ms = self.step.retry, int(time.time() * 1000)
        if killed_workers(delivery, retry) >= retry.attempts:
            if delivery.lapsed:
                return wait_for_sign_of_life(delivery, self._shared.visibility)
            return bury_killer(delivery, retry, now_ms)
        if delivery.suspect and delivery.attempts >= retry.attempts:
            return bury_slow(delivery, now_ms)
        return None

    async def _note_start(self, delivery: Delivery) -> bool:
        """Note that a delivery runs now; return `False` if it was given back: the loop was blocked meanwhile."""
        missed = self._heartbeat.missed
        await self._insist(lambda: self.subscription.mark_started([delivery]), "start")
        if missed == self._heartbeat.missed and not self._heartbeat.is_late:
            return True
        await self._insist(lambda: self.subscription.survived([delivery], attempts=0), "start")
        await self._give_back([delivery])
        if delivery.suspect:
            self._held_suspects -= 1
            if (ended := self._suspect_ends.get(id(delivery))) is not None:
                ended.set()
        else:
            self._held -= 1
        self._room.set()
        return False

    async def _insist(self, call: Callable[[], Awaitable[None]], what: str) -> None:
        """Call the store until it answers."""
        outage = Outage(f"{what} of step {self.step.group}")
        wait = 0.05
        while True:
            try:
                await call()
            except StoreError as error:
                outage.failed(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)
            else:
                outage.over()
                return

    def _context(self, events: list[Event[Any]], delivery: Delivery) -> Context:
        taken_over = delivery.suspect or delivery.deaths > 0
        attempt = delivery.attempts + 1
        shared = self._shared
        return Context(
            shared.workflow, self.step.name, events, shared.admission, attempt, taken_over, shared.max_output_bytes
        )

    async def _attempt(
        self, events: list[Event[Any]], context: Context, *, first_attempts: int
    ) -> tuple[BaseException | None, Span | None]:
        """Call the step and pay its `first_attempts` into the budget; return what it raised, and its span if any."""
        if self.step.is_batch:
            argument: Any = events.copy()  # the step may take its list apart
            call = self._observer.begin_batch(events, context.attempt)
        else:
            argument = events[0]
            call = self._observer.begin(argument, context.attempt)
        try:
            if SPLITS and (split := SPLITS.get(id(self.step))) is not None:
                failure = await split.call(self.step, argument, self._call(argument, context))
            else:
                failure = await self._call(argument, context)
        except BaseException:
            self._observer.abandon(call)
            raise
        span = self._observer.end(call, failure, len(events))
        if first_attempts and not is_refusal(failure):  # what was refused was no attempt
            self._shared.budget.deposit(first_attempts)
        return failure, span

    async def _call(self, argument: Any, context: Context) -> BaseException | None:
        """Call the step; return what it raised, but let the end of this worker through."""
        self._calls.add(context)
        try:
            await invoke(self.step, argument, context, self._executor, self._isolation)
        except BaseException as error:  # noqa: BLE001 - whatever a step raises is its failure
            try:
                return failure_of(error, self._calling, stopping=self._is_cut_off)
            except BaseException:
                context.close()
                self._cut_off += context.event_ids
                raise
        finally:
            self._calls.discard(context)
        return None

    # Settle

    def _settle(
        self,
        settlement: Settlement,
        ids: tuple[str, ...],
        started: float,
        error: BaseException | None = None,
        span: Span | None = None,
    ) -> None:
        self._report.ended(settlement, ids, started, error)
        if span is not None:
            self._observer.trace(settlement, span)
        self._committer.put(settlement)

    def _give_up(self, settlement: Acknowledge | Bury, error: Unstorable) -> list[Settlement]:
        """Return what to settle in place of what the store refuses however often it is repeated."""
        others = instead_of(settlement, error)
        self._report.replaced(settlement, others, error)
        self._observer.replaced(settlement, others[0])
        return others

    def _settled(self, settlements: Sequence[Settlement], accepted: Sequence[bool]) -> None:
        self._observer.settled(settlements, accepted, time.time() * 1000)
        count = 0
        for settlement, kept in zip(settlements, accepted, strict=True):
            deliveries = deliveries_of(settlement)
            count += len(deliveries)
            if self._stopping and kept:
                self._finished += len(deliveries)
            for delivery in deliveries:
                if self._board is not None and (slot := self._slots.pop(id(delivery), 0)):
                    self._board.end(slot)
                if delivery.suspect:
                    self._held += 1
                    self._held_suspects -= 1
                    if (ended := self._suspect_ends.get(id(delivery))) is not None:
                        ended.set()
            if not kept or isinstance(settlement, Bury):
                self._say(settlement, kept)
            self._report.settled(settlement, kept)
        self._held -= count
        self.settled_count += count
        self._prefetch.settled(count, time.monotonic())
        self._room.set()

    def _say(self, settlement: Settlement, kept: bool) -> None:
        with self._observer.about(deliveries_of(settlement)[0]):
            if kept and isinstance(settlement, Bury):
                log_dead_letter(self.step, settlement)
            else:
                _logger.warning(
                    "step %s: another worker had taken an event over, this result was not kept (visibility timeout)",
                    self.step.group,
                )
