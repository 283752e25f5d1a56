"""One step in one worker: fetch, dispatch, call, settle."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.error_text import describe
from ag06.errors import AG06Error, StoreError
from ag06.event import Event, decode_event
from ag06.failure import decide, is_refusal
from ag06.knob import Knob
from ag06.monitoring.tracing import TRACING
from ag06.persistence.admission import Admission
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Settlement, Subscription, deliveries_of
from ag06.persistence.outage import Outage
from ag06.retry import RetryBudget
from ag06.runtime.callers import Callers, Spawn
from ag06.runtime.committer import Committer
from ag06.runtime.context import Context
from ag06.runtime.intake import Intake, Prefetch
from ag06.runtime.interruption import failure_of
from ag06.runtime.invocation import invoke
from ag06.runtime.isolation import Isolation
from ag06.runtime.knobs import Following
from ag06.runtime.observing import StepObserver
from ag06.runtime.outcome import Listener
from ag06.runtime.reporting import Reporter, log_dead_letter, log_postponed
from ag06.runtime.step import Step
from ag06.runtime.threads import CallThreads
from ag06.runtime.variants import SPLITS
from ag06.runtime.verdict import bury, bury_killer, failed_before, judge, killed_workers, wait_apart, wait_for_budget
from ag06.stopping import asks_to_stop

if TYPE_CHECKING:
    from ag06.monitoring.spans import Span

_logger = logging.getLogger("ag06.runtime")
_FETCH_WAIT = 5.0
_LARGEST_PREFETCH = 1_000
_FAREWELL = 1.0  # seconds that a cancelled call may take to end
_TURN = 16  # calls in a row before other tasks of the loop get a turn, where no call suspends


class Shared(msgspec.Struct, frozen=True):
    """What the steps of one worker have in common. One suspect runs at a time in the whole process."""

    workflow: str
    admission: Admission
    budget: RetryBudget
    alone: asyncio.Lock
    listeners: list[Listener]
    commit_wait: Knob


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
        self._intake = Intake()
        self._suspects = Intake()
        self._per_call = 1
        self._prefetch = Prefetch(1, _LARGEST_PREFETCH)
        self._held = 0
        self._held_suspects = 0
        self._suspect_settled = asyncio.Event()
        self._callers = Callers(step.concurrency)
        self._room = asyncio.Event()
        self._report = Reporter(step.name, shared.listeners)
        self._observer = StepObserver(shared.workflow, step)
        self._committer = Committer(
            step.group, subscription, self._settled, wait=shared.commit_wait, held=lambda: self.in_flight
        )
        self._stopping = False
        self._isolation = Isolation()
        self._executor = None if step.is_async else CallThreads(step.concurrency, f"ag06-{step.name}")
        self._following: Following | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._suspect_caller: asyncio.Task[None] | None = None
        self._commits: asyncio.Task[None] | None = None

    def start(self, spawn: Spawn) -> None:
        """Start the tasks of this step with `spawn(coroutine, name)`, which watches over them."""
        name = self.step.group
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

    async def stop(self, deadline: float) -> None:
        """Stop fetching, let calls finish until `deadline` (loop time), give the rest back."""
        self._settle_down()
        await _cancelled([self._feeder])
        unstarted = self._intake.close() + self._suspects.close()
        await self._quietly(self.subscription.release(unstarted), deadline)
        callers = self._calling
        if callers:
            await asyncio.wait(callers, timeout=_left(deadline))
        await _cancelled(callers)
        await self._quietly(self._committed(), deadline)
        await _cancelled([self._commits])
        await self._quietly(self.subscription.close(), deadline)
        if self._executor is not None:
            self._executor.shutdown()

    @property
    def in_flight(self) -> int:
        """How many deliveries it holds: waiting for a call, in one, or to be settled."""
        return self._held + self._held_suspects

    def abort(self) -> None:
        """End at once, without taking leave: the event loop is torn down."""
        self._settle_down()
        for task in (self._feeder, *self._calling, self._commits):
            if task is not None:
                task.cancel()

    @property
    def _calling(self) -> list[asyncio.Task[None]]:
        return [*self._callers.tasks, *filter(None, [self._suspect_caller])]

    async def _committed(self) -> None:
        """Wait until everything is settled, or nothing more can be: the committer ended."""
        drained = asyncio.ensure_future(self._committer.drained())
        try:
            await asyncio.wait([drained, *filter(None, [self._commits])], return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()

    async def _quietly(self, work: Coroutine[Any, Any, None], deadline: float) -> None:
        """Do a part of the shutdown that may fail: what it would have given back is taken over later."""
        try:
            await asyncio.wait_for(work, _left(deadline) + 1.0)
        except (AG06Error, TimeoutError) as error:
            _logger.warning("step %s did not end cleanly, other workers take over later: %r", self.step.group, error)

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
            try:
                deliveries = await self.subscription.fetch(min(room, self.step.knobs.fetch_size.value), _FETCH_WAIT)
            except StoreError as error:
                outage.failed(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5.0)
                continue
            outage.over()
            wait = 0.05
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
            if turn == _TURN:
                turn = 0
                await asyncio.sleep(0)

    async def _next(self) -> Delivery | None:
        """Return the delivery that a caller is to take; `None` if it is to end."""
        while not (self._intake.closed or self._callers.dismiss()):
            delivery = self._intake.take()
            if delivery is not None:
                return delivery
            await self._intake.wait()
        return None

    async def _call_suspects(self) -> None:
        TRACING.shield()
        while (delivery := await self._suspects.get()) is not None:
            async with self._shared.alone:
                self._suspect_settled.clear()
                async with self._callers:
                    await self._process(delivery)
                # Only when the store knows how it ended may the next one kill this process: it is charged with deaths.
                await self._suspect_settled.wait()

    async def _call_batches(self) -> None:
        TRACING.shield()
        while (delivery := await self._next()) is not None:
            # What failed before runs alone: no company is worth waiting for.
            batch = [delivery] if failed_before(delivery) else await self._gather(delivery)
            async with self._callers:
                await self._process_batch(batch)
            await asyncio.sleep(0)

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
        context = self._context([event], delivery)
        failure, span = await self._attempt([event], context, first_attempts=int(first))
        outputs = context.close()
        if failure is None:
            self._settle(Acknowledge((delivery,), outputs), (event.id,), started, span=span)
            return True
        self._fail(delivery, event, started, failure, span)
        return False

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
        retry = self.step.retry
        if delivery.suspect or delivery.deaths or failed_before(delivery) or self._counts_starts:
            if killed_workers(delivery, retry) >= retry.attempts:
                self._settle(bury_killer(delivery, retry, int(time.time() * 1000)), (), time.time())
                return None
            if failed_before(delivery) and not self._shared.budget.withdraw():
                self._settle(wait_for_budget(delivery), (), time.time())
                return None
            if delivery.suspect or self._counts_starts:
                await self._note_start(delivery)
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

    async def _note_start(self, delivery: Delivery) -> None:
        outage = Outage(f"start of step {self.step.group}")
        wait = 0.05
        while True:
            try:
                await self.subscription.mark_started([delivery])
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
        return Context(self._shared.workflow, self.step.name, events, self._shared.admission, attempt, taken_over)

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
        try:
            await invoke(self.step, argument, context, self._executor, self._isolation)
        except BaseException as error:  # noqa: BLE001 - whatever a step raises is its failure
            try:
                return failure_of(error, self._calling, stopping=self._stopping)
            except BaseException:
                context.close()
                raise
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

    def _settled(self, settlements: Sequence[Settlement], accepted: Sequence[bool]) -> None:
        self._observer.settled(settlements, accepted, time.time() * 1000)
        count = 0
        for settlement, kept in zip(settlements, accepted, strict=True):
            deliveries = deliveries_of(settlement)
            count += len(deliveries)
            suspects = sum(delivery.suspect for delivery in deliveries)
            if suspects:
                self._held += suspects
                self._held_suspects -= suspects
                self._suspect_settled.set()
            if not kept or isinstance(settlement, Bury):
                self._say(settlement, kept)
            self._report.settled(settlement, kept)
        self._held -= count
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


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _cancelled(tasks: Sequence[asyncio.Task[None] | None]) -> None:
    """Cancel tasks and wait for their end; what they raise was seen by their guard."""
    live = [task for task in tasks if task is not None]
    for task in live:
        task.cancel()
    if live:
        _, deaf = await asyncio.wait(live, timeout=_FAREWELL)
        for task in deaf:
            _logger.warning("%s does not end although it was cancelled; it is left behind", task.get_name())
