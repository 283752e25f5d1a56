"""What the optimizer of a running workflow promises: what is better is kept once it is proved, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Event
from ag06.ml import Guardrails, Pace
from ag06.ml.active_optimizer import ActiveOptimizer
from ag06.ml.tuning import Tuning
from ag06.monitoring import observability
from ag06.persistence.log import LogOptions
from ag06.persistence.stores import open_log
from flows import SECONDS, until
from tuning_load import FAST, Fragile, Load, Slow, decided, decisions, optimizer_of, state_of, workflow_named


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuned.db"


def counted(kind: str) -> float:
    value = observability.metrics.snapshot().get(f'ag06_workflow_optimizer_decisions_total{{kind="{kind}"}}', 0.0)
    assert isinstance(value, float)
    return value


def experiment_runs() -> bool:
    return observability.metrics.snapshot().get('ag06_workflow_experiment_state{experiment="optimizer"}') == 1


@pytest.mark.parametrize("adapter", ["sqlite", "redis"])
async def test_a_better_configuration_is_kept_once_it_is_proved_and_no_event_is_lost(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(store_url)
    load = Load(flow.app)
    before = {kind: counted(kind) for kind in ("trial", "promoted")}
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        async with load:
            await optimizer.start(flow.app, **FAST)
            await until(experiment_runs, 2 * SECONDS)
            promoted = await decided(flow.app, "promoted")
            await decided(flow.app, "kept")
            await optimizer.stop()
            assert not experiment_runs()
            assert flow.cost.value == promoted["config"]["cost"] < 16
            status = await optimizer.get_optimization_status()
        told = await decisions(flow.app)
    load.assert_each_was_processed_once(flow.seen)

    kinds = [decision["kind"] for decision in told]
    assert kinds[0] == "started"
    assert kinds.index("trial") < kinds.index("experiment") < kinds.index("promoted") < kinds.index("kept")
    assert kinds[-1] == "stopped"
    assert all(decision["reason"] and decision["workflow"] == flow.app.name for decision in told)
    assert [decision["at"] for decision in told] == sorted(decision["at"] for decision in told)
    assert promoted["before"] == {"cost": 32}
    assert promoted["effect"] > 0.3
    assert promoted["interval"][0] > 0.019
    assert "b is better by" in promoted["reason"]
    json.dumps(status, allow_nan=False)
    assert status["incumbent"] == promoted["config"]
    assert status["previous"] == {"cost": 32}
    assert counted("promoted") - before["promoted"] == kinds.count("promoted")
    assert counted("trial") - before["trial"] == kinds.count("trial")


async def test_what_was_learned_goes_on_after_a_restart_in_the_middle_of_an_experiment(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = {**FAST, "pace": Pace(explore=12, experiment=1000, minimum_effect=1e6, rest=2)}
    one = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, one.app.running(), Load(one.app):
        await optimizer.start(one.app, **endless)
        await until(experiment_runs, 2 * SECONDS)
        before = await state_of(optimizer, phase="experiment")
    assert one.cost.value == 32, "what was tried runs no more"

    other = Slow(sqlite_url, one.app.name)
    async with optimizer_of(monkeypatch) as optimizer, other.app.running(), Load(other.app):
        await optimizer.start(other.app, **endless)
        await decided(other.app, "started", 2)
        after = await state_of(optimizer, phase="experiment", leads_here=True)
        starts = await decisions(other.app, "started")
    assert after["windows"] >= before["windows"] >= 12
    assert after["experiment"]["variant_b"] == before["experiment"]["variant_b"]
    assert after["experiment"]["windows"] >= before["experiment"]["windows"]
    assert "goes on where it was" in starts[1]["reason"]
    assert "begins" in starts[0]["reason"]


async def test_what_was_proved_runs_from_the_start_and_a_rollback_takes_it_back(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ag06.ml")
    told_of = "begins with what was proved before: cost 32 -> "
    one = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, one.app.running(), Load(one.app):
        await optimizer.start(one.app, **FAST)
        proved = (await decided(one.app, "promoted"))["config"]["cost"]
    assert told_of not in caplog.text

    other = Slow(sqlite_url, one.app.name)
    async with optimizer_of(monkeypatch) as optimizer, other.app.running():
        await until(lambda: other.cost.value == proved)
        assert f"{told_of}{proved}" in caplog.text
        assert (await optimizer.get_optimization_status())["state"] == "stopped"
        assert other.moved == [proved]
        await optimizer.rollback()
        told = await decided(other.app, "rolled_back")
        await until(lambda: other.cost.value == 32)
    assert told["config"] == {"cost": 32}

    last = Slow(sqlite_url, one.app.name)
    async with optimizer_of(monkeypatch) as optimizer, last.app.running():
        await state_of(optimizer, problem=None, mode="off")
        await optimizer.stop()
        await asyncio.sleep(0)
        assert last.moved == []


FRAGILE = {**FAST, "knobs": ("size",), "guardrails": Guardrails(p99_factor=None)}


async def test_a_trial_that_breaks_a_guardrail_ends_at_once_and_loses_no_event(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Fragile(sqlite_url)
    load = Load(flow.app)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        async with load:
            await optimizer.start(flow.app, **FRAGILE)
            breach = await decided(flow.app, "breach", 2)
            await optimizer.stop()
            assert flow.size.value == 10
        told = await decisions(flow.app)
    assert breach["before"] == {"size": 10}
    assert breach["config"] != {"size": 10}
    assert "attempts failed" in breach["reason"] or "worse than" in breach["reason"] or "settled" in breach["reason"]
    assert not {"promoted", "kept"} & {decision["kind"] for decision in told}
    assert flow.told[1::2] == [10] * len(flow.told[1::2]), "after each trial what is known to be good ran"
    assert len(flow.processed) == len(set(flow.processed))
    assert set(load.published) <= set(flow.processed)


async def test_a_window_that_breaks_a_guardrail_is_not_waited_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Fragile(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await state_of(optimizer, workflow=flow.app.name)
        (live,) = [agent.live for agent in optimizer._agents]
        good = await live.collector.open_window()
        await until(lambda: len(flow.processed) > 200)
        reference = await good.close()
        live.retune(Tuning(window=5.0, settle=0.0))
        trials = live.trials(Guardrails())
        trial = await asyncio.wait_for(
            trials.run({"size": 11}, fallback={"size": 10}, reference=reference, guarded=True), 3 * SECONDS
        )
        assert flow.size.value == 10
    assert [breach.rail for breach in trial.breaches] == ["error_rate"]
    assert trial.window is not None
    assert trial.window.failed > 0
    assert trial.window.seconds < 5


async def test_a_setter_that_raises_leaves_the_configuration_as_it_is_and_the_decision_says_so(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Fragile(sqlite_url, setter_raises=True)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await optimizer.start(flow.app, **FRAGILE)
        breach = await decided(flow.app, "breach", 2)
    assert "could not be set" in breach["reason"]
    assert "the machine does not like it" in breach["reason"]
    assert flow.told == []


async def test_observing_moves_nothing_and_suggests(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = workflow_named(sqlite_url)
    moved: list[str] = []

    @app.step("t", name="call")
    async def call(event: Event) -> None:
        await asyncio.sleep(0.02)

    for name, knob in app.runtime_knobs.items():
        knob.watch(lambda name=name: moved.append(name))
    async with optimizer_of(monkeypatch, "observe") as optimizer:
        optimizer.configure(window=0.3, minimum_events=5)
        async with app.running(), Load(app, 40):
            suggested = await decided(app, "suggested")
            status = await state_of(optimizer, state="observe", mode="observe", leads_here=True)
    assert suggested["config"]["call.concurrency"] > 10
    assert "calls are under way at once" in suggested["reason"]
    assert status["suggestion"]["changes"].keys() == {"call.concurrency"}
    assert moved == []
    log = open_log(sqlite_url, LogOptions())
    await log.open()
    assert await log.read_note(f"tuning.{app.name}.values") is None
    await log.close()


async def test_off_is_off(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ag06.ml")
    one = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, one.app.running(), Load(one.app):
        await optimizer.start(one.app, **FAST)
        await decided(one.app, "promoted")

    other = Slow(sqlite_url, one.app.name)
    async with optimizer_of(monkeypatch, "off") as optimizer, other.app.running(), Load(other.app):
        await optimizer.start(other.app, **FAST)
        await until(lambda: len(other.seen) > 20)
        shown = (await other.app.status())["experiments"]["optimizer"]
        status = await optimizer.get_optimization_status()
        found = await optimizer.ab_testing.run_experiment({}, {"cost": 1})
    assert "AG06_TUNE is off" in caplog.text
    assert f"workflow {other.app.name}: the optimizer is off, AG06_TUNE says so: the defaults run" in caplog.text
    assert status["state"] == shown["state"] == "off: AG06_TUNE"
    assert (shown["workflow"], shown["mode"], shown["leads_here"]) == (other.app.name, "off", False)
    assert (found.winner, found.reason) == (None, "inconclusive: AG06_TUNE is off, nothing was measured")
    assert other.moved == [], "what was proved before is not used either"


async def test_a_setting_that_there_is_not_is_said_and_the_workflow_runs(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch, "banana"), flow.app.running():
        await flow.app.publish("t")
        await flow.app.drain(SECONDS)
    assert "runs without the optimizer" in caplog.text
    assert "'banana'" in caplog.text
    assert len(flow.seen) == 1


async def test_it_stops_starts_again_and_takes_other_options_at_any_time(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(sqlite_url)
    with_more = flow.app.knob("other", low=1, high=9, default=3)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await state_of(optimizer, workflow=flow.app.name)
        await optimizer.start(flow.app, **FAST)
        await decided(flow.app, "trial", 2)
        await optimizer.stop()
        stopped = await optimizer.get_optimization_status()
        assert (stopped["state"], stopped["leads_here"], flow.cost.value) == ("stopped", False, 32)
        await optimizer.start(flow.app)
        again = await state_of(optimizer, leads_here=True, phase="explore")
        assert again["windows"] >= stopped["windows"] >= 2
        await optimizer.start(flow.app, knobs=("other",))
        await decided(flow.app, "started", 3)
        assert (await state_of(optimizer, leads_here=True))["knobs"] == {"other": with_more.value}
        assert flow.cost.value == 32
        await optimizer.start(flow.app, mode="observe")
        await state_of(optimizer, mode="observe", leads_here=True, state="observe")
        assert with_more.value == 3, "what was tried runs no more"
        told = await decisions(flow.app, "started")
    assert "goes on where it was" in told[1]["reason"]
    assert "it may move other;" in told[2]["reason"]
    assert "begins anew, since other knobs are declared now" in told[2]["reason"]


async def test_two_workflows_in_one_process_are_tuned_by_themselves(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Slow(sqlite_url), Slow(f"{sqlite_url}.other")
    async with optimizer_of(monkeypatch) as optimizer:
        optimizer.configure(**FAST)
        async with one.app.running(), other.app.running(), Load(one.app), Load(other.app):
            await optimizer.start(one.app)
            trial = await decided(one.app, "trial", 2)
            status = await optimizer.get_optimization_status()
    assert trial["workflow"] == one.app.name
    assert status["workflows"].keys() == {one.app.name, other.app.name}
    assert [each["leads_here"] for each in status["workflows"].values()] == [True, False]
    assert one.moved
    assert other.moved == []


async def test_a_workflow_of_which_nothing_may_move_is_only_looked_at(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await optimizer.start(flow.app, **{**FAST, "knobs": ()})
        status = await state_of(optimizer, state="there is no knob to move")
    assert (status["knobs"], status["incumbent"]) == ({}, None)
    assert flow.moved == []


async def test_without_traffic_nothing_is_tried(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        await optimizer.start(flow.app, **FAST)
        await state_of(optimizer, state="waiting for traffic", leads_here=True)
        assert flow.moved == []
        async with Load(flow.app):
            await decided(flow.app, "trial", 2)
        await state_of(optimizer, state="waiting for traffic")
        await until(lambda: flow.cost.value == 32)


async def test_options_that_make_no_sense_are_refused_and_change_nothing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        for options, said in (
            ({"knobs": ("nothing",)}, "has no knob 'nothing'"),
            ({"pinned": ("nothing",)}, "has no knob 'nothing'"),
            ({"window": 0}, "window=0"),
            ({"lease": 0.1}, "lease=0.1"),
            ({"score": "maximise fun"}, "fun"),
            ({"colour": "blue"}, "there is no 'colour'"),
        ):
            with pytest.raises(ConfigurationError, match=said):
                await optimizer.start(flow.app, **options)
        with pytest.raises(ConfigurationError, match="mode='fast'"):
            await optimizer.start(flow.app, mode="fast")  # type: ignore[arg-type]
        assert (await optimizer.get_optimization_status())["mode"] == "off"


async def test_a_knob_that_there_is_not_is_told_to_all_who_ask_a_workflow_that_starts_later(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(sqlite_url)
    said = f"workflow '{flow.app.name}' has no knob 'nothing'; there are cost, "
    async with optimizer_of(monkeypatch) as optimizer:
        await optimizer.start(knobs=("nothing",))
        async with flow.app.running():
            await until(lambda: optimizer._agents and optimizer._agents[0].problem)
            status = await optimizer.get_optimization_status()
            assert said in status["problem"]
            assert not status["leads_here"]
            with pytest.raises(ConfigurationError, match=said):
                await optimizer.start()
            with pytest.raises(ConfigurationError, match=said):
                await optimizer.ab_testing.run_experiment({}, {"cost": 1}, timeout=SECONDS)
            assert flow.moved == []
            await optimizer.start(flow.app, **FAST)
            await state_of(optimizer, problem=None, leads_here=True)


def test_a_knob_that_there_is_not_is_refused_once_the_workflow_has_declared_what_there_is() -> None:
    optimizer = ActiveOptimizer()
    app = workflow_named("memory://")
    optimizer.configure(app, knobs=("cost",))  # it may be declared later
    app.knob("cost", low=1, high=64, default=32)
    for options in ({"knobs": ("cots",)}, {"pinned": ("cots",)}):
        with pytest.raises(ConfigurationError, match=f"workflow '{app.name}' has no knob 'cots'; there are cost, "):
            optimizer.configure(app, **options)
    optimizer.configure(app, pinned=("commit_wait",))
    assert optimizer._tunings[app].knobs == ("cost",)


async def test_what_was_stopped_in_a_process_stays_so_there_whatever_the_setting_says(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch, "on") as optimizer, flow.app.running():
        await state_of(optimizer, leads_here=True)
        await optimizer.stop()
        await state_of(optimizer, leads_here=False, mode="off")
        await optimizer.start()
        await state_of(optimizer, leads_here=True, mode="on")
