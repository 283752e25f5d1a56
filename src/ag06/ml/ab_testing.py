"""Experiments that a user asks for: two variants of a running workflow, in turn."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, get_args

import msgspec

from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.ml.experiment import Experiment
from ag06.ml.live import Live
from ag06.ml.references import References
from ag06.ml.score import Score
from ag06.ml.space import Config
from ag06.ml.split import SampleRatio
from ag06.ml.split_experiment import SplitDesign, run_split
from ag06.ml.split_subjects import MOST_SUBJECTS, Measure
from ag06.ml.trial import Trials
from ag06.ml.undisturbed import undisturbed
from ag06.ml.verdict import Variant, Verdict
from ag06.ml.windows import Window
from ag06.monitoring import instruments
from ag06.tasks import completed

IDLE_WINDOWS = 3
"""So many windows in a row that measure nothing end an experiment."""

Unit = Literal["window", "subject"]
FindLive = Callable[[], Awaitable[Live | str]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment found: the verdict, and between what.

    Attributes:
        winner, effect, interval, windows, reason: as `Experiment.result` has them.
        variant_a, variant_b: the whole configurations that ran.
        seconds: how long it took.
        subjects: how many were counted of each variant, where the unit is the subject; then there are no windows.
        sample_ratio: whether they were shared out as they should be.

    Where the unit is the subject, `effect` and `interval` are of what was measured, and lower is better: -0.2 is a
    fifth less of the time, or with `measure="errors"` 0.2 less of the calls that fail.
    """

    winner: Variant | None
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    windows: int = 0
    variant_a: dict[str, Any] = {}
    variant_b: dict[str, Any] = {}
    seconds: float = 0.0
    subjects: dict[str, int] = {}
    sample_ratio: SampleRatio | None = None


class ABTesting:
    """Runs experiments on the workflow that runs in this process, one at a time."""

    def __init__(self, live: FindLive) -> None:
        """`live` finds it, or says why there is none."""
        self._live = live

    async def run_experiment(
        self,
        variant_a: Mapping[str, Any],
        variant_b: Mapping[str, Any],
        *,
        timeout: float | None = None,
        score: Score | str | None = None,
        alpha: float = 0.05,
        max_windows: int = 100,
        minimum_effect: float = 0.0,
        seed: int | str | None = None,
        unit: Unit = "window",
        measure: Measure = "duration",
        step: str | None = None,
        max_subjects: int = MOST_SUBJECTS,
    ) -> Outcome:
        """Run two configurations in turn, window by window, and say which is better; or at once, subject by subject.

        The order is drawn; what a variant did may last for `settle` seconds of the next window, which do not count. The
        optimizer's own trials wait meanwhile, and at the end the knobs stand where they stood: keeping the better one
        is the caller's business.

        With `unit="subject"` half of the subjects get each variant: a step that takes single events sees, in
        `knob.value`, that of its event's subject, or of the event's id where it has none. Only for the user's own
        knobs, without setters, and for events that this process takes.

        Args:
            variant_a: values by knob, of what is; knobs that are not named stay as they are.
            variant_b: the same of what may be. It ends at once where it breaks a guardrail.
            timeout: seconds after which it ends without a winner; `None`: when `max_windows` were counted.
            score: what is better; `None`: the score that the optimizer was configured with.
            alpha: the probability of a wrong winner.
            max_windows: how many are counted at most.
            minimum_effect: b wins only where it is better by more: 0.02 is 2%.
            seed: draws the order, or who gets which variant; `None`: a fresh one.
            unit: `"window"`, or `"subject"`; `score` and `max_windows` are of windows, the following are of subjects.
            measure: `"duration"`, the seconds that calls of the step take, or `"errors"`, the share of them that fail.
            step: the step whose calls are measured; `None`: the only one that takes single events.
            max_subjects: how many are counted at most.

        Without traffic, and without a workflow that runs here, there is no winner, and the reason says so. Raises
        `ConfigurationError` for an unknown knob, a value it does not take, and while another process tunes, and
        `StoreError` where the store cannot be asked about that.
        """
        if timeout is not None and not timeout > 0:
            raise ConfigurationError(f"run_experiment: timeout={timeout!r}; seconds above 0, or None")
        for name, variant in (("variant_a", variant_a), ("variant_b", variant_b)):
            if not isinstance(variant, Mapping):
                raise ConfigurationError(f"run_experiment: {name}={variant!r}; give values by knob")
        if unit not in get_args(Unit):
            raise ConfigurationError(f"run_experiment: unit={unit!r}; use 'window' or 'subject'")
        seed = secrets.token_hex(8) if seed is None else seed
        experiment = Experiment(alpha=alpha, max_windows=max_windows, seed=seed, minimum_effect=minimum_effect)
        design = None
        if unit == "subject":
            design = SplitDesign(
                salt=f"{seed}",
                measure=measure,
                step=step,
                alpha=alpha,
                minimum_effect=minimum_effect,
                max_subjects=max_subjects,
            )
        goal = Score.parse(score) if isinstance(score, str) else score
        live = await self._live()
        if isinstance(live, str):
            return Outcome(winner=None, reason=f"inconclusive: {live}, nothing was measured")
        for variant in (variant_a, variant_b):
            live.controls.check(variant)
        try:
            led = await live.lead.take()
        except TimeoutError as error:
            raise StoreUnavailable("run_experiment: the store does not answer; try again when it does") from error
        if not led:
            raise ConfigurationError(
                f"run_experiment: another process moves the knobs of {live.running.workflow.name!r} now; "
                "run it there, or `ag06 tune stop` first"
            )
        try:
            if design is not None:
                found = await run_split(live, design, variant_a, variant_b, timeout)
                return Outcome(**msgspec.structs.asdict(found))
            return await _Run(live, experiment, goal or live.tuning.goal).until(timeout, variant_a, variant_b)
        finally:
            await completed(live.lead.give_up())


