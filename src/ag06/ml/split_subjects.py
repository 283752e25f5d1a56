"""The subjects of an experiment that splits events: what each is worth, in the order in which they came."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ag06.event import Event
from ag06.failure import is_refusal
from ag06.ml.verdict import Variant
from ag06.runtime.step import Step

Measure = Literal["duration", "errors"]
MOST_CALLS = 5
"""Of each subject so many first calls count, so that nobody with many events weighs more than anybody else."""

SECONDS = 5.0
"""Calls count that begin so many seconds after the subject's first, at most."""

MOST_SUBJECTS = 100_000

_SHORTEST = 1e-9


class Subject:
    """The first calls for one subject: how many began and run, failed and worked, and the seconds that all took."""

    __slots__ = ("calls", "closes", "failed", "has_one_event", "seconds", "under_way", "unit", "variant", "worked")

    def __init__(self, unit: int, variant: Variant, closes: float, has_one_event: bool) -> None:
        """Begin with no call; `closes` is when no more of them count."""
        self.unit = unit
        self.variant = variant
        self.closes = closes
        self.has_one_event = has_one_event
        self.calls = self.under_way = self.failed = self.worked = 0
        self.seconds = 0.0

    def is_full(self, now: float) -> bool:
        """Whether no more calls count."""
        return self.calls >= MOST_CALLS or now >= self.closes or (self.has_one_event and self.worked > 0)

    def value(self, measure: Measure) -> float | None:
        """Return what it is worth, lower is better; `None` if its calls tell nothing.

        A failed attempt adds its seconds to what the calls that worked took: failing fast is not fast.
        """
        if measure == "errors":
            attempts = self.failed + self.worked
            return self.failed / attempts if attempts else None
        return math.log(max(self.seconds, _SHORTEST) / self.worked) if self.worked else None


class Subjects:
    """Told of the calls of one step by a `Split`.

    A subject is done when it has had its calls, or its time, and none runs any more. They are handed out in the order
    of their first calls, done or not: those that are quick must not come before those that are slow.

    Attributes:
        seen: how many there were, by variant.
        failing: how many of them had a call that failed.
        counted: how many of those that were handed out have a value.
        lost: how many of them have none, because nothing worked.
    """

    def __init__(
        self, step: str, measure: Measure, most: int = MOST_SUBJECTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Measure the step of that name for `most` subjects; `clock` tells seconds."""
        self._step = step
        self._measure = measure
        self._most = most
        self._clock = clock
        self._known: set[int] = set()
        self._open: dict[int, Subject] = {}
        self._queue: deque[Subject] = deque()
        self.seen: dict[str, int] = {"a": 0, "b": 0}
        self.failing: dict[str, int] = {"a": 0, "b": 0}
        self.counted: dict[str, int] = {"a": 0, "b": 0}
        self.lost: dict[str, int] = {"a": 0, "b": 0}

    def begun(self, step: Step, event: Event[Any], unit: str, variant: str) -> Subject | None:
        """Take note of a call; `None` if it is not to be counted."""
        if step.name != self._step:
            return None
        key = hash(unit)  # 64 bits: no two of 100,000 are taken for one
        subject = self._open.get(key)
        now = self._clock()
        if subject is None:
            if key in self._known or len(self._known) >= self._most:
                return None
            subject = self._first_seen(key, "b" if variant == "b" else "a", now, event.subject is None)
        elif subject.is_full(now):
            return None
        subject.calls += 1
        subject.under_way += 1
        return subject

    def _first_seen(self, key: int, variant: Variant, now: float, has_one_event: bool) -> Subject:
        subject = Subject(key, variant, now + SECONDS, has_one_event)
        self._known.add(key)
        self._open[key] = subject
        self._queue.append(subject)
        self.seen[variant] += 1
        return subject

    def ended(self, call: Subject, seconds: float, failure: BaseException | None) -> None:
        """Take note of the end of a call; one that a breaker refused was none."""
        if is_refusal(failure):
            self.dropped(call)
            return
        call.under_way -= 1
        call.seconds += seconds
        if failure is None:
            call.worked += 1
            return
        call.failed += 1
        if call.failed == 1:
            self.failing[call.variant] += 1

    def dropped(self, call: Subject) -> None:
        """Forget a call."""
        call.calls -= 1
        call.under_way -= 1

    def done(self) -> Iterator[Subject]:
        """Hand out those that are done, each once, up to the first that is not."""
        now = self._clock()
        while self._queue:
            subject = self._queue[0]
            if subject.under_way or not subject.is_full(now):
                return
            del self._open[self._queue.popleft().unit]
            kept = subject.value(self._measure) is not None
            (self.counted if kept else self.lost)[subject.variant] += 1
            yield subject

    @property
    def are_used_up(self) -> bool:
        """Whether there were as many as there may be, and all were handed out."""
        return len(self._known) >= self._most and not self._queue

    @property
    def is_waiting(self) -> bool:
        """Whether some are not handed out yet."""
        return bool(self._queue)

    @property
    def calls_under_way(self) -> dict[str, int]:
        """How many calls that count have not ended."""
        found: dict[str, int] = {"a": 0, "b": 0}
        for subject in self._queue:
            found[subject.variant] += subject.under_way
        return found
