"""Several workers are tuned by one of them; it may die, stand still or lose its store at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ag06.ml.board import Board, Posted, Saved
from ag06.persistence import EventStore
from ag06.persistence.log import LogOptions, StepSpec
from ag06.persistence.stores import open_log
from flows import SECONDS, until
from servers import ValkeyServer
from tuning_load import FAST, Load, Slow, decided, decisions, optimizer_of
from workers import Worker, ag06_run, write_flow

FLOW = """
    from ag06.ml import Guardrails, Pace, ml_optimizer

    app = Workflow("fleet", dedup_window=0)
    cost = app.knob("cost", low=1, high=64, default=32, scale="log")
    cost.watch(lambda: note("knob", os.getpid(), cost.value))
    ml_optimizer.configure(
        app, knobs=("cost",), window=0.1, settle=0.02, minimum_events=3, share=1.0, worst_loss=1.0, surrogate=False,
        guardrails=Guardrails(p99_factor=None, worst_loss=None), pace=Pace(explore=100_000), lease=1.0,
    )
    note("worker", os.getpid(), os.environ.get("AG06_WORKER"))

    @app.step("t", concurrency=4)
    async def work(event: Event) -> None:
        value = cost.value
        await asyncio.sleep(value / 1000)
        note("done", event.id, os.getpid(), value)
