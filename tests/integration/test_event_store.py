"""The facade as users call it, on every store: publishing, duplicates, replay."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ag06 import Backpressure, ConfigurationError, Event, InvalidEvent, Priority
from ag06.monitoring.traceparent import parse
from ag06.persistence import EventPriority, EventStore, persistence
from ag06.persistence.log import StepSpec
from records import eventually

NOON = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)
EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = EventStore(store_url)
    yield opened
    await opened.close()


async def everything(store: EventStore, **query: Any) -> list[Event[Any]]:
    return [event async for event in store.replay(**query)]


async def data(store: EventStore, **query: Any) -> list[Any]:
    return [event.data for event in await everything(store, **query)]


async def test_the_facade_does_what_its_first_lines_in_the_manual_say(store_url: str) -> None:
    before = dt.datetime.now(dt.UTC)
    await persistence.initialize(store_url)
    try:
        event_id = await persistence.persist_event(
            event_type="audio_processing", source="mixer", data={"setting": "value"}, priority=EventPriority.HIGH
        )
        assert event_id is not None
        assert uuid.UUID(event_id).version == 7
        second = await persistence.persist_event("workflow_step", "processor", {"step": 1})
        assert await persistence.persist_event("workflow_step", "processor", {"step": 1}) is None
        events = await persistence.replay_from(before)
        assert [event.id for event in events] == [event_id, second]
        assert [(event.type, event.source, event.data) for event in events] == [
            ("audio_processing", "mixer", {"setting": "value"}),
            ("workflow_step", "processor", {"step": 1}),
        ]
        assert [event.priority for event in events] == [EventPriority.HIGH, EventPriority.NORMAL]
        stats = await persistence.stats()
        assert (stats.events, stats.duplicates, stats.scheduled, stats.dead_letters) == (2, 1, 0, 0)
        assert persistence.url == store_url
    finally:
        await persistence.close()


async def test_an_event_comes_back_with_everything_its_publisher_said(store: EventStore) -> None:
    said: dict[str, Any] = {
        "id": "order/7",
        "subject": "order 7: ü",
        "correlation_id": "c",
        "causation_id": "b",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "time": NOON.astimezone(EAST),
    }
    assert await store.persist_event("t", "s", {"n": [1, 2.5, None, "ü\x00𝄞"]}, Priority.CRITICAL, **said) == "order/7"
    (event,) = await everything(store)
    assert {name: getattr(event, name) for name in said} == said
    assert event.time.tzinfo is dt.UTC
    assert (event.data, event.priority) == ({"n": [1, 2.5, None, "ü\x00𝄞"]}, Priority.CRITICAL)
    assert event.recorded is not None
    assert event.recorded.tzinfo is dt.UTC


async def test_what_a_publisher_leaves_out_has_a_meaning(store: EventStore) -> None:
    before = dt.datetime.now(dt.UTC)
    event_id = await store.persist_event("t", "s")
    (event,) = await everything(store)
    assert (event.id, event.data, event.priority) == (event_id, None, Priority.NORMAL)
    assert event.correlation_id == event_id
    assert (event.subject, event.causation_id) == (None, None)
    assert (trace := parse(event.traceparent)) is not None, "it begins a trace"
    assert not trace.sampled
    assert before <= event.time <= dt.datetime.now(dt.UTC)


@pytest.mark.parametrize("priority", [Priority.HIGH, 2, "HIGH", "high"])
async def test_a_priority_may_be_a_member_a_number_or_a_name(store: EventStore, priority: Any) -> None:
    await store.persist_event("t", "s", priority=priority)
    assert [event.priority for event in await everything(store)] == [Priority.HIGH]


class Kind(str, enum.Enum):  # noqa: UP042 - its text is "Kind.PAID", and must not become the name
    PAID = "paid"


async def test_a_member_of_an_enum_of_texts_is_the_text_it_stands_for(store: EventStore) -> None:
    await store.persist_event(Kind.PAID, Kind.PAID, Kind.PAID)
    await store.persist_event(Kind.PAID, Kind.PAID, 2, subject=Kind.PAID, idempotency_key=Kind.PAID, id=Kind.PAID)
    first, second = await everything(store, types="paid", sources=[Kind.PAID])
    assert (first.type, first.source, first.data) == ("paid", "paid", "paid")
    assert (second.id, second.subject) == ("paid", "paid")
    assert await store.persist_event("paid", "paid", "paid") is None


# Which events are the same


async def test_the_same_content_is_stored_once_whatever_the_order_of_its_keys(store: EventStore) -> None:
    assert await store.persist_event("t", "s", {"a": 1, "b": {"c": 2, "d": 3}}) is not None
    assert await store.persist_event("t", "s", {"b": {"d": 3, "c": 2}, "a": 1}) is None
    assert await store.persist_event("t", "s", {"b": {"d": 3, "c": 2}, "a": 1}, Priority.HIGH) is None
    assert len(await everything(store)) == 1


async def test_whatever_differs_in_type_source_subject_data_or_given_time_is_another_event(store: EventStore) -> None:
    other: list[dict[str, Any]] = [
        {},
        {"event_type": "u"},
        {"source": "u"},
        {"data": 2},
        {"data": "1"},
        {"subject": "x"},
        {"subject": "y"},
        {"time": NOON},
        {"time": NOON + dt.timedelta(microseconds=1)},
    ]
    said = [{"event_type": "t", "source": "s", "data": 1} | difference for difference in other]
    ids = [await store.persist_event(**arguments) for arguments in said]
    assert None not in ids
    assert [await store.persist_event(**arguments) for arguments in said] == [None] * len(said)
    # The same instant in another zone is the same time.
    assert await store.persist_event("t", "s", 1, time=NOON.astimezone(EAST)) is None


async def test_a_key_says_which_events_of_a_type_and_source_are_the_same(store: EventStore) -> None:
    assert await store.persist_event("t", "s", 1, idempotency_key="k") is not None
    assert await store.persist_event("t", "s", 2, idempotency_key="k") is None
    assert await store.persist_event("t", "other", 1, idempotency_key="k") is not None
    assert await store.persist_event("other", "s", 1, idempotency_key="k") is not None
    assert await store.persist_event("t", "s", 1, idempotency_key="k2") is not None
    assert await store.persist_event("t", "s", 1) is not None, "an event with a key is never compared by content"
    assert (await store.stats()).duplicates == 1


async def test_without_deduplication_equal_events_are_all_stored(store: EventStore) -> None:
    ids = [await store.persist_event("t", "s", 1, dedup=False) for _ in range(3)]
    assert len({*ids} - {None}) == 3
    assert [event.id for event in await everything(store)] == ids


async def test_a_dedup_window_of_zero_switches_deduplication_off(store_url: str) -> None:
    store = EventStore(store_url, dedup_window=0)
    ids = [await store.persist_event("t", "s", 1, idempotency_key=key) for key in (None, None, "k", "k")]
    assert len({*ids} - {None}) == 4
    assert [event.id for event in await everything(store)] == ids
    await store.close()


async def test_after_the_dedup_window_the_same_event_is_news(store_url: str) -> None:
    store = EventStore(store_url, dedup_window=0.05)
    assert await store.persist_event("t", "s", 1) is not None

    async def accepted_again() -> bool:
        return await store.persist_event("t", "s", 1) is not None

    await eventually(accepted_again)
    assert len(await everything(store)) == 2
    await store.close()


async def test_a_thousand_callers_at_once_are_each_told_their_own_id(store_url: str) -> None:
    await persistence.initialize(store_url)
    try:
        ids = await asyncio.gather(*(persistence.persist_event("t", "s", n) for n in range(1000)))
        assert None not in ids
        stored = {event.id: event.data for event in await persistence.replay_from(0)}
        assert stored == {event_id: n for n, event_id in enumerate(ids)}
        again = await asyncio.gather(*(persistence.persist_event("t", "s", n % 10) for n in range(1000)))
        assert again == [None] * 1000
        same = await asyncio.gather(*(persistence.persist_event("t", "same", 1) for _ in range(1000)))
        assert len([event_id for event_id in same if event_id is not None]) == 1
    finally:
        await persistence.close()


# Ids of the publisher


async def test_an_id_repeated_with_the_same_content_is_returned_again(store: EventStore) -> None:
    for _ in range(3):
        assert await store.persist_event("t", "s", {"a": 1, "b": 2}, id="mine", time=NOON) == "mine"
    assert await store.persist_event("t", "s", {"b": 2, "a": 1}, id="mine", time=NOON.astimezone(EAST)) == "mine"
    assert len(await everything(store)) == 1
    assert (await store.stats()).duplicates == 0


@pytest.mark.parametrize(
    "difference", [{"data": 2}, {"event_type": "u"}, {"source": "u"}, {"subject": "x"}, {"time": NOON}], ids=str
)
async def test_an_id_that_is_taken_by_other_content_is_refused(store: EventStore, difference: dict[str, Any]) -> None:
    said = {"event_type": "t", "source": "s", "data": 1}
    await store.persist_event(**said, id="mine")
    with pytest.raises(InvalidEvent, match="'mine' is stored already with other content") as refused:
        await store.persist_event(**said | difference, id="mine")
    assert refused.value.field == "id"
    assert await data(store) == [1]
    assert await store.persist_event(**said | difference) is not None, "what was refused was remembered"


async def test_an_id_that_the_store_made_may_be_repeated_with_the_same_content(store: EventStore) -> None:
    made = await store.persist_event("t", "s", 1)
    assert await store.persist_event("t", "s", 1, id=made) == made
    timed = await store.persist_event("t", "s", 1, time=NOON)
    assert await store.persist_event("t", "s", 1, time=NOON, id=timed) == timed
    keyed = await store.persist_event("t", "s", 1, idempotency_key="k")
    assert await store.persist_event("t", "s", 1, idempotency_key="k", id=keyed) == keyed
    assert len(await everything(store)) == 3


async def test_an_id_that_the_store_made_is_refused_for_other_content(store: EventStore) -> None:
    made = await store.persist_event("t", "s", 1, subject="x")
    later = await store.persist_event("t", "s", 2, delay=60)
    for event_id in (made, later):
        with pytest.raises(InvalidEvent, match="other content"):
            await store.persist_event("t", "s", 3, id=event_id)
    assert await store.persist_event("t", "s", 2, id=later) == later
    # An event that is read back says when it happened, though its publisher did not.
    (event,) = await everything(store)
    assert await store.persist_events([event]) == [made]
    assert await data(store) == [1]


async def test_an_id_of_its_own_makes_no_duplicate_a_new_event(store: EventStore) -> None:
    await store.persist_event("t", "s", 1)
    assert await store.persist_event("t", "s", 1, id="mine") is None
    assert await store.persist_event("t", "s", 1, id="mine", dedup=False) == "mine"


# Durability


async def test_each_store_gives_the_levels_it_can_and_names_those_it_cannot(store: EventStore, adapter: str) -> None:
    given = {"memory": ["server"], "sqlite": ["server", "fsync"], "redis": ["server"]}[adapter]
    for level in ("server", "fsync", "replicated"):
        if level in given:
            assert await store.persist_event("t", "s", level, durability=level) is not None  # type: ignore[arg-type]
        else:
            with pytest.raises(ConfigurationError, match=f"durability='{level}'"):
                await store.persist_event("t", "s", level, durability=level)  # type: ignore[arg-type]
    assert await data(store) == given


@pytest.mark.parametrize("adapter", ["memory", "sqlite"], indirect=True)
async def test_a_level_that_a_store_cannot_give_is_refused_at_start(store_url: str) -> None:
    with pytest.raises(ConfigurationError, match="durability='replicated'"):
        await EventStore().initialize(store_url, durability="replicated")


# Many at once


async def test_many_events_are_stored_in_order_and_answered_one_by_one(store: EventStore) -> None:
    own = Event(
        id="own", type="t", source="s", data=3, time=NOON, priority=Priority.LOW, subject="x", correlation_id="c"
    )
    ids = await store.persist_events(
        [
            {"event_type": "t", "source": "s", "data": 1},
            {"event_type": "t", "source": "s", "data": 1},
            {"event_type": "t", "source": "s", "id": "mine", "priority": "high", "data": 2},
            own,
            {"event_type": "t", "source": "s"},
        ]
    )
    assert (ids[1], ids[2], ids[3]) == (None, "mine", "own")
    events = await everything(store)
    assert [event.id for event in events] == [ids[0], "mine", "own", ids[4]]
    assert [event.data for event in events] == [1, 2, 3, None]
    kept = ("id", "type", "source", "data", "time", "priority", "subject", "correlation_id")
    assert [getattr(events[2], name) for name in kept] == [getattr(own, name) for name in kept]
    assert await store.persist_events([own, {"event_type": "t", "source": "s", "id": "mine", "data": 2}]) == [
        "own",
        "mine",
    ]
    assert len(await everything(store)) == 4


async def test_a_log_can_be_copied_and_copied_again(store: EventStore) -> None:
    original = EventStore("memory://original")
    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(original.persist_event("t", "s", n, subject=f"x{n % 3}"))
    read = await everything(original)
    assert await store.persist_events(read) == [event.id for event in read]
    assert await store.persist_events(iter(read)) == [event.id for event in read]
    copied = await everything(store)
    assert [(event.id, event.data, event.time) for event in copied] == [(e.id, e.data, e.time) for e in read]
    await original.close()


async def test_thousands_of_events_in_one_call_are_stored_whole(store: EventStore) -> None:
    ids = await store.persist_events({"event_type": f"t{n % 3}", "source": "s", "data": n} for n in range(4500))
    assert len({*ids} - {None}) == 4500
    assert await data(store) == list(range(4500))
    assert await store.persist_events([]) == []


async def test_of_many_events_one_bad_one_stops_all(store: EventStore) -> None:
    good = {"event_type": "t", "source": "s", "data": 1}
    bad: list[tuple[Any, str]] = [
        (good | {"source": ""}, r"events\[1\]\.source: must not be empty"),
        (good | {"data": {1}}, r"events\[1\]\.data: .*set"),
        (good | {"bogus": 1}, r"events\[1\]: .*bogus"),
        ({"event_type": "t"}, r"events\[1\]: .*source"),
        ("text", r"events\[1\]: must be an Event or a mapping, got str"),
        (None, r"events\[1\]: must be an Event or a mapping, got NoneType"),
        (Event(id="", type="t", source="s", data=1, time=NOON), r"events\[1\]\.id: must not be empty"),
        (Event(id="i", type="t", source="s", data=1, time=NOON.replace(tzinfo=None)), r"events\[1\]\.time: .*zone"),
    ]
    for member, words in bad:
        with pytest.raises(InvalidEvent, match=words):
            await store.persist_events([good, member, good | {"data": 2}])
    assert await everything(store) == []


async def test_of_many_events_one_whose_id_is_taken_is_named_and_the_others_are_stored(store: EventStore) -> None:
    await store.persist_event("t", "s", 1, id="mine")
    said = [{"event_type": "t", "source": "s", "data": n, "id": name} for n, name in ((2, "a"), (3, "mine"), (4, "b"))]
    with pytest.raises(InvalidEvent, match=r"events\[1\]\.id: 'mine' is stored already with other content"):
        await store.persist_events(said)
    assert await data(store) == [1, 2, 4]


# Backpressure and delay


async def test_a_step_that_is_too_far_behind_stops_its_publishers(store_url: str) -> None:
    store = EventStore(store_url, max_backlog=3)
    await (await store.log()).register("w", [StepSpec("w.step", "t")])
    for n in range(3):
        await store.persist_event("t", "s", n)
    with pytest.raises(Backpressure, match="'t' is max_backlog=3 events behind"):
        await store.persist_event("t", "s", 3)
    with pytest.raises(Backpressure):
        await store.persist_events([{"event_type": "t", "source": "s", "data": 4}])
    assert await store.persist_event("u", "s", 3) is not None
    assert await data(store, types="t") == [0, 1, 2]
    stats = await store.stats()
    assert [(info.group, info.backlog) for info in stats.groups] == [("w.step", 3)]
    await store.close()


async def test_an_event_for_later_is_kept_back_until_it_is_due(store: EventStore) -> None:
    now = dt.datetime.now(dt.UTC)
    assert await store.persist_event("t", "s", "delayed", delay=3600) is not None
    assert await store.persist_event("t", "s", "at", at=(now + dt.timedelta(hours=1)).astimezone(EAST)) is not None
    assert await store.persist_event("t", "s", "past", at=now - dt.timedelta(hours=1)) is not None
    assert await store.persist_event("t", "s", "now", delay=0) is not None
    assert await store.persist_event("t", "s", "soon", delay=0.05) is not None
    assert (await data(store))[:2] == ["past", "now"]

    async def came() -> bool:
        await (await store.log()).maintain()
        return "soon" in await data(store)

    await eventually(came)
    assert await data(store) == ["past", "now", "soon"]
    assert (await store.stats()).scheduled == 2


# Replay


async def apart(store: EventStore, count: int) -> list[Event[Any]]:
    """Store events that were recorded in different milliseconds."""
    for n in range(count):
        await store.persist_event("t", "s", n)
        (newest,) = [event async for event in store.replay() if event.data == n]
        assert newest.recorded is not None
        while dt.datetime.now(dt.UTC) < newest.recorded + dt.timedelta(milliseconds=2):
            await asyncio.sleep(0.001)
    return await everything(store)


async def test_a_range_includes_its_start_and_excludes_its_end(store: EventStore) -> None:
    recorded: list[Any] = [event.recorded for event in await apart(store, 4)]
    assert len(set(recorded)) == 4
    for first, last in ((0, 4), (1, 3), (2, 2), (0, 1)):
        start = recorded[first]
        end = recorded[last] if last < 4 else None
        expected = list(range(first, last))
        assert await data(store, start=start, end=end) == expected
        assert await data(store, start=start.astimezone(EAST), end=end and end.astimezone(EAST)) == expected
        assert await data(store, start=start.timestamp(), end=end and end.timestamp()) == expected
        assert [event.data for event in await store.replay_from(start)] == list(range(first, 4))
        assert [event.data for event in await store.replay_from(start.timestamp())] == list(range(first, 4))
    with pytest.raises(InvalidEvent, match=r"end: .* lies before start"):
        await data(store, start=recorded[3], end=recorded[0])


async def test_the_start_of_a_range_is_floored_to_the_millisecond(store: EventStore) -> None:
    recorded: list[Any] = [event.recorded for event in await apart(store, 3)]
    almost = dt.timedelta(microseconds=999)
    assert [event.data for event in await store.replay_from(recorded[1] + almost)] == [1, 2]
    assert [event.data for event in await store.replay_from(recorded[1].timestamp() + 0.000_999)] == [1, 2]
    assert [event.data for event in await store.replay_from(recorded[1] + dt.timedelta(milliseconds=1))] == [2]
    # What was recorded in a millisecond lies before every later instant.
    assert await data(store, end=recorded[1] + dt.timedelta(microseconds=1)) == [0, 1]
    assert await data(store, end=recorded[1]) == [0]


@pytest.mark.parametrize("moment", [0, 0.0, -1, -1e13, dt.datetime.min.replace(tzinfo=dt.UTC)], ids=str)
async def test_a_replay_from_before_everything_is_a_replay_of_everything(store: EventStore, moment: Any) -> None:
    await store.persist_event("t", "s", 1)
    assert [event.data for event in await store.replay_from(moment)] == [1]
    assert await data(store, end=moment) == []


@pytest.mark.parametrize("moment", [1e13, dt.datetime.max.replace(tzinfo=dt.UTC)], ids=str)
async def test_a_replay_from_behind_everything_is_empty(store: EventStore, moment: Any) -> None:
    await store.persist_event("t", "s", 1)
    assert await store.replay_from(moment) == []
    assert await data(store, end=moment) == [1]


async def test_a_replay_selects_by_type_source_and_correlation_and_ends_at_its_limit(store: EventStore) -> None:
    for n in range(24):
        await store.persist_event(f"t{n % 2}", f"s{n % 3}", n, n % 4, correlation_id=f"c{n % 5}")
    assert await data(store) == list(range(24))
    assert await data(store, types="t1") == list(range(1, 24, 2))
    assert await data(store, types=["t1", "t0", "unknown"]) == list(range(24))
    assert await data(store, types=[]) == []
    assert await data(store, types="unknown") == []
    assert await data(store, sources="s2") == list(range(2, 24, 3))
    assert await data(store, sources=("s0", "s2")) == [n for n in range(24) if n % 3 != 1]
    assert await data(store, correlation_id="c3") == [3, 8, 13, 18, 23]
    assert await data(store, types="t0", sources="s0", correlation_id="c2") == [12]
    assert await data(store, limit=5) == [0, 1, 2, 3, 4]
    assert await data(store, types="t1", sources="s0", limit=2) == [3, 9]
    assert await data(store, limit=0) == []
    assert await data(store, limit=100) == list(range(24))


async def test_a_replay_ends_with_what_was_stored_when_it_began(store: EventStore) -> None:
    await store.persist_events({"event_type": f"t{n % 2}", "source": "s", "data": n} for n in range(2500))
    seen = []
    async for event in store.replay():
        if len(seen) < 5:
            await store.persist_event("t0", "s", f"later {len(seen)}")
        seen.append(event.data)
    assert seen == list(range(2500))
    assert len(await everything(store)) == 2505


async def test_replays_at_once_do_not_disturb_each_other(store: EventStore) -> None:
    await store.persist_events({"event_type": f"t{n % 2}", "source": "s", "data": n} for n in range(300))
    found = await asyncio.gather(*(data(store, types=f"t{n % 2}", limit=50 + n) for n in range(20)))
    assert found == [list(range(n % 2, 300, 2))[: 50 + n] for n in range(20)]
