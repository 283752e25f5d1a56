"""The server is down for a minute under 1,000 events a second, then back: they wait in the journal meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crash.load import Load
from crash.results import cycles, toll
from faults import running_server

FAULT = "store down for 60 s"
QUICK = 2
CYCLES = cycles(FAULT, QUICK)
SECONDS = 60.0 if CYCLES > QUICK else 2.0
PUBLISHERS = 25
PAUSE = 0.02
"""With so many publishers a little less than 1,000 events a second, as much as one process does beside its steps."""


@pytest.mark.timeout(14_400)
async def test_a_server_that_is_down_for_a_minute_costs_no_event(tmp_path: Path) -> None:
    config = {"appendonly": "yes", "appendfsync": "always"}
    async with running_server(tmp_path / "server", **config) as server:
        with toll(FAULT, "Valkey") as counted:
            async with Load(server.url, publishers=PUBLISHERS, pause=PAUSE).running(counted) as load:
                events = load.app.events
                for _ in range(CYCLES):
                    await load.some_more(500)
                    await asyncio.to_thread(server.kill)
                    await asyncio.sleep(SECONDS)
                    state = await events.journal_state()
                    assert state is not None
                    assert state.active
                    assert state.events > 100 * SECONDS, "publishers stood still"
                    await asyncio.to_thread(server.start)
                    async with asyncio.timeout(120):
                        while (await events.journal_state()).active:  # type: ignore[union-attr]
                            await asyncio.sleep(0.05)
                    counted.cycles += 1
                assert load.refused == 0
    assert counted.clean(), counted
