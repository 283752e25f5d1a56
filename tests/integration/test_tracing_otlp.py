"""Traces over processes, as a collector gets them; and a collector that is slow, away or in a bad mood."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from textwrap import dedent
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from ag06.event import Event
from ag06.monitoring.otlp import Sender
from ag06.monitoring.traceparent import is_sampled, parse
from ag06.persistence import EventStore
from collector import Collector, Received
from flows import SECONDS

EVENTS = 40

_PRELUDE = """
import asyncio, os, sys, warnings
from ag06 import Event, Context, Workflow, Retry
from ag06.monitoring.tracing import TRACING
"""

_FIRST = """
app = Workflow("first", store=os.environ["AG06_STORE"])

@app.step("a", retry=Retry(attempts=2, initial=0.01))
async def one(event: Event, ctx: Context):
    if event.data == 0 and ctx.attempt == 1:
        raise KeyError("not yet")
    await ctx.publish("b", event.data)

async def main():
    async with app.running():
        for number in range(int(os.environ["EVENTS"])):
            await app.publish("a", "web", number)
        await app.drain()
    assert TRACING.flush(10) and not TRACING.dropped

asyncio.run(main())
"""

_SECOND = """
app = Workflow("second", store=os.environ["AG06_STORE"])
seen, done = set(), asyncio.Event()

@app.step("b")
async def two(event: Event, ctx: Context):
    seen.add(event.data)
    if len(seen) == int(os.environ["EVENTS"]):
        done.set()

async def main():
    async with app.running():
        await asyncio.wait_for(done.wait(), 60)
        await app.drain()
    assert TRACING.flush(10) and not TRACING.dropped

asyncio.run(main())
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.stop()


