from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ag06 import Workflow
from ag06.ml import Knob, Score
from ag06.ml.board import Entry, Saved
from ag06.ml.budget import Budget
from ag06.ml.campaign import Campaign
from ag06.ml.controls import Controls
from ag06.ml.decisions import Decision
from ag06.ml.optimizer_status import SHOWN, of_loop, of_saved, waiting
from ag06.ml.pace import Pace
from ag06.ml.tuning_loop import TuningLoop
from made_windows import window

SCORE = Score.parse("maximize throughput, p99 <= 50ms")


def a_campaign() -> Campaign:
    """One in the middle of an experiment."""
    campaign = Campaign([Knob("block", low=1, high=64, default=8)], pace=Pace(explore=24), surrogate=False)
    while campaign.experiment is None or campaign.experiment.result.windows < 3:
        plan = campaign.next()
        campaign.record(plan, plan.config["block"] / 10)
    return campaign


def a_loop(**other: Any) -> TuningLoop:
    """What the status reads of a loop; there is none that runs."""
    app = Workflow("mixer", store="memory://")
    app.knob("block", low=1, high=64, default=8)
    live = SimpleNamespace(running=SimpleNamespace(workflow=app), controls=Controls.of(app, ["block"]))
    figures = {"state": "explore", "campaign": None, "baseline": None, "last": None, "suggestion": None, "history": []}
    campaign = other.get("campaign")
    figures["verdict"] = campaign and campaign.experiment and campaign.experiment.result
    return cast(
        "TuningLoop", SimpleNamespace(**(figures | {"live": live, "score": SCORE, "budget": Budget(), **other}))
    )


def plain(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status as it is after JSON as strict as it gets."""
    return cast("dict[str, Any]", json.loads(json.dumps(status, allow_nan=False)))


@pytest.mark.parametrize(
    ("wanted", "setting", "state", "mode"),
    [
        (None, "off", "off: AG06_TUNE", "off"),
        ("on", "off", "off: AG06_TUNE", "on"),
        ("on", "manual", "waiting for a workflow to run in this process", "on"),
        ("observe", "manual", "waiting for a workflow to run in this process", "observe"),
        (None, "on", "waiting for a workflow to run in this process", "off"),
        (None, "manual", "stopped", "off"),
        ("off", "manual", "stopped", "off"),
    ],
)
def test_where_no_workflow_runs_the_status_says_what_it_waits_for(
    wanted: Any, setting: str, state: str, mode: str
) -> None:
    status = plain(waiting(wanted, setting))
    assert (status["state"], status["mode"], status["workflow"]) == (state, mode, None)


def test_before_anything_was_measured_the_status_is_whole() -> None:
    status = plain(of_loop(a_loop()))
    assert (status["incumbent"], status["experiment"], status["last_score"]) == (None, None, None)
    assert (status["windows"], status["history"]) == (0, [])
    assert status["budget"] == {"explored": 0.0, "loss": 0.0}
    assert "commit_wait" in status["pinned"]
    assert "block" not in status["pinned"]


def test_an_experiment_under_way_is_told_with_both_variants_and_no_infinity() -> None:
    campaign = a_campaign()
    assert campaign.experiment is not None
    interval = campaign.experiment.result.interval
    assert interval is not None
    assert math.isinf(interval[1])
    status = plain(of_loop(a_loop(campaign=campaign)))
    experiment = status["experiment"]
    assert (experiment["variant_a"], experiment["variant_b"]) == (campaign.incumbent, campaign.candidate)
    assert (experiment["windows"], experiment["interval"][1]) == (3, None)
    assert (status["phase"], status["windows"]) == ("experiment", campaign.tuner.windows)
    assert status["incumbent"] == {"block": 8.0}


def test_the_last_window_is_explained_term_by_term() -> None:
    loop = a_loop(baseline=window(throughput=100.0), last=window([100.0] * 1000, throughput=110.0))
    status = plain(of_loop(loop))
    terms = status["last_score"]["terms"]
    assert terms.keys() == {"throughput", "p99 <= 50ms"}
    assert terms["throughput"]["contribution"] == pytest.approx(math.log(1.1))
    assert status["last_score"]["broken"]
    assert "ages" not in status["last"]
    assert status["last"]["throughput"] == 110.0


def entries(count: int) -> list[Entry]:
    decision = Decision(kind="rejected", config={"block": 9.0}, reason="b is worse", interval=(-0.2, None))
    return [Entry(float(number), decision=decision) for number in range(count)]


def test_the_newest_rows_of_the_history_are_shown() -> None:
    for status in (of_loop(a_loop(history=entries(50))), of_saved(saved(history=entries(50)))):
        rows = plain(status)["history"]
        assert [row["at"] for row in rows] == [float(number) for number in range(50 - SHOWN, 50)]
        assert rows[-1]["decision"]["reason"] == "b is worse"


def saved(**other: Any) -> Saved:
    return Saved(
        **({"at": 5.0, "leader": "one", "mode": "on", "state": "rest", "campaign": {}, "score": "minimize p99"} | other)
    )


def test_what_a_leader_saved_is_told_without_bringing_to_life_what_it_learned() -> None:
    status = plain(of_saved(saved(campaign={"version": "of another release"}, told={"phase": "rest", "windows": 77})))
    assert (status["state"], status["score"], status["saved_at"]) == ("rest", "minimize p99", 5.0)
    assert (status["phase"], status["windows"]) == ("rest", 77)
    assert status["incumbent"] is None
