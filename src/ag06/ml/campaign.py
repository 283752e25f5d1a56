"""A campaign: which configuration each window runs, and what is kept; tuner and experiment as one machine.

It has no clock, no workflow and no store: the live loop drives it, a simulation does so just as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

import msgspec

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml.candidate import is_clear, simplest
from ag06.ml.decisions import Decision, Kind, bounded
from ag06.ml.experiment import Experiment
from ag06.ml.pace import LONGEST_REST, Pace
from ag06.ml.shift import Shift
from ag06.ml.space import Config, Space, described
from ag06.ml.tuner import Tuner

Phase = Literal["explore", "experiment", "watch", "rest"]
Purpose = Literal["explore", "control", "a", "b", "watch", "rest"]

LOST = math.log(0.7)
"""What a trial that broke a guardrail counts as, at most: 30% worse than what runs when nothing is tried."""
MOST = 300.0
"""Scores beyond it, a logarithm, count as it: the exponential of more is no use to an experiment."""
LEAST_EXPLORED = 16
"""Windows of exploring at least, however clear it looks."""
AFTER_REJECTION = 20
"""Windows of exploring before another experiment, where one found nothing."""
MOST_REJECTIONS = 2
"""After so many experiments in a row that found nothing it rests."""
TOLD_ARMS = 20
"""Windows of an experiment that the tuner is told: more of the same two would push out what it knows of others."""
MOST_RESTARTS = 3
"""So often a contradiction makes one turn of exploring longer: it must end, whatever the scores do."""
STRIKES = 2
"""So often a configuration may measure nothing while the incumbent does; then it is to blame."""
KEPT = 10
"""Configurations that can be rolled back to, and rejected ones that are remembered."""
_RECENT = 5
_PHASES: dict[str, tuple[Phase, ...]] = {
    "explore": ("explore",),
    "control": ("explore",),
    "put off": ("explore", "experiment"),
    "a": ("experiment",),
    "b": ("experiment",),
    "watch": ("watch",),
    "rest": ("rest",),
}
"""Where the windows of each purpose belong."""
_VERSION = 1


class Plan(msgspec.Struct, frozen=True):
    """What the next window runs and what for.

    Attributes:
        purpose: `explore` and `b` are trials; `control`, `a` and `rest` run the incumbent, `watch` a new one.
        config: the values of all knobs.
        risky: it is not what is known to be good.
        put_off: something else was due, and it may not be tried now.
    """

    purpose: Purpose
    config: Config
    risky: bool
    put_off: bool = False


class _Standing(msgspec.Struct):
    """Where a campaign stands, as far as it is plain data."""

    incumbent: Config
    phase: Phase = "explore"
    candidate: Config | None = None
    before: list[Config] = []
    """What ran before each promotion, the last one at the end."""
    rejected: list[Config] = []
    recent: list[float] = []
    """The last scores of what is known to be good."""
    explored: int = 0
    restarts: int = 0
    experiments: int = 0
    rejections: int = 0
    watched: int = 0
    rests: int = 0
    resting: int = 0
    """The windows of rest that are left."""
    idle: bool = False
    """The last window measured nothing."""
    suspect: Config | None = None
    """The trial that did, until the incumbent is seen to measure something."""
    strikes: int = 0
    shift: Shift = msgspec.field(default_factory=Shift)


class Campaign:
    """Explores, puts the best to the proof, keeps it or not, watches what it kept, rests, and begins again.

    A score is a logarithm: 0 is as good as the baseline, 0.1 about 10% better. After a window that measured nothing the
    incumbent runs until one measures something: where there is no traffic nothing is tried. Not for several threads at
    once; `next` and `record` take some milliseconds.

    Attributes:
        tuner: what it learned; its default is the incumbent.
        experiment: the one under way, of the `candidate` beside the `incumbent`.
    """

    def __init__(
        self,
        knobs: Sequence[Knob],
        *,
        seed: int = 0,
        pace: Pace | None = None,
        surrogate: bool | None = None,
        incumbent: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin with `incumbent`, else with the defaults; `surrogate` is as `Tuner` takes it."""
        self._knobs = list(knobs)
        self._surrogate = surrogate
        self._seed = seed
        self._pace = pace or Pace()
        self.tuner = Tuner(self._knobs, seed, scale="difference", surrogate=surrogate)
        self.experiment: Experiment | None = None
        defaults = self.tuner.best
        self._now = _Standing(defaults)
        if incumbent is not None and (begun := Space(self._knobs).check(incumbent)) != defaults:
            self._now = _Standing(begun, before=[defaults])
            self._rebase()

    @property
    def incumbent(self) -> Config:
        """The configuration that runs when nothing is tried."""
        return dict(self._now.incumbent)

    @property
    def phase(self) -> Phase:
        """What it does."""
        return self._now.phase

    @property
    def candidate(self) -> Config | None:
        """What the experiment under way would promote."""
        return None if self._now.candidate is None else dict(self._now.candidate)

    @property
    def previous(self) -> Config | None:
        """What `roll_back` would run; `None`: the defaults."""
        return dict(self._now.before[-1]) if self._now.before else None

    @property
    def promising(self) -> Config | None:
        """What was learned to be better than the incumbent and was not rejected; it is not proved."""
        best = self.tuner.best
        return None if best == self._now.incumbent or best in self._now.rejected else best

    @property
    def level(self) -> float:
        """What is known to be good has scored lately; 0, as the baseline, before the first window."""
        return median(self._now.recent) if self._now.recent else 0.0

    def next(self, *, may_try: bool = True) -> Plan:
        """Return what to run in the next window; asked again before `record`, the same.

        Where nothing `may_try`, because the budget is spent, it is the incumbent, except in the middle of a pair of an
        experiment: what is put off must not depend on the coin that drew the pair's order.
        """
        now, may_try = self._now, may_try and not self._now.idle
        if now.phase == "watch":
            return Plan("watch", self.incumbent, risky=True)
        if now.phase == "rest":
            return Plan("rest", self.incumbent, risky=False)
        if self.experiment is not None and now.candidate is not None:
            if may_try or self.experiment.result.windows % 2:
                is_b = self.experiment.next_variant() == "b"
                return Plan("b" if is_b else "a", dict(now.candidate) if is_b else self.incumbent, is_b)
        elif may_try:
            config = self.tuner.ask()
            tries = config != now.incumbent
            return Plan("explore" if tries else "control", config, tries)
        return Plan("control", self.incumbent, risky=False, put_off=True)

    def record(self, plan: Plan, score: float | None, breach: str | None = None) -> list[Decision]:
        """Take what a window scored, and return what follows.

        `None` or no finite number: it measured nothing that counts. `breach` says which guardrail was broken. A plan
        that something else has overtaken, such as a rollback, counts for nothing.
        """
        now = self._now
        if score is not None:
            score = min(max(score, -MOST), MOST) if math.isfinite(score) else None
        if now.phase not in _PHASES["put off" if plan.put_off else plan.purpose]:
            return []
        now.idle = score is None and breach is None
        if score is not None and breach is None and plan.purpose not in ("explore", "b"):
            now.recent = [*now.recent, score][-_RECENT:]
        if plan.put_off:
            return self._clear_up(score)
        match plan.purpose:
            case "explore" | "control":
                return self._explore(plan, score, breach)
            case "a" | "b":
                return self._prove(plan.purpose, plan.config, score, breach)
            case "watch":
                return self._watch(score, breach)
            case "rest":
                return self._rest(score)

    def roll_back(self, reason: str) -> list[Decision]:
        """Return to what ran before the last promotion, or to the defaults; what runs now is not promoted again."""
        now, left = self._now, self.incumbent
        self._end_experiment()
        now.incumbent = now.before.pop() if now.before else {knob.name: knob.default for knob in self._knobs}
        if now.incumbent == left:
            reason = f"{reason}; nothing was promoted: the defaults run"
        else:
            self._reject(left)
        self._rebase()
        self._start_over()
        return [self._decision("rolled_back", reason, before=left)]

    # Explore

    def _explore(self, plan: Plan, score: float | None, breach: str | None) -> list[Decision]:
        now, told = self._now, list[Decision]()
        if breach is not None and plan.risky:
            score = self._lost(score)
            told.append(self._decision("breach", breach, config=plan.config, before=self.incumbent))
        if score is None:
            now.suspect = plan.config if plan.risky else None
            return told
        now.suspect, now.strikes = None, 0
        return [*told, *self._learn(plan.config, score)]

    def _learn(self, config: Config, score: float) -> list[Decision]:
        """Tell the tuner, and see whether it is time for a proof."""
        now, regimes, told = self._now, self.tuner.regimes, list[Decision]()
        self.tuner.tell(config, score)
        now.explored += 1
        if self.tuner.regimes > regimes:
            now.rejected.clear()
            told.append(self._decision("regime", "scores contradict what was learned; exploring begins again"))
            if now.restarts < MOST_RESTARTS:
                now.restarts += 1
                now.explored = min(now.explored, self._pace.explore // 2)
        if now.explored >= self._pace.explore or self._may_hurry():
            told.append(self._conclude())
        return told

    def _may_hurry(self) -> bool:
        """Whether half of the exploring was enough: a large gain need not wait for its proof."""
        now, best = self._now, self.promising
        least = max(self._pace.explore // 2, LEAST_EXPLORED)
        if best is None or now.rejections or now.restarts or now.explored < least or now.explored % 4:
            return False
        return is_clear(best, self.incumbent, self.tuner)

    def _clear_up(self, score: float | None) -> list[Decision]:
        """See by a window of the incumbent whether a trial measured nothing by its own fault."""
        now, suspect = self._now, self._now.suspect
        now.suspect = None
        if suspect is None or score is None:
            return []
        now.strikes += 1
        if now.strikes < STRIKES:
            return []
        now.strikes = 0
        reason = "it measured nothing, twice, where the incumbent did"
        breach = self._decision("breach", reason, config=suspect, before=self.incumbent)
        return [breach, *self._learn(suspect, self._lost(None))]

    def _lost(self, score: float | None) -> float:
        """Return what the tuner is told of a trial that broke a guardrail."""
        bound = self.level + LOST
        return bound if score is None else min(score, bound)

    def _conclude(self) -> Decision:
        """Put the best to the proof, or rest."""
        now, best = self._now, self.promising
        if best is not None:
            best = simplest(best, self.incumbent, self.tuner, self._knobs)
        if best is None or best in now.rejected or now.rejections >= MOST_REJECTIONS:
            return self._go_to_rest()
        now.experiments += 1
        self.experiment = Experiment(
            alpha=self._pace.alpha,
            max_windows=self._pace.experiment,
            seed=f"{self._seed}:{now.experiments}",
            minimum_effect=self._pace.minimum_effect,
        )
        now.candidate, now.phase = best, "experiment"
        reason = f"the best of {now.explored} windows is put to the proof, {self._pace.experiment} windows at most"
        return self._decision("experiment", reason, config=best, before=self.incumbent)

    # Prove

    def _prove(
        self, variant: Literal["a", "b"], config: Config, score: float | None, breach: str | None
    ) -> list[Decision]:
        experiment = self.experiment
        if experiment is None:
            return []
        if breach is not None and variant == "b":
            self.tuner.tell(config, self._lost(score))
            return self._decline(experiment, f"a guardrail was broken: {breach}")
        experiment.record(variant, None if score is None else math.exp(score))
        found = experiment.result
        if score is not None and found.windows <= TOLD_ARMS:
            self.tuner.tell(config, score)
        if experiment.running:
            return []
        return self._promote(experiment) if found.winner == "b" else self._decline(experiment, found.reason)

    def _promote(self, experiment: Experiment) -> list[Decision]:
        now, left = self._now, self.incumbent
        now.before = [*now.before, left][-KEPT:]
        now.incumbent = now.candidate or left
        self._end_experiment()
        self._rebase()
        self._start_over()
        now.phase, now.watched, now.rests, now.shift = "watch", 0, 0, Shift()
        return [self._proved("promoted", experiment, experiment.result.reason, config=self.incumbent, before=left)]

    def _decline(self, experiment: Experiment, reason: str) -> list[Decision]:
        now, candidate = self._now, self.candidate or self.incumbent
        self._end_experiment()
        self._reject(candidate)
        now.rejections += 1
        now.phase, now.explored = "explore", max(0, self._pace.explore - AFTER_REJECTION)
        return [self._proved("rejected", experiment, reason, config=candidate, before=self.incumbent)]

    def _reject(self, config: Config) -> None:
        self._now.rejected = [*self._now.rejected, config][-KEPT:]

    def _end_experiment(self) -> None:
        self.experiment = self._now.candidate = None

    # Watch and rest

    def _watch(self, score: float | None, breach: str | None) -> list[Decision]:
        now = self._now
        if breach is not None:
            bad, lost = self.incumbent, self._lost(score)
            told = self.roll_back(f"a guardrail was broken after the promotion: {breach}")
            self.tuner.tell(bad, lost)
            return told
        if score is None:
            return []
        now.watched += 1
        if now.watched < self._pace.watch:
            return []
        self._start_over()
        return [self._decision("kept", f"no guardrail was broken in {now.watched} windows after the promotion")]

    def _go_to_rest(self) -> Decision:
        now = self._now
        now.phase, now.resting = "rest", min(self._pace.rest * 2**now.rests, LONGEST_REST)
        now.rests += 1
        reason = f"nothing better was found in {now.explored} windows; the next look is in {now.resting} windows"
        return self._decision("rested", reason)

    def _rest(self, score: float | None) -> list[Decision]:
        now = self._now
        now.resting -= 1
        if score is not None and now.shift.add(score):
            now.rests = 0
            now.rejected.clear()
            self._start_over()
            return [self._decision("regime", "the score of what runs has moved; exploring begins again")]
        if now.resting <= 0:
            self._start_over()
        return []

    def _start_over(self) -> None:
        now = self._now
        now.phase, now.explored, now.restarts, now.rejections = "explore", 0, 0, 0
        now.suspect, now.strikes = None, 0

    def _rebase(self) -> None:
        """Let the tuner take the incumbent for the default from now on.

        The windows stay. The search begins again: what it knew to be better was so beside another default.
        """
        knobs = [Knob(**{**described(knob), "default": self._now.incumbent[knob.name]}) for knob in self._knobs]
        state = {**self.tuner.state(), "knobs": [described(knob) for knob in knobs], "asked": None, "resting": False}
        self.tuner = Tuner.restore({**state, "search": {"kind": None}})

    # What is told and kept

    def _decision(self, kind: Kind, reason: str, *, config: Config | None = None, **other: Any) -> Decision:
        return Decision(kind=kind, config=self.incumbent if config is None else config, reason=reason, **other)

    def _proved(self, kind: Kind, experiment: Experiment, reason: str, *, config: Config, before: Config) -> Decision:
        found = experiment.result
        figures = {"effect": found.effect, "interval": bounded(found.interval), "windows": found.windows}
        return self._decision(kind, reason, config=config, before=before, **figures)

    def state(self) -> dict[str, Any]:
        """Return where it stands as plain JSON, for `restore`."""
        return {
            "version": _VERSION,
            "knobs": [described(knob) for knob in self._knobs],
            "seed": self._seed,
            "surrogate": self._surrogate,
            "pace": msgspec.to_builtins(self._pace),
            "standing": msgspec.to_builtins(self._now),
            "experiment": None if self.experiment is None else self.experiment.state(),
            "tuner": self.tuner.state(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Campaign:
        """Return the campaign that gave `state`, where it stood; raises `ConfigurationError` for anything else."""
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != _VERSION:
            raise ConfigurationError(f"campaign: state of version {version!r}; this reads {_VERSION}")
        try:
            campaign = cls(
                [Knob(**knob) for knob in state["knobs"]],
                seed=state["seed"],
                pace=msgspec.convert(state["pace"], Pace),
                surrogate=state["surrogate"],
            )
            campaign._take(msgspec.convert(state["standing"], _Standing))
            kept = state["experiment"]
            campaign.experiment = None if kept is None else Experiment.restore(kept)
            campaign.tuner = Tuner.restore(state["tuner"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"campaign: the saved state is damaged: {error!r}") from error
        experiment, candidate = campaign.experiment, campaign.candidate
        proves = experiment is not None and experiment.running and candidate is not None
        if (campaign.phase == "experiment") != proves or (experiment is None) != (candidate is None):
            raise ConfigurationError(f"campaign: the saved state is damaged: phase {campaign.phase} does not fit it")
        return campaign

    def _take(self, standing: _Standing) -> None:
        check = Space(self._knobs).check
        standing.incumbent = check(standing.incumbent)
        standing.candidate = None if standing.candidate is None else check(standing.candidate)
        standing.suspect = None if standing.suspect is None else check(standing.suspect)
        standing.before = [check(config) for config in standing.before]
        standing.rejected = [check(config) for config in standing.rejected]
        self._now = standing
