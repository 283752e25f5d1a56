"""What could be better, without moving anything: from what was learned, else from what a window shows by itself."""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec

from ag06.ml.campaign import Campaign
from ag06.ml.controls import Controls
from ag06.ml.windows import Metrics, Window
from ag06.runtime.step import Step
from ag06.runtime.workflow import Workflow

BUSY = 0.8
"""The share of a step's calls that are under way at once, above which more of them may help."""
IDLE_CPU = 0.7
"""The share of the machine's cores below which there is room for more calls."""
GUESS = 0.6
"""How sure a rule is that was never tried here."""


class Optimization(msgspec.Struct, frozen=True):
    """What is suggested.

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


def _learned(controls: Controls, campaign: Campaign) -> Optimization | None:
    best, now = campaign.tuner.best, controls.now
    changes = {name: value for name, value in best.items() if name in now and now[name] != value}
    if not changes:
        return None
    found = campaign.tuner.predict(best, beside=campaign.incumbent)
    expected = None if found is None else math.expm1(found.effect)
    said = "" if expected is None else f", {expected:+.1%} expected"
    windows = f"the best of {campaign.tuner.windows} windows{said}"
    return Optimization(changes, expected, 0.5 if found is None else found.confidence, windows)


def _more_calls(step: Step, controls: Controls, window: Metrics) -> tuple[str, int, str] | None:
    """Return a higher concurrency for a step that is busy while the machine is not.

    By Little's law (1961) as many calls are under way at once as begin a second, times the seconds of each.
    """
    name = next((name for name, knob in controls.knobs.items() if knob is step.knobs.concurrency), None)
    figures = window.steps.get(step.group) if isinstance(window, Window) else None
    if name is None or figures is None or not figures.call_mean_ms or not window.seconds or step.is_batch:
        return None
    knob = controls.knobs[name]
    under_way = figures.processed / window.seconds * figures.call_mean_ms / 1000
    cores = os.cpu_count() or 1
    if under_way < BUSY * knob.value or window.cpu_percent > 100 * IDLE_CPU * cores or knob.value >= knob.high:
        return None
    value = round(min(2 * knob.value, knob.high))
    why = (
        f"step {step.name}: {under_way:.1f} of {knob.value} calls are under way at once, and the processor is "
        f"{window.cpu_percent / cores:.0f}% busy"
    )
    return name, value, why
