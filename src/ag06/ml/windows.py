"""What a running workflow did in a span of time: the difference of two readings of what is counted."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from operator import add, sub
from typing import Literal

import msgspec

from ag06.monitoring.children import Sample
from ag06.monitoring.fine import BOUNDS, count_above, quantile
from ag06.monitoring.names import PREFIX, Declaration

Flag = Literal["idle", "stalled", "too_few_events", "held_up", "load_changed", "restarted"]
"""What is wrong with a window.

`idle`: nothing happened and nothing waits. `stalled`: nothing happened though events wait. `too_few_events`: there were
so few that the figures say little. `held_up`: so few were settled, though as many as that wait: that says a lot.
`load_changed`: events came in at another rate than in the window before, by more than a factor.
`restarted`: workers began or ended meanwhile, or what is counted began anew.
"""

_EMPTY = (0.0,) * (len(BOUNDS) + 2)


class Queue(msgspec.Struct, frozen=True):
    """What waits for one step: events, and the age of the oldest in seconds."""

    backlog: float
    oldest_age: float


class StepTotals(msgspec.Struct, frozen=True):
    """What was counted for one step so far. `ages` and `calls` are a sum and one count for each of the fine buckets."""

    ages: Sequence[float] = _EMPTY
    calls: Sequence[float] = _EMPTY
    failed: float = 0.0
    dead: float = 0.0
    began_ms: float = 0.0


class Totals(msgspec.Struct, frozen=True):
    """What was counted so far, at one moment (`at`, in seconds of a clock that is never set).

    `queues`: what waits for each step, of those that are known. `memory_mb` and `cpu_seconds` are of all processes.
    """

    at: float
    steps: Mapping[str, StepTotals] = {}
    queues: Mapping[str, Queue] = {}
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0


class StepFigures(msgspec.Struct, frozen=True):
    """What one step did: events processed, attempts that failed, age of events when settled, time of calls, in ms."""

    processed: int
    failed: int
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    call_mean_ms: float | None
    call_p99_ms: float | None
    backlog: int


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a span.

    Attributes:
        cpu_percent: processor time of all processes, 100 for one core.
        memory_mb: resident memory of all processes at the end, in millions of bytes.
        latency_p50_ms, latency_p95_ms, latency_p99_ms: age of events when a step had settled them, counted from their
            entry into the log, within 5%; `None` if there was none.
        throughput: deliveries processed a second; an event that two steps process counts twice.
        error_rate: the share of attempts that failed, 0 to 1; `None` if there was none.
        queue_size: events that wait for a step or are with one at the end, over all steps.
        queue_age_seconds: age of the oldest of them.
        events: deliveries that were settled: processed, or put among the dead letters.
        seconds: how long the span was.
        flags: what is wrong with it.
    """

    cpu_percent: float
    memory_mb: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    throughput: float
    error_rate: float | None
    queue_size: int
    queue_age_seconds: float
    events: int
    seconds: float
    flags: tuple[Flag, ...] = ()


class Window(Metrics, frozen=True, kw_only=True):
    """The figures of a window, with what experts ask for.

    Attributes:
        processed, failed, dead: deliveries processed, attempts that failed, events put among the dead letters.
        arrival_rate: events that came in for steps, a second: what was settled, and what the queues grew by.
        latency_mean_ms: of the ages; `None` if there is none.
        call_mean_ms, call_p99_ms: time of a call of a step; `None` if there was none.
        ages: how many ages fell into each fine bucket, by its number, of those that are not empty.
        steps: the same by step.
    """

    processed: int
    failed: int
    dead: int
    arrival_rate: float
    latency_mean_ms: float | None
    call_mean_ms: float | None
    call_p99_ms: float | None
    ages: dict[int, int] = {}
    steps: dict[str, StepFigures] = {}

    def later_than(self, milliseconds: float) -> int:
        """Return how many events were surely older than so much when they were settled."""
        counts = [0] * (len(BOUNDS) + 1)
        for bucket, count in self.ages.items():
            counts[bucket] = count
        return round(count_above(counts, milliseconds / 1000))


class Judging(msgspec.Struct, frozen=True):
    """What makes a window a bad one: fewer settled events than so many; a rate of arrival that moved by a factor."""

    minimum_events: int = 30
    load_factor: float = 2.0


def totals_of(
    reading: Iterable[tuple[Declaration, Iterable[Sample]]], at: float, only: frozenset[str] | None
) -> Generator[None, None, Totals]:
    """Come to what a reading of the fine metrics at a moment says of steps (`None`: of all)."""
    found: dict[str, dict[str, Sequence[float]]] = {}
    process = {"cpu_seconds": 0.0, "memory_mb": 0.0}
    for declaration, samples in reading:
        name = declaration.family.removeprefix(PREFIX)
        for sample in samples:
            if name in process:
                process[name] = sample.numbers[0]
            elif declaration.labels == ("step",) and (only is None or sample.labels[0] in only):
                found.setdefault(sample.labels[0], {})[name] = sample.numbers
            yield
    steps = {step: _step_totals(numbers) for step, numbers in found.items()}
    queues = {
        step: Queue(numbers["backlog"][0], max(0.0, numbers["oldest_age_seconds"][0]))
        for step, numbers in found.items()
        if steps[step].began_ms and "oldest_age_seconds" in numbers and math.isfinite(numbers["backlog"][0])
    }
    return Totals(at, steps, queues, process["cpu_seconds"], process["memory_mb"])


