"""What the optimizer beside a workflow does when nobody tunes, when it shuts down, and when there are other threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Event, Knob
from ag06.ml.board import Board, Control, Posted, Saved
from ag06.ml.campaign import Campaign, Plan
from ag06.ml.controls import Controls
from ag06.ml.decisions import Decision
from ag06.ml.tuning import DEFAULT_SCORE
from flows import SECONDS, until
from tuning_load import FAST, Load, Slow, optimizer_of, state_of, workflow_named


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuned.db"


def saved_by_another(flow: Slow, rollbacks: int) -> Saved:
    """What a leader has saved that is gone by now, and that had seen to so many rollbacks."""
    campaign = Campaign(list(Controls.of(flow.app).knobs.values()), surrogate=False)
    return Saved(
        at=time.time(),
        leader="another",
        mode="on",
        state="stopped",
        campaign=campaign.state(),
        score=str(DEFAULT_SCORE),
        rollbacks=rollbacks,
    )


async def test_where_nobody_tunes_a_rollback_that_is_over_costs_no_reading_of_all_that_was_saved(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Control] = []
    reads: list[Saved | None] = []
    control, saved = Board.control, Board.saved

    async def counted_control(self: Board) -> Control:
        looks.append(await control(self))
        return looks[-1]

    async def counted_saved(self: Board) -> Saved | None:
        reads.append(await saved(self))
        return reads[-1]

    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        (agent,) = optimizer._agents
        await agent.board.save(saved_by_another(flow, 1))
        await agent.board.ask(Control(rollbacks=1))
        monkeypatch.setattr(Board, "control", counted_control)
        monkeypatch.setattr(Board, "saved", counted_saved)
        for number in range(1, 5):
            agent.wake()
            await until(lambda number=number: len(looks) >= number)  # type: ignore[misc]
        agent.wake()
        await until(lambda: len(looks) >= 5)  # the look before it is over
        assert looks[0].rollbacks == 1
        assert len(reads) == 1
        await agent.board.ask(Control(rollbacks=2))
        agent.wake()
        await until(lambda: len(reads) > 1)


class Release:
    """A release of a workflow: it says where its knobs begin."""

    def __init__(self, store_url: str, default: int, name: str | None = None) -> None:
        self.app = workflow_named(store_url, name)
        self.one = self._knob("one", default)
        self.other = self._knob("other", default)

        @self.app.step("t")
        async def work(event: Event) -> None: ...

    def _knob(self, name: str, default: int) -> Knob:
        return self.app.knob(name, low=1, high=1000, default=default, scale="log", integer=True)


@pytest.mark.parametrize("setting", ["manual", "on"])
async def test_after_an_experiment_the_defaults_of_the_next_release_take_effect_and_what_was_set_stays(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    first = Release(sqlite_url, default=10)
    async with optimizer_of(monkeypatch) as optimizer, first.app.running():
        await state_of(optimizer, workflow=first.app.name)
        first.other.set(20)
        optimizer.configure(first.app, window=0.05, settle=0.0)
        await optimizer.ab_testing.run_experiment({"one": 10}, {"one": 30}, timeout=0.2)
        posted = await optimizer._agents[0].board.posted()
    assert posted is not None
    assert (posted.incumbent, posted.trial) == ({"other": 20}, None)

    second = Release(sqlite_url, default=100, name=first.app.name)
    async with optimizer_of(monkeypatch, setting) as optimizer:
        optimizer.configure(second.app, window=0.05, settle=0.0)
        async with second.app.running():
            await until(lambda: second.other.value == 20)
            assert second.one.value == 100
            await state_of(optimizer, leads_here=setting == "on")
            assert (second.one.value, second.other.value) == (100, 20)


async def test_who_follows_moves_what_is_not_named_to_its_own_default(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Release(sqlite_url, default=10)
    async with optimizer_of(monkeypatch) as optimizer, release.app.running():
        await state_of(optimizer, workflow=release.app.name)
        (agent,) = optimizer._agents
        await agent.board.post(Posted("another", 1, {"one": 30}, {"one": 40, "other": 50}, hold=60.0))
        agent.wake()
        await until(lambda: (release.one.value, release.other.value) == (40, 50))
        await agent.board.post(Posted("another", 2, {"one": 30}))
        agent.wake()
        await until(lambda: (release.one.value, release.other.value) == (30, 10))


async def test_a_shutdown_ends_a_users_experiment_though_the_optimizer_waits_for_it(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, promoted = asyncio.Event(), asyncio.Event()

    def promote(self: Campaign, plan: Plan, score: float | None, breach: str | None = None) -> list[Decision]:
        if holds.is_set():
            self._now.incumbent = {**self.incumbent, "cost": 4.0}
            loop.call_soon_threadsafe(promoted.set)
        return []

    async def experiment() -> None:
        """As a user's does, it holds the knobs until it is over, or the workflow is."""
        async with agent.live.moving:
            holds.set()
            await asyncio.wait_for(agent.live.over.wait(), SECONDS / 4)

    loop, flow = asyncio.get_running_loop(), Slow(sqlite_url)
    monkeypatch.setattr(Campaign, "record", promote)
    async with optimizer_of(monkeypatch) as optimizer:
        async with flow.app.running(), Load(flow.app):
            await optimizer.start(flow.app, **FAST, surrogate=False)
            await state_of(optimizer, leads_here=True)
            (agent,) = optimizer._agents
            await until(lambda: agent.loop is not None and agent.loop.baseline is not None)
            experimenting = asyncio.create_task(experiment())
            await asyncio.wait_for(promoted.wait(), SECONDS)
            with contextlib.suppress(AssertionError):  # a loop that has nothing to move does not wait
                await until(lambda: agent.live.moving._waiters, 1.0)
        await asyncio.wait([experimenting])


