"""Traces recorded in memory, with a provider such as a user sets up, in place of the tracing of the process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

from ag06.monitoring.tracing import Tracing


class Recorder:
    """What ended, in the order of its end."""

    def __init__(self, patch: pytest.MonkeyPatch, modules: Sequence[str], sampler: Sampler = ALWAYS_ON) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracing = Tracing()
        self.tracing.use(provider)
        self.tracer = provider.get_tracer("the user's")
        for module in modules:
            patch.setattr(f"{module}.TRACING", self.tracing)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def carried_by(span: ReadableSpan) -> str:
    """The `traceparent` of what was published within a span."""
    context = span.context
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def linked_by(span: ReadableSpan) -> list[str]:
    """The traces that a span is linked to, as their events carry them."""
    return [f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" for link in span.links]
