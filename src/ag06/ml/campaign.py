"""A campaign: which configuration each window runs, and what is kept; tuner and experiment as one machine.

It has no clock, no workflow and no store: the live loop drives it, a simulation does so just as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Literal

import msgspec

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml.decisions import Decision, bounded
from ag06.ml.experiment import Experiment
from ag06.ml.space import Config
from ag06.ml.tuner import Tuner

Phase = Literal["explore", "experiment", "watch", "rest"]
Purpose = Literal["explore", "control", "a", "b", "watch", "rest"]

LOST = math.log(0.7)
"""The score of a window that broke a guardrail, at most: 30% worse than the baseline."""
AFTER_REJECTION = 20
"""Windows of exploring before another experiment, where one found nothing."""
TOLD_ARMS = 20
"""Windows of an experiment that the tuner is told: more of the same two would push out what it knows of others."""
LONGEST_REST = 4_096
KEPT = 10
"""Configurations that can be rolled back to, and rejected ones that are remembered."""
_SPAN = 8
"""Windows at the beginning and at the end of a rest that are compared."""
_SHIFT = 0.25
"""By how much a score must have moved for another regime, a logarithm; and by so many standard errors:"""
_SURE = 4.0
_VERSION = 1


class Pace(msgspec.Struct, frozen=True):
    """How long each part of a campaign takes, in windows, and how sure it must be.

    Attributes:
        explore: windows of exploring before the best is put to the proof.
        experiment: windows that an experiment counts at most.
        watch: windows in which a promoted configuration is still rolled back at the first breach.
        rest: windows of rest where nothing better was found; doubled each time, up to `LONGEST_REST`.
        alpha: the probability that an experiment names a wrong winner.
        minimum_effect: a configuration is kept only if it is better by more than this: 0.02 is 2%.
    """

    explore: int = 40
    experiment: int = 100
    watch: int = 10
    rest: int = 60
    alpha: float = 0.05
    minimum_effect: float = 0.02


class Plan(msgspec.Struct, frozen=True):
    """What the next window runs and what for. `risky`: it is not what is known to be good."""

    purpose: Purpose
    config: Config
    risky: bool


class Campaign:
    """Explores, puts the best to the proof, keeps it or not, watches what it kept, rests, and begins again.

    A score is a logarithm: 0 is as good as the baseline, 0.1 about 10% better. Not for several threads at once;
    `record` takes some milliseconds.

    Attributes:
        incumbent: the configuration that runs when nothing is tried.
        phase: where it stands.
        tuner: what it learned.
        experiment: the one under way, with its `candidate`.
    """

    def __init__(
        self, knobs: Sequence[Knob], *, seed: int = 0, pace: Pace | None = None, surrogate: bool | None = None
    ) -> None:
        """Begin with the defaults; `surrogate` is as `Tuner` takes it."""
        self._knobs = list(knobs)
        self._surrogate = surrogate
        self._seed = seed
        self._pace = pace or Pace()
        self._experiments = 0
        self._rests = 0
        self._explored = 0
        self._watched = 0
        self._rested = 0
        self._half = False
        self._rejections = 0
        self._resting: list[float] = []
        self._rejected: list[Config] = []
        self._before: list[Config] = []
        self.tuner = Tuner(self._knobs, seed, scale="difference", surrogate=surrogate)
        self.incumbent: Config = self.tuner.best
        self.phase: Phase = "explore"
        self.experiment: Experiment | None = None
        self.candidate: Config | None = None

    @property
    def previous(self) -> Config | None:
        """What `roll_back` would run."""
        return dict(self._before[-1]) if self._before else None

    def next(self, *, may_try: bool = True) -> Plan:
        """Return what to run in the next window; asked again before `record`, the same.

        Where nothing `may_try`, because the budget is spent, it is the incumbent, except in the middle of a pair of an
        experiment: what is put off must not depend on the coin that drew the pair's order.
        """
        if self.experiment is not None and self.candidate is not None and (may_try or self._half):
            variant = self.experiment.next_variant()
            is_b = variant == "b"
            return Plan(variant, self.candidate if is_b else self.incumbent, is_b)
        if self.phase == "explore" and may_try:
            config = self.tuner.ask()
            if config != self.incumbent:
                return Plan("explore", config, True)
        if self.phase in ("watch", "rest"):
            return Plan("watch" if self.phase == "watch" else "rest", self.incumbent, self.phase == "watch")
        return Plan("control", self.incumbent, False)

    def record(self, plan: Plan, score: float | None, breach: str | None = None) -> list[Decision]:
        """Take what a window scored, and return what follows.

        `None` or no finite number: it measured nothing that counts. `breach` says which guardrail was broken.
        """
        if score is not None and not math.isfinite(score):
            score = None
        match plan.purpose:
            case "explore" | "control":
                return self._explore(plan, score, breach)
            case "a" | "b":
                return self._prove(plan, score, breach)
            case "watch":
                return self._watch(breach)
            case "rest":
                return self._rest(score)

    def roll_back(self, reason: str) -> list[Decision]:
        """Return to what ran before the last promotion, or to the defaults; what runs now is tried no more."""
        left = self.incumbent
        self._end_experiment()
        self._reject(left)
        self.incumbent = self._before.pop() if self._before else self._defaults()
        self._start_over()
        return [Decision(kind="rolled_back", config=self.incumbent, before=left, reason=reason)]

    # Explore

    def _explore(self, plan: Plan, score: float | None, breach: str | None) -> list[Decision]:
        if self.phase != "explore":  # an experiment that was put off
            return []
        told: list[Decision] = []
        if breach is not None and plan.risky:
            score = LOST if score is None else min(LOST, score)
            told.append(Decision(kind="breach", config=plan.config, before=self.incumbent, reason=breach))
        if score is None:
            return told
        regimes = self.tuner.regimes
        self.tuner.tell(plan.config, score)
        self._explored += 1
        if self.tuner.regimes > regimes:
            self._explored = min(self._explored, self._pace.explore // 2)
            self._rejected.clear()
            told.append(self._regime("scores contradict what was learned; exploring begins again"))
        if self._explored >= self._pace.explore:
            told.append(self._conclude())
        return told

    def _conclude(self) -> Decision:
        """Put the best to the proof, or rest."""
        best = self.tuner.best
        if best == self.incumbent or best in self._rejected or self._rejections >= 2:
            return self._go_to_rest()
        self._experiments += 1
        self.experiment = Experiment(
            alpha=self._pace.alpha,
            max_windows=self._pace.experiment,
            seed=f"{self._seed}:{self._experiments}",
            minimum_effect=self._pace.minimum_effect,
        )
        self.candidate, self.phase, self._half = best, "experiment", False
        return Decision(
            kind="experiment",
            config=best,
            before=self.incumbent,
            reason=f"the best of {self._explored} windows is put to the proof, {self._pace.experiment} windows at most",
        )

    # Prove

    def _prove(self, plan: Plan, score: float | None, breach: str | None) -> list[Decision]:
        experiment = self.experiment
        if experiment is None:
            return []
        if breach is not None and plan.purpose == "b":
            return self._decline(f"a guardrail was broken: {breach}", breached=True)
        variant: Literal["a", "b"] = "a" if plan.purpose == "a" else "b"
        experiment.record(variant, None if score is None else math.exp(min(max(score, -300.0), 300.0)))
        self._half = score is not None and not self._half
        if score is not None and experiment.result.windows <= TOLD_ARMS:
            self.tuner.tell(plan.config, score)
        if experiment.running:
            return []
        if experiment.result.winner == "b":
            return self._promote()
        return self._decline(experiment.result.reason)

    def _promote(self) -> list[Decision]:
        experiment, candidate = self.experiment, self.candidate
        if experiment is None or candidate is None:
            return []
        found = experiment.result
        left, self.incumbent = self.incumbent, candidate
        self._before = [*self._before, left][-KEPT:]
        self._end_experiment()
        self._rejections, self._rests = 0, 0
        self._rebase()
        self.phase, self._watched = "watch", 0
        return [
            Decision(
                kind="promoted",
                config=candidate,
                before=left,
                reason=found.reason,
                effect=found.effect,
                interval=bounded(found.interval),
                windows=found.windows,
            )
        ]

    def _decline(self, reason: str, *, breached: bool = False) -> list[Decision]:
        experiment, candidate = self.experiment, self.candidate
        if experiment is None or candidate is None:
            return []
        found = experiment.result
        self._end_experiment()
        self._reject(candidate)
        if breached:
            self.tuner.tell(candidate, LOST)
        self._rejections += 1
        self.phase = "explore"
        self._explored = max(0, self._pace.explore - AFTER_REJECTION)
        return [
            Decision(
                kind="rejected",
                config=candidate,
                before=self.incumbent,
                reason=reason,
                effect=found.effect,
                interval=bounded(found.interval),
                windows=found.windows,
            )
        ]

    def _reject(self, config: Config) -> None:
        self._rejected = [*self._rejected, config][-KEPT:]

    def _end_experiment(self) -> None:
        self.experiment = self.candidate = None
        self._half = False

    # Watch and rest

    def _watch(self, breach: str | None) -> list[Decision]:
        if breach is not None:
            return self.roll_back(f"a guardrail was broken after the promotion: {breach}")
        self._watched += 1
        if self._watched < self._pace.watch:
            return []
        self._start_over()
        reason = f"no guardrail was broken in {self._watched} windows after the promotion"
        return [Decision(kind="kept", config=self.incumbent, reason=reason)]

    def _go_to_rest(self) -> Decision:
        self.phase, self._resting = "rest", []
        self._rested = min(self._pace.rest * 2**self._rests, LONGEST_REST)
        self._rests += 1
        return Decision(
            kind="rested",
            config=self.incumbent,
            reason=f"nothing better was found in {self._explored} windows; the next look is in {self._rested} windows",
        )

    def _rest(self, score: float | None) -> list[Decision]:
        self._rested -= 1
        if score is not None:
            self._resting.append(score)
            if len(self._resting) > 3 * _SPAN:
                del self._resting[_SPAN]
        if self._shifted():
            self._rests = 0
            self._start_over()
            self._forget()
            return [self._regime("the score of what runs has moved; exploring begins again")]
        if self._rested <= 0:
            self._start_over()
        return []

    def _shifted(self) -> bool:
        if len(self._resting) < 2 * _SPAN:
            return False
        first, last = self._resting[:_SPAN], self._resting[-_SPAN:]
        shift = abs(fmean(last) - fmean(first))
        error = math.sqrt((stdev(first) ** 2 + stdev(last) ** 2) / _SPAN)
        return shift > max(_SHIFT, _SURE * error)

    def _regime(self, reason: str) -> Decision:
        return Decision(kind="regime", config=self.incumbent, reason=reason)

    def _start_over(self) -> None:
        self.phase, self._explored, self._rejections = "explore", 0, 0

    def _forget(self) -> None:
        self._rejected.clear()
        self.tuner = Tuner(self._based(), self._seed + self._experiments, scale="difference", surrogate=self._surrogate)

    # What it starts from

    def _defaults(self) -> Config:
        return {knob.name: knob.default for knob in self._knobs}

    def _based(self) -> list[Knob]:
        """Return the knobs with the incumbent as their defaults."""
        return [Knob(**{**described(knob), "default": self.incumbent[knob.name]}) for knob in self._knobs]

    def _rebase(self) -> None:
        """Let the tuner take the incumbent for the default from now on; what it learned stays."""
        state = self.tuner.state()
        self.tuner = Tuner.restore({**state, "knobs": [described(knob) for knob in self._based()], "asked": None})

    def state(self) -> dict[str, Any]:
        """Return where it stands as plain JSON, for `restore`."""
        return {
            "version": _VERSION,
            "knobs": [described(knob) for knob in self._knobs],
            "seed": self._seed,
            "surrogate": self._surrogate,
            "pace": msgspec.to_builtins(self._pace),
            "experiments": self._experiments,
            "rests": self._rests,
            "explored": self._explored,
            "watched": self._watched,
            "rested": self._rested,
            "half": self._half,
            "rejections": self._rejections,
            "resting": list(self._resting),
            "rejected": list(self._rejected),
            "before": list(self._before),
            "incumbent": self.incumbent,
            "phase": self.phase,
            "candidate": self.candidate,
            "experiment": None if self.experiment is None else self.experiment.state(),
            "tuner": self.tuner.state(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Campaign:
        """Return the campaign that gave `state`, where it stood; raises `ConfigurationError` for anything else."""
        if state.get("version") != _VERSION:
            raise ConfigurationError(f"campaign: state of version {state.get('version')!r}; this reads {_VERSION}")
        try:
            campaign = cls(
                [Knob(**knob) for knob in state["knobs"]],
                seed=state["seed"],
                pace=msgspec.convert(state["pace"], Pace),
                surrogate=state["surrogate"],
            )
            for name in ("experiments", "rests", "explored", "watched", "rested", "half", "rejections"):
                setattr(campaign, f"_{name}", state[name])
            campaign._resting, campaign._rejected = list(state["resting"]), list(state["rejected"])
            campaign._before, campaign.incumbent = list(state["before"]), dict(state["incumbent"])
            campaign.phase, campaign.candidate = state["phase"], state["candidate"]
            kept = state["experiment"]
            campaign.experiment = None if kept is None else Experiment.restore(kept)
            campaign.tuner = Tuner.restore(state["tuner"])
        except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError) as error:
            raise ConfigurationError(f"campaign: the saved state is damaged: {error!r}") from error
        return campaign


def described(knob: Knob) -> dict[str, Any]:
    """Return the declaration of a knob as plain JSON: the arguments of `Knob`."""
    if knob.choices is not None:
        return {"name": knob.name, "choices": list(knob.choices), "default": knob.default}
    return {
        "name": knob.name,
        "low": knob.low,
        "high": knob.high,
        "default": knob.default,
        "scale": knob.scale,
        "integer": knob.integer,
    }
