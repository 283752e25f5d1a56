"""What could be better, without moving anything: from what was learned, else from what a window shows by itself."""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec

from ag06.ml.campaign import MOST, Campaign
from ag06.ml.controls import Controls
from ag06.ml.tuner import Prediction
from ag06.ml.windows import Metrics, Window
from ag06.runtime.step import Step
from ag06.runtime.supervisor import FLEET_VARIABLE
from ag06.runtime.workflow import Workflow

BUSY = 0.8
"""The share of a step's calls that are under way at once, above which more of them may help."""
IDLE_CPU = 0.7
"""The share of the machine's cores below which there is room for more calls."""
GUESS = 0.6
"""How sure a rule is that was never tried here."""


class Optimization(msgspec.Struct, frozen=True):
    """What is suggested; nothing was moved.

    Attributes:
        changes: new values by knob; empty where nothing is known to be better.
        expected: what they should give: the score as a ratio, 0.1 is 10% better; `None` where no trial was made yet.
        confidence: how sure it is that they are better at all, 0 to 1.
        reason: why, in plain language.
    """

    changes: dict[str, Any]
    expected: float | None
    confidence: float
    reason: str


def suggest(workflow: Workflow, controls: Controls, window: Metrics, campaign: Campaign | None) -> Optimization:
    """Return what was learned to be better than what runs, else what Little's law says of the concurrency."""
    if campaign is not None and campaign.tuner.windows:
        found = _learned(controls, campaign)
        if found is not None:
            return found
    changes: dict[str, Any] = {}
    reasons = []
    for step in workflow.steps.values():
        if (told := _more_calls(step, controls, window)) is not None:
            name, value, why = told
            changes[name] = value
            reasons.append(why)
    if changes:
        return Optimization(changes, None, GUESS, f"{'; '.join(reasons)}. Nothing was tried out yet")
    return Optimization({}, None, 0.0, "nothing is known that would be better; trials would tell (mode `on`)")


def expected_of(found: Prediction) -> float:
    """Return an effect on a score, which is a logarithm, as a ratio: 0.1 is 10% better."""
    return math.expm1(min(found.effect, MOST))


def _learned(controls: Controls, campaign: Campaign) -> Optimization | None:
    """Return the way from what is known to be good to what was learned to be better, if no experiment refuted it."""
    best, incumbent = campaign.promising, campaign.incumbent
    if best is None:
        return None
    changes = {name: value for name, value in best.items() if name in controls.knobs and incumbent[name] != value}
    if not changes:
        return None
    windows = f"the best of {campaign.tuner.windows} windows"
    found = campaign.tuner.predict(best, beside=incumbent)
    if found is None:
        return Optimization(changes, None, 0.5, windows)
    expected = expected_of(found)
    return Optimization(changes, expected, found.confidence, f"{windows}, {expected:+.1%} expected")


def _more_calls(step: Step, controls: Controls, window: Metrics) -> tuple[str, int, str] | None:
    """Return a higher concurrency for a step that is busy while the machine is not.

    By Little's law (1961) as many calls are under way at once as begin a second, times the seconds of each. The window
    is of all workers on this machine, the knob is of each.
    """
    name = next((name for name, knob in controls.knobs.items() if knob is step.knobs.concurrency), None)
    figures = window.steps.get(step.group) if isinstance(window, Window) else None
    if name is None or figures is None or not figures.call_mean_ms or not window.seconds or step.is_batch:
        return None
    knob = controls.knobs[name]
    if knob.choices is not None:
        return None
    under_way = figures.processed / window.seconds * figures.call_mean_ms / 1000 / _workers()
    cores = os.cpu_count() or 1
    busy, idle = under_way >= BUSY * knob.value, window.cpu_percent <= 100 * IDLE_CPU * cores
    if not (busy and idle and knob.value < knob.high):
        return None
    value = round(min(2 * knob.value, knob.high))
    why = (
        f"step {step.name}: {under_way:.1f} of {knob.value} calls are under way at once, and the processor is "
        f"{window.cpu_percent / cores:.0f}% busy"
    )
    return name, value, why


def _workers() -> int:
    """Return how many workers run here, this one among them."""
    fleet = os.environ.get(FLEET_VARIABLE, "")
    return max(int(fleet), 1) if fleet.isdecimal() else 1
