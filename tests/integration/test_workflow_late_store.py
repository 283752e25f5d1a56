"""Workers that are started before their store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ag06 import Workflow
from flows import until
from servers import ValkeyServer, free_port
from workers import ag06_run, write_flow

_FLOW = """
    app = Workflow("shop")

    @app.step("order")
    async def bill(event: Event) -> None:
        note("billed", event.data)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_workers_that_are_started_before_their_store_wait_for_it(tmp_path: Path, workers: str) -> None:
    write_flow(tmp_path, _FLOW)
    server = ValkeyServer(tmp_path, port=free_port())
    try:
        async with ag06_run(tmp_path, server.url, "--workers", workers) as worker:
            await until(lambda: worker.said.count("waits for the store") == int(workers))
            server.start()
            app = Workflow("shop", store=server.url)
            await app.publish("order", data=1)
            await app.close()
            await worker.noted("billed")
            await until(lambda: worker.said.count("the store is back") == int(workers))
            assert await worker.terminate() == 0
            assert "ended with" not in worker.said
    finally:
        server.stop()


async def test_a_worker_that_waits_for_its_store_ends_when_it_is_told_to(tmp_path: Path) -> None:
    write_flow(tmp_path, _FLOW)
    async with ag06_run(tmp_path, f"redis://127.0.0.1:{free_port()}/0") as worker:
        await until(lambda: "waits for the store" in worker.said)
        assert await worker.terminate() == 0
