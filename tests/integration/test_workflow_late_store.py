"""Workers, and workflows inside a program, that are started before their store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ag06 import ConfigurationError, Event, StoreUnavailable, Workflow
from ag06.monitoring import observability
from flows import SECONDS, until
from journals import journals
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


Started = tuple[Workflow, list[int]]


def shop(url: str, journal: str = "off", **settings: Any) -> Started:
    app = Workflow("shop", store=url, journal=journal, **settings)
    billed: list[int] = []

    @app.step("order")
    async def bill(event: Event) -> None:
        billed.append(event.data)

    return app, billed


async def test_running_starts_before_its_store_and_the_journal_takes_events(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, port=free_port())
    app, billed = shop(server.url, str(tmp_path / "journal"))
    try:
        async with app.running():
            assert await app.publish("order", data=1) is not None
            with pytest.raises(TimeoutError, match=r"'shop': the store is away \(.*; its steps start when"):
                await app.drain(0.05)
            health = await observability.health.check_health()
            assert health.status == "warn"
            assert health.components["store"].status == "fail"
            assert "is the server up?" in (health.components["store"].error or "")
            server.start()
            await app.drain(SECONDS)
            assert billed == [1]
            await until_async(is_well)
    finally:
        server.stop()


async def is_well() -> bool:
    return (await observability.health.check_health()).components["store"].status == "pass"


async def is_refused() -> bool:
    store = (await observability.health.check_health()).components["store"]
    return store.status == "fail" and "refuses this user" in (store.error or "")


async def until_async(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await check():
            await asyncio.sleep(0.01)


async def test_running_starts_before_its_store_and_publishing_says_that_it_is_away(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, port=free_port())
    app, billed = shop(server.url)
    try:
        async with app.running():
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
                await app.publish("order", data=1)
            assert (await observability.health.check_health()).status == "fail"
            server.start()
            await app.drain(SECONDS)
            assert await app.publish("order", data=2)
            await app.drain(SECONDS)
    finally:
        server.stop()
    assert billed == [2]


@pytest.mark.parametrize("journal", [True, False])
async def test_a_workflow_that_waits_for_its_store_can_be_left(
    tmp_path: Path, journal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ag06.runtime")
    app, _ = shop(f"redis://127.0.0.1:{free_port()}/0", str(tmp_path / "journal") if journal else "off")
    before = asyncio.all_tasks()
    for _ in range(2):
        async with app.running():
            if journal:
                await app.publish("order", data=1, dedup=False)
        assert asyncio.all_tasks() == before
    stopped = [record.getMessage() for record in caplog.records if "stopped" in record.getMessage()]
    assert [", 0 cut off" in line for line in stopped] == [True, True]
    # The second life found the event of the first.
    assert [f"{count * journal} journalled" in line for count, line in enumerate(stopped, 1)] == [True, True]


async def test_a_store_that_never_answers_does_not_keep_running_from_being_entered_and_left(tmp_path: Path) -> None:
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    app, _ = shop(f"redis://127.0.0.1:{port}/0", str(tmp_path / "journal"), timeout=0.5)
    before = asyncio.all_tasks()
    async with app.running():
        assert await app.publish("order", data=1)
    assert not {task for task in asyncio.all_tasks() - before if "ag06" in task.get_name()}
    for writer in held:
        writer.close()
    silent.close()


async def test_a_mistake_of_the_configuration_is_no_outage(tmp_path: Path) -> None:
    for url, settings in [
        ("redis://localhost:none/0", {}),
        (f"sqlite:///{tmp_path}/shop.db", {"durability": "replicated"}),
        ("memory://", {"durability": "fsync"}),
    ]:
        app, _ = shop(url, **settings)
        with pytest.raises(ConfigurationError):
            async with app.running():
                raise AssertionError("it ran")


async def test_a_level_that_the_server_cannot_give_is_no_outage(valkey: ValkeyServer) -> None:
    app, _ = shop(valkey.url, durability="replicated")
    with pytest.raises(ConfigurationError, match="replica"):
        async with app.running():
            raise AssertionError("it ran")


async def test_a_store_that_refuses_the_workflow_once_it_is_there_fails_drain_and_serve(tmp_path: Path) -> None:
    """The mistake shows only when the store can be asked."""
    server = ValkeyServer(tmp_path, port=free_port())
    app, _ = shop(server.url, durability="replicated")
    try:
        async with app.running():
            server.start()
            with pytest.raises(ConfigurationError, match="replica"):
                await app.drain(SECONDS)
    finally:
        server.stop()


class LateRefusal:
    """A server that keeps its clients waiting until `answers` is set, and then refuses their password."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(4096):
                await self.answers.wait()
                writer.write(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
        writer.close()

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        """Listen; return the URL of the store."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        yield f"redis://user:wrong@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        self.answers.set()
        server.close()


async def test_a_refusal_that_takes_longer_than_entering_fails_drain_serve_and_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ag06.runtime.lifetime._ENTER_SECONDS", 0.05)
    slow = LateRefusal()
    async with slow.listening() as url:
        app, _ = shop(url)
        async with app.running():
            slow.answers.set()
            with pytest.raises(ConfigurationError, match="refuses this user"):
                await app.drain(SECONDS)
            await until_async(is_refused)
        slow.answers.clear()
        serving = asyncio.create_task(app.serve())
        await until(lambda: app._lifetime is not None and app._lifetime._entered.done())
        slow.answers.set()
        with pytest.raises(ConfigurationError, match="refuses this user"):
            await asyncio.wait_for(serving, SECONDS)


async def test_a_password_that_is_wrong_from_the_first_ends_a_worker_that_waited_for_its_store(tmp_path: Path) -> None:
    write_flow(tmp_path, _FLOW)
    port = free_port()
    wrong = LateRefusal()
    wrong.answers.set()
    async with ag06_run(tmp_path, f"redis://user:wrong@127.0.0.1:{port}/0") as worker:
        await until(lambda: "waits for the store" in worker.said)
        async with wrong.listening(port):
            assert await worker.ended() == 2, worker.said
    assert "refuses this user" in worker.said.splitlines()[-1]


async def test_what_was_published_before_the_store_refused_stays_in_the_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    wrong = LateRefusal()
    wrong.answers.set()
    app, _ = shop(f"redis://user:wrong@127.0.0.1:{port}/0", str(tmp_path / "journal"))
    async with app.running():
        assert await app.publish("order", data=1)
        async with wrong.listening(port):
            with pytest.raises(ConfigurationError, match="refuses this user"):
                await app.drain(SECONDS)
            await until_async(is_refused)
    assert "1 events stay in the journal" in caplog.text
    assert len(journals(tmp_path / "journal")) == 1
