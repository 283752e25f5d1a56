"""Experiments whose unit is the event's subject: both variants run at once, and each event sees that of its subject."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import msgspec

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml import split_verdict
from ag06.ml.guardrails import above_chance
from ag06.ml.live import Live
from ag06.ml.space import Config
from ag06.ml.split import LOST_CONCENTRATION, SampleRatio, assign, sample_ratio_mismatch
from ag06.ml.split_evidence import ABOVE, BELOW, SplitEvidence
from ag06.ml.split_subjects import MOST_SUBJECTS, Measure, Subjects
from ag06.ml.split_verdict import SplitOutcome, Stand, shown
from ag06.ml.undisturbed import undisturbed
from ag06.ml.verdict import Variant
from ag06.monitoring import instruments
from ag06.runtime.step import Step
from ag06.runtime.variants import Split
from ag06.runtime.workflow import Workflow

LOOK = 1.0
"""Seconds between looks."""

EVEN = {"a": 0.5, "b": 0.5}

FAR = 2.0
"""b is ended where calls fail for so many times a's share of subjects, and for more than a's by more than chance."""

HANGS = 300.0
"""Seconds without a subject that is done, though calls are under way; twice the step's timeout where that is more."""

_IDLE_WINDOWS = 3
_TURN = 500  # subjects counted before others get a turn: about a millisecond


class SplitDesign(msgspec.Struct, frozen=True, kw_only=True):
    """How to compare two variants by subject.

    Attributes:
        salt: decides who gets which variant; take a new one for each experiment.
        measure: what is better where it is lower: `"duration"`, the seconds that calls take until one works, or
            `"errors"`, the share of calls that fail.
        step: the step whose calls are measured; `None`: the only one that takes single events.
        alpha: the probability of a wrong winner.
        minimum_effect: b wins only where it is better by more: 0.02 is 2% of the time, or 0.02 of the calls.
        max_subjects: how many are counted at most, 2 to 100,000.

    Raises `ConfigurationError` for what makes no sense.
    """

    salt: str
    measure: Measure = "duration"
    step: str | None = None
    alpha: float = 0.05
    minimum_effect: float = 0.0
    max_subjects: int = MOST_SUBJECTS

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise ConfigurationError(f"measure={self.measure!r}; use 'duration' or 'errors'")
        if not _is_number(self.alpha) or not 0.001 <= self.alpha <= 0.5:
            raise ConfigurationError(f"alpha={self.alpha!r}: use a number from 0.001 to 0.5, such as 0.05")
        if not _is_number(self.minimum_effect) or not 0 <= self.minimum_effect < 1:
            raise ConfigurationError(f"minimum_effect={self.minimum_effect!r}: use a number from 0 to below 1")
        most = self.max_subjects
        if isinstance(most, bool) or not isinstance(most, int) or not 2 <= most <= MOST_SUBJECTS:
            raise ConfigurationError(f"max_subjects={most!r}: use a whole number from 2 to {MOST_SUBJECTS:,}")


async def run_split(
    live: Live,
    design: SplitDesign,
    variant_a: Mapping[str, Any],
    variant_b: Mapping[str, Any],
    timeout: float | None = None,
) -> SplitOutcome:
    """Run two variants of the user's knobs at once, at most for `timeout` seconds, and say which is better.

    Each event that a step of this process takes sees the variant of its subject, or of its id where it has none. The
    knobs do not move, and other processes of the workflow see nothing of it. The caller has taken the lead.

    Raises `ConfigurationError` for knobs of the runtime and others that cannot differ from event to event, and for a
    step that cannot be measured.
    """
    step = measured_step(live.running.workflow, design.step)
    divided(live, variant_a, variant_b)
    return await _Run(live, design, step).until(timeout, variant_a, variant_b)


