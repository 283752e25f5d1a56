"""Publishing, delivering again and replaying, as a trace shows them; and what the events carry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from ag06 import Context, Event, InvalidEvent, Reject, Workflow
from ag06.event import decode_event
from ag06.monitoring.traceparent import parse
from ag06.monitoring.tracing import Tracing
from ag06.persistence import EventStore
from ag06.persistence.journal.file import JournalFile
from faults import running_server
from flows import SECONDS, stored
from journals import diverted, journaled, straight
from recorder import Recorder, carried_by, linked_by

MODULES = ("ag06.persistence.event_store", "ag06.runtime.context", "ag06.runtime.dead_letters")
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch, MODULES)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = EventStore(store_url)
    yield opened
    await opened.close()


async def everything(store: EventStore) -> list[Event[Any]]:
    return [event async for event in store.replay()]


async def test_a_published_event_carries_the_span_of_its_sending(store: EventStore, recorder: Recorder) -> None:
    event_id = await store.persist_event("order", "web", correlation_id="c")
    (span,) = recorder.spans
    (event,) = await everything(store)
    assert event.traceparent == carried_by(span)
    assert span.name == "send order"
    attributes = dict(span.attributes or {})
    assert attributes["messaging.message.id"] == event_id
    assert attributes["messaging.message.conversation_id"] == "c"
    assert span.status.status_code is StatusCode.UNSET


async def test_an_event_that_brings_a_trace_keeps_it_and_its_sending_is_a_part_of_that(
    store: EventStore, recorder: Recorder
) -> None:
    await store.persist_event("order", "web", traceparent=GIVEN)
    (event,) = await everything(store)
    assert event.traceparent == GIVEN
    span = recorder.named("send order")
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in GIVEN


async def test_what_is_published_within_a_span_of_the_users_belongs_to_its_trace(
    store: EventStore, recorder: Recorder
) -> None:
    with recorder.tracer.start_as_current_span("request") as request:
        await store.persist_event("order", "web")
        await store.persist_events([{"event_type": "order", "source": "web", "data": n} for n in range(3)])
    mine = [span for span in recorder.spans if span.name == "send order"]
    assert [span.parent and span.parent.span_id for span in mine] == [request.get_span_context().span_id] * 2


async def test_a_send_that_fails_says_what_it_failed_with(store: EventStore, recorder: Recorder) -> None:
    with pytest.raises(InvalidEvent):
        await store.persist_event("order", "web", data={"n": float("nan")}, id="mine")
    with pytest.raises(InvalidEvent):
        await store.persist_events([{"event_type": "a", "source": "web"}, {"event_type": "b"}])
    await store.persist_event("order", "web", id="taken")
    with pytest.raises(InvalidEvent):
        await store.persist_events([{"event_type": "order", "source": "web", "id": "taken", "data": 2}])
    one, two, good, clash = recorder.spans
    for span, name in ((one, "send order"), (two, "send"), (clash, "send order")):
        assert (span.name, span.status.status_code) == (name, StatusCode.ERROR)
        assert dict(span.attributes or {})["error.type"] == "InvalidEvent"
    assert good.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("wrong", [7, ["00"], b"00", "", "x" * 100_000, {}])
async def test_a_trace_that_is_no_text_is_refused_as_without_tracing(
    store: EventStore, recorder: Recorder, wrong: Any
) -> None:
    with pytest.raises(InvalidEvent, match="traceparent"):
        await store.persist_event("order", "web", traceparent=wrong)
    assert await everything(store) == []


async def test_many_events_are_one_send_and_those_with_a_trace_of_their_own_keep_it(
    store: EventStore, recorder: Recorder
) -> None:
    members = [{"event_type": "order", "source": "web", "data": n} for n in range(4)]
    members[2]["traceparent"] = GIVEN
    await store.persist_events(members)
    (span,) = recorder.spans
    assert (span.name, dict(span.attributes or {})["messaging.batch.message_count"]) == ("send order", 4)
    events = await everything(store)
    mine = carried_by(span)
    assert [event.traceparent for event in events] == [mine, mine, GIVEN, mine]
    await store.persist_events([{"event_type": kind, "source": "web"} for kind in ("order", "parcel")])
    assert "messaging.destination.name" not in dict(recorder.named("send").attributes or {})


async def test_what_is_merged_from_elsewhere_keeps_its_trace(store: EventStore, recorder: Recorder) -> None:
    await store.persist_event("order", "web", traceparent=GIVEN)
    (event,) = await everything(store)
    other = EventStore("memory://merged")
    await other.initialize("memory://merged")
    try:
        assert await other.merge_events([event]) == 1
        assert [again.traceparent for again in await everything(other)] == [GIVEN]
    finally:
        await other.close()


async def test_a_trace_that_is_not_sampled_leaves_no_span_and_is_carried_all_the_same(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, MODULES, ALWAYS_OFF)
    await store.persist_event("order", "web")
    await store.persist_events([{"event_type": "order", "source": "web", "data": n} for n in range(3)])
    carried = [parse(event.traceparent) for event in await everything(store)]
    assert [trace is not None and trace.sampled for trace in carried] == [False] * 4
    assert not recorder.spans


async def test_an_output_is_made_in_the_trace_of_its_cause(store_url: str, recorder: Recorder) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        ctx.publish("bill")

    async with app.running():
        await app.publish("order", "web")
        await app.drain(SECONDS)
        (order,), (bill_event,) = await stored(app, "order"), await stored(app, "bill")
    created = recorder.named("create bill")
    assert bill_event.traceparent == carried_by(created)
    assert order.traceparent is not None
    assert created.parent is not None
    assert f"{created.parent.trace_id:032x}" == order.traceparent[3:35]


async def test_letters_that_are_delivered_again_are_one_retry_linked_to_each(
    store_url: str, recorder: Recorder
) -> None:
    app = Workflow("shop", store=store_url)
    mended = False

    @app.step("order")
    async def bill(event: Event) -> None:
        if not mended:
            raise Reject("not now")

    async with app.running():
        for number in range(3):
            await app.publish("order", "web", data=number)
        await app.drain(SECONDS)
        sent = {event.traceparent for event in await stored(app, "order")}
        mended = True
        assert await app.dead_letters.retry() == 3
        await app.drain(SECONDS)
    span = recorder.named("retry order")
    assert set(linked_by(span)) == sent
    assert len(sent) == 3
    assert dict(span.attributes or {})["messaging.batch.message_count"] == 3


async def test_a_replay_is_linked_to_what_it_read_up_to_where_its_reader_stopped(
    store: EventStore, recorder: Recorder
) -> None:
    for number in range(5):
        await store.persist_event("order", "web", number)
    sent = [carried_by(span) for span in recorder.spans]
    replay = store.replay()
    async for event in replay:
        if event.data == 2:
            break
    await replay.aclose()
    span = recorder.named("replay")
    assert linked_by(span) == sent[:3]
    assert dict(span.attributes or {})["messaging.batch.message_count"] == 3
    assert span.status.status_code is StatusCode.UNSET


async def test_an_event_keeps_its_trace_through_a_journal(tmp_path: Path, recorder: Recorder) -> None:
    async with running_server(tmp_path / "server") as server:
        store = EventStore(server.url, journal=str(tmp_path / "journal"))
        await store.log()
        server.kill()
        kept = await store.persist_event("order", "web", "during")
        await diverted(store)
        await store.persist_event("order", "web", "given", traceparent=GIVEN)
        file = (await journaled(store))._file
        assert isinstance(file, JournalFile)
        on_disk = {entry.record.id: decode_event(entry.record.body, 0).traceparent for entry in await file.read()}
        server.start()
        await straight(store)
        events = {event.data: event async for event in store.replay()}
        await store.close()
    sent = {dict(span.attributes or {}).get("messaging.message.id"): span for span in recorder.spans}
    assert on_disk[kept or ""] == carried_by(sent[kept]) == events["during"].traceparent
    assert events["given"].traceparent == GIVEN


async def test_without_tracing_every_event_still_belongs_to_a_trace(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ag06.persistence.event_store.TRACING", Tracing())
    await store.persist_event("order", "web")
    await store.persist_events([{"event_type": "order", "source": "web", "data": n} for n in range(2)])
    alone, *together = [parse(event.traceparent) for event in await everything(store)]
    assert alone is not None
    assert together[0] is not None
    assert together[0] == together[1]
    assert alone.trace_id != together[0].trace_id
