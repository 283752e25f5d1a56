"""Collects what the optimizer looks at: the figures of exactly a window, or of about the last ten seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec

from ag06.errors import ConfigurationError, StoreError
from ag06.ml.windows import Judging, Metrics, Queue, Totals, Window, figures, totals_of
from ag06.monitoring import observability
from ag06.monitoring.exposition import finished, spread
from ag06.monitoring.realtime_observer import MetricsFacade
from ag06.monitoring.resources import resident_bytes
from ag06.persistence.log import GroupInfo
from ag06.runtime.sampling import CPU_SECONDS

Groups = Callable[[], Awaitable[Sequence[GroupInfo]]]
"""Asks the store how its steps stand: `EventLog.groups`."""

SPAN_SECONDS = 10.0
"""What `collect_metrics` looks back to."""
_APART = 1.0
"""Seconds between two readings that `collect_metrics` keeps, and between two questions to the store in a window."""
_PATIENCE = 2.0
"""Seconds that the store has to answer; after that the sampler's figures must do, which are some seconds old."""


class MetricsCollector:
    """Reads what all processes of the workflow have counted, and says what happened in between.

    It is never in the way of an event, and works before any workflow runs: no events, flagged `idle`. Processor time
    and memory are then those of this process.
    """

    def __init__(
        self,
        *,
        steps: Collection[str] | None = None,
        groups: Groups | None = None,
        minimum_events: int = 30,
        load_factor: float = 2.0,
        source: MetricsFacade | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin to look now.

        Args:
            steps: whose figures to take, as the store names them (`workflow.step`); `None`: those of all steps.
            groups: asks the store what waits; `None`: what each worker finds out every five seconds.
            minimum_events: a window with fewer is flagged `too_few_events`, or `held_up` where as many wait.
            load_factor: a window is flagged `load_changed` where events came in faster or slower by more than that.
            source: where things are counted; `None`: `observability.fine`.
            clock: seconds that nobody sets.
            wall: seconds since the epoch.

        Raises `ConfigurationError` for a `minimum_events` below 1 and a `load_factor` that is not above 1.
        """
        if minimum_events < 1 or not load_factor > 1:
            raise ConfigurationError(
                f"collector: minimum_events={minimum_events} (1 or more), load_factor={load_factor} (above 1)"
            )
        self._only = None if steps is None else frozenset(steps)
        self._groups = groups
        self._judging = Judging(minimum_events, load_factor)
        self._source = source or observability.fine
        self._clock = clock
        self._wall = wall
        self.arrival_before: float | None = None
        """Events that came in, a second, in the window that was closed last."""
        CPU_SECONDS.update()
        at = clock()
        self._kept = [self._complete(finished(totals_of(self._source.read_at_once(), at, self._only)))]

    async def collect_metrics(self) -> Metrics:
        """Return the figures since the last reading that is ten seconds old or more, or since there is a collector."""
        now = await self.read()
        while len(self._kept) > 1 and now.at - self._kept[1].at >= SPAN_SECONDS:
            del self._kept[0]
        window = await spread(figures(self._kept[0], now, self._judging))
        if now.at - self._kept[-1].at >= _APART:
            self._kept.append(now)
        return window

    async def open_window(self, after: OpenWindow | None = None) -> OpenWindow:
        """Open a window now, or where `after`, which is closed, ended: then nothing falls between the two."""
        if after is None:
            return OpenWindow(self, await self.read())
        if after.end is None:
            raise ConfigurationError("the window before is still open; close it first")
        return OpenWindow(self, after.end)

    async def read(self, queues: Mapping[str, Queue] | None = None) -> Totals:
        """Return what has been counted; what waits is what `queues` say, or what the store says when it is asked."""
        CPU_SECONDS.update()
        began = self._clock()
        # At once, so that numbers of one process are of one moment.
        reading = [(declaration, list(samples)) for declaration, samples in await self._source.read()]
        at = (began + self._clock()) / 2
        found = self._complete(await spread(totals_of(reading, at, self._only)))
        waiting = await self._ask(found.steps) if queues is None else queues
        return found if waiting is None else msgspec.structs.replace(found, queues=waiting)

    async def between(self, start: Totals, end: Totals) -> Window:
        """Return the figures of a window from one reading to another."""
        return await spread(figures(start, end, self._judging, self.arrival_before))

    def now(self) -> float:
        """Return the seconds of the clock that readings carry."""
        return self._clock()

    def _complete(self, found: Totals) -> Totals:
        if any(step.began_ms for step in found.steps.values()):
            return found
        return msgspec.structs.replace(found, memory_mb=resident_bytes() / 1e6)

    async def _ask(self, known: Collection[str]) -> dict[str, Queue] | None:
        if self._groups is None:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                infos = await self._groups()
        except (StoreError, TimeoutError):
            return None  # its health check says so aloud
        now = self._wall()
        return {
            info.group: Queue(info.backlog, info.oldest_age(now))
            for info in infos
            if info.group in (known if self._only is None else self._only)
        }


class OpenWindow:
    """A span that is under way.

    Attributes:
        start: what was counted when it began.
        end: what was counted when it was closed; `None` until then.
    """

    def __init__(self, collector: MetricsCollector, start: Totals) -> None:
        """Made by `MetricsCollector.open_window`."""
        self._collector = collector
        self._queues = start.queues
        self._asked_at = start.at
        self._closed: Window | None = None
        self.start = start
        self.end: Totals | None = None

    async def peek(self) -> Window:
        """Return the figures so far; several times a second is fine: the store is asked once a second at most."""
        recent = self._collector.now() - self._asked_at < _APART
        now = await self._collector.read(self._queues if recent else None)
        if not recent:
            self._queues, self._asked_at = now.queues, now.at
        return await self._collector.between(self.start, now)

    async def close(self) -> Window:
        """Return the figures of exactly this span; closed again, it returns them again."""
        if self._closed is None:
            self.end = await self._collector.read()
            self._closed = await self._collector.between(self.start, self.end)
            self._collector.arrival_before = self._closed.arrival_rate
        return self._closed
