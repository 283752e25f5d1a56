"""Where the optimizer stands, as plain JSON: for `get_optimization_status`, `/status` and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ag06.ml.board import Mode, Saved
from ag06.ml.campaign import Campaign
from ag06.ml.decisions import bounded
from ag06.ml.score import Score
from ag06.ml.windows import Window

if TYPE_CHECKING:
    from ag06.ml.agent import Agent
    from ag06.ml.tuning_loop import TuningLoop

SHOWN = 20
"""So many last rows of the history are shown."""


def waiting(wanted: Mode | None, setting: str) -> dict[str, Any]:
    """Return the status of a process in which no workflow runs."""
    if setting == "off":
        state = "off: AG06_TUNE"
    else:
        state = "stopped" if wanted is None else "waiting for a workflow to run in this process"
    return {"state": state, "mode": wanted or "off", "setting": setting, "workflow": None, "workflows": {}}


async def status_of(agent: Agent) -> dict[str, Any]:
    """Return the status of the workflow beside which an agent runs, or what a leader elsewhere saved of it."""
    workflow = agent.running.workflow
    mode = await agent.mode()
    heading = {
        "workflow": workflow.name,
        "mode": mode or "off",
        "leader": agent.leader,
        "leads_here": agent.loop is not None,
        "knobs": {name: knob.value for name, knob in agent.live.controls.knobs.items()},
        "pinned": sorted({*workflow.knobs, *workflow.runtime_knobs} - set(agent.live.controls.knobs)),
    }
    if agent.loop is not None:
        return {**heading, **of_loop(agent.loop)}
    saved = await agent.board.saved()
    if saved is None:
        return {**heading, "state": "stopped", "score": str(agent.live.tuning.goal), "history": []}
    return {**heading, **of_saved(saved), "state": saved.state if agent.leader else "stopped"}


def of_loop(loop: TuningLoop) -> dict[str, Any]:
    """Return what a loop in this process knows."""
    return _told(
        state=loop.state,
        score=loop.score,
        campaign=loop.campaign,
        baseline=loop.baseline,
        last=loop.last,
        budget={"explored": loop.budget.explored, "loss": loop.budget.loss},
        history=[msgspec.to_builtins(entry) for entry in list(loop.history)[-SHOWN:]],
        suggestion=loop.suggestion,
    )


def of_saved(saved: Saved) -> dict[str, Any]:
    """Return what a leader saved."""
    total = saved.budget.get("total", 0.0)
    return {
        **_told(
            state=saved.state,
            score=Score.parse(saved.score),
            campaign=Campaign.restore(saved.campaign) if saved.campaign else None,
            baseline=saved.baseline,
            last=None,
            budget={
                "explored": saved.budget.get("explored", 0.0) / total if total else 0.0,
                "loss": saved.budget.get("lost", 0.0) / total if total else 0.0,
            },
            history=[msgspec.to_builtins(entry) for entry in saved.history[-SHOWN:]],
            suggestion=saved.suggestion,
        ),
        "saved_at": saved.at,
    }


def _told(
    *,
    state: str,
    score: Score,
    campaign: Campaign | None,
    baseline: Window | None,
    last: Window | None,
    budget: dict[str, float],
    history: list[Any],
    suggestion: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "state": state,
        "score": str(score),
        "incumbent": None if campaign is None else campaign.incumbent,
        "previous": None if campaign is None else campaign.previous,
        "phase": None if campaign is None else campaign.phase,
        "windows": 0 if campaign is None else campaign.tuner.windows,
        "experiment": _experiment(campaign),
        "baseline": _figures(baseline),
        "last": _figures(last),
        "last_score": _explained(score, last, baseline),
        "budget": budget,
        "suggestion": suggestion,
        "history": history,
    }


def _experiment(campaign: Campaign | None) -> dict[str, Any] | None:
    if campaign is None or campaign.experiment is None:
        return None
    found = campaign.experiment.result
    return {
        "variant_a": campaign.incumbent,
        "variant_b": campaign.candidate,
        "windows": found.windows,
        "effect": found.effect,
        "interval": bounded(found.interval),
        "reason": found.reason,
    }


def _figures(window: Window | None) -> dict[str, Any] | None:
    if window is None:
        return None
    left_out = ("ages", "steps")
    return {name: value for name, value in msgspec.to_builtins(window).items() if name not in left_out}


def _explained(score: Score, last: Window | None, baseline: Window | None) -> dict[str, Any] | None:
    """Return what the last window was worth, and what each term added to it."""
    if last is None or baseline is None:
        return None
    found = score.of(last, baseline)
    return {
        "value": found.value,
        "terms": {name: msgspec.to_builtins(term) for name, term in found.terms.items()},
        "broken": list(found.broken),
        "reason": found.reason,
    }
