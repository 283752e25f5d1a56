"""What is recorded of an event, what is not, and what the event carries either way."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from ag06.errors import ConfigurationError
from ag06.event import Event
from ag06.monitoring import logs, traceparent
from ag06.monitoring.metrics import Registry
from ag06.monitoring.traceparent import is_sampled, parse
from ag06.monitoring.tracing import TRACING, Tracing
from ag06.settings import Setting, check_setting
from said import listening

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RECORDED, NOT_RECORDED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
GARBAGE = f"00-{TRACE}-{SPAN}-z1"  # looks sampled to whoever looks at its flag alone


class Recorder:
    """Traces with a provider such as a user sets up, and what it recorded."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, **options: Any) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(sampler), shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracing = Tracing()
        self.tracing.use(self.provider)
        self.tracer = self.provider.get_tracer("the user's")

    @property
    def spans(self) -> list[ReadableSpan]:
        """What has ended, in the order of its end."""
        return list(self._memory.get_finished_spans())

    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span


def an_event(carried: str | None, **more: Any) -> Event[Any]:
    fields = {"id": "e1", "type": "order", "source": "s", "data": None, "time": dt.datetime.now(dt.UTC)}
    return Event(**(fields | {"traceparent": carried} | more))


def carried_by(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def ids(text: str | None) -> tuple[str, str]:
    context = parse(text)
    assert context is not None
    return context.trace_id, context.span_id


def test_an_event_has_a_trace_although_nobody_records_it() -> None:
    tracing = Tracing()
    first, span = tracing.start_send("order")
    second, _ = tracing.start_send("order")
    assert span is None
    assert ids(first)[0] != ids(second)[0]
    assert not is_sampled(first)


def test_whatever_runs_for_an_event_stays_in_its_trace_although_nobody_records_it() -> None:
    tracing, event = Tracing(), an_event(RECORDED)
    mark = tracing.begin_process(event, "shop.bill")
    assert tracing.ids() == (TRACE, SPAN)
    assert tracing.exemplar() is None
    assert tracing.start_send("bill") == (RECORDED, None)
    assert tracing.output("bill", event, "o1") == RECORDED
    assert tracing.end_process(mark) is None
    assert tracing.ids() is None


def test_an_output_of_an_event_without_a_trace_begins_one() -> None:
    for tracing in (Tracing(), Recorder().tracing):
        assert not is_sampled(carried := tracing.output("bill", an_event(None), "o1"))
        assert parse(carried) is not None


@pytest.mark.parametrize("carried", [None, NOT_RECORDED, "rubbish", GARBAGE])
def test_of_an_event_that_is_not_sampled_no_span_is_built(carried: str | None) -> None:
    recorder, event = Recorder(), an_event(carried)
    tracing = recorder.tracing
    mark = tracing.begin_process(event, "shop.bill")
    assert tracing.output("bill", event, "o1") == carried or carried is None
    assert tracing.exemplar() is None
    assert tracing.end_process(mark, ValueError("no")) is None
    assert tracing.end_process(tracing.begin_batch([event, event], "shop.bill")) is None
    assert tracing.start_send("order", carried or NOT_RECORDED) == (carried or NOT_RECORDED, None)
    assert recorder.spans == []


def test_what_is_published_while_rubbish_is_processed_begins_a_trace_of_its_own() -> None:
    for tracing in (Tracing(), Recorder(ALWAYS_OFF).tracing):
        mark = tracing.begin_process(an_event("rubbish"), "shop.bill")
        carried, _ = tracing.start_send("bill")
        tracing.end_process(mark)
        assert parse(carried) is not None


def test_the_span_of_a_publisher_says_what_it_handed_over_and_the_event_carries_it() -> None:
    recorder = Recorder()
    carried, span = recorder.tracing.start_send("order")
    assert span is not None
    span.end(message_id="e1", conversation_id="c1")
    (found,) = recorder.spans
    assert carried == carried_by(found)
    assert (found.name, found.kind, found.parent) == ("send order", trace.SpanKind.PRODUCER, None)
    assert found.attributes == {
        "messaging.system": "ag06",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "order",
        "messaging.message.id": "e1",
        "messaging.message.conversation_id": "c1",
    }
    assert found.status.is_ok or found.status.status_code is trace.StatusCode.UNSET


def test_a_publication_that_fails_says_what_it_failed_with_and_no_more() -> None:
    recorder = Recorder()
    _, span = recorder.tracing.start_send("order")
    assert span is not None
    span.end(ConnectionError("redis://user:secret@host is away"))
    found = recorder.only()
    assert found.attributes is not None
    assert found.attributes["error.type"] == "ConnectionError"
    assert found.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in found.to_json()


def test_events_that_are_handed_over_together_are_one_span() -> None:
    recorder = Recorder()
    _, span = recorder.tracing.start_send(None, count=3)
    assert span is not None
    span.end()
    found = recorder.only()
    assert found.name == "send"
    assert found.attributes is not None
    assert found.attributes["messaging.batch.message_count"] == 3
    assert "messaging.destination.name" not in found.attributes


def test_what_the_publisher_gives_is_carried_and_its_span_stands_in_that_trace() -> None:
    recorder = Recorder()
    carried, span = recorder.tracing.start_send("order", RECORDED)
    assert carried == RECORDED
    assert span is not None
    span.end()
    assert ids(carried_by(recorder.only()))[0] == TRACE
    assert parent_of(recorder.only()) == SPAN


def test_the_users_own_span_is_the_parent_of_what_is_published_inside_it() -> None:
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("request"):
        _, span = recorder.tracing.start_send("order")
        assert span is not None
        span.end()
    send, request = recorder.spans
    assert send.parent is not None
    assert send.parent == request.get_span_context()


def test_what_is_published_inside_a_span_of_the_users_that_is_not_sampled_is_not_recorded() -> None:
    recorder = Recorder(ALWAYS_OFF)
    with recorder.tracer.start_as_current_span("request") as request:
        carried, span = recorder.tracing.start_send("order")
    assert span is None
    assert ids(carried) == tuple(f"{n:0{w}x}" for n, w in zip(request.get_span_context()[:2], (32, 16), strict=True))
    assert not is_sampled(carried)


async def test_a_call_is_the_parent_of_all_that_happens_in_it_and_of_nothing_else() -> None:
    recorder, event = Recorder(), an_event(RECORDED, correlation_id="c1")
    tracing = recorder.tracing

    async def inside() -> None:
        with recorder.tracer.start_as_current_span("query"):
            tracing.output("bill", event, "o1")
        await asyncio.to_thread(tracing.output, "bill", event, "o2")
        _, span = tracing.start_send("note")
        assert span is not None
        span.end()

    mark = tracing.begin_process(event, "shop.bill", attempt=2)
    await asyncio.create_task(inside())
    found = tracing.exemplar()
    assert found == tracing.ids()
    assert tracing.end_process(mark, ZeroDivisionError()) is mark
    first, query, second, note, process = recorder.spans
    assert [span.name for span in recorder.spans] == [
        "create bill",
        "query",
        "create bill",
        "send note",
        "process order",
    ]
    assert {ids(carried_by(span))[0] for span in recorder.spans} == {TRACE}
    own = ids(carried_by(process))[1]
    assert found == (TRACE, own)
    assert [parent_of(span) for span in (query, second, note)] == [own] * 3
    assert parent_of(first) == ids(carried_by(query))[1]
    assert parent_of(process) == SPAN
    assert process.attributes is not None
    assert process.attributes["ag06.attempt"] == 2
    assert process.attributes["error.type"] == "ZeroDivisionError"
    assert process.attributes["messaging.message.conversation_id"] == "c1"
    assert process.attributes["messaging.consumer.group.name"] == "shop.bill"
    assert traceparent.current() is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_the_span_of_an_output_is_what_the_output_carries() -> None:
    recorder, event = Recorder(), an_event(RECORDED)
    mark = recorder.tracing.begin_process(event, "shop.bill")
    carried = recorder.tracing.output("bill", event, "o1")
    recorder.tracing.end_process(mark)
    create, _ = recorder.spans
    assert carried == carried_by(create)
    assert create.attributes is not None
    assert create.attributes["messaging.message.id"] == "o1"
    assert create.attributes["messaging.operation.type"] == "create"


def test_a_batch_is_linked_to_each_event_and_its_outputs_stay_in_the_traces_of_their_causes() -> None:
    recorder = Recorder()
    tracing = recorder.tracing
    other = "00-" + "7" * 32 + "-" + "8" * 16 + "-01"
    events = [an_event(None), an_event(NOT_RECORDED), an_event(RECORDED), an_event(other, id="e2")]
    mark = tracing.begin_batch(events, "shop.store")
    outputs = [tracing.output("stored", event, "o") for event in events]
    tracing.end_process(mark)
    *creates, process = recorder.spans
    assert outputs[1] == NOT_RECORDED
    assert [carried_by(span) for span in creates] == outputs[2:]
    assert ids(outputs[2])[0] == ids(carried_by(process))[0] == TRACE
    assert ids(outputs[3])[0] == "7" * 32
    assert parent_of(process) == SPAN
    assert [f"{link.context.trace_id:032x}" for link in process.links] == [TRACE, "7" * 32]
    assert process.attributes is not None
    assert process.attributes["messaging.batch.message_count"] == 4
    of_first, of_other = creates
    assert parent_of(of_first) == ids(carried_by(process))[1]
    assert parent_of(of_other) == "8" * 16
    assert [f"{link.context.span_id:016x}" for link in of_other.links] == [ids(carried_by(process))[1]]


@pytest.mark.parametrize("operation", ["ack", "postpone", "bury"])
def test_a_settlement_lasts_from_the_end_of_the_call_until_the_store_has_answered(operation: Any) -> None:
    recorder = Recorder()
    span = recorder.tracing.end_process(recorder.tracing.begin_process(an_event(RECORDED), "shop.bill"))
    assert span is not None
    recorder.tracing.settled(span, operation)
    recorder.tracing.settled(span, operation, kept=False, count=7)
    process, kept, refused = recorder.spans
    assert kept.name == refused.name == f"{operation} order"
    assert kept.kind is trace.SpanKind.CLIENT
    assert kept.start_time == process.end_time
    assert parent_of(kept) == parent_of(refused) == ids(carried_by(process))[1]
    assert kept.attributes is not None
    assert refused.attributes is not None
    assert kept.attributes["messaging.operation.type"] == "settle"
    assert "error.type" not in kept.attributes
    assert "messaging.batch.message_count" not in kept.attributes
    assert (refused.attributes["error.type"], refused.attributes["messaging.batch.message_count"]) == ("fenced", 7)
    assert refused.status.status_code is trace.StatusCode.ERROR


@pytest.mark.parametrize("operation", ["retry", "replay"])
def test_who_retries_or_replays_is_linked_to_what_was_published_before(operation: Any) -> None:
    recorder = Recorder(TraceIdRatioBased(1e-6))  # chance would hardly record it
    span = recorder.tracing.again(operation, "order")
    assert span is not None
    for carried in (RECORDED, None, NOT_RECORDED, "rubbish"):
        span.link(carried)
    for number in range(1, 200):
        span.link(f"00-{number:032x}-{SPAN}-01")
    span.end(count=200)
    found = recorder.only()
    assert found.name == f"{operation} order"
    assert [link.context.trace_id for link in found.links] == [int(TRACE, 16), *range(1, 128)]
    assert found.attributes is not None
    assert found.attributes["messaging.batch.message_count"] == 200


def test_nobody_who_retries_is_recorded_where_nothing_is() -> None:
    recorder = Recorder(ALWAYS_OFF)
    assert recorder.tracing.again("retry") is None
    assert Tracing().again("retry") is None
    assert recorder.spans == []


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_of_new_traces_the_share_is_recorded_that_the_users_sampler_says(ratio: float) -> None:
    recorder = Recorder(TraceIdRatioBased(ratio))
    carried = []
    for _ in range(1_000):
        text, span = recorder.tracing.start_send("order")
        carried.append(text)
        if span is not None:
            span.end()
    # 8 standard deviations: one run in 10^15 is further off.
    assert abs(len(recorder.spans) - 1_000 * ratio) <= 8 * (1_000 * ratio * (1 - ratio)) ** 0.5
    assert [carried_by(span) for span in recorder.spans] == [text for text in carried if is_sampled(text)]
    assert len({ids(text)[0] for text in carried}) == 1_000


class EveryThird(Sampler):
    """A sampler with a way of its own."""

    def __init__(self) -> None:
        self.asked = 0

    def should_sample(self, *arguments: Any, **named: Any) -> Any:
        self.asked += 1
        return (ALWAYS_OFF if self.asked % 3 else ALWAYS_ON).should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "EveryThird"


class OwnIds(RandomIdGenerator):
    """Ids that somebody's tracing system wants so."""

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() | 0xF << 124


@pytest.mark.parametrize(
    "recorder", [lambda: Recorder(EveryThird()), lambda: Recorder(TraceIdRatioBased(0.5), id_generator=OwnIds())]
)
def test_a_sampler_or_ids_with_a_way_of_their_own_are_asked_each_time(recorder: Callable[[], Recorder]) -> None:
    made = recorder()
    carried = []
    for _ in range(300):
        text, span = made.tracing.start_send("order")
        carried.append(text)
        if span is not None:
            span.end()
    assert [carried_by(span) for span in made.spans] == [text for text in carried if is_sampled(text)]
    assert 0 < len(made.spans) < 300
    assert all(parse(text) for text in carried)
    if made.provider.id_generator.__class__ is OwnIds:
        assert {text[3] for text in carried} == {"f"}


def test_the_users_spans_in_a_call_that_is_not_recorded_are_not_recorded_either() -> None:
    recorder = Recorder()

    def worker() -> None:
        recorder.tracing.shield()
        with recorder.tracer.start_as_current_span("before"):
            pass
        mark = recorder.tracing.begin_process(an_event(NOT_RECORDED), "shop.bill")
        with recorder.tracer.start_as_current_span("inside") as span:
            assert f"{span.get_span_context().trace_id:032x}" == TRACE
        assert recorder.tracing.ids() == (TRACE, SPAN)
        recorder.tracing.end_process(mark)
        mark = recorder.tracing.begin_process(an_event(RECORDED), "shop.bill")
        with recorder.tracer.start_as_current_span("recorded"):
            pass
        recorder.tracing.end_process(mark)

    contextvars.copy_context().run(worker)
    assert [span.name for span in recorder.spans] == ["before", "recorded", "process order"]


@pytest.mark.parametrize("carried", [RECORDED, NOT_RECORDED])
def test_what_holds_here_can_be_carried_into_a_context_that_knew_nothing(carried: str) -> None:
    for recorder in (Recorder(), None):
        tracing = Tracing() if recorder is None else recorder.tracing
        clean = contextvars.copy_context()
        mark = tracing.begin_process(an_event(carried), "shop.bill")
        here = tracing.ids()
        tracing.carry(clean)
        assert clean.run(tracing.ids) == here
        if recorder is not None and is_sampled(carried):
            with_parent = clean.run(recorder.tracer.start_span, "query")
            assert with_parent.parent.span_id == int(here[1], 16)  # type: ignore[attr-defined,index]
        tracing.end_process(mark)


async def test_calls_that_overlap_keep_their_traces_apart() -> None:
    recorder = Recorder()
    meet = asyncio.Barrier(20)

    async def call(number: int) -> None:
        event = an_event(f"00-{number:032x}-{SPAN}-01")
        mark = recorder.tracing.begin_process(event, "shop.bill")
        await meet.wait()
        recorder.tracing.output("bill", event, "o")
        assert recorder.tracing.ids()[0] == f"{number:032x}"  # type: ignore[index]
        recorder.tracing.end_process(mark)

    await asyncio.gather(*(call(number) for number in range(1, 21)))
    processes = {ids(carried_by(span)): span for span in recorder.spans if span.name == "process order"}
    creates = [span for span in recorder.spans if span.name == "create bill"]
    assert len(processes) == len(creates) == 20
    for span in creates:
        assert (ids(carried_by(span))[0], parent_of(span)) in processes


def test_log_lines_say_the_trace_that_they_belong_to() -> None:
    logger = logs.create_context_logger("x")
    event = an_event(RECORDED)
    with listening() as said:
        token, mark = logs.bind_event(event, "shop", "bill"), TRACING.begin_process(event, "shop.bill")
        logger.info("inside")
        TRACING.end_process(mark)
        logs.unbind_event(token)
        logger.info("outside")
    inside, outside = said.lines()
    assert (inside["trace_id"], inside["span_id"]) == (TRACE, SPAN)
    assert "trace_id" not in outside


def run(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    prelude = "from ag06.monitoring.tracing import TRACING\nimport sys, logging\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + source],
        env={"PATH": "/usr/bin"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nothing_of_opentelemetry_is_imported_where_nobody_asks_for_traces() -> None:
    done = run(
        "TRACING.start(); assert TRACING.start_send('t')[1] is None\n"
        "assert not any(name.startswith(('opentelemetry', 'grpc')) for name in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("traces", ["off", "OFF", " off "])
def test_off_is_off_even_with_a_provider_of_the_users(traces: str) -> None:
    done = run(
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider()); TRACING.start()\n"
        "assert TRACING.start_send('t')[1] is None",
        AG06_TRACES=traces,
    )
    assert done.returncode == 0, done.stderr


def test_a_provider_that_the_user_has_set_up_is_used_whatever_the_share() -> None:
    done = run(
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider()); TRACING.start(); TRACING.start()\n"
        "carried, span = TRACING.start_send('t')\n"
        "assert span is not None and span.sampled and carried == span.traceparent\n"
        "assert 'grpc' not in sys.modules\n"
        "assert TRACING.flush(0) and TRACING.dropped == 0",
        AG06_TRACES="0",
    )
    assert done.returncode == 0, done.stderr


def test_opentelemetry_that_is_switched_off_records_nothing() -> None:
    done = run("TRACING.start(); assert TRACING.start_send('t')[1] is None", AG06_TRACES="1", OTEL_SDK_DISABLED="true")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"])
def test_a_missing_package_is_one_clear_error_and_ids_go_on(missing: str) -> None:
    done = run(
        f"sys.modules[{missing!r}] = None\n"
        "from ag06.errors import ConfigurationError\n"
        "try: TRACING.start()\n"
        "except ConfigurationError as error: print(error)\n"
        "assert TRACING.start_send('t')[1] is None and TRACING.ids() is None",
        AG06_TRACES="0.1",
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'ag06[otel]'" in done.stdout
    assert "AG06_TRACES" in done.stdout


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "inf", "yes", "10%", "1e999"])
def test_a_share_that_is_none_is_an_error_that_names_its_origin(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AG06_TRACES", value)
    with pytest.raises(ConfigurationError, match=r"traces .* \(from AG06_TRACES\); use a share from 0 to 1, or off"):
        Tracing().start()
    with pytest.raises(ConfigurationError):
        check_setting(Setting("traces", value, "flag"))


@pytest.mark.parametrize("value", ["", "off", "Off", "0", "1", "0.01", "1e-3"])
def test_a_share_or_off_passes(value: str) -> None:
    check_setting(Setting("traces", value, "flag"))


def test_an_event_of_another_version_of_the_standard_is_understood() -> None:
    recorder = Recorder()
    event = msgspec.structs.replace(an_event(None), traceparent=f"cc-{TRACE}-{SPAN}-01-more")
    recorder.tracing.end_process(recorder.tracing.begin_process(event, "shop.bill"))
    assert carried_by(recorder.only()).startswith(f"00-{TRACE}-")


def test_a_histogram_takes_the_span_of_what_it_counted_as_its_exemplar() -> None:
    histogram = Registry().histogram("waited_seconds", exemplars=True).labels()
    recorder = Recorder()
    mark = recorder.tracing.begin_process(an_event(RECORDED), "shop.bill")
    inside = recorder.tracing.exemplar()
    assert inside is not None
    histogram.observe_traced(0.2, *inside)
    span = recorder.tracing.end_process(mark)
    assert span is not None
    histogram.observe_traced(0.7, *span.ids)  # once the store has answered, the call is long over
    found = [exemplar for exemplar in histogram.sample().exemplars if exemplar]
    own = ids(carried_by(recorder.only()))
    assert [(each.value, each.trace_id, each.span_id) for each in found] == [(0.2, *own), (0.7, *own)]