def measured_step(workflow: Workflow, name: str | None) -> Step:
    """Return the step whose calls are measured; raise `ConfigurationError` where there is none, or a choice."""
    single = {step.name: step for step in workflow.steps.values() if not step.is_batch}
    if name is None and len(single) == 1:
        return next(iter(single.values()))
    if not single:
        raise ConfigurationError(
            f"workflow {workflow.name!r} has batch steps only, and a batch has events of both variants; "
            "compare them window by window"
        )
    there_are = f"use step= with one of {', '.join(single)}"
    if name is None:
        raise ConfigurationError(f"workflow {workflow.name!r} has several steps: say whose calls count, {there_are}")
    if name in workflow.steps and name not in single:
        raise ConfigurationError(f"step {name!r} takes batches, which have events of both variants; {there_are}")
    if name not in single:
        raise ConfigurationError(f"workflow {workflow.name!r} has no step {name!r}; {there_are}")
    return single[name]


def divided(live: Live, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[Knob, Any]]:
    """Return the values of each variant by knob; raise `ConfigurationError` for knobs that no event can have alone."""
    workflow = live.running.workflow
    standing = live.incumbent
    configs: dict[str, Config] = {"a": live.controls.check(a), "b": live.controls.check(b)}
    of_steps = {knob.name for step in workflow.steps.values() for knob in step.knobs.given}
    found: dict[str, dict[Knob, Any]] = {"a": {}, "b": {}}
    for name in dict.fromkeys([*a, *b]):
        if name in workflow.knobs and name not in of_steps:
            for variant, config in configs.items():
                found[variant][workflow.knobs[name]] = config[name]
        elif any(config[name] != standing.get(name) for config in configs.values()):
            raise ConfigurationError(
                f"knob {name!r} says how steps are run, so all events share its value and it cannot be split by "
                "subject; leave it out, or compare the variants window by window"
            )
    return found


def shares_are_lost(lost: Mapping[str, int]) -> bool:
    """Whether more subjects of one variant than of the other were without a value, by more than chance.

    Then the rest of them must not be compared. It shows sooner than in the shares of those that were counted.
    """
    return sample_ratio_mismatch(lost, EVEN, concentration=LOST_CONCENTRATION).mismatch


