"""What a workflow promises about a step's outputs: with the acknowledgement or not at all, and once."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

from ag06 import Context, Event, InvalidEvent, Priority, Retry, StepFailed, Workflow
from ag06.persistence.admission import Admission
from flows import SECONDS, letters, said, stored


async def test_outputs_of_a_failed_attempt_are_not_stored_and_those_of_the_last_appear_once(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("order", retry=Retry(attempts=4, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", {"order": event.data, "attempt": ctx.attempt})
        await ctx.publish("mailed", {"order": event.data})
        if ctx.attempt < 3:
            raise ConnectionError

    async with app.running():
        for n in range(4):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        billed = sorted(await said(app, "billed"), key=lambda data: data["order"])
        assert billed == [{"order": n, "attempt": 3} for n in range(4)]
        assert len(await said(app, "mailed")) == 4


async def test_a_step_that_gives_up_leaves_no_outputs(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("order", retry=Retry(attempts=2, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed")
        raise ValueError

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        assert await said(app, "billed") == []
        assert len(await letters(app)) == 1


async def test_outputs_are_not_seen_before_their_step_has_returned(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    published, leave = asyncio.Event(), asyncio.Event()

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed")
        published.set()
        await leave.wait()

    async with app.running():
        await app.publish("order")
        await asyncio.wait_for(published.wait(), SECONDS)
        assert await said(app, "billed") == []
        leave.set()
        await app.drain(SECONDS)
        assert len(await said(app, "billed")) == 1


async def test_what_follows_keeps_the_correlation_and_names_its_cause(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("a")
    async def first(event: Event, ctx: Context) -> None:
        await ctx.publish("b", subject="s")

    @app.step("b")
    def second(event: Event, ctx: Context) -> None:
        ctx.publish("c", source="elsewhere", priority="low")

    async with app.running():
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        await app.publish("a", "web", priority=Priority.HIGH, traceparent=trace)
        await app.publish("a", "web", correlation_id="request-7", dedup=False)
        await app.drain(SECONDS)
        by_type = {event_type: await stored(app, event_type) for event_type in "abc"}
    for event in by_type["a"]:
        (b,) = [found for found in by_type["b"] if found.causation_id == event.id]
        (c,) = [found for found in by_type["c"] if found.causation_id == b.id]
        assert event.causation_id is None
        assert b.correlation_id == c.correlation_id == event.correlation_id
        assert (b.source, b.subject, b.priority) == ("shop.first", "s", event.priority)
        assert (c.source, c.subject, c.priority) == ("elsewhere", None, Priority.LOW)
        assert b.traceparent == c.traceparent == event.traceparent
    own, given = sorted(by_type["a"], key=lambda event: event.correlation_id == "request-7")
    assert own.correlation_id == own.id
    assert own.traceparent == trace
    assert given.correlation_id == "request-7"


async def test_two_parents_that_say_the_same_are_both_heard(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", {"total": 5})
        await ctx.publish("billed", {"total": 5})

    async with app.running():
        await app.publish("order", data=1)
        await app.publish("order", data=2)
        await app.drain(SECONDS)
        assert await said(app, "billed") == [{"total": 5}] * 4


async def test_the_ids_of_outputs_are_the_same_at_every_run(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    seen: list[list[str]] = []

    @app.step("order", retry=Retry(attempts=3, initial=0.001))
    async def bill(event: Event, ctx: Context) -> None:
        ids = [await ctx.publish("billed", n) for n in range(3)]
        ids.append(ctx.publish("mailed"))
        seen.append(ids)
        if ctx.attempt < 3:
            raise ConnectionError

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        found = [event.id for event in [*await stored(app, "billed"), *await stored(app, "mailed")]]
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2] == found
    assert len(set(found)) == 4


async def test_the_id_of_an_output_does_not_depend_on_the_batch_its_cause_was_in() -> None:
    app = Workflow("shop", store="memory://")
    seen: list[dict[str, list[str]]] = []

    @app.batch_step("order", max_size=10, max_wait=0.01, retry=Retry(attempts=2, initial=0.001))
    async def bill(events: list[Event], ctx: Context) -> None:
        seen.append({e.id: [ctx.publish("billed", part, cause=e) for part in "ab"] for e in events})
        if len(events) > 1:
            raise ConnectionError

    for n in range(3):
        await app.publish("order", data=n)
    async with app.running():
        await app.drain(SECONDS)
        found = {event.id for event in await stored(app, "billed")}
    together, *alone = seen
    assert len(together) == 3
    assert together == {event_id: ids for one in alone for event_id, ids in one.items()}
    assert found == {output for ids in together.values() for output in ids}


async def test_a_cause_that_is_no_event_of_the_call_is_refused_and_stores_nothing(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    orders: list[Event] = []

    @app.step("order")
    async def remember(event: Event) -> None:
        orders.append(event)

    @app.step("payment", retry=Retry(attempts=1))
    async def join(event: Event, ctx: Context) -> None:
        await ctx.publish("paid", event.data, cause=orders[0])

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        for n in range(3):
            await app.publish("payment", data=n)
        await app.drain(SECONDS)
        refused = await letters(app)
        assert [letter.event.data for letter in refused] == [0, 1, 2]
        assert {letter.error for letter in refused} == {"InvalidEvent"}
        assert all(f"cause: is the event {orders[0].id}, not an event of this call" in one.message for one in refused)
        assert await stored(app, "paid") == []


async def test_a_cause_of_the_call_is_known_by_its_id_whatever_a_copy_of_it_contains(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    causes: dict[str, str] = {}

    @app.batch_step("order", max_size=10, max_wait=0.01)
    async def bill(events: list[Event], ctx: Context) -> None:
        for event in events:
            copy = msgspec.structs.replace(event, data="edited", recorded=None, time=dt.datetime.now(dt.UTC))
            identity = ctx.publish("billed", event.data, cause=copy)
            causes[identity] = event.id
            assert identity != ctx.publish("mailed", cause=event)

    async with app.running():
        for n in range(3):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        billed = await stored(app, "billed")
    assert {event.id: event.causation_id for event in billed} == causes
    assert len(causes) == 3


@pytest.mark.parametrize("cause", ["0190b1c5-0000-7000-8000-000000000000", {"id": "x"}, 7])
async def test_a_cause_that_is_no_event_is_refused(cause: Any) -> None:
    event = Event(id="e1", type="order", source="shop", data=None, time=dt.datetime.now(dt.UTC))
    context = Context("shop", "bill", [event], Admission())
    with pytest.raises(InvalidEvent, match=f"cause: is a {type(cause).__name__}, not an event of this call of 'bill'"):
        context.publish("billed", cause=cause)
    assert context.close() == ()


async def test_publishing_after_the_call_has_ended_is_an_error_and_stores_nothing(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    contexts: list[Context] = []
    late: list[asyncio.Task[Any]] = []
    ended = asyncio.Event()

    async def publish_late(ctx: Context) -> None:
        await ended.wait()
        await ctx.publish("late")

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        contexts.append(ctx)
        late.append(asyncio.create_task(publish_late(ctx)))

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        ended.set()
        with pytest.raises(StepFailed, match="'bill' published 'late' after its call had ended; nothing was stored"):
            await late[0]
        with pytest.raises(StepFailed):
            contexts[0].publish("late")
        assert await said(app, "late") == []


async def test_an_output_that_breaks_a_limit_fails_its_step() -> None:
    app = Workflow("shop", store="memory://", max_event_bytes=100)
    raised: list[InvalidEvent] = []

    @app.step("order", retry=Retry(attempts=1))
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", "fine")
        for wrong in ({"data": {1: 2}}, {"data": "x" * 200}, {"subject": ""}, {"delay": -1}):
            with pytest.raises(InvalidEvent) as refused:
                ctx.publish("billed", **wrong)
            raised.append(refused.value)
        await ctx.publish("")

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (letter,) = await letters(app)
        assert await said(app, "billed") == []
    assert [error.field for error in raised] == ["data", "data", "subject", "delay"]
    assert (letter.error, letter.reason) == ("InvalidEvent", "failed")


async def test_an_output_may_be_due_later(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    heard: list[str] = []

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("remind", "later", delay=0.2)
        await ctx.publish("remind", "past", at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))

    @app.step("remind")
    async def remind(event: Event) -> None:
        heard.append(event.data)

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        past, later = await stored(app, "remind")
    assert heard == [past.data, later.data] == ["past", "later"]
    assert past.recorded is not None
    assert later.recorded is not None
    assert later.recorded - later.time >= dt.timedelta(seconds=0.199)


async def test_an_output_says_when_it_happened_and_what_it_is_about() -> None:
    app = Workflow("shop", store="memory://")
    noon = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)

    @app.step("order")
    async def bill(event: Event, ctx: Context) -> None:
        await ctx.publish("billed", time=noon, subject="alice")

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
        (event,) = await stored(app, "billed")
    assert (event.time, event.subject) == (noon, "alice")
    assert event.recorded is not None
    assert event.recorded > noon


async def test_the_outputs_of_a_call_are_limited_where_they_are_published(store_url: str) -> None:
    app = Workflow("shop", store=store_url, max_output_bytes=10_000)

    @app.step("order", retry=Retry(attempts=1))
    async def bill(event: Event, ctx: Context) -> None:
        for n in range(event.data):
            ctx.publish("billed", {"n": n, "text": "x" * 1_000})

    async with app.running():
        await app.publish("order", data=7)
        await app.publish("order", data=12)
        await app.drain(SECONDS)
        assert len(await said(app, "billed")) == 7
        (letter,) = await letters(app)
        assert (letter.event.data, letter.error) == (12, "InvalidEvent")
        assert "the limit is 10000 (max_output_bytes)" in letter.message


async def test_a_batch_whose_outputs_exceed_the_limit_together_is_tried_event_by_event(store_url: str) -> None:
    app = Workflow("shop", store=store_url, max_output_bytes=5_000)

    @app.batch_step("order", max_size=20, max_wait=0.2, retry=Retry(attempts=5, initial=0.001))
    async def bill(events: list[Event], ctx: Context) -> None:
        for event in events:
            ctx.publish("billed", {"n": event.data, "text": "x" * 1_000}, cause=event)

    async with app.running():
        for n in range(10):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert sorted(data["n"] for data in await said(app, "billed")) == list(range(10))
        assert await letters(app) == []
