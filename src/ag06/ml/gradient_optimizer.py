"""`optimize`: from the figures of what runs and those that are wanted to the changes that lead there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from random import Random
from typing import Any, TypeAlias

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.campaign import MOST
from ag06.ml.controls import Controls
from ag06.ml.measures import MEASURES, measure_named
from ag06.ml.score import Score
from ag06.ml.space import Config, Space
from ag06.ml.spsa import REACH
from ag06.ml.suggestions import Optimization, expected_of, suggest
from ag06.ml.tuner import Tuner
from ag06.ml.windows import Metrics
from ag06.runtime.workflow import Workflow

Target: TypeAlias = Metrics | Mapping[str, Any] | Score | str | None
_FIRST = 2
"""Before so many windows there is nothing to compare, and the tuner asks for the defaults."""
_REACHES = (REACH, 3 * REACH, 1.0)
"""How far a first step goes, as a share of a knob's range: the first that leads to another value."""
_TO_THE_SIDE = "a step to the side, to see which way is up"


class GradientOptimizer:
    """Goes uphill with momentum: in a surrogate's gradient, or by simultaneous perturbation (`ag06.ml.tuner`).

    Each call of `optimize` learns from the figures that it is given, for the values that the knobs have then. Called
    again and again, with its changes made in between, it is the whole method by hand; `ml_optimizer.start` does that,
    with guardrails and an experiment before anything is kept.
    """

    def __init__(self, workflow: Workflow | None = None, controls: Controls | None = None, seed: int = 0) -> None:
        """For the knobs of a workflow, or for none."""
        self._workflow = workflow
        self._controls = controls or Controls({})
        self._seed = seed
        self._learning = threading.Lock()
        self._climb: _Climb | None = None

    async def optimize(self, current_metrics: Metrics, target_metrics: Target = None) -> Optimization:
        """Return what to change.

        Args:
            current_metrics: what `collect_metrics` told of the configuration that runs.
            target_metrics: what is wanted: figures by name, such as `{"throughput": 2000, "p99": 20}`, the same as
                `Metrics`, or a score in words; `None`: more throughput and a lower p99. Another target than the last
                time begins anew.

        Where the figures say nothing (no traffic, NaN), it changes nothing and says why. Raises `ConfigurationError`
        for what are no figures, and a target that there is not.
        """
        if not isinstance(current_metrics, Metrics):
            raise ConfigurationError(
                f"optimize: current_metrics={current_metrics!r:.80}; give what collect_metrics() returned"
            )
        score = score_of(current_metrics, target_metrics)
        if not self._controls.knobs or self._workflow is None:
            return Optimization({}, None, 0.0, "there is no knob to move: no workflow with one runs in this process")
        begun = _Climb(_kept(target_metrics), score, current_metrics)
        return await asyncio.to_thread(self._take, self._workflow, current_metrics, begun)

    def _take(self, workflow: Workflow, metrics: Metrics, begun: _Climb) -> Optimization:
        """Learn from a window, if it says anything; `begun` is the climb that would begin with it."""
        with self._learning:
            climb = self._climb if self._climb is not None and self._climb.target == begun.target else begun
            found = climb.score.of(metrics, climb.baseline)
            if found.value is None:
                return Optimization({}, None, 0.0, f"inconclusive: {found.reason}")
            if climb.tuner is None:
                climb.tuner = Tuner(list(self._controls.knobs.values()), self._seed, scale="difference")
            self._climb = climb
            return self._step(workflow, metrics, climb.tuner, min(max(found.value, -MOST), MOST))

    def _step(self, workflow: Workflow, metrics: Metrics, tuner: Tuner, score: float) -> Optimization:
        """Return the next step uphill."""
        now = self._controls.now
        tuner.tell(now, score)
        if tuner.windows < _FIRST:
            hint = suggest(workflow, self._controls, metrics, None)
            return hint if hint.changes else Optimization(self._aside(now), None, 0.5, _TO_THE_SIDE)
        config = tuner.ask()
        changes = {name: value for name, value in config.items() if now[name] != value}
        if not changes:
            return Optimization({}, None, 0.0, f"nothing better is known after {tuner.windows} windows")
        found = tuner.predict(config, beside=now)
        if found is None:
            return Optimization(changes, None, 0.5, _TO_THE_SIDE)
        expected = expected_of(found)
        reason = f"uphill after {tuner.windows} windows: {expected:+.1%} expected, give or take {found.deviation:.0%}"
        return Optimization(changes, expected, found.confidence, reason)

    def _aside(self, now: Config) -> Config:
        """Return a small change of one knob, whichever: nothing is known of any, and two windows tell what it did."""
        random = Random(f"{self._seed}")  # noqa: S311 - nothing secret is drawn
        space = Space(list(self._controls.knobs.values()))
        at = dict(zip(now, space.encode(now), strict=True))
        ways = [(name, side) for name in at for side in (-1, 1)]
        random.shuffle(ways)
        for reach in _REACHES:
            for name, side in ways:
                value = space.decode(list({**at, name: at[name] + side * reach}.values()))[name]
                if value != now[name]:
                    return {name: value}
        return {}


class _Climb(msgspec.Struct):
    """The way uphill for one target: its score was made of the figures that it began with, and stays."""

    target: Any
    score: Score
    baseline: Metrics
    tuner: Tuner | None = None


def _kept(target: Target) -> Any:
    """Return what tells a target from another one."""
    if isinstance(target, Mapping):
        return dict(target)
    return str(target) if isinstance(target, Score) else target


def score_of(current: Metrics, target: Target) -> Score:
    """Return the score that a target stands for.

    A figure that is to be better than it is now is maximized (throughput) or minimized (all others); one that may be as
    it is or worse is a limit.
    """
    if target is None:
        return Score.parse("maximize throughput, minimize 0.5 * p99")
    if isinstance(target, Score):
        return target
    if isinstance(target, str):
        return Score.parse(target)
    goals: dict[str, dict[str, float]] = {"maximize": {}, "minimize": {}}
    limits: dict[str, str] = {}
    for name, wanted in _figures(target).items():
        measure = measure_named(name)
        value = measure.parse(wanted)
        up = measure.name == "throughput"
        now = measure.of(current)
        if now is None or (value > now if up else value < now):
            goals["maximize" if up else "minimize"][measure.name] = 1.0
        else:
            limits[measure.name] = f"{'>=' if up else '<='} {value!r}"
    if not goals["maximize"] and not goals["minimize"]:
        goals["maximize"]["throughput"] = 1.0
        limits.pop("throughput", None)
    return Score(**goals, constraints=limits)


def _figures(target: Metrics | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(target, Mapping):
        return dict(target)
    if isinstance(target, Metrics):
        found = {name: getattr(target, name, None) for name, measure in MEASURES.items() if measure.field == name}
        return {name: value for name, value in found.items() if isinstance(value, (int, float)) and value > 0}
    raise ConfigurationError(f"optimize: target_metrics={target!r:.80}; give figures by name, or a score in words")
