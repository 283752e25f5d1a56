"""What is counted, traced and said of one step in one worker: hooks on an event's way, no station of it.

What can wait is done for many events at once, when the store has answered: an event of a step that does nothing takes
some ten microseconds in all, of which each look at a metric would be a noticeable part.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from ag06.event import Event, decode_event
from ag06.failure import is_refusal
from ag06.monitoring import fine, instruments
from ag06.monitoring.log_context import Bound, bind_event, unbind_event
from ag06.monitoring.tracing import TRACING, Mark
from ag06.monitoring.tracker import performance
from ag06.persistence.log import Acknowledge, Bury, Delivery, Postpone, Reason, Settlement, deliveries_of
from ag06.runtime.outcome import OutcomeKind
from ag06.runtime.step import Step

if TYPE_CHECKING:
    from ag06.monitoring.spans import Settled, Span

_MOST_PENDING = 256


Call: TypeAlias = tuple[Mark, "Token[Bound | None]", float]
"""One call of a step that is under way: its trace, what log lines say of it, and when it began.

A plain tuple: a class with names takes ten times as long to make, for each event."""


def kind_of(settlement: Settlement, kept: bool) -> OutcomeKind:
    """Return what became of the deliveries of a settlement that the store has kept, or refused."""
    if not kept:
        return "fenced"
    if isinstance(settlement, Acknowledge):
        return "processed"
    if isinstance(settlement, Bury):
        return "dead"
    return "retried" if settlement.attempts > settlement.delivery.attempts else "delayed"


class StepObserver:
    """Counts and traces what happens to the events of one step. Labels name it as the store does: `workflow.step`."""

    def __init__(self, workflow: str, step: Step, clock: Callable[[], float] = time.perf_counter) -> None:
        """Bind what is counted for each event, once; `clock` tells seconds."""
        self._workflow = workflow
        self._step = step
        self._clock = clock
        self._events = {kind: instruments.EVENTS.labels(step.type, kind) for kind in get_args(OutcomeKind)}
        self._duration = instruments.STEP_DURATION.labels(step.group)
        self._age = instruments.EVENT_AGE.labels(step.group)
        self._retries = instruments.RETRIES.labels(step.group)
        # From 0 on: the rate of a series that appears with its first dead letter would not know of that one.
        self._dead = {reason: instruments.DEAD_LETTERS.labels(step.group, reason) for reason in get_args(Reason)}
        self._takeovers = instruments.TAKEOVERS.labels(step.group)
        self._sizes = instruments.BATCH_SIZE.labels("step")
        self._performance = performance.series(step.group)
        self._fine_age = fine.AGES.labels(step.group)
        self._fine_calls = fine.CALLS.labels(step.group)
        self._fine_failed = fine.FAILED.labels(step.group)
        self._fine_dead = fine.DEAD.labels(step.group)
        self._succeeded: list[float] = []
        self._spans: dict[int, Span] = {}

    # Calls

    def begin(self, event: Event[Any], attempt: int) -> Call:
        """Say that the step is called with an event, in this task, until `end`."""
        mark = TRACING.begin_process(event, self._step.group, attempt)
        return mark, bind_event(event, self._workflow, self._step.name, attempt), self._clock()

    def begin_batch(self, events: Sequence[Event[Any]], attempt: int) -> Call:
        """Say that the step is called with many events, in this task, until `end`."""
        mark = TRACING.begin_batch(events, self._step.group)
        return mark, bind_event(None, self._workflow, self._step.name, attempt), self._clock()

    def end(self, call: Call, failure: BaseException | None, count: int) -> Span | None:
        """Say that the call ended that had `count` events; return its span where one is recorded, for `trace`."""
        mark, bound, began = call
        seconds = self._clock() - began
        unbind_event(bound)
        span = TRACING.end_process(mark, failure)
        if failure is None and span is None and not self._step.is_batch:
            self._succeeded.append(seconds)
            if len(self._succeeded) >= _MOST_PENDING:
                self._flush()
        elif not is_refusal(failure):  # what was refused was no attempt
            self._count_call(seconds, failure, count, span)
        return span

    def abandon(self, call: Call) -> None:
        """Say that the call was cancelled because the worker ends."""
        mark, bound, _ = call
        with contextlib.suppress(ValueError):  # ended by the loop, in a context of its own: nothing to put back
            unbind_event(bound)
        TRACING.end_process(mark)

    def _count_call(self, seconds: float, failure: BaseException | None, count: int, span: Span | None) -> None:
        if failure is not None:
            instruments.ERRORS.inc()
        if self._step.is_batch:
            self._sizes.observe(count)
        self._performance.record(seconds, failure is not None, count)
        self._fine_calls.observe(seconds)
        for histogram in (self._duration, instruments.PROCESSING_DURATION):
            if span is None:
                histogram.observe(seconds)
            else:
                histogram.observe_traced(seconds, *span.ids)

    def _flush(self) -> None:
        seconds, self._succeeded = self._succeeded, []
        self._duration.observe_all(seconds, instruments.PROCESSING_DURATION)
        self._performance.record_all(seconds)
        self._fine_calls.observe_all(seconds)

    def refused(self) -> None:
        """Count an event that the step could not even be called with."""
        instruments.ERRORS.inc()

    def taken_over(self, count: int) -> None:
        """Count deliveries that came from a worker that was gone or silent."""
        self._takeovers.inc(count)

    # Settlements

    def trace(self, settlement: Settlement, span: Span) -> None:
        """Keep the span of a call until the store has answered to its settlement."""
        self._spans[id(settlement)] = span

    def replaced(self, settlement: Settlement, other: Settlement) -> None:
        """Let the span of a call end with another settlement than the one that it was kept for."""
        if (span := self._spans.pop(id(settlement), None)) is not None:
            self._spans[id(other)] = span

    def settled(self, settlements: Sequence[Settlement], accepted: Sequence[bool], now_ms: float) -> None:
        """Count what became of deliveries, now that the store has answered; `now_ms` is since the epoch."""
        if self._succeeded:
            self._flush()
        ages: Counter[int] = Counter()
        processed = 0
        for settlement, kept in zip(settlements, accepted, strict=True):
            if kept and isinstance(settlement, Acknowledge):
                processed += len(settlement.deliveries)
                for delivery in settlement.deliveries:
                    ages[delivery.recorded_ms] += 1
            else:
                self._count_other(settlement, kept, ages)
            if self._spans and (span := self._spans.pop(id(settlement), None)) is not None:
                self._end_trace(settlement, kept, span, now_ms)
        if processed:
            instruments.EVENTS_PROCESSED.inc(processed)
            self._events["processed"].inc(processed)
        for recorded_ms, count in ages.items():
            age_ms = max(0.0, now_ms - recorded_ms)
            instruments.LATENCY.observe(age_ms, count)
            self._age.observe(age_ms / 1000, count)
            self._fine_age.observe(age_ms / 1000, count)

    def _count_other(self, settlement: Settlement, kept: bool, ages: Counter[int]) -> None:
        kind = kind_of(settlement, kept)
        deliveries = deliveries_of(settlement)
        self._events[kind].inc(len(deliveries))
        if kind == "retried":
            self._retries.inc()
            self._fine_failed.inc()
        elif kind == "dead" and isinstance(settlement, Bury):
            ages[settlement.delivery.recorded_ms] += 1
            self._dead[settlement.failure.reason].inc()
            self._fine_failed.inc()
            self._fine_dead.inc()

    def _end_trace(self, settlement: Settlement, kept: bool, span: Span, now_ms: float) -> None:
        deliveries = deliveries_of(settlement)
        operation: Settled = (
            "ack" if isinstance(settlement, Acknowledge) else "bury" if isinstance(settlement, Bury) else "postpone"
        )
        TRACING.settled(span, operation, kept, len(deliveries))
        if kept and not isinstance(settlement, Postpone):
            age_ms = max(0.0, now_ms - deliveries[0].recorded_ms)
            instruments.LATENCY.show(age_ms, *span.ids)
            self._age.show(age_ms / 1000, *span.ids)

    # Words

    @contextlib.contextmanager
    def about(self, delivery: Delivery, event: Event[Any] | None = None) -> Iterator[None]:
        """Let log lines that are written inside say which event, trace and step they are about.

        It is read from the delivery, unless the caller has the `event`.
        """
        if event is None:
            with contextlib.suppress(Exception):  # what cannot be read is what the line may be about
                event = decode_event(delivery.body, delivery.recorded_ms)
        token = bind_event(event, self._workflow, self._step.name, delivery.attempts + 1)
        try:
            yield
        finally:
            unbind_event(token)
