"""Workers that are started before their store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ag06 import Workflow
from flows import until
from proxy import Proxy
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


class DyingProxy(Proxy):
    """The way to a server that dies while it answers a certain request; it is away until `revived`."""

    revived = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.lost and not self.revived:
            writer.transport.abort()
        else:
            await super()._serve(reader, writer)


async def test_a_worker_whose_store_dies_between_the_opening_and_the_steps_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed name is the one thing that is asked of the store in between: what did an earlier worker of it leave?"""
    monkeypatch.setenv("AG06_WORKER", "the-same-again")
    write_flow(tmp_path, _FLOW)
    server = ValkeyServer(tmp_path, port=free_port())
    server.start()
    try:
        async with DyingProxy(server.port) as proxy:
            proxy.lose_reply_to = b"the-same-again"
            async with ag06_run(tmp_path, proxy.url) as worker:
                await until(lambda: "waits for the store" in worker.said or worker.process.returncode is not None)
                assert worker.process.returncode is None, worker.said
                proxy.revived = True
                app = Workflow("shop", store=server.url)
                await app.publish("order", data=1)
                await app.close()
                await worker.noted("billed")
                assert await worker.terminate() == 0, worker.said
            assert proxy.lost == 1
    finally:
        server.stop()