@asynccontextmanager
async def script(source: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a script in a process of its own; it must end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", _PRELUDE + dedent(source),
        env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
        said, _ = await asyncio.wait_for(process.communicate(), SECONDS * 3)
        assert process.returncode == 0, said.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run_both(url: str, collector: Collector, ratio: str, events: int) -> list[Event[int]]:
    """Run both processes over one log; return what is in it."""
    environment = {
        "AG06_STORE": url,
        "AG06_TRACES": ratio,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "EVENTS": str(events),
    }
    async with script(_SECOND, **environment), script(_FIRST, **environment):
        pass
    store = EventStore(url)
    try:
        return [event async for event in store.replay()]
    finally:
        await store.close()


def by_trace(spans: list[Received]) -> dict[str, list[Received]]:
    found: dict[str, list[Received]] = defaultdict(list)
    for span in spans:
        found[span.trace_id].append(span)
    return found


@pytest.fixture(params=("sqlite", "redis"))
def adapter(request: pytest.FixtureRequest) -> str:
    """Stores that two processes share."""
    return str(request.param)


async def test_one_trace_leads_from_the_publisher_over_two_processes_to_the_last_step(
    store_url: str, collector: Collector
) -> None:
    log = await run_both(store_url, collector, "1", 1)
    a, b = log
    assert a.type == "a"
    assert b.causation_id == a.id
    spans = collector.spans
    assert {span.trace_id for span in spans} == {a.traceparent.split("-")[1]}  # type: ignore[union-attr]
    named = {(span.name, span.attributes.get("ag06.attempt")): span for span in spans}
    assert len(named) == len(spans)
    send, failed, worked = named["send a", None], named["process a", 1], named["process a", 2]
    create, second = named["create b", None], named["process b", 1]
    settled = [named["postpone a", None], named["ack a", None], named["ack b", None]]
    assert len(spans) == 8

    parents = [failed, worked, create, second, *settled]
    assert [span.parent_id for span in parents] == [
        send.span_id, send.span_id, worked.span_id, create.span_id, failed.span_id, worked.span_id, second.span_id,
    ]  # fmt: skip
    assert send.parent_id == ""
    assert [span.kind for span in (send, failed, create, *settled)] == ["PRODUCER", "CONSUMER", "PRODUCER"] + [
        "CLIENT"
    ] * 3
    assert {span.service for span in (send, failed, worked, create, *settled[:2])} == {"first"}
    assert {second.service, settled[2].service} == {"second"}
    assert {span.scope for span in spans} == {"ag06"}
    assert all(span.start <= span.end for span in spans)
    assert [span.failed for span in (failed, worked, second)] == [True, False, False]
    assert failed.attributes["error.type"] == "KeyError"

    # What each event carries is the span that handed it over.
    assert a.traceparent == f"00-{send.trace_id}-{send.span_id}-01"
    assert b.traceparent == f"00-{create.trace_id}-{create.span_id}-01"
    assert second.attributes == {
        "messaging.system": "ag06",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "b",
        "messaging.consumer.group.name": "second.two",
        "messaging.message.id": b.id,
        "messaging.message.conversation_id": a.id,
        "ag06.attempt": 1,
    }


async def test_a_trace_is_recorded_whole_or_not_at_all_in_every_process(store_url: str, collector: Collector) -> None:
    log = await run_both(store_url, collector, "0.5", EVENTS)
    assert len(log) == 2 * EVENTS
    traces = by_trace(collector.spans)
    recorded = {parse(event.traceparent).trace_id for event in log if is_sampled(event.traceparent)}  # type: ignore[union-attr]
    assert 0 < len(recorded) < EVENTS  # chance of all or none: one in 5 * 10^11
    assert set(traces) == recorded
    of_event = {event.id: event for event in log}
    for event in log:
        context = parse(event.traceparent)
        assert context is not None
        if event.causation_id is not None:
            cause = parse(of_event[event.causation_id].traceparent)
            assert cause is not None
            assert (cause.trace_id, cause.sampled) == (context.trace_id, context.sampled)
    for spans in traces.values():
        names = {span.name for span in spans}
        assert {"send a", "process a", "create b", "process b", "ack a", "ack b"} <= names
        ids = {span.span_id for span in spans}
        assert [span.name for span in spans if span.parent_id not in ids] == ["send a"]


async def test_a_collector_that_hangs_holds_nobody_and_its_process_ends(collector: Collector) -> None:
    collector.hold()
    source = """
        TRACING.start("shop")
        for _ in range(10_000):
            TRACING.start_send("order")[1].end()
        assert not TRACING.flush(0.1)
        assert TRACING.dropped == 10_000 - 4_096, TRACING.dropped
        from ag06.monitoring import observability
        assert observability.metrics.snapshot()["ag06_workflow_spans_dropped_total"] == TRACING.dropped
    """
    async with script(source, AG06_TRACES="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint):
        collector.wait_for(lambda _: collector.calls)


async def test_a_process_that_ends_sends_what_waits(collector: Collector) -> None:
    source = """
        TRACING.start("shop")
        for _ in range(700):
            TRACING.start_send("order")[1].end()
    """
    async with script(source, AG06_TRACES="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="own"):
        pass
    assert len(collector.spans) == 700
    assert {span.service for span in collector.spans} == {"own"}
    assert len({span.trace_id for span in collector.spans}) == 700


async def test_a_process_that_is_forked_off_sends_its_own_spans_and_none_of_its_parents(collector: Collector) -> None:
    source = """
        def publish(event_type):
            TRACING.start_send(event_type)[1].end()

        TRACING.start("shop")
        publish("sent before")
        assert TRACING.flush(10)
        publish("waits")
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons say that forking threads is unwise
        child = os.fork()
        publish("child" if child == 0 else "parent")
        assert TRACING.flush(10) and TRACING.dropped == 0
        if child == 0:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    async with script(source, AG06_TRACES="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint):
        pass
    assert sorted(span.name for span in collector.spans) == [
        "send child", "send parent", "send sent before", "send waits",
    ]  # fmt: skip
    assert len({span.trace_id for span in collector.spans}) == 4


class Sending:
    """A provider of spans that a `Sender` sends to a collector."""

    def __init__(self, collector: Collector, **limits: Any) -> None:
        self.sender = Sender(lambda: OTLPSpanExporter(collector.endpoint, insecure=True, timeout=60), **limits)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.sender)
        self._tracer = self.provider.get_tracer("x")

    def end(self, count: int) -> None:
        """Begin and end so many spans."""
        for _ in range(count):
            self._tracer.start_span("x").end()


@pytest.fixture
def sending(collector: Collector) -> Iterator[Sending]:
    made = Sending(collector, most=10)
    yield made
    collector.release()
    made.provider.shutdown()


def test_what_finds_the_queue_full_is_dropped_and_counted_and_the_rest_is_sent(
    collector: Collector, sending: Sending
) -> None:
    collector.hold()
    sending.end(10)
    sending.end(25)
    assert (sending.sender.sent, sending.sender.dropped) == (0, 25)
    collector.release()
    assert sending.sender.force_flush()
    assert (sending.sender.sent, sending.sender.dropped, len(collector.spans)) == (10, 25, 10)
    sending.end(5)
    assert sending.sender.force_flush()
    assert (sending.sender.sent, sending.sender.dropped, len(collector.spans)) == (15, 25, 15)


def test_what_a_collector_refuses_is_counted_and_the_next_is_sent_all_the_same(
    collector: Collector, sending: Sending
) -> None:
    collector.refuse = grpc.StatusCode.PERMISSION_DENIED
    sending.end(3)
    assert sending.sender.force_flush()
    assert (sending.sender.sent, sending.sender.dropped) == (0, 3)
    collector.refuse = None
    sending.end(4)
    assert sending.sender.force_flush()
    assert (sending.sender.sent, sending.sender.dropped) == (4, 3)


def test_an_exporter_that_cannot_be_made_costs_its_spans_and_is_tried_again(collector: Collector) -> None:
    sending = Sending(collector)
    made = sending.sender._make
    broken = [OSError("no such certificate")]

    def make() -> Any:
        if broken:
            raise broken.pop()
        return made()

    sending.sender._make = make
    sending.end(2)
    assert sending.sender.force_flush()
    sending.end(3)
    assert sending.sender.force_flush()
    assert (sending.sender.sent, sending.sender.dropped) == (3, 2)
    sending.provider.shutdown()


def test_after_its_end_a_sender_takes_nothing_and_says_so(sending: Sending) -> None:
    sending.end(2)
    sending.sender.shutdown()
    sending.sender.shutdown()
    sending.end(3)
    assert (sending.sender.sent, sending.sender.dropped) == (2, 3)
    assert not any(thread.name == "ag06-spans" for thread in threading.enumerate())


def test_spans_that_are_not_sampled_are_not_sent(collector: Collector) -> None:
    sender = Sender(lambda: OTLPSpanExporter(collector.endpoint, insecure=True))
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(sender)
    provider.get_tracer("x").start_span("x").end()
    assert sender.force_flush()
    assert (sender.sent, sender.dropped, collector.calls) == (0, 0, 0)
