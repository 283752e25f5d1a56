from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from crash.load import Load
from crash.results import cycles, toll
from faults import replicate, running_server, says
from proxy import Proxy

FAULT = "failover to the replica"
ALWAYS = {"appendonly": "yes", "appendfsync": "always"}


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("waiting", ["WAITAOF", "WAIT"])
async def test_a_replica_that_takes_over_has_everything_that_was_confirmed_as_replicated(
    waiting: str, tmp_path: Path
) -> None:
    """The primary is killed, its replica takes over under the same name, and the old one becomes its replica."""
    config = dict(ALWAYS)
    if waiting == "WAIT":  # as a server before 7.2 has it
        config["include"] = str(tmp_path / "old")
        Path(config["include"]).write_text('rename-command WAITAOF ""\n')
    async with (
        running_server(tmp_path / "a", **config) as first,
        running_server(tmp_path / "b", **config) as second,
        Proxy(first.port) as name,
    ):
        primary, replica = first, second
        replicate(replica, "127.0.0.1", str(primary.port))
        await says(replica, "INFO", "replication", reply=b"master_link_status:up")
        with toll(FAULT, f"Valkey, {waiting}") as counted:
            async with Load(name.url, durability="replicated", timeout=2.0).running(counted) as load:
                for _ in range(cycles(FAULT, 1)):
                    await load.some_more(random.randint(20, 200))
                    await asyncio.to_thread(primary.kill)
                    replicate(replica, "NO", "ONE")
                    name.target = replica.port
                    primary, replica = replica, primary
                    replica.config["replicaof"] = f"127.0.0.1 {primary.port}"
                    await asyncio.to_thread(replica.start)
                    await says(replica, "INFO", "replication", reply=b"master_link_status:up")
                    counted.cycles += 1
                await load.some_more(20)
    assert counted.clean(), counted
