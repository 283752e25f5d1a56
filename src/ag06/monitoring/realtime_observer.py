"""The facade `observability`: what a process counts, how it stands, what it says, how fast it is."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ag06.monitoring import instruments
from ag06.monitoring.exposition import Renderer, by_name, end, finished, negotiate, sliced, snapshot, spread
from ag06.monitoring.foreign import Foreign
from ag06.monitoring.merging import ProcessGroup, join_group
from ag06.monitoring.metrics import Memory, Reading, Registry
from ag06.monitoring.names import Kind

if TYPE_CHECKING:
    from ag06.monitoring.context_logger import ContextLogger
    from ag06.monitoring.health import HealthRegistry
    from ag06.monitoring.log_context import context
    from ag06.monitoring.tracker import PerformanceTracker

_logger = logging.getLogger("ag06.monitoring")

_METHODS: Mapping[Kind, str] = {"counter": "inc", "gauge": "set", "histogram": "observe", "summary": "observe"}


class MetricsFacade:
    """Metrics by name: `x` is `ag06_workflow_x` with the suffix of the metric. Full names are understood as well.

    A name that was never declared is declared by its first use, with the kind of that use. A mistake raises
    `InvalidMetric`, or is a counted warning (see `tolerate_mistakes`). What is called for each event is bound once:
    `registry.counter("x", "What it counts.", ("a",)).labels("1").inc`.

    Attributes:
        registry: declares metrics with help, labels and buckets.
    """

    def __init__(self, registry: Registry, directory: Path | None = None, foreign: Foreign | None = None) -> None:
        """Count in `registry`. Where processes share `directory`, what is shown are the sums of all of them."""
        self.registry = registry
        self._group = ProcessGroup(directory) if directory else None
        self._foreign = foreign or Foreign()
        self._renderer = Renderer()
        self._counters: dict[str, Callable[[float], None]] = {}
        self._gauges: dict[str, Callable[[float], None]] = {}
        self._histograms: dict[str, Callable[[float], None]] = {}
        self._summaries: dict[str, Callable[[float], None]] = {}

    def increment_counter(self, name: str, value: float = 1.0, labels: Mapping[str, object] | None = None) -> None:
        """Add `value`, 0 or more, to a counter."""
        if labels is None:
            bound = self._counters.get(name)
            if bound is not None:
                bound(value)
                return
        self._bind(self._counters, name, "counter", labels)(value)

    def set_gauge(self, name: str, value: float, labels: Mapping[str, object] | None = None) -> None:
        """Set a gauge to `value`."""
        if labels is None:
            bound = self._gauges.get(name)
            if bound is not None:
                bound(value)
                return
        self._bind(self._gauges, name, "gauge", labels)(value)

    def observe_histogram(self, name: str, value: float, labels: Mapping[str, object] | None = None) -> None:
        """Count `value` in its bucket; it is in the unit of the metric's name."""
        if labels is None:
            bound = self._histograms.get(name)
            if bound is not None:
                bound(value)
                return
        self._bind(self._histograms, name, "histogram", labels)(value)

    def observe_summary(self, name: str, value: float, labels: Mapping[str, object] | None = None) -> None:
        """Count `value` and add it to the sum."""
        if labels is None:
            bound = self._summaries.get(name)
            if bound is not None:
                bound(value)
                return
        self._bind(self._summaries, name, "summary", labels)(value)

    def _bind(
        self,
        bound: dict[str, Callable[[float], None]],
        name: str,
        kind: Kind,
        labels: Mapping[str, object] | None,
    ) -> Callable[[float], None]:
        """Return what counts for a call by name; kept for the next call if it has no labels and is no mistake."""
        family = self.registry.use(name, kind, labels or ())
        method: Callable[[float], None] = getattr(family.labels_of(labels or {}), _METHODS[kind])
        if not labels and not family.declaration.labels and self.registry.find(name) is family:
            bound[name] = method
        return method

    def tolerate_mistakes(self) -> None:
        """Count and warn of mistakes from now on instead of raising; a set `AG06_METRICS_STRICT` is left to decide."""
        if instruments.STRICT_VARIABLE not in os.environ:
            self.registry.strict = False

    def share(self, directory: Path) -> None:
        """Count in `directory` from now on, together with the other processes there; what was counted comes along."""
        self.registry.move(join_group(directory), keep=True)
        self._group = ProcessGroup(directory)

    def unshare(self) -> None:
        """Count in memory from now on; what this process counted comes along, what others did stays behind."""
        self.registry.move(Memory(), keep=True)
        self._group = None

    @property
    def shared(self) -> bool:
        """Whether other processes count in the same place."""
        return self._group is not None

    async def read(self) -> Reading:
        """Return every metric with its numbers, of all processes; reading never holds the event loop for long."""
        if self._group is not None:
            try:
                return await spread(self._group.merge())
            except OSError as error:
                self._warn(error)
        return self.registry.read()

    def read_at_once(self) -> Reading:
        """Return what `read` does, in one go."""
        if self._group is not None:
            try:
                return finished(self._group.merge())
            except OSError as error:
                self._warn(error)
        return self.registry.read()

    def snapshot(self) -> dict[str, Any]:
        """Return `{full metric name: value or {count, sum, ...}}`; a name with labels has them in braces."""
        return snapshot(self.read_at_once())

    async def gather(self) -> dict[str, Any]:
        """Return what `snapshot` does; making it never holds the event loop for long."""
        return await spread(by_name(await self.read()))

    def exposition(self, accept: str = "") -> bytes:
        """Return all metrics as Prometheus text, or as OpenMetrics where the `Accept` header prefers that."""
        content_type = negotiate(accept)
        text = "".join(self._renderer.pieces(self.read_at_once(), content_type)).encode()
        return text + self._foreign.text(content_type, self._taken()) + end(content_type)

    def stream(self, accept: str = "") -> tuple[str, AsyncIterator[bytes]]:
        """Return the content type and the parts of the exposition; making them never holds the event loop for long."""
        content_type = negotiate(accept)
        return content_type, self._parts(content_type)

    async def _parts(self, content_type: str) -> AsyncIterator[bytes]:
        async for part in sliced(self._renderer.pieces(await self.read(), content_type)):
            yield part
        yield await self._foreign.collect(content_type, self._taken()) + end(content_type)

    def _warn(self, error: OSError) -> None:
        _logger.warning("metrics of the other processes cannot be read, only those of this one are shown: %s", error)

    def _taken(self) -> set[str]:
        declarations = [family.declaration for family in self.registry.families()]
        return {name for declaration in declarations for name in (declaration.family, declaration.name)}