class _Run:
    """One experiment under way."""

    def __init__(self, live: Live, experiment: Experiment, goal: Score) -> None:
        self._live = live
        self._experiment = experiment
        self._goal = goal
        self._variants: dict[Variant, Config] = {}
        self._references = References()
        self._idle = 0
        self._ended: str | None = None

    async def until(self, timeout: float | None, a: Mapping[str, Any], b: Mapping[str, Any]) -> Outcome:
        """Run it, at most for so many seconds."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                async with self._live.moving:  # a window of the optimizer's may be under way
                    await self._between(a, b)
        except TimeoutError:
            self._ended = self._ended or f"inconclusive: the timeout of {timeout:g} s is over"
        return self._outcome(time.monotonic() - began)

    async def _between(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        """Run it; whatever happens, the knobs go back."""
        live, before = self._live, self._live.incumbent
        await live.apply(before)  # a window of the optimizer's may have been a trial
        self._variants = {"a": live.controls.check(a), "b": live.controls.check(b)}
        state = instruments.EXPERIMENT_STATE.labels("manual")
        state.set(1)
        try:
            self._ended = await undisturbed(live, self._windows(before)) or self._ended
        finally:
            state.set(0)
            await completed(live.apply(before))

    async def _windows(self, before: Config) -> None:
        rails = self._live.tuning.guardrails.for_experiment()
        trials = self._live.trials(msgspec.structs.replace(rails, score=self._goal))
        baseline: Window | None = None
        while self._experiment.running and self._ended is None:
            if baseline is None:
                baseline = await self._baseline(trials, before)
            else:
                await self._window(trials, baseline, before)

    async def _baseline(self, trials: Trials, before: Config) -> Window | None:
        """Measure a; a window that says nothing is measured again."""
        trial = await trials.run(self._variants["a"], fallback=before, reference=None, guarded=False)
        if trial.window is None:
            self._ended = f"inconclusive: {trial.failure}"
            return None
        found = self._goal.of(trial.window, trial.window)
        if found.value is None:
            self._note_idle(found.reason)
            return None
        self._references.add(trial.window)
        return trial.window

    async def _window(self, trials: Trials, baseline: Window, before: Config) -> None:
        variant = self._experiment.next_variant()
        trial = await trials.run(
            self._variants[variant],
            fallback=before,
            reference=self._references.typical or baseline,
            guarded=variant == "b",
        )
        if trial.window is None or (variant == "b" and trial.breach is not None):
            self._ended = f"{variant} ended at once: {trial.breach}"
            return
        found = self._goal.of(trial.window, baseline)
        if found.value is None:
            self._experiment.record(variant, None)
            self._note_idle(found.reason)
            return
        self._idle = 0
        if variant == "a":
            self._references.add(trial.window)
        # The test looks at all windows, which takes some milliseconds: not in the event loop.
        value = math.exp(min(max(found.value, -300.0), 300.0))
        await completed(asyncio.to_thread(self._experiment.record, variant, value))

    def _note_idle(self, reason: str | None) -> None:
        self._idle += 1
        if self._idle >= IDLE_WINDOWS:
            self._ended = f"inconclusive: {reason}, {self._idle} windows in a row"

    def _outcome(self, seconds: float) -> Outcome:
        found: Verdict = self._experiment.result
        over = not self._experiment.running
        return Outcome(
            winner=found.winner if over else None,
            reason=found.reason if over or self._ended is None else f"{self._ended} ({found.reason})",
            effect=found.effect,
            interval=found.interval,
            windows=found.windows,
            variant_a=self._variants.get("a", {}),
            variant_b=self._variants.get("b", {}),
            seconds=seconds,
        )
