"""Whatever a server refuses with: publishers get their ids, and the log gets every event once and in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from faults import FAULTS, Fault, change, running_server
from journals import Publishers, diverted, gone, journals, state, straight
from servers import ValkeyServer


@pytest.fixture(params=FAULTS, ids=lambda fault: fault.name)
def fault(request: pytest.FixtureRequest) -> Fault:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def server(tmp_path: Path, fault: Fault) -> AsyncIterator[ValkeyServer]:
    async with running_server(tmp_path / "server", **fault.config) as started:
        yield started


async def test_every_id_returned_while_a_server_refuses_is_in_its_log_once_and_in_order(
    server: ValkeyServer, fault: Fault, tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    store = EventStore(server.url, journal=str(directory))
    async with Publishers(store) as publishers:
        await publishers.more(100)
        await gone(directory)
        await change(fault.begin, server)
        await diverted(store)
        await publishers.more(300)
        during = await state(store)
        assert during.active
        assert during.events
        assert during.problem
        assert during.in_memory == 0
        assert [str(path) for path in journals(directory)] == [during.path]
        await change(fault.end, server)
        await straight(store)
        await publishers.more(100)
        await straight(store)
    await publishers.account()
    await gone(directory)
    assert (await state(store)).problem is None
    await store.close()
