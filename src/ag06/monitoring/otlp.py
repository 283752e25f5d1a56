"""Sends spans to a collector (OTLP over gRPC), or to the provider that the user has set up. The only import of the SDK.

Spans wait in a bounded queue for a thread of their own: whoever ends one never waits, and what finds the queue full, or
is not taken by the collector, is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ag06.monitoring.instruments import SPANS_DROPPED
from ag06.monitoring.traceparent import TraceIds, new_span_id

_logger = logging.getLogger("ag06.monitoring")

MOST_WAITING = 4_096
_LARGEST_BATCH = 512
_GATHERED = 1.0
_FAREWELL = 2.0
_RATIO = re.compile(r"(?:ParentBased\{root:)?(?:(AlwaysOn)Sampler|(AlwaysOff)Sampler|TraceIdRatioBased\{([0-9.e-]+)\})")


class DecidedIds(IdGenerator):
    """Gives a new trace the id that was decided on before its first span was begun; ids of spans from a pool."""

    def __init__(self, ids: TraceIds) -> None:
        """Take new traces from `ids` where no decision was made: the user begins one."""
        self._ids = ids
        self._decided = threading.local()

    def decide(self, trace_id: str) -> None:
        """Let the next trace that this thread begins have this id."""
        self._decided.trace_id = trace_id

    def generate_trace_id(self) -> int:
        """Return the id that was decided on, or a new one."""
        decided: str = getattr(self._decided, "trace_id", "") or self._ids.new_trace()[3:35]
        self._decided.trace_id = ""
        return int(decided, 16)

    def generate_span_id(self) -> int:
        """Return a new id."""
        return int(new_span_id(), 16)


class Sender(SpanProcessor):
    """Hands ended spans to an exporter, many at a time.

    Attributes:
        dropped: how many spans were lost so far.
        sent: how many the collector took.
    """

    def __init__(
        self,
        make: Callable[[], SpanExporter],
        most: int = MOST_WAITING,
        gathered: float = _GATHERED,
        on_drop: Callable[[int], None] | None = None,
    ) -> None:
        """Make the exporter once something is to be sent; tell `on_drop` how many more are lost.

        `most` spans wait or are on their way; a batch that is not full goes after `gathered` seconds.
        """
        self._make = make
        self._most = most
        self._gathered = gathered
        self._on_drop = on_drop
        self._begin()

    def _begin(self) -> None:
        """Hold nothing; also in a child process: what waited is the parent's to send, and so is its connection."""
        self.dropped = 0
        self.sent = 0
        self._changed = threading.Condition()
        self._waiting: deque[ReadableSpan] = deque()
        self._underway = 0
        self._urgent = False
        self._closed = False
        self._exporter: SpanExporter | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Do nothing: only what has ended is sent."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        if self._pid != os.getpid():
            self._begin()
        with self._changed:
            if self._closed or len(self._waiting) + self._underway >= self._most:
                self._drop(1)
                return
            self._waiting.append(span)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ag06-spans", daemon=True)
                self._thread.start()
            if len(self._waiting) in {1, _LARGEST_BATCH}:
                self._changed.notify_all()

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        """Wait until what ended before is sent or dropped, at most 30 s unless told; return whether it is."""
        if self._pid != os.getpid():
            return True
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            limit = 30.0 if timeout_millis is None else timeout_millis / 1000
            done = self._changed.wait_for(lambda: not self._waiting and not self._underway, limit)
            self._urgent = False
        return done

    def shutdown(self) -> None:
        """Send what waits, for 2 s at most, and end; a collector that hangs or is away holds nobody longer."""
        if self._pid != os.getpid() or self._closed:
            return
        self.force_flush(int(_FAREWELL * 1000))
        with self._changed:
            self._closed = True
            self._drop(len(self._waiting))
            self._waiting.clear()
            self._changed.notify_all()
        if self._exporter is not None:
            self._exporter.shutdown()
        if self._thread is not None:
            self._thread.join(_FAREWELL)

    def _run(self) -> None:
        """Run in the thread until the end."""
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # sending spans makes no spans
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._changed.wait_for(self._is_due, self._gathered)
                batch = [self._waiting.popleft() for _ in range(min(_LARGEST_BATCH, len(self._waiting)))]
                self._underway = len(batch)
            taken = self._export(batch)
            with self._changed:
                self._underway = 0
                if taken:
                    self.sent += len(batch)
                else:
                    self._drop(len(batch))
                self._changed.notify_all()

    def _export(self, batch: list[ReadableSpan]) -> bool:
        if not batch:
            return True
        try:
            if self._exporter is None:
                self._exporter = self._make()
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:
            _logger.exception("%d spans could not be sent to the collector", len(batch))
            return False

    def _drop(self, count: int) -> None:
        """Count what is lost; the caller holds the lock."""
        self.dropped += count
        if self._on_drop is not None:
            self._on_drop(count)

    def _is_due(self) -> bool:
        return self._urgent or self._closed or len(self._waiting) >= _LARGEST_BATCH


def own_provider(ids: TraceIds, ratio: float, service: str) -> tuple[TracerProvider, DecidedIds, Sender]:
    """Return a provider that samples by `ratio` and sends to where OpenTelemetry's own settings (`OTEL_...`) say.

    It is the provider of the whole process from now on, so that the user's libraries take part. Raises `ImportError`
    where the exporter is not installed.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    named = {"service.name": service} if "OTEL_SERVICE_NAME" not in os.environ else {}
    decided = DecidedIds(ids)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)), resource=Resource.create(named), id_generator=decided
    )
    sender = Sender(OTLPSpanExporter, on_drop=SPANS_DROPPED.inc)
    provider.add_span_processor(sender)
    trace.set_tracer_provider(provider)
    return provider, decided, sender


def ratio_of(provider: TracerProvider) -> float | None:
    """Return the share of new traces that a user's provider records, `None` if its sampler has a way of its own."""
    found = _RATIO.match(provider.sampler.get_description())
    if found is None or type(provider.id_generator) is not RandomIdGenerator:
        return None
    if found[3] is not None:
        return float(found[3])
    return 1.0 if found[1] else 0.0
