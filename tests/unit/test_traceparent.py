"""W3C Trace Context without any dependency: read as OpenTelemetry reads it, made unlike any other."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ag06.monitoring import traceparent
from ag06.monitoring.traceparent import SpanIds, TraceContext, TraceIds, child, format_traceparent, is_sampled, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def by_opentelemetry(text: str) -> TraceContext | None:
    found = TraceContextTextMapPropagator().extract({"traceparent": text}, Context())
    context = trace.get_current_span(found).get_span_context()
    if not context.is_valid:
        return None
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags)


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=digits, max_size=digits) | st.just("0" * digits)


near_valid = st.builds(
    lambda *parts: "-".join(parts[:4]) + parts[4],
    hexadecimal(2) | st.just("00") | st.just("ff"),
    hexadecimal(32),
    hexadecimal(16),
    hexadecimal(2),
    st.just("") | st.just("-") | st.just("-more") | st.just("x"),
)


@given(near_valid)
@example(VALID)
@example(f"01-{TRACE}-{SPAN}-09-what-a-later-version-adds")
def test_what_is_nearly_valid_is_read_as_opentelemetry_reads_it(text: str) -> None:
    assert parse(text) == by_opentelemetry(text)


@pytest.mark.parametrize(
    "text",
    [
        None, "", "00", VALID.upper(), f" {VALID}", f"{VALID} ", f"{VALID}\n", f"{VALID}-more", VALID[:-1], f"{VALID}0",
        f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01", f"0-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01.x", "x" * 10_000, "\u0660" * 55,
        f"00-{TRACE}-{SPAN}-\u0660\u0661", f"01-{TRACE}-{SPAN}-01-\n",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_none(text: str | None) -> None:
    assert parse(text) is None
    assert child(text or "") is None


@given(st.text())
def test_no_text_is_too_strange_to_be_read(text: str) -> None:
    assert parse(text) is None
    assert is_sampled(text) in {True, False}


@given(hexadecimal(32), hexadecimal(16), st.integers(0, 255))
def test_what_is_written_is_read_back(trace_id: str, span_id: str, flags: int) -> None:
    text = format_traceparent(trace_id, span_id, flags)
    expected = TraceContext(trace_id, span_id, flags)
    assert parse(text) == (None if trace_id == "0" * 32 or span_id == "0" * 16 else expected)
    assert is_sampled(text) is expected.sampled is bool(flags % 2)


@given(near_valid)
def test_a_child_is_another_span_of_the_same_trace(text: str) -> None:
    parent, made = parse(text), parse(child(text))
    if parent is None:
        assert made is None
    else:
        assert made is not None
        assert (made.trace_id, made.flags) == (parent.trace_id, parent.flags)
        assert made.span_id != parent.span_id


def test_new_traces_are_valid_and_none_comes_twice() -> None:
    ids = TraceIds()
    traces = [parse(ids.new_trace()) for _ in range(2_000)]
    assert None not in traces
    assert len({context.trace_id for context in traces if context}) == 2_000
    assert len({context.span_id for context in traces if context}) == 2_000
    assert not any(context.sampled for context in traces if context)
    spans = SpanIds()
    assert len({spans() for _ in range(2_000)} - {"0" * 16}) == 2_000


def test_ids_that_would_be_all_zero_are_drawn_again() -> None:
    def entropy(count: int) -> bytes:
        drawn.append(count)
        # The first draw is worth nothing; of the second one trace and one span are.
        return bytes(count) if len(drawn) == 1 else bytes(count - 24) + bytes(range(1, 25))

    drawn: list[int] = []
    assert parse(TraceIds(entropy=entropy).new_trace()) == TraceContext(bytes(range(1, 17)).hex(), "1112131415161718")
    drawn.clear()
    assert SpanIds(entropy)() == bytes(range(17, 25)).hex()
    assert len(drawn) == 2


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 0.01, 0.5, 0.99, 1.0])
def test_a_trace_is_sampled_by_its_id_as_opentelemetry_would(ratio: float) -> None:
    ids, sampler = TraceIds(ratio), TraceIdRatioBased(ratio)
    for _ in range(2_000):
        context = parse(ids.new_trace())
        assert context is not None
        decision = sampler.should_sample(None, int(context.trace_id, 16), "x").decision
        assert context.sampled is decision.is_sampled()


@pytest.mark.parametrize("ratio", [1e-6, 0.01, 1.0])
def test_a_trace_that_must_be_recorded_is_one_that_others_sample_too(ratio: float) -> None:
    ids, sampler = TraceIds(ratio), TraceIdRatioBased(ratio)
    made = [parse(ids.sampled_trace()) for _ in range(600)]
    assert len({context.trace_id for context in made if context}) == 600
    for context in made:
        assert context is not None
        assert context.sampled
        assert sampler.should_sample(None, int(context.trace_id, 16), "x").decision.is_sampled()


def test_where_nothing_is_ever_recorded_no_trace_must_be() -> None:
    assert TraceIds(0.0).sampled_trace() is None


def test_threads_that_draw_at_once_never_draw_the_same() -> None:
    ids, found = TraceIds(), list[str]()
    go = threading.Barrier(8)

    def draw() -> None:
        go.wait(20)
        found.extend(ids.new_trace() for _ in range(3_000))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(found)) == len(found) == 24_000


def test_a_process_that_is_forked_off_draws_ids_of_its_own() -> None:
    from ag06.monitoring.tracing import TRACING

    def drawn() -> str:
        return f"{TRACING.start_send('t')[0]} {traceparent.new_span_id()}"

    drawn()  # the pools are filled
    read, write = os.pipe()
    child_process = os.fork()
    if child_process == 0:
        try:
            os.write(write, drawn().encode())
        finally:
            os._exit(0)
    os.close(write)
    theirs = os.read(read, 1_000).decode()
    os.close(read)
    os.waitpid(child_process, 0)
    ours = drawn()
    assert len(theirs) == len(ours) == 72
    assert not set(theirs.replace("-", " ").split()[1:3]) & set(ours.replace("-", " ").split()[1:3])
    assert theirs.split()[1] != ours.split()[1]


@pytest.fixture
def bound() -> Iterator[str]:
    token = traceparent.bind(VALID)
    yield VALID
    traceparent.unbind(token)


async def test_what_is_bound_holds_over_await_tasks_and_threads(bound: str) -> None:
    async def deep() -> str | None:
        await asyncio.sleep(0)
        return traceparent.current()

    token = traceparent.bind(bound)
    assert await deep() == bound
    assert await asyncio.create_task(deep()) == bound
    assert await asyncio.to_thread(traceparent.current_ids) == (TRACE, SPAN)
    traceparent.unbind(token)


def test_what_is_bound_and_no_traceparent_has_no_ids() -> None:
    token = traceparent.bind("an event may carry anything")
    assert traceparent.current_ids() is None
    traceparent.unbind(token)
    assert traceparent.current() is None