async def test_a_thread_of_its_own_has_an_optimizer_of_its_own(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = Slow(sqlite_url), Slow(f"{sqlite_url}.other")
    is_there, may_end = threading.Event(), threading.Event()

    async def run_other() -> None:
        async with other.app.running():
            await state_of(optimizer, workflow=other.app.name, leads_here=True)
            is_there.set()
            await asyncio.to_thread(may_end.wait)

    async with optimizer_of(monkeypatch, "on") as optimizer:
        optimizer.configure(window=0.1, surrogate=False)
        thread = threading.Thread(target=lambda: asyncio.run(run_other()))
        thread.start()
        try:
            assert await asyncio.to_thread(is_there.wait, SECONDS)
            async with mine.app.running():
                status = await state_of(optimizer, workflow=mine.app.name, leads_here=True)
                assert status["workflows"].keys() == {mine.app.name}
                async with asyncio.timeout(SECONDS):
                    await optimizer.rollback()
                    await optimizer.stop()
                (elsewhere,) = [agent for agent in optimizer._agents if agent.running.workflow is other.app]
                await until(lambda: elsewhere.loop is None)
                optimizer.configure(window=0.2)
                await until(lambda: elsewhere.live.tuning.window == 0.2)
                assert optimizer.metrics_collector is not elsewhere.live.collector
                with pytest.raises(ConfigurationError, match=r"'\S+' does not run in this event loop"):
                    await optimizer.rollback(other.app)
        finally:
            may_end.set()
            await asyncio.to_thread(thread.join)


async def test_a_rollback_that_nobody_can_do_is_refused(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer:
        with pytest.raises(ConfigurationError, match=r"no workflow runs in this event loop; call it within"):
            await optimizer.rollback()
    async with optimizer_of(monkeypatch, "off") as optimizer, flow.app.running():
        with pytest.raises(ConfigurationError, match=r"AG06_TUNE is off.*set it to manual or on"):
            await optimizer.rollback(flow.app)
