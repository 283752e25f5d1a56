"""Where the optimizer stands, as plain JSON: for `get_optimization_status`, `/status` and the command line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.errors import AG06Error
from ag06.ml.board import Mode, Saved
from ag06.ml.campaign import Campaign
from ag06.ml.score import Score
from ag06.ml.verdict import Verdict
from ag06.ml.windows import Window

if TYPE_CHECKING:
    from ag06.ml.agent import Agent
    from ag06.ml.live import Live
    from ag06.ml.tuning_loop import TuningLoop

SHOWN = 20
"""So many last rows of the history are shown."""


def waiting(wanted: Mode | None, setting: str) -> dict[str, Any]:
    """Return the status of a process in which no workflow runs."""
    if setting == "off":
        state = "off: AG06_TUNE"
    elif wanted in ("on", "observe") or setting in ("on", "observe"):
        state = "waiting for a workflow to run in this process"
    else:
        state = "stopped"
    return {"state": state, "mode": wanted or "off", "setting": setting, "workflow": None, "workflows": {}}


async def status_of(agent: Agent) -> dict[str, Any]:
    """Return the status of the workflow beside which an agent runs, or what a leader elsewhere saved of it."""
    if agent.loop is not None:
        return {**heading(agent), **of_loop(agent.loop)}
    try:
        saved = await agent.saved()
    except (AG06Error, TimeoutError) as error:
        return {**heading(agent), **_NOTHING, "state": f"unknown: {error or 'the store does not answer'}"}
    if saved is None:
        return {**heading(agent), **_NOTHING}
    return {**heading(agent), **of_saved(saved), "state": saved.state if agent.leader else "stopped"}


def heading(agent: Agent) -> dict[str, Any]:
    """Return what an agent knows by itself; `problem` is what keeps it from leading, in words."""
    knobs = agent.live.controls.knobs
    return {
        "workflow": agent.running.workflow.name,
        "mode": (agent.mode if agent.loop is None else agent.loop.mode) or "off",
        "problem": agent.problem,
        "leader": agent.leader,
        "leads_here": agent.loop is not None,
        "knobs": {name: knob.value for name, knob in knobs.items()},
        "pinned": pinned(agent.live),
        "state": "stopped",
        "score": str(agent.live.tuning.goal),
    }


def pinned(live: Live) -> list[str]:
    """Return the names of what stays where it is: pinned, or fixed in the code."""
    workflow = live.running.workflow
    return sorted({*workflow.knobs, *workflow.runtime_knobs, *workflow.fixed_knobs} - set(live.controls.knobs))


def of_loop(loop: TuningLoop) -> dict[str, Any]:
    """Return what a loop in this process knows."""
    history = [msgspec.to_builtins(entry) for entry in list(loop.history)[-SHOWN:]]
    return {**told_by(loop), "history": history}


def told_by(loop: TuningLoop) -> dict[str, Any]:
    """Return the same without the history."""
    campaign = loop.campaign
    return {
        "state": loop.state,
        "pinned": pinned(loop.live),
        "score": str(loop.score),
        "incumbent": None if campaign is None else campaign.incumbent,
        "previous": None if campaign is None else campaign.previous,
        "phase": None if campaign is None else campaign.phase,
        "windows": 0 if campaign is None else campaign.tuner.windows,
        "experiment": _experiment(campaign, loop.verdict),
        "baseline": _figures(loop.baseline),
        "last": _figures(loop.last),
        "last_score": _explained(loop.score, loop.last, loop.baseline),
        "budget": {"explored": loop.budget.explored, "loss": loop.budget.loss},
        "suggestion": loop.suggestion,
    }


_NOTHING: dict[str, Any] = {
    "incumbent": None,
    "previous": None,
    "phase": None,
    "windows": 0,
    "experiment": None,
    "baseline": None,
    "last": None,
    "last_score": None,
    "budget": {"explored": 0.0, "loss": 0.0},
    "suggestion": None,
    "history": [],
}


def of_saved(saved: Saved) -> dict[str, Any]:
    """Return what a leader saved. What it learned is not brought to life for that: only a leader pays for it."""
    return {
        **_NOTHING,
        **saved.told,
        "state": saved.state,
        "score": saved.score,
        "history": [msgspec.to_builtins(entry) for entry in saved.history[-SHOWN:]],
        "saved_at": saved.at,
    }


def _experiment(campaign: Campaign | None, found: Verdict | None) -> dict[str, Any] | None:
    """Return how the experiment stands: as the loop found it, since a thread of its own works on it."""
    if campaign is None or found is None:
        return None
    interval = None if found.interval is None else [end if math.isfinite(end) else None for end in found.interval]
    return {
        "variant_a": campaign.incumbent,
        "variant_b": campaign.candidate,
        "windows": found.windows,
        "effect": found.effect,
        "interval": interval,
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
