"""What counts: one label set of a metric, bound to its slots. All that an event pays for is an addition.

In each method the line that adds up reads and writes its cell with no call between (see `values`), so no count is lost
to another thread, nor to a `move` to other slots at the same time.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from ag06.monitoring import exemplar
from ag06.monitoring.exemplar import Exemplar
from ag06.monitoring.names import Declaration
from ag06.monitoring.values import SLOT_BYTES, Place

Refuse: TypeAlias = Callable[[str, str], None]
"""Called with a metric's name and what is wrong: raises `InvalidMetric`, or counts and warns."""

UNSET = {"sum": 0.0, "max": -math.inf, "min": math.inf}
"""What a gauge holds before it is set: what changes nothing when it is merged."""

_INFINITY = math.inf


class Sample(msgspec.Struct, frozen=True, gc=False):
    """The numbers of one label set at one moment. A histogram's are its sum, then one count a bucket, not cumulative.

    A summary's are count and sum. `exemplars` has one entry a bucket, or none at all.
    """

    labels: tuple[str, ...]
    numbers: Sequence[float]
    exemplars: tuple[Exemplar | None, ...] = ()


class Child:
    """One label set. Bind it once and keep it."""

    __slots__ = ("_cells", "_declaration", "_refuse", "_slot", "labels")

    def __init__(self, declaration: Declaration, labels: tuple[str, ...], place: Place, refuse: Refuse) -> None:
        """Count in `place`, which is all zero."""
        self.labels = labels
        self._declaration = declaration
        self._refuse = refuse
        self._cells = place.cells
        self._slot = place.first

    def sample(self) -> Sample:
        """Return the numbers as they are now."""
        start = self._slot
        numbers = self._cells[start : start + self._declaration.numbers].tolist()
        if not self._declaration.exemplars:
            return Sample(self.labels, numbers)
        records = self._cells[start + len(numbers) : start + self._declaration.width].tobytes()
        return Sample(self.labels, numbers, exemplars_in(records))

    def move(self, place: Place, *, keep: bool) -> None:
        """Count in other slots from now on; `keep`: go on from what was counted so far."""
        old, was, count = self._cells, self._slot, self._declaration.numbers
        cells, slot = place.cells, place.first
        self._cells = cells
        self._slot = slot
        if keep:
            for index in range(count):
                cells[slot + index] += old[was + index]

    def _wrong(self, value: object, accepted: str) -> None:
        self._refuse(self._declaration.name, f"value {value!r}; use {accepted}")


def exemplars_in(records: bytes) -> tuple[Exemplar | None, ...]:
    """Return the exemplar of each bucket."""
    size = exemplar.SIZE
    return tuple(exemplar.unpack(records[start : start + size]) for start in range(0, len(records), size))


def _number(value: float) -> float:
    """Return a value as a plain float, whatever kind of number it is; not a number for what is none."""
    try:
        return float(value + 0.0)
    except (TypeError, OverflowError):
        return math.nan


class Counter(Child):
    """A total that only grows."""

    __slots__ = ()

    def inc(self, value: float = 1.0) -> None:
        """Add a finite `value`, 0 or more."""
        number = value if value.__class__ is float else _number(value)
        if 0.0 <= number < _INFINITY:
            self._cells[self._slot] += number
        else:
            self._wrong(value, "a finite number, 0 or more")


class Gauge(Child):
    """A value that goes up and down."""

    __slots__ = ()

    def __init__(self, declaration: Declaration, labels: tuple[str, ...], place: Place, refuse: Refuse) -> None:
        """Hold what changes nothing in a merge until the first `set`."""
        super().__init__(declaration, labels, place, refuse)
        self._cells[self._slot] = UNSET[declaration.aggregate]

    def set(self, value: float) -> None:
        """Take a finite `value`."""
        number = value if value.__class__ is float else _number(value)
        if -_INFINITY < number < _INFINITY:
            self._cells[self._slot] = number
        else:
            self._wrong(value, "a finite number")

    def inc(self, value: float = 1.0) -> None:
        """Add a finite `value`; only where the gauges of several processes are summed up."""
        number = value if value.__class__ is float else _number(value)
        if -_INFINITY < number < _INFINITY and self._declaration.aggregate == "sum":
            self._cells[self._slot] += number
        else:
            self._wrong(value, f"a finite number, and set() for a gauge merged by {self._declaration.aggregate}")

    def dec(self, value: float = 1.0) -> None:
        """Take a finite `value` off."""
        self.inc(-_number(value))

    def move(self, place: Place, *, keep: bool) -> None:
        """Hold the value in another slot from now on; without `keep` it is unset."""
        cells, slot = place.cells, place.first
        if keep:
            cells[slot] = self._cells[self._slot]
        else:
            cells[slot] = UNSET[self._declaration.aggregate]
        self._cells = cells
        self._slot = slot


class Histogram(Child):
    """How many values fell into each bucket, and their sum."""

    __slots__ = ("_bounds", "_record")

    def __init__(self, declaration: Declaration, labels: tuple[str, ...], place: Place, refuse: Refuse) -> None:
        """Count by the buckets of the declaration and one up to infinity."""
        super().__init__(declaration, labels, place, refuse)
        self._bounds = declaration.buckets

    def observe(self, value: float, times: int = 1) -> None:
        """Count a finite `value`, in the unit of the metric's name, that occurred so many times."""
        number = value if value.__class__ is float else _number(value)
        if -_INFINITY < number < _INFINITY:
            bucket = bisect_left(self._bounds, number) + 1
            self._cells[self._slot + bucket] += times
            self._cells[self._slot] += number * times
        else:
            self._wrong(value, "a finite number")

    def observe_all(self, values: Sequence[float], *alike: Histogram) -> None:
        """Count values that are known to be finite floats, here and in histograms with the same buckets.

        A third of the cost of as many calls of `observe`.
        """
        bounds = self._bounds
        counts = Tally([bisect_left(bounds, value) for value in values])
        total = sum(values)
        for histogram in (self, *alike):
            for bucket, count in counts.items():
                histogram._cells[histogram._slot + 1 + bucket] += count
            histogram._cells[histogram._slot] += total

    def observe_traced(self, value: float, trace_id: str, span_id: str, clock: Callable[[], float] = time.time) -> None:
        """Count `value`, and remember the trace (32 and 16 hexadecimal digits) as the exemplar of its bucket."""
        self.observe(value)
        self.show(value, trace_id, span_id, clock)

    def show(self, value: float, trace_id: str, span_id: str, clock: Callable[[], float] = time.time) -> None:
        """Remember the trace of a value that is counted elsewhere as the exemplar of its bucket."""
        number = _number(value)
        if not self._declaration.exemplars or not math.isfinite(number):
            return
        try:
            record = exemplar.pack(number, clock(), trace_id, span_id)
        except ValueError as error:
            self._refuse(self._declaration.name, str(error))
            return
        bucket = bisect_left(self._bounds, number)
        cells, first = self._cells, self._slot + self._declaration.numbers
        start = first * SLOT_BYTES + bucket * exemplar.SIZE
        cells.cast("B")[start : start + exemplar.SIZE] = record


class Summary(Child):
    """How many values there were, and their sum."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Count a finite `value`, in the unit of the metric's name."""
        number = value if value.__class__ is float else _number(value)
        if -_INFINITY < number < _INFINITY:
            self._cells[self._slot] += 1.0
            self._cells[self._slot + 1] += number
        else:
            self._wrong(value, "a finite number")
