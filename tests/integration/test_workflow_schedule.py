"""What a workflow promises about `delay=` and `at=`: later, durably; never early, never twice."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from ag06 import Event, InvalidEvent, Workflow
from conftest import OpenLog
from flows import SECONDS, stored


def listening(store_url: str) -> tuple[Workflow, list[str]]:
    """A workflow whose one step notes what it hears."""
    app = Workflow("shop", store=store_url)
    heard: list[str] = []

    @app.step("remind")
    async def remind(event: Event) -> None:
        heard.append(event.data)

    return app, heard


async def test_a_delayed_event_comes_later_and_not_early(store_url: str) -> None:
    app, heard = listening(store_url)
    async with app.running():
        await app.publish("remind", data="now")
        before = dt.datetime.now(dt.UTC)
        await app.publish("remind", data="delayed", delay=0.3)
        await app.publish("remind", data="at", at=before + dt.timedelta(seconds=0.15))
        await app.drain(SECONDS)
        found = {event.data: event for event in await stored(app, "remind")}
        assert (await app.events.stats()).scheduled == 0
    assert heard == ["now", "at", "delayed"]
    for name, seconds in (("at", 0.149), ("delayed", 0.299)):
        recorded = found[name].recorded
        assert recorded is not None
        assert recorded - before >= dt.timedelta(seconds=seconds)
        assert found[name].time - before < recorded - before, "it happened when it was published"


async def test_an_event_that_is_due_later_is_counted_and_not_yet_in_the_log(store_url: str) -> None:
    app, heard = listening(store_url)
    async with app.running():
        await app.publish("remind", data="tomorrow", delay=86_400)
        assert (await app.events.stats()).scheduled == 1
        assert await stored(app, "remind") == []
        with pytest.raises(TimeoutError):
            await app.drain(0.05)
    assert heard == []


async def test_a_moment_in_the_past_is_now(store_url: str) -> None:
    app, heard = listening(store_url)
    async with app.running():
        await app.publish("remind", data="long ago", at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        await app.publish("remind", data="no delay", delay=0)
        assert (await app.events.stats()).scheduled == 0
        await app.drain(SECONDS)
    assert heard == ["long ago", "no delay"]


async def test_a_scheduled_event_survives_a_restart_of_everything(store_url: str, open_store: OpenLog) -> None:
    keeper = await open_store()  # a log in memory lives as long as somebody holds it
    publisher, _ = listening(store_url)
    event_id = await publisher.publish("remind", data="delayed", delay=0.2)
    await publisher.close()
    app, heard = listening(store_url)
    async with app.running():
        await app.drain(SECONDS)
        assert [event.id for event in await stored(app, "remind")] == [event_id]
    assert heard == ["delayed"]
    assert (await keeper.stats()).scheduled == 0


async def test_an_event_that_fell_due_while_nobody_ran_comes_at_once(store_url: str, open_store: OpenLog) -> None:
    await open_store()
    publisher, _ = listening(store_url)
    await publisher.publish("remind", data="delayed", delay=0.05)
    await publisher.close()
    await asyncio.sleep(0.1)
    app, heard = listening(store_url)
    async with app.running():
        await app.drain(SECONDS)
    assert heard == ["delayed"]


async def test_a_scheduled_event_is_appended_though_no_step_listens_to_it(store_url: str) -> None:
    app, _ = listening(store_url)
    async with app.running():
        await app.publish("unheard", data=1, delay=0.05)
        await app.drain(SECONDS)
        assert [event.data for event in await stored(app, "unheard")] == [1]


async def test_a_scheduled_event_is_compared_when_it_is_published(store_url: str) -> None:
    app, heard = listening(store_url)
    async with app.running():
        assert await app.publish("remind", data="once", delay=0.1) is not None
        assert await app.publish("remind", data="once") is None
        assert await app.publish("remind", data="once", delay=0.1) is None
        await app.drain(SECONDS)
    assert heard == ["once"]


async def test_a_scheduled_event_takes_its_place_in_its_subject_when_it_is_due(store_url: str) -> None:
    app, heard = listening(store_url)
    async with app.running():
        await app.publish("remind", data="delayed", subject="s", delay=0.3)
        await app.publish("remind", data="now", subject="s")
        await app.drain(SECONDS)
    assert heard == ["now", "delayed"]


@pytest.mark.parametrize(
    ("when", "field"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": "1"}, "delay"),
        ({"delay": True}, "delay"),
        ({"at": dt.datetime(2026, 1, 1)}, "at"),  # noqa: DTZ001 - that it is naive is the point
        ({"at": 1_700_000_000}, "at"),
        ({"delay": 1, "at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, "at"),
    ],
)
async def test_a_moment_that_makes_no_sense_is_refused(when: dict[str, object], field: str) -> None:
    app, _ = listening("memory://")
    with pytest.raises(InvalidEvent) as refused:
        await app.publish("remind", **when)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert (await app.events.stats()).events == 0
    await app.close()
