"""Redis: notes are as durable as the log, come from the primary, and are not brought back by a call that comes late."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.crc import key_slot

from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.persistence import EventStore
from ag06.persistence.log import LogOptions
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.scripts import script
from faults import replicate, running_server, says
from journals import gone, journaled, state
from proxy import Proxy
from servers import ValkeyServer


@pytest.fixture
async def client(valkey: ValkeyServer) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(valkey.url) as connected:
        yield connected


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server") as started:
        yield started


@pytest.fixture
async def replica(server: ValkeyServer, tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "replica", replicaof=f"127.0.0.1 {server.port}") as started:
        await says(started, "INFO", "replication", reply=b"master_link_status:up")
        yield started


async def _opened(url: str, **options: Any) -> RedisLog:
    log = RedisLog(url, LogOptions(**options))
    await log.open()
    return log


@pytest.mark.parametrize("adapter", ["redis"])
async def test_all_that_is_kept_for_notes_lies_in_the_slot_of_the_log(store_url: str, client: Any) -> None:
    prefix = "{" + store_url.rpartition("=")[2] + "}:"
    log = await _opened(store_url)
    for name in ("state", "{other}:x", "}{"):
        await log.write_note(name, b"1")
    keys = [key async for key in client.scan_iter(match=prefix + "*")]
    assert len([key for key in keys if b":note:" in key]) == 3
    assert {key_slot(key) for key in keys} == {key_slot(prefix.encode())}
    await log.close()


@pytest.mark.parametrize("adapter", ["redis"])
async def test_a_call_that_comes_late_does_not_bring_back_what_was_replaced(store_url: str) -> None:
    log, other = await _opened(store_url), await _opened(store_url)
    await log.write_note("state", b"old")
    late = log._control.call(script("note"), "state", log._writer, log._written, 1, b"old")
    await other.write_note("state", b"new")
    await log._control.ask(late)
    assert await other.read_note("state") == b"new"
    await other.write_note("state", None)
    await log._control.ask(late)
    assert await other.read_note("state") is None
    await log.write_note("state", b"newest")
    assert await other.read_note("state") == b"newest"
    await log.close()
    await other.close()


@pytest.mark.parametrize("adapter", ["redis"])
async def test_a_call_that_comes_late_is_done_if_only_other_notes_were_written_since(store_url: str) -> None:
    log = await _opened(store_url)
    log._written += 1
    late = log._control.call(script("note"), "state", log._writer, log._written, 1, b"1")
    await log.write_note("other", b"2")
    await log._control.ask(late)
    assert await log.read_note("state") == b"1"
    await log.close()


async def test_a_note_whose_reply_was_lost_is_written_all_the_same(server: ValkeyServer) -> None:
    async with Proxy(server.port) as proxy:
        log = await _opened(proxy.url)
        await log.write_note("state", b"1")
        for body in (b"2", None, b"3"):
            proxy.lose_reply_to = script("note").sha
            await log.write_note("state", body)
            assert await log.read_note("state") == body
        proxy.lose_reply_to = b"GETEX"
        assert await log.read_note("state") == b"3"
        assert proxy.lost == 4
        await log.close()


async def test_a_server_that_became_a_replica_gives_no_notes(server: ValkeyServer, replica: ValkeyServer) -> None:
    log = await _opened(server.url)
    await log.write_note("state", b"old")
    replicate(replica, "NO", "ONE")
    replicate(server, "127.0.0.1", str(replica.port))
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        await log.read_note("state")
    with pytest.raises(StoreUnavailable, match="read-only replica"):
        await log.write_note("state", b"new")
    await log.close()


async def test_a_note_is_written_when_the_replica_has_it(server: ValkeyServer, replica: ValkeyServer) -> None:
    log = await _opened(server.url, durability="replicated", timeout=2)
    async with redis.asyncio.Redis.from_url(replica.url) as copy:
        await log.write_note("state", b"1")
        assert await copy.get("{ag06}:note:state") == b"1"
        await log.write_note("state", None)
        assert await copy.get("{ag06}:note:state") is None
    assert replica.process is not None
    replica.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown):
        await log.write_note("state", b"2")
    await log.close()


async def test_notes_are_on_disk_when_the_log_promises_that(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server", appendonly="yes", appendfsync="always") as server:
        log = await _opened(server.url, durability="fsync")
        await log.write_note("state", b"1")
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await log.read_note("state")
        await asyncio.to_thread(server.start)
        assert await log.read_note("state") == b"1"
        await log.close()


async def test_no_journal_takes_notes(server: ValkeyServer, tmp_path: Path) -> None:
    async with Proxy(server.port) as proxy:
        store = EventStore(proxy.url, journal=str(tmp_path / "journal"))
        log = await journaled(store)
        await log.write_note("state", b"1")
        await proxy.down()
        with pytest.raises(StoreUnavailable):
            await log.write_note("state", b"2")
        with pytest.raises(StoreUnavailable):
            await log.read_note("state")
        found = await state(store)
        assert (found.active, found.events) == (False, 0)
        await gone(tmp_path / "journal")
        await proxy.up()
        assert await log.read_note("state") == b"1", "what was refused came later"
        await log.write_note("state", b"3")
        assert await log.read_note("state") == b"3"
        await store.close()
