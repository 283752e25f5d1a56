from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.load import Load, chain
from crash.results import cycles, toll
from faults import running_server
from proxy import Proxy

FAULT = "network cut or slow"


async def _trouble(network: Proxy, rng: random.Random) -> None:
    """Let the network break in one of the ways in which networks do, for a while."""
    match rng.choice(["cut", "down", "slow", "stalled", "reply lost"]):
        case "cut":
            for _ in range(rng.randint(1, 20)):
                network.cut()
                await asyncio.sleep(rng.uniform(0.0, 0.02))
        case "down":
            await network.down()
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            await network.up()
        case "slow":
            network.latency = rng.uniform(0.01, 0.3)
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            network.latency = 0.0
        case "stalled":
            network.stalled = True
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            network.stalled = False
        case _:
            network.lose_reply_to = rng.choice([b"EVALSHA", b"XREADGROUP"])


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("journal", ["with journal", "without journal"])
async def test_a_network_that_breaks_in_every_way_loses_nothing_and_doubles_nothing(
    journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second worker has a network that never breaks, so that it takes over what the first one cannot renew."""
    if journal == "without journal":
        monkeypatch.setenv("AG06_JOURNAL", "off")
    rng = random.Random()
    async with running_server(tmp_path / "server") as server, Proxy(server.port) as network:
        with toll(FAULT, f"Valkey, {journal}") as counted:
            async with (
                chain(server.url, visibility_timeout=1.0).running(),
                Load(network.url, visibility_timeout=1.0, timeout=2.0).running(counted) as load,
            ):
                for _ in range(cycles(FAULT, 5)):
                    await _trouble(network, rng)
                    await load.some_more(rng.randint(1, 100))
                    counted.cycles += 1
    assert counted.clean(), counted