def _step_totals(numbers: Mapping[str, Sequence[float]]) -> StepTotals:
    nothing = (0.0,)
    return StepTotals(
        ages=numbers.get("age_seconds", _EMPTY),
        calls=numbers.get("call_seconds", _EMPTY),
        failed=numbers.get("failed_attempts", nothing)[0],
        dead=numbers.get("dead", nothing)[0],
        began_ms=numbers.get("began_ms", nothing)[0],
    )


def figures(
    start: Totals, end: Totals, judging: Judging, arrival_before: float | None = None
) -> Generator[None, None, Window]:
    """Come to what happened between two readings; `arrival_before` is the rate of arrival of the window before."""
    seconds = max(end.at - start.at, 0.0)
    all_ages: Sequence[float] = _EMPTY
    all_calls: Sequence[float] = _EMPTY
    steps: dict[str, StepFigures] = {}
    failed = dead = grown = 0.0
    anew = False
    nothing = StepTotals()
    for name, now in end.steps.items():
        before = start.steps.get(name, nothing)
        gone_back = _gone_back(before, now)
        if gone_back:  # counted anew since: what it says now is what is known of the span
            before = nothing
        anew |= gone_back or before.began_ms != now.began_ms
        ages = list(map(sub, now.ages, before.ages))
        calls = list(map(sub, now.calls, before.calls))
        all_ages, all_calls = list(map(add, all_ages, ages)), list(map(add, all_calls, calls))
        step_failed, step_dead = now.failed - before.failed, now.dead - before.dead
        failed, dead = failed + step_failed, dead + step_dead
        queue = end.queues.get(name)
        if queue is not None:
            grown += queue.backlog - start.queues.get(name, queue).backlog
        steps[name] = _step_figures(ages, calls, step_failed, step_dead, queue)
        yield
    events = round(sum(all_ages[1:]))
    arrival_rate = max(0.0, events + grown) / seconds if seconds else 0.0
    queue_size = round(sum(queue.backlog for queue in end.queues.values()))
    processed = max(0, events - round(dead))
    attempts = processed + failed
    anew |= bool(start.steps.keys() - end.steps.keys())
    p50, p95, p99 = (_milliseconds(quantile(all_ages[1:], share)) for share in (0.5, 0.95, 0.99))
    return Window(
        cpu_percent=max(0.0, end.cpu_seconds - start.cpu_seconds) / seconds * 100 if seconds else 0.0,
        memory_mb=end.memory_mb,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        throughput=processed / seconds if seconds else 0.0,
        error_rate=failed / attempts if attempts else None,
        queue_size=queue_size,
        queue_age_seconds=max((queue.oldest_age for queue in end.queues.values()), default=0.0),
        events=events,
        seconds=seconds,
        flags=_flags(events, failed, queue_size, anew, _Load(arrival_before, arrival_rate, seconds), judging),
        processed=processed,
        failed=round(failed),
        dead=round(dead),
        arrival_rate=arrival_rate,
        latency_mean_ms=_mean_ms(all_ages),
        call_mean_ms=_mean_ms(all_calls),
        call_p99_ms=_milliseconds(quantile(all_calls[1:], 0.99)),
        ages={bucket: round(count) for bucket, count in enumerate(all_ages[1:]) if count > 0},
        steps=steps,
    )


def _gone_back(before: StepTotals, now: StepTotals) -> bool:
    return (
        now.failed < before.failed
        or now.dead < before.dead
        or any(map(float.__lt__, now.ages[1:], before.ages[1:]))
        or any(map(float.__lt__, now.calls[1:], before.calls[1:]))
    )


def _step_figures(
    ages: Sequence[float], calls: Sequence[float], failed: float, dead: float, queue: Queue | None
) -> StepFigures:
    return StepFigures(
        processed=max(0, round(sum(ages[1:]) - dead)),
        failed=round(failed),
        latency_p50_ms=_milliseconds(quantile(ages[1:], 0.5)),
        latency_p99_ms=_milliseconds(quantile(ages[1:], 0.99)),
        call_mean_ms=_mean_ms(calls),
        call_p99_ms=_milliseconds(quantile(calls[1:], 0.99)),
        backlog=0 if queue is None else round(queue.backlog),
    )


class _Load(msgspec.Struct, frozen=True):
    before: float | None
    now: float
    seconds: float

    def changed(self, judging: Judging) -> bool:
        """Whether the rates differ by more than the factor, and by more than the few events that chance brings."""
        if self.before is None or not self.seconds:
            return False
        chance = judging.minimum_events / self.seconds
        low, high = sorted((self.before + chance, self.now + chance))
        return high > low * judging.load_factor


def _flags(events: int, failed: float, queue_size: int, anew: bool, load: _Load, judging: Judging) -> tuple[Flag, ...]:
    nothing = not events and not failed
    few, many_wait = events < judging.minimum_events, queue_size >= judging.minimum_events
    found: dict[Flag, bool] = {
        "idle": nothing and not queue_size,
        "stalled": nothing and queue_size > 0,
        "too_few_events": few and not many_wait,
        "held_up": few and many_wait,
        "load_changed": load.changed(judging),
        "restarted": anew,
    }
    return tuple(flag for flag, holds in found.items() if holds)


def _mean_ms(numbers: Sequence[float]) -> float | None:
    count = sum(numbers[1:])
    return max(0.0, numbers[0]) / count * 1000 if count else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
