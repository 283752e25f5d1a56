"""What every log promises about who does what one process at a time must do, and about where its archives are."""

from __future__ import annotations

import asyncio

from ag06.persistence.log import EventLog
from conftest import OpenLog
from records import eventually


async def test_one_holder_leads_until_it_gives_up(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    assert await one.lead("archive", "a", 60)
    assert not await two.lead("archive", "b", 60)
    assert await one.lead("archive", "a", 60), "the leader renews"
    assert await two.lead("archive", "a", 60), "whoever has its name is the leader, over any connection"
    assert not await two.lead("archive", "b", 0), "nobody gives up what is another one's"
    assert not await two.lead("archive", "b", 60)
    assert await one.lead("archive", "a", 0)
    assert await two.lead("archive", "b", 60)
    assert not await one.lead("archive", "a", 60)


async def test_roles_have_leaders_of_their_own(log: EventLog) -> None:
    assert await log.lead("archive", "a", 60)
    assert await log.lead("retention", "b", 60)
    assert not await log.lead("retention", "a", 60)


async def test_a_role_may_have_any_name(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    roles = ["optimizer.mixer", "optimizer.mixer.2", "ä b", "{x}:y", "%", "r" * 255]
    for role in roles:
        assert await one.lead(role, f"a {role}", 60)
    for role in roles:
        assert not await two.lead(role, "b", 60), role
        assert await one.lead(role, f"a {role}", 60), "the leader renews"
        assert await one.lead(role, f"a {role}", 0)
        assert await two.lead(role, "b", 60), role


async def test_a_leadership_that_is_not_renewed_ends(log: EventLog) -> None:
    assert await log.lead("archive", "a", 0.05)
    await eventually(lambda: log.lead("archive", "b", 60))
    assert not await log.lead("archive", "a", 60)


async def test_of_many_who_want_to_lead_one_does(open_store: OpenLog) -> None:
    logs = [await open_store() for _ in range(4)]
    for turn in range(10):
        won = await asyncio.gather(*[log.lead(f"role-{turn}", f"h{n}", 60) for n, log in enumerate(logs)])
        assert sum(won) == 1


async def test_a_role_that_nobody_has_can_be_given_up(log: EventLog) -> None:
    await log.lead("archive", "a", 0)
    assert await log.lead("archive", "b", 60)


async def test_archives_are_remembered_in_the_order_they_were_added(open_store: OpenLog) -> None:
    one, two = await open_store(), await open_store()
    assert await one.archives() == []
    urls = ["s3://bucket/z", "file:///var/archive", "memory://ärchiv?x=1&y=2"]
    for url in [*urls, urls[0]]:
        await one.add_archive(url)
    assert await two.archives() == urls
    await two.add_archive("file:///a")
    assert await one.archives() == [*urls, "file:///a"]


async def test_an_archive_is_forgotten_and_may_come_back_at_the_end(log: EventLog) -> None:
    for url in ("file:///a", "file:///b", "file:///c"):
        await log.add_archive(url)
    for url in ("file:///b", "file:///b", "file:///never"):
        await log.remove_archive(url)
    assert await log.archives() == ["file:///a", "file:///c"]
    await log.add_archive("file:///b")
    assert await log.archives() == ["file:///a", "file:///c", "file:///b"]


async def test_archives_are_remembered_by_a_log_that_is_opened_again(open_store: OpenLog, adapter: str) -> None:
    holder = await open_store()
    log = await open_store()
    await log.add_archive("file:///var/archive")
    await log.close()
    if adapter != "memory":  # a log in memory lives as long as someone holds it
        await holder.close()
    assert await (await open_store()).archives() == ["file:///var/archive"]
