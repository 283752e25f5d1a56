"""Spans of events, as OpenTelemetry's semantic conventions for messaging want them (version 1.37).

The only import of OpenTelemetry's API beside `otlp`, which imports its SDK. Whoever calls here has decided that a trace
is recorded: `tracing` does, before any of this is imported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Token
from typing import Any, Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from ag06.event import Event
from ag06.monitoring import traceparent
from ag06.monitoring.traceparent import MOST_LINKS, TraceContext, format_traceparent, parse

SCOPE = "ag06"

Settled = Literal["ack", "postpone", "bury"]
Again = Literal["retry", "replay"]
_FENCED = "fenced"


class Span:
    """One operation on events that is recorded; it began when it was made.

    Attributes:
        traceparent: what events carry that are published because of it.
        ids: trace and span in hexadecimal; for exemplars.
    """

    __slots__ = ("_attached", "_bound", "_destination", "_ended_ns", "_links", "_otel", "ids", "traceparent")

    def __init__(self, span: trace.Span, destination: str | None = None) -> None:
        """Made by `Spans`."""
        self._otel = span
        self._destination = destination
        self._bound: Token[str | None] | None = None
        self._attached: Token[Context] | None = None
        self._ended_ns = 0
        self._links = 0
        context = span.get_span_context()
        self.ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
        self.traceparent = format_traceparent(*self.ids, context.trace_flags)

    @property
    def sampled(self) -> bool:
        """Whether it is recorded after all: a provider of the user's decides for itself."""
        return self._otel.is_recording() or self._otel.get_span_context().trace_flags.sampled

    def enter(self, inside: Context) -> None:
        """Make it the current span, ours and OpenTelemetry's, until its end in the same task."""
        self._bound = traceparent.bind(self.traceparent)
        self._attached = otel_context.attach(trace.set_span_in_context(self._otel, inside))

    def link(self, text: str | None) -> None:
        """Link it to the span of a `traceparent`, if that is recorded; the first 128 are kept."""
        found = _link(text)
        if found is not None and self._links < MOST_LINKS:
            self._links += 1
            self._otel.add_link(found.context, found.attributes)

    def end(
        self,
        error: BaseException | None = None,
        *,
        message_id: str | None = None,
        conversation_id: str | None = None,
        count: int | None = None,
    ) -> None:
        """End it; say what it failed with, and what was not known when it began."""
        if self._bound is not None and self._attached is not None:
            with suppress(ValueError):  # ended by the loop, in a context of its own: there is nothing to put back
                traceparent.unbind(self._bound)
                otel_context.detach(self._attached)
        later = {
            "messaging.message.id": message_id,
            "messaging.message.conversation_id": conversation_id,
            "messaging.batch.message_count": count,
        }
        self._otel.set_attributes({name: value for name, value in later.items() if value is not None})
        if error is not None:
            self._fail(type(error).__qualname__)
        self._ended_ns = time.time_ns()
        self._otel.end(self._ended_ns)

    def settled(self, tracer: trace.Tracer, operation: Settled, kept: bool, count: int) -> None:
        """Record the settlement of what it processed: from its end until now."""
        attributes = _attributes(operation, "settle", self._destination)
        if count > 1:
            attributes["messaging.batch.message_count"] = count
        span = Span(
            tracer.start_span(
                _name(operation, self._destination),
                trace.set_span_in_context(self._otel, Context()),
                SpanKind.CLIENT,
                attributes,
                start_time=self._ended_ns,
            )
        )
        if not kept:
            span._fail(_FENCED)
        span.end()

    def _fail(self, kind: str) -> None:
        # Its words may hold what nobody else may see; the log has them, without secrets, under the same trace id.
        self._otel.set_attribute("error.type", kind)
        self._otel.set_status(Status(StatusCode.ERROR))


