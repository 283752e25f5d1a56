"""Traces of events, as the runtime records them: decided before anything is built, and carried by every event.

Costs of a trace that is not recorded: its ids, drawn from a pool, and one context variable a call. OpenTelemetry is
imported by `Tracing.start` alone, where traces are recorded at all.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, TypeAlias

from ag06.errors import ConfigurationError
from ag06.event import Event
from ag06.monitoring import traceparent
from ag06.monitoring.log_context import use_trace_source
from ag06.monitoring.traceparent import TraceContext, TraceIds, format_traceparent, is_sampled, parse
from ag06.settings import ratio_of, resolve

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ag06.monitoring.otlp import DecidedIds, Sender
    from ag06.monitoring.spans import Again, Settled, Span, Spans

Mark: TypeAlias = "Token[str | None] | Span"
"""What `begin_process` returns and `end_process` takes: a span, where one is recorded."""


class Tracing:
    """What the runtime tells of each event; the object for the whole process is `TRACING`."""

    def __init__(self) -> None:
        """Record nothing before `start`; events get their ids all the same."""
        self._ids = TraceIds()
        self._spans: Spans | None = None
        self._decided: DecidedIds | None = None
        self._sender: Sender | None = None

    def start(self, service: str = "ag06") -> None:
        """Read the setting `traces` (`AG06_TRACES`), and record from now on what it says; changes nothing if it does.

        `off`: nothing is recorded. Otherwise spans go to the provider that the user has given to OpenTelemetry, and its
        sampler decides; where there is none and the setting is a share from 0 to 1, to the collector at
        `OTEL_EXPORTER_OTLP_ENDPOINT`, under the name `service` unless `OTEL_SERVICE_NAME` is set. A trace that began
        elsewhere is recorded where its flag says so, whatever the share. Raises `ConfigurationError` for what is no
        share, and where OpenTelemetry is not installed that is needed.
        """
        setting = resolve("traces")
        chosen = setting.value.strip().lower()
        ratio = None if chosen in {"", "off"} else ratio_of(setting)
        if self._spans is not None or chosen == "off" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return
        if "opentelemetry.trace" in sys.modules and self._use_theirs():
            return
        if ratio is not None:
            try:
                self._use_own(ratio, service)
            except ImportError as error:
                raise ConfigurationError(
                    f"traces {setting.value!r} (from {setting.origin}) need OpenTelemetry ({error}): "
                    "pip install 'ag06[otel]', or set it to off"
                ) from error

    def _use_theirs(self) -> bool:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            return False
        self.use(provider)
        return True

    def use(self, provider: TracerProvider) -> None:
        """Record with a provider of OpenTelemetry's from now on, whose sampler decides about new traces."""
        from ag06.monitoring.spans import SCOPE, Spans

        tracer = provider.get_tracer(SCOPE)
        ratio, decided = _ratio_of(provider), None
        # A sampler with a way of its own is asked by a span each time.
        self._ids = TraceIds(1.0 if ratio is None else ratio)
        if ratio is not None:
            from ag06.monitoring.otlp import DecidedIds

            # Their sampler shall come to the decision that was made from the id, so this tracer takes that very id.
            decided = DecidedIds(self._ids)
            tracer.id_generator = decided  # type: ignore[attr-defined]  # the SDK's tracer, as `_ratio_of` has seen
        self._begin(Spans(tracer), decided)

    def _use_own(self, ratio: float, service: str) -> None:
        from ag06.monitoring.otlp import own_provider
        from ag06.monitoring.spans import SCOPE, Spans

        self._ids = TraceIds(ratio)
        provider, decided, self._sender = own_provider(self._ids, ratio, service)
        self._begin(Spans(provider.get_tracer(SCOPE)), decided)

    def _begin(self, spans: Spans, decided: DecidedIds | None) -> None:
        self._decided = decided
        self._spans = spans

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until the collector has, or has refused, what ended before; `timeout` in seconds. It blocks.

        Returns whether it is so. A provider of the user's is not waited for: it is the user's to end.
        """
        return self._sender is None or self._sender.force_flush(int(timeout * 1000))

    @property
    def sends(self) -> bool:
        """Whether spans go to a collector from here, so that `flush` may have to wait."""
        return self._sender is not None

    @property
    def dropped(self) -> int:
        """How many recorded spans no collector has got: their queue was full, or the collector away."""
        return 0 if self._sender is None else self._sender.dropped

    def forget(self) -> None:
        """Drop prefetched randomness: two processes after a fork must not share it."""
        self._ids.forget()

    # Publishers

    def start_send(self, event_type: str | None, given: str | None = None, count: int = 1) -> tuple[str, Span | None]:
        """Return the `traceparent` for what is handed to the log now, and its span where that is recorded: `end` it.

        It is `given`, if the publisher gives one. Otherwise the event joins the trace that this code runs in, or begins
        one. `count` events are handed over together: `event_type` is `None` where they differ.
        """
        spans = self._spans
        if given is not None:
            # What is no text is refused by whoever stores the event.
            at = parse(given) if spans is not None and isinstance(given, str) and is_sampled(given) else None
            return given, None if spans is None or at is None else spans.send(event_type, at, count, is_remote=True)
        if spans is None:
            bound = traceparent.current()
            return bound if bound is not None and parse(bound) is not None else self._ids.new_trace(), None
        here = spans.here()
        if here is None:
            bound = traceparent.current()
            here = None if bound is None else parse(bound)
            if here is None:
                trace = self._ids.new_trace()
                return (trace, None) if trace[54] == "0" else self._begin_trace(spans, trace, event_type, count)
        if not here.sampled:
            return format_traceparent(here.trace_id, here.span_id, here.flags), None
        span = spans.send(event_type, here, count)
        return span.traceparent, span

    def _begin_trace(self, spans: Spans, trace: str, event_type: str | None, count: int) -> tuple[str, Span | None]:
        if self._decided is not None:
            self._decided.decide(trace[3:35])
        span = spans.send(event_type, None, count)
        return span.traceparent, span if span.sampled else None

    # Steps

    def begin_process(self, event: Event[Any], step: str, attempt: int = 1) -> Mark:
        """Say that `step` (`workflow.step`) is called with an event, in this task, until `end_process`."""
        text = event.traceparent
        if self._spans is None or not is_sampled(text) or (at := parse(text)) is None:
            return traceparent.bind(text)
        return self._spans.process(event, at, step, attempt)

    def begin_batch(self, events: Sequence[Event[Any]], step: str) -> Mark:
        """Say that `step` is called with many events, in this task, until `end_process`."""
        if self._spans is not None:
            for event in events:
                if is_sampled(event.traceparent) and (at := parse(event.traceparent)) is not None:
                    return self._spans.process_batch(events, at, step)
        return traceparent.bind(None)

    def end_process(self, mark: Mark, error: BaseException | None = None) -> Span | None:
        """Say that the call ended, and with which error; returns its span where one is recorded, for `settled`."""
        if isinstance(mark, Token):
            try:  # noqa: SIM105 - `suppress` costs as much as all the rest
                traceparent.unbind(mark)
            except ValueError:
                pass  # ended by the loop, in a context of its own: there is nothing to put back
            return None
        mark.end(error)
        return mark

    def output(self, event_type: str, cause: Event[Any], message_id: str) -> str | None:
        """Return the `traceparent` of an event that a step puts into its outbox because of `cause`."""
        text = cause.traceparent
        if text is None:
            return f"{self._ids.new_trace()[:-1]}0"  # nobody has begun this trace, so there is nothing to record
        if self._spans is None or not is_sampled(text):
            return text
        at = parse(text)
        return text if at is None else self._spans.create(event_type, cause, at, message_id)

    def settled(self, span: Span, operation: Settled, kept: bool = True, count: int = 1) -> None:
        """Record that the store has answered to the settlement of `count` deliveries; `kept` is its answer.

        `ack` with its outputs, `postpone` for another attempt, or `bury` among the dead letters.
        """
        if self._spans is not None:
            span.settled(self._spans.tracer, operation, kept, count)

    # Everybody

    def again(self, operation: Again, event_type: str | None = None) -> Span | None:
        """Begin to `retry` dead letters or to `replay`, where traces are recorded: `link` each event's `traceparent`.

        It is recorded whatever the share: somebody does it seldom, and wants to find what became of it.
        """
        spans = self._spans
        if spans is None:
            return None
        here = spans.here() or parse(traceparent.current())
        if here is None and self._decided is not None:
            trace = self._ids.sampled_trace()
            if trace is None:
                return None
            self._decided.decide(trace[3:35])
        return spans.again(operation, event_type, here)

    def shield(self) -> None:
        """Call once in each task that runs steps: spans that the user begins there join the trace of the event."""
        if self._spans is not None:
            self._spans.shield()

    def carry(self, into: contextvars.Context) -> None:
        """Let what holds here hold in a context that is no copy of this one, too."""
        if self._spans is None:
            into.run(traceparent.bind, traceparent.current())
        else:
            from ag06.monitoring.spans import inherited

            into.run(self._spans.inherit, traceparent.current(), inherited())

    def ids(self) -> tuple[str, str] | None:
        """Return the ids of the trace and of the span that this code runs in; log lines say them."""
        here = self._here()
        return None if here is None else (here.trace_id, here.span_id)

    def exemplar(self) -> tuple[str, str] | None:
        """Return the same if somebody records them: what `Histogram.observe_traced` takes."""
        here = self._here() if self._spans is not None else None
        return (here.trace_id, here.span_id) if here is not None and here.sampled else None

    def _here(self) -> TraceContext | None:
        here = None if self._spans is None else self._spans.here()
        return here or parse(traceparent.current())


def _ratio_of(provider: object) -> float | None:
    """Return the share of new traces that a provider of the user's records, `None` if only a span can tell."""
    try:
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider

        from ag06.monitoring.otlp import ratio_of as its_ratio
    except ImportError:
        return None
    return its_ratio(provider) if isinstance(provider, SdkProvider) else None


TRACING = Tracing()
use_trace_source(TRACING.ids)
os.register_at_fork(after_in_child=TRACING.forget)
