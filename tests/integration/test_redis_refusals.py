"""A server that is there and says no, or is not there: no event is lost, no worker dies, and all goes on afterwards."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06 import OutcomeUnknown, StoreUnavailable
from ag06.errors import ConfigurationError
from ag06.persistence import EventStore
from chain import Chain
from faults import FAULTS, STOPPING, Fault, change, running_server
from records import eventually
from servers import ValkeyServer

COUNT = 30


@pytest.fixture(params=FAULTS, ids=lambda fault: fault.name)
def fault(request: pytest.FixtureRequest) -> Fault:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def server(tmp_path: Path, fault: Fault) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path, **fault.config) as started:
        yield started


async def _is(value: object) -> bool:
    return bool(value)


stopping = pytest.mark.parametrize("fault", STOPPING, ids=lambda fault: fault.name, indirect=True)


async def test_a_publisher_is_told_what_is_wrong_and_nothing_is_stored(server: ValkeyServer, fault: Fault) -> None:
    store = EventStore(server.url, timeout=0.5)
    await store.persist_events({"event_type": "in", "source": "s", "data": n} for n in range(50))
    await change(fault.begin, server)
    errors = []
    for n in range(100, 103):
        with pytest.raises(StoreUnavailable, match=fault.words) as refused:
            await store.persist_event("in", "s", n)
        errors.append(refused.value)
        if isinstance(refused.value, OutcomeUnknown):
            assert fault.unknown
            assert refused.value.event_id is not None
    await change(fault.end, server)
    known = [n for n, error in enumerate(errors) if not isinstance(error, OutcomeUnknown)]
    found = [event.data for event in await store.replay_from(0)]
    assert found[:50] == list(range(50))
    assert not {100 + n for n in known} & set(found)
    for n, error in enumerate(errors):
        event_id = error.event_id if isinstance(error, OutcomeUnknown) else None
        assert await store.persist_event("in", "s", 100 + n, id=event_id) is not None
    assert sorted(event.data for event in await store.replay_from(0)) == [*range(50), 100, 101, 102]
    await store.close()


@stopping
async def test_a_workflow_goes_through_it_and_processes_everything(
    server: ValkeyServer, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    chain = Chain(server.url)
    async with chain.app.running():
        await chain.publish_all(range(COUNT))
        await chain.entered.wait()
        with caplog.at_level(logging.WARNING, "ag06"):
            await change(fault.begin, server)
            chain.gate.set()  # what the steps hold is settled while the server refuses
            publishing = asyncio.create_task(chain.publish_all(range(COUNT, 2 * COUNT)))
            await chain.was_refused()
            await eventually(lambda: _is(re.search(fault.noticed, caplog.text)), 20)
            await change(fault.end, server)
        await asyncio.wait_for(publishing, 60)
        await chain.account(range(2 * COUNT))
    assert not [entry for entry in caplog.records if entry.levelno >= logging.CRITICAL]


@stopping
async def test_a_workflow_that_is_started_meanwhile_processes_everything_afterwards(
    server: ValkeyServer, fault: Fault
) -> None:
    chain = Chain(server.url)
    chain.gate.set()
    await change(fault.begin, server)
    async with chain.app.running():
        await change(fault.end, server)
        await asyncio.wait_for(chain.publish_all(range(5)), 60)
        await chain.account(range(5))


async def test_a_user_who_is_refused_for_a_while_ends_no_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(tmp_path) as server:
        chain = Chain(server.url)
        async with chain.app.running():
            await chain.publish_all(range(COUNT))
            await chain.entered.wait()
            assert server.command("ACL", "SETUSER", "default", "-evalsha") == b"+OK\r\n"
            chain.gate.set()
            await eventually(lambda: _is(re.search("waits for the store: .* refuses this user", caplog.text)), 20)
            await eventually(lambda: _is(re.search("commit of .* refuses this user", caplog.text)), 20)
            assert server.command("ACL", "SETUSER", "default", "+evalsha") == b"+OK\r\n"
            await chain.account(range(COUNT))


async def test_a_user_who_is_refused_at_the_start_is_a_mistake_of_configuration(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        assert server.command("ACL", "SETUSER", "default", "-evalsha") == b"+OK\r\n"
        with pytest.raises(ConfigurationError, match="refuses this user"):
            async with Chain(server.url).app.running():
                raise AssertionError("it runs without permission")
