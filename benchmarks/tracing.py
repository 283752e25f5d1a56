"""What a trace costs an event: microseconds, recorded or not, beside OpenTelemetry asked by a span each time."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ag06.event import Event
from ag06.ids import new_id
from ag06.monitoring.otlp import Sender
from ag06.monitoring.tracing import Tracing

_COLLECTOR = """
import sys
from tests.collector import Collector
collector = Collector()
print(collector.endpoint, flush=True)
sys.stdin.read()
collector.stop()
"""


@contextmanager
def _collector() -> Iterator[str]:
    """Yield the address of a collector in a process of its own: its work is not the publisher's."""
    command = [sys.executable, "-c", _COLLECTOR]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=20)


def _event(traceparent: str) -> Event[None]:
    return Event(
        id=new_id(), type="order", source="shop", data=None, time=dt.datetime.now(dt.UTC), traceparent=traceparent
    )


def _way(tracing: Tracing, event: Event[None]) -> Callable[[], object]:
    """Return what is called for an event that is published, processed, settled, and has one output."""

    def one() -> None:
        _, sending = tracing.start_send("order")
        if sending is not None:
            sending.end(message_id=event.id)
        mark = tracing.begin_process(event, "shop.bill")
        tracing.output("bill", event, event.id)
        span = tracing.end_process(mark)
        if span is not None:
            tracing.settled(span, "ack")

    return one


def _asked(provider: TracerProvider) -> Callable[[], object]:
    """Return the same by OpenTelemetry alone: four spans, and its sampler decides in each."""
    tracer = provider.get_tracer("benchmark")
    inside = trace.set_span_in_context(tracer.start_span("send order"))

    def one() -> None:
        for name in ("send order", "process order", "create bill", "ack order"):
            tracer.start_span(name, inside, trace.SpanKind.PRODUCER, {"messaging.system": "ag06"}).end()

    return one


def _provider(ratio: float) -> TracerProvider:
    return TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)


def _recording(endpoint: str) -> tuple[Tracing, Sender]:
    provider = _provider(1.0)
    sender = Sender(lambda: OTLPSpanExporter(endpoint, insecure=True), most=1_000_000)
    provider.add_span_processor(sender)
    tracing = Tracing()
    tracing.use(provider)
    return tracing, sender


def _not_recording() -> Tracing:
    tracing = Tracing()
    tracing.use(_provider(0.0))
    tracing.shield()
    return tracing


async def cost(count: int = 200, rounds: int = 40) -> dict[str, float]:
    """Return the microseconds an event of each way, the least of `rounds` taken in turns; beside an empty call.

    What is recorded is counted until the code may go on; as "through" until the collector has it.
    """
    with _collector() as endpoint:
        recording, sender = _recording(endpoint)
        with_trace, span = recording.start_send("order")
        if span is None:
            raise RuntimeError("nothing is recorded")
        span.end()
        sender.force_flush(20_000)
        unsampled = _event(Tracing().start_send("order")[0])
        ways: dict[str, Callable[[], object]] = {
            "an empty call": lambda: None,
            "traces off": _way(Tracing(), unsampled),
            "traces on, not recorded": _way(_not_recording(), unsampled),
            "by OpenTelemetry, not recorded": _asked(_provider(0.0)),
            "recorded": _way(recording, _event(with_trace)),
        }
        found: dict[str, float] = {}
        for _ in range(rounds):
            for way, call in ways.items():
                calls = count if way == "recorded" else count * 5
                started = time.perf_counter()
                for _ in range(calls):
                    call()
                took = time.perf_counter() - started
                sender.force_flush(60_000)
                through = time.perf_counter() - started
                for name, seconds in ((way, took), (f"{way}, through", through)):
                    micros = seconds / calls * 1e6
                    found[name] = min(found.get(name, micros), micros)
        if sender.dropped:
            raise RuntimeError(f"{sender.dropped} spans were dropped: the figures are too good")
        sender.shutdown()
    return {name: micros for name, micros in found.items() if name in ways or name == "recorded, through"}


if __name__ == "__main__":
    for name, micros in asyncio.run(cost()).items():
        sys.stdout.write(f"{name:<36}{micros:8.2f} us\n")