class Spans:
    """Makes spans with a tracer of OpenTelemetry."""

    def __init__(self, tracer: trace.Tracer) -> None:
        """Take the tracer, whose sampler follows the parent."""
        self.tracer = tracer

    def send(
        self, event_type: str | None, parent: TraceContext | None, count: int = 1, *, is_remote: bool = False
    ) -> Span:
        """Begin to hand `count` events to the log: of one type, or of several (`None`); without a parent a trace."""
        attributes = _attributes("send", "send", event_type)
        if count != 1:
            attributes["messaging.batch.message_count"] = count
        inside = Context() if parent is None else _inside(parent, is_remote=is_remote)
        return self._start("send", event_type, inside, SpanKind.PRODUCER, attributes)

    def create(self, event_type: str, cause: Event[Any], cause_at: TraceContext, message_id: str) -> str:
        """Record that a step put an output into its outbox; return the `traceparent` that the output carries.

        It is made in the trace of its cause. The call of a batch is recorded in the trace of one of its events: the
        outputs of the others are linked to it.
        """
        attributes = _attributes("create", "create", event_type)
        attributes["messaging.message.id"] = message_id
        attributes["messaging.message.conversation_id"] = cause.correlation_id or cause.id
        here, links = self.here() or parse(traceparent.current()), list[Link]()
        if here is not None and here.trace_id == cause_at.trace_id:
            inside = _inside(here, is_remote=False)
        else:
            inside = _inside(cause_at, is_remote=True)
            links = [] if here is None or not here.sampled else [Link(_span_context(here, is_remote=False))]
        span = self._start("create", event_type, inside, SpanKind.PRODUCER, attributes, links)
        span.end()
        return span.traceparent

    def process(self, event: Event[Any], at: TraceContext, step: str, attempt: int) -> Span:
        """Begin a call of a step for one event; it is the current span until its end."""
        attributes = _attributes("process", "process", event.type, step)
        attributes["messaging.message.id"] = event.id
        attributes["messaging.message.conversation_id"] = event.correlation_id or event.id
        attributes["ag06.attempt"] = attempt
        return self._enter(event.type, at, attributes)

    def process_batch(self, events: Sequence[Event[Any]], first: TraceContext, step: str) -> Span:
        """Begin a call of a step for many events, in the trace of the first that is recorded, and linked to each."""
        types = {event.type for event in events}
        destination = types.pop() if len(types) == 1 else None
        attributes = _attributes("process", "process", destination, step)
        attributes["messaging.batch.message_count"] = len(events)
        links = [link for event in events if (link := _link(event.traceparent)) is not None]
        return self._enter(destination, first, attributes, links[:MOST_LINKS])

    def again(self, operation: Again, destination: str | None, parent: TraceContext | None) -> Span:
        """Begin what somebody does to events that were published before: `link` it to them."""
        kind = "send" if operation == "retry" else "receive"
        inside = Context() if parent is None else _inside(parent, is_remote=False)
        return self._start(operation, destination, inside, SpanKind.CLIENT, _attributes(operation, kind, destination))

    def here(self) -> TraceContext | None:
        """Return OpenTelemetry's current span: the user's own, or that of a call that is recorded; `None` without."""
        surrounding = otel_context.get_current()
        if surrounding is _SHIELD or not surrounding:
            return None
        span = trace.get_current_span(surrounding)
        if span is _AMBIENT:
            return None
        context = span.get_span_context()
        if not context.is_valid:
            return None
        return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags)

    def shield(self) -> None:
        """Let spans that the user begins in this task belong to the trace of what is processed, recorded or not."""
        otel_context.attach(_SHIELD)

    def inherit(self, bound: str | None, attached: Context) -> None:
        """Make another task's current span that of this context."""
        traceparent.bind(bound)
        otel_context.attach(attached)

    def _enter(self, destination: str | None, at: TraceContext, attributes: dict[str, Any], links: Any = ()) -> Span:
        inside = _inside(at, is_remote=True)
        span = self._start("process", destination, inside, SpanKind.CONSUMER, attributes, links)
        span.enter(inside)
        return span

    def _start(
        self,
        operation: str,
        destination: str | None,
        inside: Context,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link] = (),
    ) -> Span:
        return Span(self.tracer.start_span(_name(operation, destination), inside, kind, attributes, links), destination)


class _Ambient(NonRecordingSpan):
    """Stands for whatever trace is bound where it is asked, so that none needs a span of its own to be inherited."""

    def get_span_context(self) -> SpanContext:
        context = parse(traceparent.current())
        return trace.INVALID_SPAN_CONTEXT if context is None else _span_context(context, is_remote=True)


_AMBIENT = _Ambient(trace.INVALID_SPAN_CONTEXT)
_SHIELD = trace.set_span_in_context(_AMBIENT, Context())

inherited = otel_context.get_current
"""Return what `Spans.inherit` takes as `attached`."""


def _name(operation: str, destination: str | None) -> str:
    return operation if destination is None else f"{operation} {destination}"


def _attributes(operation: str, kind: str, destination: str | None, step: str | None = None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "messaging.system": "ag06",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }
    if destination is not None:
        attributes["messaging.destination.name"] = destination
    if step is not None:
        attributes["messaging.consumer.group.name"] = step
    return attributes


def _span_context(at: TraceContext, *, is_remote: bool) -> SpanContext:
    return SpanContext(int(at.trace_id, 16), int(at.span_id, 16), is_remote, TraceFlags(at.flags))


def _inside(at: TraceContext, *, is_remote: bool) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(_span_context(at, is_remote=is_remote)), Context())


def _link(text: str | None) -> Link | None:
    at = parse(text) if traceparent.is_sampled(text) else None
    return None if at is None else Link(_span_context(at, is_remote=True))