class Observability:
    """What can be seen of this process. Each part is imported when it is first asked for."""

    @cached_property
    def metrics(self) -> MetricsFacade:
        """Count, and see what was counted."""
        return MetricsFacade(instruments.REGISTRY, instruments.shared_directory())

    @cached_property
    def fine(self) -> MetricsFacade:
        """What the optimizer looks at; not shown. It is of this process alone until `share_fine`."""
        from ag06.monitoring import fine

        return MetricsFacade(fine.REGISTRY)

    def share_fine(self) -> None:
        """Share `fine` with the processes that metrics are shared with, if there are any; not for the event loop."""
        from ag06.monitoring.fine import fine_directory

        directory = instruments.shared_directory()
        if directory and not self.fine.shared:
            self.fine.share(fine_directory(directory))

    @cached_property
    def health(self) -> HealthRegistry:
        """Register checks, and see how every component stands."""
        from ag06.monitoring.health import HealthRegistry

        return HealthRegistry()

    @cached_property
    def performance(self) -> PerformanceTracker:
        """See how fast steps are, and how often they fail."""
        from ag06.monitoring.tracker import performance

        return performance

    @cached_property
    def context(self) -> type[context]:
        """Give every log line inside a `with` block more fields."""
        from ag06.monitoring.logs import context

        return context

    @cached_property
    def create_context_logger(self) -> Callable[..., ContextLogger]:
        """Make a logger that carries fields."""
        from ag06.monitoring.logs import create_context_logger

        return create_context_logger
