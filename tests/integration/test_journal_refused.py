"""Events that the server refuses for good are set aside, and hold back nothing behind them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.errors import StoreError
from ag06.monitoring.checks import journal_backlog
from ag06.persistence import EventStore
from ag06.persistence.journal.dead_letter_file import Retried
from commands import Ended, ag06
from faults import Server, configure, running_server
from journals import state, when
from proxy import Proxy


class Refusing:
    """A store behind a proxy whose server can be made to refuse events."""

    def __init__(self, directory: Path, proxy: Proxy, server: Server) -> None:
        self.directory = directory
        self.proxy = proxy
        self.server = server
        self.store = EventStore(proxy.url, journal=str(directory), max_event_bytes=4 << 20)

    def break_key(self, key: str) -> None:
        """Put something under a key of the log that has no place there."""
        self.server.command("SET", "{ag06}:" + key, "no stream")

    def mend_key(self, key: str) -> None:
        self.server.command("DEL", "{ag06}:" + key)

    async def settled(self, letters: int) -> None:
        """Wait until the journal is empty and so many events are set aside."""

        async def check() -> bool:
            found = await state(self.store)
            return not found.active and not found.events and found.dead_letters == letters

        await when(check)

    async def data(self) -> list[object]:
        return [event.data for event in await self.store.replay_from(0)]


@pytest.fixture
async def refusing(tmp_path: Path) -> AsyncIterator[Refusing]:
    async with running_server(tmp_path / "server") as server, Proxy(server.port) as proxy:
        made = Refusing(tmp_path / "journal", proxy, server)
        await made.store.persist_event("good", "test", "first")
        yield made
        await made.store.close()


def large() -> str:
    return os.urandom(600_000).hex()


async def test_a_type_that_the_server_refuses_holds_back_no_other(refusing: Refusing) -> None:
    await refusing.proxy.down()
    for n in range(3):
        await refusing.store.persist_event("good", "test", n, subject="s")
    bad = [await refusing.store.persist_event("bad", "test", n, subject="s") for n in range(2)]
    for n in range(3, 6):
        await refusing.store.persist_event("good", "test", n, subject="s")
    refusing.break_key("s:bad:1")
    await refusing.proxy.up()
    await refusing.settled(2)
    assert await refusing.data() == ["first", *range(6)]
    letters = await refusing.store.journal_dead_letters.list()
    assert [letter.event.id for letter in letters] == bad
    assert {letter.reason for letter in letters} == {"refused"}
    refusing.mend_key("s:bad:1")
    assert await refusing.store.journal_dead_letters.retry() == Retried(stored=2, refused=0)
    await refusing.settled(0)
    assert sorted(map(str, await refusing.data())) == sorted(["first", *map(str, range(6)), "0", "1"])


async def test_an_event_that_the_server_does_not_take_is_set_aside_though_no_other_waits(refusing: Refusing) -> None:
    await refusing.proxy.down()
    await refusing.store.persist_event("bad", "test", 1)
    refusing.break_key("s:bad:1")
    await refusing.proxy.up()
    await refusing.settled(1)


async def test_an_event_beyond_the_bulk_limit_is_set_aside_and_can_be_retried(
    refusing: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    await refusing.proxy.down()
    await refusing.store.persist_event("good", "test", 1)
    event_id = await refusing.store.persist_event("good", "test", large())
    await refusing.store.persist_event("good", "test", 2)
    configure(refusing.server, proto_max_bulk_len=str(1 << 20))
    await refusing.proxy.up()
    with caplog.at_level(logging.ERROR, "ag06"):
        await refusing.settled(1)
    assert f"ag06 journal show {event_id}" in caplog.text
    assert await refusing.data() == ["first", 1, 2]
    result = await journal_backlog(refusing.store.journal_state)()
    assert result.status == "warn"
    assert await refusing.store.journal_dead_letters.retry() == Retried(stored=0, refused=1)
    (letter,) = await refusing.store.journal_dead_letters.list(ids=[str(event_id)])
    assert letter.attempts > 1
    configure(refusing.server, proto_max_bulk_len=str(512 << 20))
    assert await refusing.store.journal_dead_letters.retry([str(event_id)]) == Retried(stored=1, refused=0)
    assert len(await refusing.data()) == 4


async def test_an_id_that_the_store_has_with_other_content_is_set_aside(refusing: Refusing) -> None:
    await refusing.proxy.down()
    await refusing.store.persist_event("good", "test", "journalled", id="mine")
    other = EventStore(refusing.server.url, journal="off")
    await other.persist_event("good", "test", "direct", id="mine")
    await other.close()
    await refusing.proxy.up()
    await refusing.settled(1)
    (letter,) = await refusing.store.journal_dead_letters.list()
    assert (letter.reason, letter.event.data) == ("clash", "journalled")
    assert await refusing.store.journal_dead_letters.discard(["mine"]) == 1
    assert await refusing.store.journal_dead_letters.list() == []


@pytest.mark.parametrize("key", ["s:bad:1", "tails:bad"])
async def test_an_event_that_a_script_refused_leaves_nothing_that_makes_it_pass_for_stored(
    refusing: Refusing, key: str
) -> None:
    await refusing.proxy.down()
    await refusing.store.persist_event("bad", "test", 1, subject="s")
    refusing.break_key(key)
    await refusing.proxy.up()
    await refusing.settled(1)
    refusing.mend_key(key)
    assert await refusing.store.journal_dead_letters.retry() == Retried(stored=1, refused=0)
    assert await refusing.data() == ["first", 1]


async def test_a_user_who_may_not_append_for_a_while_loses_nothing(refusing: Refusing) -> None:
    await refusing.proxy.down()
    for n in range(20):
        await refusing.store.persist_event("good", "test", n, subject="s")
    refusing.server.command("ACL", "SETUSER", "default", "-xadd")
    await refusing.proxy.up()

    async def held() -> bool:
        return "xadd" in ((await state(refusing.store)).problem or "").lower()

    await when(held)
    refusing.server.command("ACL", "SETUSER", "default", "+@all")
    await refusing.settled(0)
    assert await refusing.data() == ["first", *range(20)]


async def test_publishing_again_what_was_refused_stores_it(refusing: Refusing) -> None:
    refusing.break_key("s:bad:1")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await refusing.store.persist_event("bad", "test", 1)
    refusing.mend_key("s:bad:1")
    assert await refusing.store.persist_event("bad", "test", 1) is not None
    assert await refusing.data() == ["first", 1]


async def test_a_server_that_refuses_everything_is_waited_for(refusing: Refusing) -> None:
    await refusing.proxy.down()
    for n in range(30):
        await refusing.store.persist_event("good", "test", n)
    configure(refusing.server, maxmemory="1")
    await refusing.proxy.up()

    async def refused() -> bool:
        return "memory" in ((await state(refusing.store)).problem or "")

    await when(refused)
    configure(refusing.server, maxmemory="0")
    await refusing.settled(0)
    assert await refusing.data() == ["first", *range(30)]


async def test_the_command_line_lists_shows_retries_and_discards(refusing: Refusing, tmp_path: Path) -> None:
    async def command(*words: str) -> Ended:
        env = {"AG06_STORE": refusing.proxy.url, "AG06_JOURNAL": str(refusing.directory)}
        return await asyncio.to_thread(lambda: ag06("journal", *words, cwd=tmp_path, env=env))

    await refusing.proxy.down()
    ids = [str(await refusing.store.persist_event("bad", "test", f"\x1b[31m{n}")) for n in range(3)]
    refusing.break_key("s:bad:1")
    await refusing.proxy.up()
    await refusing.settled(3)
    assert [letter["event"]["id"] for letter in (await command("list", "--json")).json] == ids
    shown = await command("show", ids[0])
    assert "s:bad:1 holds a value that is not of the log" in shown.out
    assert "\x1b" not in shown.out
    again = await command("retry", ids[0], "--json")
    assert (again.code, again.json) == (1, {"stored": 0, "refused": 1})
    assert (await command("discard", ids[0])).code == 2, "without a terminal it asks for --yes"
    assert (await command("discard", ids[0], "--yes")).out == "1 discarded\n"
    assert (await command("show", ids[0])).code == 2
    refusing.mend_key("s:bad:1")
    assert (await command("retry", "--all")).out == "2 stored\n"
    assert (await command("list", "--json")).json == []
    assert await refusing.data() == ["first", "\x1b[31m1", "\x1b[31m2"]
