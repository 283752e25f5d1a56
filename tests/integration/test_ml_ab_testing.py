"""What `run_experiment` promises on a workflow that runs: the better variant is named, and the knobs go back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06 import ConfigurationError
from ag06.ml import Guardrails, Pace
from ag06.ml.ab_testing import Outcome
from ag06.ml.active_optimizer import ActiveOptimizer
from ag06.monitoring import observability
from ag06.persistence.log import LogOptions
from ag06.persistence.stores import open_log
from flows import SECONDS, until
from tuning_load import FAST, Fragile, Load, Slow, decided, optimizer_of, state_of

RUNS = 'ag06_workflow_experiment_state{experiment="manual"}'


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuned.db"


@pytest.fixture
def flow(url: str) -> Slow:
    return Slow(url)


@pytest.fixture
async def optimizer(flow: Slow, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ActiveOptimizer]:
    """An optimizer that knows the workflow, which runs."""
    async with optimizer_of(monkeypatch) as optimizer:
        optimizer.configure(flow.app, **FAST)
        async with flow.app.running():
            await state_of(optimizer, workflow=flow.app.name)
            yield optimizer


def under_way() -> bool:
    return observability.metrics.snapshot().get(RUNS) == 1


async def test_the_better_variant_wins_and_the_knobs_go_back(flow: Slow, optimizer: ActiveOptimizer) -> None:
    load = Load(flow.app)
    async with load:
        running = asyncio.create_task(optimizer.ab_testing.run_experiment({"cost": 32}, {"cost": 2}, seed=1))
        await until(under_way)
        found = await running
        assert not under_way()
        assert flow.cost.value == 32
        worse = await optimizer.ab_testing.run_experiment(variant_a={"cost": 2}, variant_b={}, seed=1)
        assert flow.cost.value == 32
    load.assert_each_was_processed_once(flow.seen)
    assert (found.winner, worse.winner) == ("b", "a")
    assert found.effect is not None
    assert found.effect > 0.3
    assert found.interval is not None
    assert found.interval[0] >= 0
    assert (found.variant_a, found.variant_b) == ({"cost": 32}, {"cost": 2})
    assert worse.variant_b == {"cost": 32}, "a knob that is not named stays as it is"
    assert "b is better by" in found.reason
    assert found.windows >= 8


async def test_identical_variants_have_no_winner(flow: Slow, optimizer: ActiveOptimizer) -> None:
    async with Load(flow.app):
        found = await optimizer.ab_testing.run_experiment({}, {"cost": 32}, alpha=0.001, max_windows=24)
    assert (found.winner, found.windows) == (None, 24)
    assert "inconclusive" in found.reason
    assert flow.moved == []


async def test_without_traffic_there_is_no_winner_and_the_reason_says_so(
    flow: Slow, optimizer: ActiveOptimizer
) -> None:
    found = await optimizer.ab_testing.run_experiment({}, {"cost": 2}, timeout=SECONDS)
    assert found.winner is None
    assert "inconclusive" in found.reason
    assert "3 windows in a row" in found.reason
    assert found.seconds < SECONDS
    assert flow.cost.value == 32


async def test_a_timeout_ends_it_without_a_winner(flow: Slow, optimizer: ActiveOptimizer) -> None:
    async with Load(flow.app):
        found = await optimizer.ab_testing.run_experiment({}, {"cost": 2}, timeout=0.4)
    assert found.winner is None
    assert "the timeout of 0.4 s is over" in found.reason
    assert flow.cost.value == 32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant_b": {"speed": 2}}, "no knob 'speed' may be moved; there are cost"),
        ({"variant_a": {"work.concurrency": 2}}, "no knob 'work.concurrency' may be moved"),
        ({"variant_b": {"cost": 0}}, "cost"),
        ({"variant_b": {"cost": "fast"}}, "cost"),
        ({"variant_b": 2}, "give values by knob"),
        ({"timeout": 0}, "timeout=0"),
        ({"alpha": 2}, "alpha=2"),
        ({"max_windows": 1}, "max_windows=1"),
        ({"score": "maximise fun"}, "fun"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_moves(
    wrong: dict[str, object], said: str, flow: Slow, optimizer: ActiveOptimizer
) -> None:
    arguments = {"variant_a": {}, "variant_b": {"cost": 2}, **wrong}
    with pytest.raises(ConfigurationError, match=said):
        await optimizer.ab_testing.run_experiment(**arguments)  # type: ignore[arg-type]
    assert flow.moved == []


async def test_where_another_process_moves_the_knobs_it_is_refused(
    url: str, flow: Slow, optimizer: ActiveOptimizer
) -> None:
    other = open_log(url, LogOptions())
    await other.open()
    role = f"optimizer.{flow.app.name}"
    assert await other.lead(role, "another", 60)
    with pytest.raises(ConfigurationError, match="another process moves the knobs"):
        await optimizer.ab_testing.run_experiment({}, {"cost": 2})
    assert flow.moved == []
    await other.lead(role, "another", 0)
    found = await optimizer.ab_testing.run_experiment({}, {"cost": 2}, timeout=0.1)
    assert "timeout" in found.reason
    assert await other.lead(role, "another", 60), "the lead is given up at the end"
    await other.close()


async def test_a_variant_that_breaks_a_guardrail_ends_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Fragile(url)
    async with optimizer_of(monkeypatch) as optimizer:
        optimizer.configure(flow.app, **{**FAST, "knobs": ("size",), "guardrails": Guardrails(p99_factor=None)})
        async with flow.app.running(), Load(flow.app):
            await state_of(optimizer, workflow=flow.app.name)
            await until(lambda: len(flow.processed) > 100)
            found = await optimizer.ab_testing.run_experiment({}, {"size": 11})
            assert flow.size.value == 10
    assert found.winner is None
    assert "b ended at once" in found.reason


async def test_the_optimizer_waits_meanwhile_and_goes_on_afterwards(flow: Slow, optimizer: ActiveOptimizer) -> None:
    async with Load(flow.app):
        await optimizer.start(flow.app, pace=Pace(explore=1000))
        await decided(flow.app, "trial", 2)
        running = asyncio.create_task(optimizer.ab_testing.run_experiment({"cost": 31}, {"cost": 3}, max_windows=8))
        await until(under_way)
        await until(lambda: flow.cost.value in (3, 31))
        begun = len(flow.moved)
        found = await running
        during = flow.moved[begun:]
        before = await state_of(optimizer, leads_here=True)
        await decided(flow.app, "trial", before["windows"] + 2)
    assert found.windows == 8
    assert set(during) <= {3, 31, 32}
    assert {3, 31} <= set(during)


async def test_what_was_proved_stays_after_an_experiment(url: str, flow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    async with optimizer_of(monkeypatch) as first, flow.app.running(), Load(flow.app):
        await first.start(flow.app, **FAST)
        proved = (await decided(flow.app, "promoted"))["config"]["cost"]
    other = Slow(url, flow.app.name)
    async with optimizer_of(monkeypatch) as second, other.app.running(), Load(other.app):
        second.configure(other.app, **FAST)
        await until(lambda: other.cost.value == proved)
        found = await second.ab_testing.run_experiment({"cost": 20}, {"cost": 30}, max_windows=2)
        assert other.cost.value == proved
    assert found.variant_a == {**found.variant_a, "cost": 20}


async def test_a_shutdown_in_the_middle_ends_it_and_the_knobs_go_back(
    flow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with optimizer_of(monkeypatch) as optimizer:
        optimizer.configure(flow.app, **FAST)
        async with flow.app.running(), Load(flow.app):
            await state_of(optimizer, workflow=flow.app.name)
            running: asyncio.Task[Outcome] = asyncio.create_task(
                optimizer.ab_testing.run_experiment({"cost": 16}, {"cost": 8}, alpha=0.001, max_windows=1000)
            )
            await until(lambda: flow.cost.value in (8, 16))
        assert flow.cost.value == 32
        found = await asyncio.wait_for(running, SECONDS)
    assert found.winner is None
    assert "the workflow was shut down" in found.reason


async def test_one_that_is_cancelled_puts_the_knobs_back(flow: Slow, optimizer: ActiveOptimizer) -> None:
    async with Load(flow.app):
        running = asyncio.create_task(optimizer.ab_testing.run_experiment({"cost": 16}, {"cost": 8}))
        await until(lambda: flow.cost.value in (8, 16))
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert flow.cost.value == 32
        assert not under_way()
        again = await optimizer.ab_testing.run_experiment({}, {"cost": 2}, max_windows=2)
    assert again.windows == 2


async def test_where_the_lead_is_lost_it_ends(url: str, flow: Slow, optimizer: ActiveOptimizer) -> None:
    """As after a pause of this process that was longer than its lease."""
    optimizer.configure(flow.app, lease=1.0)
    (agent,) = optimizer._agents
    other = open_log(url, LogOptions())
    await other.open()
    async with Load(flow.app):
        running = asyncio.create_task(
            optimizer.ab_testing.run_experiment({"cost": 16}, {"cost": 8}, alpha=0.001, max_windows=1000)
        )
        await until(lambda: flow.cost.value in (8, 16))
        assert await other.lead(agent.board.role, agent.running.worker, 0), "as if its time were over"
        assert await other.lead(agent.board.role, "another", 60)
        found = await asyncio.wait_for(running, SECONDS)
        assert flow.cost.value == 32
        posted = await agent.board.posted()
        await agent.live.apply({"cost": 31})
        assert await agent.board.posted() == posted, "what is moved here now, nobody else hears of"
    await other.close()
    assert "another process has taken the lead" in found.reason
