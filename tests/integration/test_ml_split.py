"""What `run_experiment(unit="subject")` promises on a workflow that runs: both variants at once, each subject one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import ConfigurationError, Context, Event, Retry, Workflow
from ag06.ml import Guardrails, split_experiment, split_subjects
from ag06.ml.ab_testing import Outcome
from ag06.ml.active_optimizer import ActiveOptimizer
from ag06.runtime.variants import SPLITS
from flows import SECONDS, until
from tuning_load import FAST, Load, optimizer_of, state_of, workflow_named

EVENTS_OF_A_SUBJECT = 5


class ManyCustomers(Load):
    """Events of type `t`, five of each subject."""

    def __init__(self, app: Workflow, width: int = 60) -> None:
        super().__init__(app, width)
        self._customers = itertools.count()

    async def _feed(self) -> None:
        while True:
            customer = next(self._customers)
            for _ in range(EVENTS_OF_A_SUBJECT):
                await self._room.acquire()
                event_id = await self._app.publish("t", data={}, subject=f"customer {customer}")
                assert event_id is not None
                self.published.append(event_id)


class Pauses:
    """A workflow whose one step pauses for `cost` milliseconds, 15 where the knob stands; what it saw, by subject."""

    def __init__(self, store_url: str) -> None:
        self.app = workflow_named(store_url)
        self.cost = self.app.knob("cost", low=1, high=64, default=15, scale="log")
        self.moved: list[float] = []
        self.cost.watch(lambda: self.moved.append(self.cost.value))
        self.values: defaultdict[str | None, set[float]] = defaultdict(set)
        self.done: list[str] = []

        @self.app.step("t", concurrency=12)
        async def work(event: Event) -> None:
            await asyncio.sleep(self.begin(event) / 1000)
            self.done.append(event.id)

    def begin(self, event: Event) -> float:
        value: float = self.cost.value
        if SPLITS:
            self.values[event.subject].add(value)
        return value


class InThreads(Pauses):
    """The same as a plain function."""

    def __init__(self, store_url: str) -> None:
        super().__init__(store_url)
        app = self.app = workflow_named(store_url)
        self.cost = app.knob("cost", low=1, high=64, default=15, scale="log")
        self.cost.watch(lambda: self.moved.append(self.cost.value))

        @app.step("t", concurrency=12)
        def work(event: Event) -> None:
            time.sleep(self.begin(event) / 1000)
            self.done.append(event.id)


class Fails:
    """A workflow whose one step fails in every second first attempt where its knob `size` is `bad`."""

    def __init__(self, store_url: str, *, always: bool = False) -> None:
        self.app = workflow_named(store_url)
        self.size = self.app.knob("size", low=1, high=100, default=10, integer=True)
        self.done: list[str] = []
        numbers = itertools.count()

        @self.app.step("t", concurrency=12, retry=Retry(attempts=1000, initial=0.001, maximum=0.01))
        async def work(event: Event, ctx: Context) -> None:
            await asyncio.sleep(0.001)
            if self.size.value == 11 and (always or (ctx.attempt == 1 and next(numbers) % 2)):
                raise ConnectionError("too big")
            self.done.append(event.id)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_experiment, "LOOK", 0.05)
    monkeypatch.setattr(split_subjects, "SECONDS", 0.5)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://split" if request.param == "memory" else f"sqlite:///{tmp_path}/split.db"


@pytest.fixture
async def optimizer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ActiveOptimizer]:
    async with optimizer_of(monkeypatch) as optimizer:
        optimizer.configure(**{**FAST, "knobs": None})
        yield optimizer
    assert SPLITS == {}


async def compared(optimizer: ActiveOptimizer, app: Workflow, load: Load | None = None, **options: Any) -> Outcome:
    """What an experiment by subject finds on a workflow under a load, all of which is processed."""
    async with app.running():
        await state_of(optimizer, workflow=app.name)
        async with load or ManyCustomers(app):
            return await optimizer.ab_testing.run_experiment(**{"unit": "subject", "timeout": SECONDS, **options})


@pytest.mark.parametrize("kind", [Pauses, InThreads], ids=["async", "threads"])
async def test_the_faster_variant_wins_and_each_subject_has_seen_one(
    kind: type[Pauses], url: str, optimizer: ActiveOptimizer
) -> None:
    flow = kind(url)
    load = ManyCustomers(flow.app)
    async with flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        running = asyncio.create_task(
            optimizer.ab_testing.run_experiment({}, {"cost": 5}, unit="subject", timeout=SECONDS, seed=1)
        )
        await until(lambda: SPLITS)
        async with load:
            found = await running
    assert found.winner == "b", found.reason
    assert found.effect is not None
    assert found.interval is not None
    assert -1 < found.interval[0] < found.effect < found.interval[1] < 0
    assert "b is better: its calls take" in found.reason
    assert "less time than a's (95% interval -" in found.reason
    assert found.sample_ratio is not None
    assert not found.sample_ratio.mismatch
    assert min(found.subjects.values()) > 5
    assert (found.variant_a["cost"], found.variant_b["cost"], found.windows) == (15, 5, 0)
    assert (flow.moved, flow.cost.value) == ([], 15)
    assert sorted(flow.done) == sorted(set(flow.done))
    assert set(load.published) <= set(flow.done)
    assert all(values in ({5}, {15}) for values in flow.values.values()), "each subject has seen one variant"
    assert list(flow.values.values()).count({5}) >= found.subjects["b"]
    assert list(flow.values.values()).count({15}) >= found.subjects["a"]


async def test_the_slower_variant_loses(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    found = await compared(optimizer, flow.app, variant_a={"cost": 3}, variant_b={"cost": 30}, seed=1)
    assert found.winner == "a", found.reason
    assert "b is worse: its calls take" in found.reason
    assert "more time than a's" in found.reason


async def test_identical_variants_have_no_winner(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    found = await compared(
        optimizer, flow.app, variant_a={"cost": 5}, variant_b={"cost": 5}, alpha=0.001, max_subjects=100
    )
    assert found.winner is None
    assert "inconclusive: no difference was shown in 100 subjects" in found.reason
    assert sum(found.subjects.values()) == 100
    assert found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]


async def test_a_difference_smaller_than_asked_for_is_no_win(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    found = await compared(optimizer, flow.app, variant_a={}, variant_b={"cost": 14}, minimum_effect=0.6, seed=1)
    assert found.winner is None
    assert "b is not better by the 60% asked for" in found.reason


async def test_fewer_failures_win_where_errors_are_measured(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Fails(url)
    load = ManyCustomers(flow.app)
    found = await compared(
        optimizer, flow.app, load, variant_a={"size": 11}, variant_b={"size": 10}, measure="errors", seed=1
    )
    assert found.winner == "b", found.reason
    assert found.effect is not None
    assert found.effect < 0
    assert "the share of its calls that fail is" in found.reason
    assert set(load.published) <= set(flow.done)


async def test_a_variant_that_fails_far_more_ends_at_once(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Fails(url, always=True)
    load = ManyCustomers(flow.app, 400)  # what fails is in the way of what comes
    found = await compared(optimizer, flow.app, load, variant_a={}, variant_b={"size": 11}, seed=1)
    assert found.winner is None
    assert "b ended at once: calls failed for" in found.reason
    assert set(load.published) <= set(flow.done), "what failed runs again where the knob stands"


async def test_where_nothing_works_for_more_subjects_of_one_variant_the_others_are_not_compared(
    url: str, optimizer: ActiveOptimizer
) -> None:
    optimizer.configure(guardrails=Guardrails(p99_factor=None, worst_loss=None, error_rate=None))
    flow = Fails(url, always=True)
    load = ManyCustomers(flow.app, 400)
    found = await compared(optimizer, flow.app, load, variant_a={}, variant_b={"size": 11}, seed=1)
    assert found.winner is None
    assert "nothing worked for" in found.reason
    assert set(load.published) <= set(flow.done)


async def test_a_variant_that_loses_events_has_no_winner_because_the_shares_are_wrong(
    url: str, optimizer: ActiveOptimizer
) -> None:
    app = workflow_named(url)
    kept = app.knob("kept", low=0, high=1, default=1)
    numbers = itertools.count()

    @app.step("t", concurrency=12)
    async def choose(event: Event, ctx: Context) -> None:
        if kept.value == 1 or hash(event.subject) % 4 == 0:
            await ctx.publish("chosen", data=next(numbers), subject=event.subject)

    @app.step("chosen", concurrency=12)
    async def store(event: Event) -> None:
        await asyncio.sleep(0.001 if event.data % 2 else 0.01)

    found = await compared(optimizer, app, variant_a={}, variant_b={"kept": 0}, step="store", alpha=0.001, seed=1)
    assert found.winner is None
    assert "the split is broken, or one variant loses subjects" in found.reason
    assert found.sample_ratio is not None
    assert found.sample_ratio.mismatch
    assert found.subjects["b"] < found.subjects["a"]


async def test_without_traffic_there_is_no_winner_and_the_reason_says_so(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    async with flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        found = await optimizer.ab_testing.run_experiment({}, {"cost": 5}, unit="subject", timeout=SECONDS)
    assert found.winner is None
    assert "inconclusive: there was no new subject for" in found.reason
    assert found.seconds < SECONDS


async def test_calls_that_do_not_end_leave_it_without_a_winner(
    optimizer: ActiveOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_experiment, "HANGS", 0.5)
    app = workflow_named("memory://split")
    app.knob("cost", low=1, high=64, default=15)
    over = asyncio.Event()

    @app.step("t", concurrency=4)
    async def work(event: Event) -> None:
        await over.wait()

    load = ManyCustomers(app)
    async with app.running():
        await state_of(optimizer, workflow=app.name)
        async with load:
            found = await optimizer.ab_testing.run_experiment({}, {"cost": 5}, unit="subject", timeout=SECONDS)
            over.set()
    assert found.winner is None
    assert "calls do not end" in found.reason


async def test_a_timeout_ends_it_without_a_winner(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    found = await compared(optimizer, flow.app, variant_a={}, variant_b={"cost": 15}, alpha=0.001, timeout=0.3)
    assert found.winner is None
    assert "the timeout of 0.3 s is over" in found.reason


async def test_one_that_is_cancelled_leaves_one_value_for_all(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    async with flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        async with ManyCustomers(flow.app):
            running = asyncio.create_task(
                optimizer.ab_testing.run_experiment({"cost": 6}, {"cost": 7}, unit="subject", alpha=0.001)
            )
            await until(lambda: {6} in flow.values.values() and {7} in flow.values.values())
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert SPLITS == {}
            assert flow.cost.value == 15
    assert flow.moved == []


async def test_a_shutdown_in_the_middle_ends_it(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    async with flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        async with ManyCustomers(flow.app):
            running = asyncio.create_task(
                optimizer.ab_testing.run_experiment({"cost": 6}, {"cost": 7}, unit="subject", alpha=0.001)
            )
            await until(lambda: {6} in flow.values.values())
    found = await asyncio.wait_for(running, SECONDS)
    assert found.winner is None
    assert "the workflow was shut down" in found.reason


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant_b": {"work.concurrency": 2}}, "'work.concurrency' says how steps are run"),
        ({"variant_b": {"calls": 2}}, "'calls' says how steps are run"),
        ({"variant_b": {"pool": 2}}, "knob pool: its setter"),
        ({"variant_b": {"speed": 2}}, "no knob 'speed'"),
        ({"step": "works"}, "no step 'works'; use step= with one of work, second"),
        ({"step": "many"}, "step 'many' takes batches"),
        ({"step": None}, "several steps: say whose calls count, use step= with one of work, second"),
        ({"unit": "event"}, "unit='event'"),
        ({"measure": "fun"}, "measure='fun'"),
        ({"alpha": 2}, "alpha=2"),
        ({"minimum_effect": 1}, "minimum_effect=1"),
        ({"max_subjects": 200_000}, "max_subjects=200000"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_is_split(
    wrong: dict[str, Any], said: str, optimizer: ActiveOptimizer
) -> None:
    app = workflow_named("memory://split")
    app.knob("cost", low=1, high=64, default=15)
    app.knob("pool", low=1, high=8, default=4, setter=lambda size: None)
    calls = app.knob("calls", low=1, high=8, default=4, integer=True)

    @app.step("t")
    async def work(event: Event) -> None: ...

    @app.step("t", concurrency=calls)
    async def second(event: Event) -> None: ...

    @app.batch_step("t")
    async def many(events: list[Event]) -> None: ...

    async with app.running():
        await state_of(optimizer, workflow=app.name)
        arguments = {"variant_a": {}, "variant_b": {"cost": 5}, "unit": "subject", "step": "work", **wrong}
        with pytest.raises(ConfigurationError, match=said):
            await optimizer.ab_testing.run_experiment(**arguments)
        assert SPLITS == {}


async def test_a_workflow_of_batches_cannot_be_split(optimizer: ActiveOptimizer) -> None:
    app = workflow_named("memory://split")
    app.knob("cost", low=1, high=64, default=15)

    @app.batch_step("t")
    async def many(events: list[Event]) -> None: ...

    async with app.running():
        await state_of(optimizer, workflow=app.name)
        with pytest.raises(ConfigurationError, match="batch steps only"):
            await optimizer.ab_testing.run_experiment({}, {"cost": 5}, unit="subject")


async def test_knobs_of_the_runtime_may_be_named_where_they_stand(url: str, optimizer: ActiveOptimizer) -> None:
    flow = Pauses(url)
    now = {name: knob.value for name, knob in {**flow.app.knobs, **flow.app.runtime_knobs}.items()}
    found = await compared(optimizer, flow.app, variant_a=now, variant_b={**now, "cost": 2}, seed=1)
    assert found.winner == "b", found.reason
