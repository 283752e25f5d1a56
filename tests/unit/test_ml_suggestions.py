from __future__ import annotations

import math
from typing import Any

import pytest

from ag06 import Event, Workflow
from ag06.ml import Knob
from ag06.ml.campaign import Campaign
from ag06.ml.controls import Controls
from ag06.ml.pace import Pace
from ag06.ml.suggestions import Optimization, suggest
from ag06.ml.windows import Metrics, StepFigures, Window
from made_windows import window

PACE = Pace(explore=24, experiment=30, watch=3, rest=8)


def flow(**how: Any) -> Workflow:
    app = Workflow("fetcher", store="memory://")
    app.knob("depth", low=1, high=64, default=8, scale="log", integer=True)

    @app.step("page", **how)
    async def get(event: Event[Any]) -> None: ...

    return app


def busy(processed: int, call_ms: float | None, cpu: float = 5.0, seconds: float = 10.0) -> Window:
    """A window in which the step took so many events, each for so long."""
    figures = StepFigures(processed, 0, 10.0, 10.0, call_ms, call_ms, 0)
    return window(cpu_percent=cpu, seconds=seconds, steps={"fetcher.get": figures})


def of(app: Workflow, seen: Metrics, campaign: Campaign | None = None) -> Optimization:
    return suggest(app, Controls.of(app), seen, campaign)


def test_a_step_whose_calls_all_wait_while_the_machine_is_idle_should_have_more_of_them() -> None:
    # 100 a second, 95 ms each: 9.5 of 10 calls are under way.
    found = of(flow(), busy(1_000, 95.0))
    assert found.changes == {"get.concurrency": 20}
    assert found.expected is None
    assert 0.5 < found.confidence < 1
    assert found.reason.startswith("step get: 9.5 of 10 calls are under way at once")
    assert "Nothing was tried out yet" in found.reason


@pytest.mark.parametrize(
    "seen",
    [
        busy(1_000, 50.0),
        busy(1_000, 95.0, cpu=100_000.0),
        busy(1_000, None),
        busy(1_000, math.nan),
        busy(1_000, 95.0, cpu=math.nan),
        busy(1_000, 95.0, seconds=0.0),
        busy(0, 0.0),
        window(),
    ],
    ids=["calls to spare", "busy machine", "no call", "NaN", "NaN of the processor", "no time", "nothing", "no step"],
)
def test_else_nothing_is_suggested_and_the_reason_says_so(seen: Metrics) -> None:
    found = of(flow(), seen)
    assert (found.changes, found.expected, found.confidence) == ({}, None, 0.0)
    assert "nothing is known" in found.reason


def test_plain_metrics_without_figures_of_steps_suggest_nothing() -> None:
    names = Metrics.__struct_fields__
    seen = Metrics(**{name: getattr(busy(1_000, 95.0), name) for name in names})
    assert of(flow(), seen).changes == {}


def test_a_concurrency_that_the_user_fixed_or_that_is_at_its_end_is_left() -> None:
    assert of(flow(concurrency=10), busy(1_000, 95.0)).changes == {}
    app = flow()
    app.runtime_knobs["get.concurrency"].set(256)
    assert of(app, busy(100_000, 95.0)).changes == {}
    app.runtime_knobs["get.concurrency"].set(200)
    assert of(app, busy(100_000, 95.0)).changes == {"get.concurrency": 256}


def test_a_concurrency_with_choices_is_not_doubled() -> None:
    app = Workflow("fetcher", store="memory://")
    calls = app.knob("calls", choices=(1, 5, 10, 30), default=1)

    @app.step("page", concurrency=calls)
    async def get(event: Event[Any]) -> None: ...

    assert of(app, busy(100, 95.0)).changes == {}


def test_the_calls_of_several_workers_are_not_taken_for_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AG06_FLEET", "2")
    assert of(flow(), busy(1_000, 95.0)).changes == {}
    assert of(flow(), busy(2_000, 95.0)).changes == {"get.concurrency": 20}


@pytest.mark.parametrize("surrogate", [True, False])
def test_what_was_learned_is_suggested_with_what_it_should_give_until_an_experiment_rejects_it(surrogate: bool) -> None:
    app = flow()
    controls = Controls.of(app, ["depth"])
    campaign = Campaign(list(controls.knobs.values()), pace=PACE, surrogate=surrogate)
    while campaign.phase == "explore":
        plan = campaign.next()
        campaign.record(plan, 0.3 * math.log(plan.config["depth"] / 8))
    found = suggest(app, controls, busy(1_000, 95.0), campaign)
    assert found.changes == campaign.candidate
    assert found.changes["depth"] > 8
    assert found.expected is not None
    assert found.expected == pytest.approx((found.changes["depth"] / 8) ** 0.3 - 1, rel=0.5)
    assert found.confidence > 0.8
    assert f"the best of {campaign.tuner.windows} windows" in found.reason
    while campaign.next().purpose != "b":
        campaign.record(campaign.next(), 0.0)
    campaign.record(campaign.next(), 0.0, "a guardrail")
    rejected, later = found.changes, suggest(app, controls, window(), campaign)
    assert later.changes != rejected


def test_knobs_that_the_campaign_has_and_the_process_has_not_are_left_out() -> None:
    knob = Knob("gone", low=1, high=64, default=8)
    campaign = Campaign([knob], pace=PACE, surrogate=False)
    while campaign.phase == "explore":
        plan = campaign.next()
        campaign.record(plan, plan.config["gone"] / 10)
    assert campaign.promising
    assert of(flow(), window(), campaign).changes == {}
