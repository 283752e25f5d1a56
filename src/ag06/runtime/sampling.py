"""What is not counted when it happens but read now and then: backlog, what is in flight, knobs, memory, drops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from ag06.errors import StoreError
from ag06.knob import Knob
from ag06.monitoring import fine, instruments, logs
from ag06.monitoring.children import Counter
from ag06.monitoring.resources import ResourceMeter, Resources
from ag06.monitoring.tracing import TRACING
from ag06.persistence.log import EventLog, GroupInfo
from ag06.runtime.step_runner import StepRunner

_logger = logging.getLogger("ag06.runtime")
SECONDS = 1.0
"""Between two samples of this process."""
STORE_SECONDS = 5.0
"""Between two questions to the store, which every worker asks."""


class Mirror:
    """A counter that follows a total which somebody else keeps."""

    def __init__(self, counter: Counter, total: Callable[[], float]) -> None:
        """Count from the first `update` on; what `total` holds by then comes along."""
        self._counter = counter
        self._total = total
        self._seen = 0.0

    def update(self) -> None:
        """Count what has been added to the total."""
        total = self._total()
        if total > self._seen:
            self._counter.inc(total - self._seen)
        self._seen = total


CPU_SECONDS = Mirror(fine.CPU, time.process_time)
"""Of this process; whoever wants the figure of this moment updates it first."""

# Of the process, so that several workflows in it count a drop once.
_MIRRORS = (
    Mirror(instruments.LOG_DROPPED, logs.dropped),
    Mirror(instruments.SPANS_DROPPED, lambda: TRACING.dropped),
    CPU_SECONDS,
)


class Sampler:
    """Sets the gauges of one running workflow.

    Attributes:
        groups: how its steps stood in the store when it was asked last.
        resources: what this process took in the last interval.
    """

    def __init__(
        self,
        log: EventLog,
        runners: Sequence[StepRunner],
        knobs: Iterable[Knob],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Look at the steps that run here, their groups in `log`, and `knobs`; `clock` is since the epoch."""
        self._log = log
        self._knobs = knobs
        self._clock = clock
        self._runners = {runner.step.group: runner for runner in runners}
        self._in_flight = {group: instruments.IN_FLIGHT.labels(group) for group in self._runners}
        self._meter = ResourceMeter()
        self.groups: dict[str, GroupInfo] = {}
        self.resources: Resources = self._meter.sample()

    async def run(self) -> None:
        """Sample until cancelled."""
        ask_at = 0.0
        began_ms = round(self._clock() * 1000)  # whole, so that sums of many are exact
        for group in self._runners:
            fine.BEGAN.labels(group).inc(began_ms)
        try:
            while True:
                self.sample()
                if time.monotonic() >= ask_at:
                    await self._ask()
                    ask_at = time.monotonic() + STORE_SECONDS
                await asyncio.sleep(SECONDS)
        finally:
            for child in self._in_flight.values():
                child.set(0)
            for group in self._runners:
                fine.BEGAN.labels(group).dec(began_ms)

    def sample(self) -> None:
        """Read what this process knows by itself."""
        for group, runner in self._runners.items():
            self._in_flight[group].set(runner.in_flight)
        for knob in self._knobs:
            value = knob.value if knob.choices is None else knob.choices.index(knob.value)
            instruments.KNOB_VALUE.labels(knob.name).set(value)
        for mirror in _MIRRORS:
            mirror.update()
        self.resources = self._meter.sample()
        instruments.CPU_USAGE.set(self.resources.cpu_percent)
        instruments.MEMORY_USAGE.set(self.resources.memory_mb)
        fine.MEMORY.set(self.resources.memory_mb)

    async def _ask(self) -> None:
        try:
            groups = await self._log.groups()
        except StoreError as error:
            _logger.debug("the store does not say how its steps stand: %s", error)  # its health check says so aloud
            return
        self.groups = {info.group: info for info in groups if info.group in self._runners}
        now = self._clock()
        for group, info in self.groups.items():
            instruments.GROUP_BACKLOG.labels(group).set(info.backlog)
            fine.BACKLOG.labels(group).set(info.backlog)
            age = info.oldest_age(now)
            instruments.GROUP_OLDEST_AGE.labels(group).set(age)
            fine.OLDEST_AGE.labels(group).set(age)
        instruments.QUEUE_SIZE.set(sum(info.backlog for info in self.groups.values()))