class _Run:
    """One experiment under way."""

    def __init__(self, live: Live, design: SplitDesign, step: Step) -> None:
        self._live = live
        self._design = design
        self._step = step
        self._subjects = Subjects(step.name, design.measure, design.max_subjects)
        self._evidence = SplitEvidence(design.alpha)
        self._failures = SplitEvidence(design.alpha)
        self._ratio: SampleRatio = sample_ratio_mismatch(self._subjects.counted, EVEN, unit="subjects")
        self._configs: dict[str, Config] = {"a": {}, "b": {}}
        self._winner: Variant | None = None
        self._ended: str | None = None
        self._progress = time.monotonic()

    async def until(self, timeout: float | None, a: Mapping[str, Any], b: Mapping[str, Any]) -> SplitOutcome:
        """Run it, at most for so many seconds."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                async with self._live.moving:  # a window of the optimizer's may be under way
                    await self._between(a, b)
        except TimeoutError:
            self._ended = self._ended or self._undecided(f"the timeout of {timeout:g} s is over")
        stand = self._stand
        return SplitOutcome(
            winner=self._winner,
            reason=self._ended or self._undecided("it was ended"),
            effect=stand.effect,
            interval=stand.interval,
            subjects=dict(self._subjects.counted),
            sample_ratio=self._ratio,
            variant_a=self._configs["a"],
            variant_b=self._configs["b"],
            seconds=time.monotonic() - began,
        )

    async def _between(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        """Run it; whatever happens, each knob has one value again."""
        live = self._live
        await live.apply(live.incumbent)  # a window of the optimizer's may have been a trial
        variants = divided(live, a, b)
        self._configs = {"a": live.controls.check(a), "b": live.controls.check(b)}
        split = Split(
            live.running.workflow.steps.values(),
            variants,
            partial(assign, salt=self._design.salt),
            self._subjects,
        )
        state = instruments.EXPERIMENT_STATE.labels("manual")
        split.open()
        state.set(1)
        try:
            broken_off = await undisturbed(live, self._looks())
        finally:
            split.close()
            state.set(0)
        if broken_off is not None:
            self._ended = broken_off

    async def _looks(self) -> None:
        self._progress = time.monotonic()
        while self._ended is None:
            await asyncio.sleep(LOOK)
            await self._count()
            self._decide()

    async def _count(self) -> None:
        """Take what subjects have brought since the last look."""
        for number, subject in enumerate(self._subjects.done(), 1):
            if number % _TURN == 0:
                await asyncio.sleep(0)
            self._progress = time.monotonic()
            value, failures = subject.value(self._design.measure), subject.value("errors")
            if value is not None:
                self._evidence.add(subject.variant, value)
            if failures is not None:
                self._failures.add(subject.variant, failures)
        self._ratio = sample_ratio_mismatch(self._subjects.counted, EVEN, unit="subjects")

    def _decide(self) -> None:
        """End it if it is decided, or if it leads nowhere."""
        if self._fails_far_more:
            self._ended = split_verdict.failing_far_more(self._subjects.failing, self._subjects.seen)
            return
        if self._ratio.mismatch:
            self._ended = f"no winner: {self._ratio.reason}"
            return
        if shares_are_lost(self._subjects.lost):
            self._ended = split_verdict.losing(self._subjects.lost, self._subjects.seen)
            return
        self._winner = self._better
        if self._winner is not None:
            self._ended = split_verdict.decided(self._winner, self._stand)
            self._take_back_if_it_fails(self._winner)
        elif self._is_too_small:
            self._ended = split_verdict.too_small(self._stand, self._design.minimum_effect)
        elif self._subjects.are_used_up:
            self._ended = self._undecided(f"no difference was shown in {self._design.max_subjects} subjects")
        else:
            self._ended = self._leads_nowhere()

    @property
    def _better(self) -> Variant | None:
        if self._evidence.refuted(0.0) == ABOVE:
            return "a"
        return "b" if self._evidence.refuted(self._wanted) == BELOW else None

    @property
    def _wanted(self) -> float:
        """The difference that b has to be below."""
        least = self._design.minimum_effect
        return math.log1p(-least) if self._design.measure == "duration" else -least

    @property
    def _is_too_small(self) -> bool:
        return self._design.minimum_effect > 0 and self._evidence.refuted(self._wanted) == ABOVE

    def _take_back_if_it_fails(self, winner: Variant) -> None:
        """Name no winner that is faster because, or though, it fails more often."""
        worse = ABOVE if winner == "b" else BELOW
        if self._design.measure == "duration" and self._failures.refuted(0.0) == worse:
            self._winner = None
            self._ended = split_verdict.but_fails(winner, self._stand, abs(self._failures.estimate or 0.0))

    @property
    def _fails_far_more(self) -> bool:
        """Whether failures are far more frequent among b's subjects: a binomial test, given how many there are."""
        failing, seen = self._subjects.failing, self._subjects.seen
        if self._live.tuning.guardrails.error_rate is None or not failing["b"]:
            return False
        if failing["b"] * seen["a"] < FAR * failing["a"] * seen["b"]:
            return False
        return above_chance(failing["b"], failing["a"] + failing["b"], seen["b"] / (seen["a"] + seen["b"]))

    def _leads_nowhere(self) -> str | None:
        """Say why nothing more is to be expected; `None` while something is."""
        silent = time.monotonic() - self._progress
        under_way = self._subjects.calls_under_way
        if sum(under_way.values()):
            if silent < max(HANGS, 2 * (self._step.timeout or 0.0)):
                return None
            hanging = f"{under_way['a']} of a and {under_way['b']} of b"
            return self._undecided(f"no subject was done for {silent:.0f} s, and calls do not end: {hanging}")
        timing = self._live.timing
        idle = _IDLE_WINDOWS * timing.window * timing.longest
        if silent < idle or self._subjects.is_waiting:
            return None
        return self._undecided(f"there was no new subject for {silent:.3g} s")

    def _undecided(self, why: str) -> str:
        return f"inconclusive: {why} ({split_verdict.beside(self._stand)})"

    @property
    def _stand(self) -> Stand:
        estimate, interval = self._evidence.estimate, self._evidence.interval
        to_effect = partial(shown, measure=self._design.measure)
        return Stand(
            measure=self._design.measure,
            effect=None if estimate is None else to_effect(estimate),
            interval=None if interval is None else (to_effect(interval[0]), to_effect(interval[1])),
            subjects=self._subjects.counted,
            confidence=1 - self._design.alpha,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
