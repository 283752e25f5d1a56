"""Variants of a user's knobs that run at the same time: each event sees those of its subject."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import Context
from typing import Any, Protocol

from ag06.event import Event
from ag06.knob import NOTHING, Knob, see, seen
from ag06.runtime.step import Step


class Meter(Protocol):
    """Told of the calls while events are split, in the event loop."""

    def begun(self, step: Step, event: Event[Any], unit: str, variant: str) -> Any:
        """Take note that a step is called; what this returns goes to `ended` or `dropped`; `None`: to neither."""

    def ended(self, call: Any, seconds: float, failure: BaseException | None) -> None:
        """Take note of how long a call took, and what it raised."""

    def dropped(self, call: Any) -> None:
        """Take note that a call was broken off because the worker ends."""


class Split:
    """Lets each event of some steps see the values of one variant, from `open` to `close`.

    The unit is the event's subject, or its id where it has none. Batch steps are left alone: a batch has events of many
    subjects, so no variant. A call that is under way at `close` sees from then on where the knobs stand.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        variants: Mapping[str, Mapping[Knob, Any]],
        choose: Callable[[str], str],
        meter: Meter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`variants` have the values by knob, `choose` tells the variant of a unit, `clock` tells seconds."""
        self._steps = [step for step in steps if not step.is_batch]
        self._variants = {name: dict(values) for name, values in variants.items()}
        self._knobs = list(dict.fromkeys(knob for values in self._variants.values() for knob in values))
        self._choose = choose
        self._meter = meter
        self._clock = clock

    def open(self) -> None:
        """Begin; raise `ConfigurationError`, and change nothing, for a knob that cannot be split."""
        done: list[Knob] = []
        try:
            for knob in self._knobs:
                knob.split()
                done.append(knob)
        except BaseException:
            for knob in done:
                knob.unite()
            raise
        SPLITS.update({id(step): self for step in self._steps})

    def close(self) -> None:
        """End: every event sees where the knobs stand."""
        for step in self._steps:
            SPLITS.pop(id(step), None)
        for knob in self._knobs:
            knob.unite()

    async def call(
        self, step: Step, event: Event[Any], work: Coroutine[Any, Any, BaseException | None]
    ) -> BaseException | None:
        """Await `work`, the call of a step with an event, under the event's variant; return what the step raised."""
        unit = event.id if event.subject is None else event.subject
        variant = self._choose(unit)
        call = self._meter.begun(step, event, unit, variant)
        see(self._variants[variant])
        began = self._clock()
        try:
            failure = await work
        except BaseException:
            if call is not None:
                self._meter.dropped(call)
            raise
        finally:
            see(NOTHING)
        if call is not None:
            self._meter.ended(call, self._clock() - began, failure)
        return failure


SPLITS: dict[int, Split] = {}
"""The split that is open, by the `id` of each step; empty nearly always, which is all that an event is to pay for."""


def carry_variant(into: Context) -> None:
    """Let the variant of here hold in a context that is no copy of this one, too."""
    if SPLITS:
        into.run(see, seen())
