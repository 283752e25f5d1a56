"""What a server can promise: a level it cannot give is refused at the start, its settings are put in plain words."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from ag06 import ConfigurationError, OutcomeUnknown, StoreUnavailable, Workflow
from ag06.persistence import EventStore
from chain import Chain
from faults import configure, replicate, running_server, says
from servers import ValkeyServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "first") as started:
        yield started


@pytest.fixture
async def replica(tmp_path: Path, server: ValkeyServer) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "second") as started:
        replicate(started, "127.0.0.1", str(server.port))
        await says(started, "INFO", "replication", reply=b"master_link_status:up")
        yield started


def server_with(directory: Path, config: dict[str, str]) -> AbstractAsyncContextManager[ValkeyServer]:
    if "include" in config:
        (directory / config["include"]).write_text('rename-command WAITAOF ""\n')
        config = {**config, "include": str(directory / config["include"])}
    return running_server(directory / "server", **config)


async def data(store: EventStore) -> list[Any]:
    return [event.data for event in await store.replay_from(0)]


TOO_OLD = {"appendonly": "yes", "include": "old.conf"}
"""A server before 7.2 answers WAITAOF as any command that it does not know; see `server_with`."""

REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("fsync", {}, "it has no append-only file (appendonly no)"),
    ("fsync", TOO_OLD, "it is too old for WAITAOF"),
    ("fsync", {"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
    ("fsync", {"appendonly": "yes", "maxmemory-policy": "volatile-ttl", "maxmemory": "1gb"}, "policy volatile-ttl"),
    ("fsync", {"appendonly": "yes", "appendfsync": "no"}, "it never syncs its append-only file (appendfsync no)"),
    ("replicated", {}, "no replica answers"),
    ("replicated", {"maxmemory-policy": "allkeys-random"}, "it deletes events when it is full"),
]


@pytest.mark.parametrize(("level", "config", "words"), REFUSED)
async def test_a_level_that_the_server_cannot_give_is_an_error_until_the_user_lowers_it(
    tmp_path: Path, level: Any, config: dict[str, str], words: str
) -> None:
    async with server_with(tmp_path, config) as server:
        pattern = re.escape(f"cannot give durability={level!r}: ") + ".*" + re.escape(words)
        with pytest.raises(ConfigurationError, match=pattern):
            await EventStore().initialize(server.url, durability=level)
        app = Workflow("w", store=server.url, durability=level)

        @app.step("t")
        async def step(event: Any) -> None:
            raise AssertionError("nothing was published")

        with pytest.raises(ConfigurationError, match=pattern):
            async with app.running():
                raise AssertionError("it runs, although the server cannot keep the promise")
        store = EventStore(server.url)  # at the lower level "server"
        with pytest.raises(ConfigurationError, match=pattern):
            await store.persist_event("t", "s", 1, durability=level)
        assert await data(store) == []
        assert (await store.stats()).groups == ()
        assert await store.persist_event("t", "s", 2) is not None
        assert await data(store) == [2]
        await store.close()


async def test_a_replica_does_not_make_up_for_a_server_that_evicts(server: ValkeyServer, replica: ValkeyServer) -> None:
    configure(server, maxmemory_policy="allkeys-lru")
    with pytest.raises(ConfigurationError, match="'replicated': it deletes events when it is full"):
        await EventStore().initialize(server.url, durability="replicated")
    configure(server, maxmemory_policy="noeviction")
    store = EventStore(server.url, durability="replicated")
    assert await store.persist_event("t", "s", 1) is not None
    await store.close()


async def test_fsync_is_given_where_the_server_keeps_a_file(server: ValkeyServer) -> None:
    configure(server, appendonly="yes", appendfsync="always")
    await says(server, "INFO", "persistence", reply=b"aof_rewrite_in_progress:0")
    chain = Chain(server.url, durability="fsync", timeout=5.0)
    chain.gate.set()
    async with chain.app.running():
        await chain.publish_all(range(20))
        await chain.account(range(20))
        await asyncio.to_thread(server.kill)
        server.config["appendonly"] = "yes"
        await asyncio.to_thread(server.start)
        await chain.publish_all(range(20, 25))
        await chain.account(range(25))


async def test_one_event_may_ask_for_more_than_the_others(server: ValkeyServer) -> None:
    configure(server, appendonly="yes", appendfsync="always")
    await says(server, "INFO", "persistence", reply=b"aof_rewrite_in_progress:0")
    store = EventStore(server.url)
    assert await store.persist_event("t", "s", 1) is not None
    assert await store.persist_event("t", "s", 2, durability="fsync") is not None
    ids = await store.persist_events([{"event_type": "t", "source": "s", "data": 3}], durability="fsync")
    assert None not in ids
    assert await data(store) == [1, 2, 3]
    await store.close()


async def test_a_server_that_stops_keeping_its_file_confirms_nothing_as_synced(server: ValkeyServer) -> None:
    configure(server, appendonly="yes", appendfsync="always")
    await says(server, "INFO", "persistence", reply=b"aof_rewrite_in_progress:0")
    store = EventStore(server.url, durability="fsync")
    await store.persist_event("t", "s", 1)
    configure(server, appendonly="no")
    with pytest.raises(OutcomeUnknown, match="could not make it durable") as unknown:
        await store.persist_event("t", "s", 2)
    configure(server, appendonly="yes", appendfsync="always")
    await says(server, "INFO", "persistence", reply=b"aof_rewrite_in_progress:0")
    assert await store.persist_event("t", "s", 2, id=unknown.value.event_id) == unknown.value.event_id
    assert await data(store) == [1, 2]
    await store.close()


async def test_replicated_means_that_a_replica_has_it(server: ValkeyServer, replica: ValkeyServer) -> None:
    store = EventStore(server.url, durability="replicated", timeout=1.0)
    ids = await asyncio.gather(*(store.persist_event("t", "s", n) for n in range(50)))
    await asyncio.to_thread(server.kill)  # at once, and without a file
    replicate(replica, "NO", "ONE")
    heir = EventStore(replica.url)
    assert sorted(event.id for event in await heir.replay_from(0)) == sorted(filter(None, ids))
    assert len(ids) == 50
    await heir.close()
    await store.close()


async def test_without_its_replica_a_primary_confirms_nothing_as_replicated(
    server: ValkeyServer, replica: ValkeyServer
) -> None:
    store = EventStore(server.url, durability="replicated", timeout=1.0)
    await store.persist_event("t", "s", 1)
    await asyncio.to_thread(replica.kill)
    with pytest.raises(OutcomeUnknown, match="did not say in time that it is durable") as unknown:
        await store.persist_event("t", "s", 2)
    await asyncio.to_thread(replica.start)
    replicate(replica, "127.0.0.1", str(server.port))
    await says(replica, "INFO", "replication", reply=b"master_link_status:up")
    assert await store.persist_event("t", "s", 2, id=unknown.value.event_id) == unknown.value.event_id
    assert await data(store) == [1, 2]
    await store.close()


async def test_replicated_and_synced_is_what_replicated_means_where_both_keep_a_file(tmp_path: Path) -> None:
    async with running_server(tmp_path / "a", appendonly="yes", appendfsync="always") as primary:
        async with running_server(tmp_path / "b", appendonly="yes", appendfsync="always") as follower:
            replicate(follower, "127.0.0.1", str(primary.port))
            await says(follower, "INFO", "replication", reply=b"master_link_status:up")
            await says(follower, "INFO", "persistence", reply=b"aof_rewrite_in_progress:0")
            store = EventStore(primary.url, durability="replicated")
            assert await store.persist_event("t", "s", 1) is not None
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(follower.kill)
            await store.close()
            await asyncio.to_thread(follower.start)  # not as a replica any more
            heir = EventStore(follower.url)
            assert await data(heir) == [1]
            await heir.close()


# The report


REPORTS: list[tuple[dict[str, str], list[str]]] = [
    ({}, ["a crash or restart of the server loses the whole log (appendonly no, no snapshots)"]),
    ({"save": "60 1"}, ["a crash of the server can lose minutes (appendonly no; snapshots: save 60 1)"]),
    ({"appendonly": "yes"}, ["a crash of the machine can lose the last second (appendfsync everysec)"]),
    (
        {"appendonly": "yes", "appendfsync": "always"},
        ["every write is on disk before its reply (appendfsync always)"],
    ),
    (
        {"appendonly": "yes", "appendfsync": "no"},
        ["a crash of the machine can lose what the system had not written (appendfsync no)"],
    ),
    (
        {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"},
        [
            "maxmemory-policy allkeys-lru: a full server throws events away; set it to noeviction",
            "durability='fsync' and 'replicated' are refused here (maxmemory-policy allkeys-lru)",
        ],
    ),
    (
        {"appendonly": "yes", "maxmemory-policy": "volatile-lru"},
        [
            "maxmemory-policy volatile-lru: once maxmemory is set, a full server throws events away; "
            "set it to noeviction",
            "durability='fsync' and 'replicated' are refused here (maxmemory-policy volatile-lru)",
        ],
    ),
]
NO_FILE = "durability='fsync' is refused here: it has no append-only file (appendonly no)"


async def report(server: ValkeyServer, name: str = "ag06") -> list[str]:
    store = EventStore(f"{server.url}?log={name}")
    words = await (await store.log()).durability_report()
    await store.close()
    return words


async def test_the_report_says_in_plain_words_what_a_crash_can_lose(server: ValkeyServer) -> None:
    assert len(await report(server)) == 3
    for settings, sentences in REPORTS:
        defaults = {"save": "", "appendonly": "no", "appendfsync": "everysec", "maxmemory": "0"}
        configure(server, **{**defaults, "maxmemory-policy": "noeviction", **settings})
        words = await report(server)
        for sentence in sentences:
            assert sentence in words, settings
        assert "no replica: if the machine is lost, so is the log" in words
        evicts = "maxmemory-policy" in settings
        assert ("throws events away" in " ".join(words)) is evicts
        assert (NO_FILE in words) is ("appendonly" not in settings and not evicts)
        syncs = "appendonly" in settings and settings.get("appendfsync") != "no"
        assert ("refused" in " ".join(words)) is (evicts or not syncs)


async def test_the_report_says_that_a_server_is_too_old_to_be_waited_for(tmp_path: Path) -> None:
    async with server_with(tmp_path, TOO_OLD) as old:
        (sentence,) = [line for line in await report(old) if "refused" in line]
        assert sentence.startswith("durability='fsync' is refused here: it is too old for WAITAOF")


async def test_the_report_counts_replicas_and_knows_a_replica(server: ValkeyServer, replica: ValkeyServer) -> None:
    sentence = "1 replica(s); a fail-over can lose the last moments unless durability='replicated'"
    assert sentence in await report(server)
    words = await report(replica)
    assert "this server is a replica: it refuses to write" in words
    assert not [line for line in words if "no replica" in line]


async def test_a_server_that_hides_its_settings_is_said_to_do_so(server: ValkeyServer) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-config")
    store = EventStore(f"redis://app:secret@127.0.0.1:{server.port}/0")
    assert await store.persist_event("t", "s", 1) is not None
    (sentence,) = await (await store.log()).durability_report()
    assert "does not tell its settings, so what a crash can lose is unknown" in sentence
    assert "secret" not in sentence
    await store.close()


# Who may come in


async def _refused(url: str) -> str:
    with pytest.raises(ConfigurationError, match="refuses this user") as refused:
        await EventStore().initialize(url)
    with pytest.raises(ConfigurationError, match="refuses this user"):
        await EventStore(url).persist_event("t", "s")
    app = Workflow("w", store=url)
    with pytest.raises(ConfigurationError, match="refuses this user"):
        async with app.running():
            raise AssertionError("it runs without leave")
    text = str(refused.value)
    assert "s3cret" not in text
    assert "wr0ng" not in text
    return text


async def test_a_password_that_is_missing_or_wrong_is_a_configuration_error_that_does_not_show_it(
    server: ValkeyServer,
) -> None:
    configure(server, requirepass="s3cret")
    address = f"127.0.0.1:{server.port}/0"
    for url in (f"redis://{address}", f"redis://:wr0ng@{address}", f"redis://nobody:wr0ng@{address}"):
        await _refused(url)
    store = EventStore(f"redis://:s3cret@{address}")
    assert await store.persist_event("t", "s", 1) is not None
    assert await data(store) == [1]
    await store.close()


async def test_a_password_that_the_server_does_not_ask_for_is_a_configuration_error(server: ValkeyServer) -> None:
    server.command("ACL", "SETUSER", "default", "nopass")
    assert "redis://***@127.0.0.1" in await _refused(f"redis://someone:wr0ng@127.0.0.1:{server.port}/0")


async def test_a_password_of_any_characters_can_be_written_into_a_url(server: ValkeyServer) -> None:
    configure(server, requirepass="p/ä?#:@%")
    store = EventStore(f"redis://:p%2F%C3%A4%3F%23%3A%40%25@127.0.0.1:{server.port}/0")
    assert await store.persist_event("t", "s", 1) is not None
    await store.close()


async def test_a_user_who_may_not_do_what_a_log_needs_is_told_so(server: ValkeyServer) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">s3cret", "~other:*", "+@all")
    store = EventStore(f"redis://app:s3cret@127.0.0.1:{server.port}/0")
    with pytest.raises(ConfigurationError, match=r"refuses this user.*permission") as refused:
        await store.persist_event("t", "s", 1)
    assert "s3cret" not in str(refused.value)
    await store.close()


async def test_a_workflow_whose_password_is_changed_waits_and_goes_on_when_it_may(server: ValkeyServer) -> None:
    chain = Chain(server.url)
    async with chain.app.running():
        await chain.publish_all(range(10))
        await chain.entered.wait()
        configure(server, requirepass="s3cret")
        await asyncio.to_thread(_tell, server, "CLIENT KILL TYPE normal SKIPME yes")
        chain.gate.set()
        with pytest.raises(TimeoutError, match=r"the store is away .*refuses this user"):
            await chain.app.drain(timeout=1)
        await asyncio.to_thread(_tell, server, 'CONFIG SET requirepass ""')
        await chain.account(range(10))


def _tell(server: ValkeyServer, command: str) -> None:
    """Run a command with the new password."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"AUTH s3cret\r\n{command}\r\n".encode())
        assert connection.recv(100).startswith(b"+OK")


# What is not such a server at all


async def test_a_database_that_does_not_exist_is_a_configuration_error(server: ValkeyServer) -> None:
    with pytest.raises(ConfigurationError, match="DB index is out of range"):
        await EventStore().initialize(f"redis://127.0.0.1:{server.port}/99")


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x16", b""],
    ids=["http", "tls", "closed"],
)
async def test_a_server_that_speaks_something_else_is_a_clear_error(greeting: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises((ConfigurationError, StoreUnavailable), match=f"127.0.0.1:{port}"):
            await EventStore().initialize(f"redis://127.0.0.1:{port}/0", timeout=2.0)