"""


class Outside:
    """What somebody outside sees of the workflow: its store."""

    def __init__(self, events: EventStore, board: Board) -> None:
        self.events = events
        self.board = board
        self.published: list[str] = []

    async def feed(self) -> None:
        """Publish some hundred events a second, a little more than three workers process at first."""
        while True:
            some = [{"event_type": "t", "source": "test", "dedup": False} for _ in range(20)]
            self.published += [each for each in await self.events.persist_events(some) if each]
            await asyncio.sleep(0.05)

    async def posted(self, *, other_than: str = "", trial: bool = False) -> Posted:
        """Wait until a worker has posted, another than that one if it is given, and a trial if it must be one."""
        async with asyncio.timeout(2 * SECONDS):
            while True:
                posted = await self.board.posted()
                if posted is not None and posted.leader != other_than and (not trial or posted.trial is not None):
                    return posted
                await asyncio.sleep(0.005)

    async def saved(self) -> Saved:
        saved = await self.board.saved()
        assert saved is not None
        return saved


@asynccontextmanager
async def outside(url: str) -> AsyncIterator[Outside]:
    events = EventStore()
    await events.initialize(url)
    log = open_log(url, LogOptions())
    await log.open()
    await log.register("fleet", [StepSpec("fleet.work", "t")])
    seen = Outside(events, Board(log, "fleet"))
    feeding = asyncio.create_task(seen.feed())
    try:
        yield seen
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])
        await log.close()
        await events.close()


def followed(worker: Worker, pids: set[str], since: int = 0) -> bool:
    """Whether all of these processes have had the same value, which is not the default, since so many notes."""
    values: dict[str, set[str]] = {pid: set() for pid in pids}
    for _, pid, value in worker.notes("knob")[since:]:
        if pid in values and value != "32":
            values[pid].add(value)
    return bool(set.intersection(*values.values()))


async def experiments(worker: Worker) -> dict[str, Any]:
    found = re.search(r"http://[\d.:]+", worker.said)
    assert found is not None, worker.said
    host, port = found[0].removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /status HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    body = (await asyncio.wait_for(reader.read(), SECONDS)).partition(b"\r\n\r\n")[2]
    writer.close()
    told: dict[str, Any] = json.loads(body)["experiments"]
    return told


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_flow(tmp_path, FLOW)
    monkeypatch.setenv("AG06_TUNE", "on")
    return tmp_path


async def test_all_workers_follow_one_of_them_and_another_one_when_it_is_killed(home: Path) -> None:
    url = f"sqlite:///{home}/fleet.db"
    async with outside(url) as seen, ag06_run(home, url, "--workers", "3") as worker:
        await worker.noted("worker", 4)  # the supervisor imports it too
        names = {words[2]: words[1] for words in worker.notes("worker") if words[2] != "None"}
        await until(lambda: followed(worker, set(names.values())), 2 * SECONDS)
        leader = (await seen.posted()).leader
        assert leader in names
        told = {}
        while not told.get("optimizer", {}).get("leads_here"):
            await asyncio.sleep(0.1)
            told = await experiments(worker)
        assert told["optimizer"]["leader"] == leader
        assert told["optimizer"]["workflow"] == "fleet"

        began, notes = time.monotonic(), len(worker.notes("knob"))
        os.kill(int(names.pop(leader)), signal.SIGKILL)
        other = await seen.posted(other_than=leader)
        assert time.monotonic() - began < SECONDS, "a lease and a look are some seconds here"
        assert other.incumbent == {}, "the default needs no mention"
        await until(lambda: followed(worker, set(names.values()), notes), 2 * SECONDS)
        published = set(seen.published)
        await until(lambda: published <= {words[1] for words in worker.notes("done")}, 2 * SECONDS)
        assert await worker.terminate() == 0
        last = await seen.posted()
        assert (last.trial, last.incumbent) == (None, {}), "a shutdown leaves what is known to be good"


async def test_what_a_killed_leader_tried_does_not_run_again_and_what_it_learned_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{home}/fleet.db"
    async with outside(url) as seen:
        async with ag06_run(home, url) as worker:
            async with asyncio.timeout(2 * SECONDS):
                while (await seen.board.saved() is None) or (await seen.saved()).told["windows"] < 3:
                    await asyncio.sleep(0.05)
            await seen.posted(trial=True)
            await worker.kill()
        windows = (await seen.saved()).told["windows"]
        posted = await seen.posted()
        pid = str(worker.process.pid)
        monkeypatch.setenv("AG06_TUNE", "manual")
        async with ag06_run(home, url) as worker:
            own = str(worker.process.pid)
            await until(lambda: sum(words[2] == own for words in worker.notes("done")) > 20)
            values = {words[3] for words in worker.notes("done") if words[2] == own}
            await worker.kill()
        assert posted.trial is not None
        assert (own != pid, values) == (True, {"32"})
        monkeypatch.setenv("AG06_TUNE", "on")
        async with ag06_run(home, url) as worker:
            async with asyncio.timeout(2 * SECONDS):
                while (await seen.saved()).told["windows"] <= windows:
                    await asyncio.sleep(0.05)
            assert await worker.terminate() == 0
        starts = [event.data["reason"] async for event in seen.events.replay(types="ag06.optimizer.started")]
    assert len(starts) == 2
    assert "goes on where it was" in starts[1]


async def test_a_leader_that_stood_still_for_too_long_follows_the_other(home: Path, valkey: ValkeyServer) -> None:
    url = f"{valkey.url}?log=paused-{os.getpid()}"  # in a file it may stand still with the lock that all need
    async with outside(url) as seen, ag06_run(home, url) as one, ag06_run(home, url) as other:
        both = {str(one.process.pid), str(other.process.pid)}
        await until(lambda: followed(one, both), 2 * SECONDS)
        leader = (await seen.posted()).leader
        paused, active = (one, other) if f"-{one.process.pid}-" in leader else (other, one)
        assert f"-{paused.process.pid}-" in leader
        paused.process.send_signal(signal.SIGSTOP)
        second = (await seen.posted(other_than=leader)).leader
        assert f"-{active.process.pid}-" in second
        await seen.posted(other_than=leader, trial=True)
        notes = len(one.notes("knob"))
        paused.process.send_signal(signal.SIGCONT)
        await until(lambda: followed(one, both, notes), 2 * SECONDS)
        for _ in range(20):
            assert (await seen.posted()).leader == second
            await asyncio.sleep(0.02)
        assert (await seen.saved()).leader == second
        assert await paused.terminate() == 0
        assert await active.terminate() == 0
        kinds = [event.data async for event in seen.events.replay(types="ag06.optimizer.stopped")]
    assert "the lead was lost" in kinds[0]["reason"]


async def test_a_store_that_is_away_for_a_while_stops_it_for_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = ValkeyServer(tmp_path, appendonly="yes", appendfsync="always").start()
    flow = Slow(server.url)
    load = Load(flow.app)
    try:
        async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), load:
            await optimizer.start(flow.app, **{**FAST, "lease": 1.0, "surrogate": False})
            await decided(flow.app, "trial", 2)
            (agent,) = optimizer._agents
            server.kill()
            await until(lambda: agent.loop is None)
            assert flow.cost.value == 32
            status = await optimizer.get_optimization_status()
            server.start()
            trials = len(await decisions(flow.app, "trial"))
            await decided(flow.app, "trial", trials + 2)
            started = await decisions(flow.app, "started")
        assert "unknown: " in status["state"]
        assert "goes on where it was" in started[-1]["reason"]
        assert set(load.published) <= set(flow.seen)
        assert not [record for record in caplog.records if record.name == "ag06.ml" and record.exc_info]
    finally:
        server.stop()
