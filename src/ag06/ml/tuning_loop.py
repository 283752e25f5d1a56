"""The continuous loop: observe, try, prove, keep or roll back, watch; one window after the other."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from ag06.errors import AG06Error, ConfigurationError, StoreError
from ag06.ml.board import Control, Entry, Mode, Saved
from ag06.ml.budget import Budget
from ag06.ml.campaign import Campaign, Plan
from ag06.ml.decisions import Decision
from ag06.ml.live import PATIENCE, Live
from ag06.ml.optimizer_status import told_by
from ag06.ml.references import References
from ag06.ml.space import described
from ag06.ml.suggestions import suggest
from ag06.ml.trial import Trial
from ag06.ml.verdict import Verdict
from ag06.ml.windows import Window
from ag06.monitoring import instruments
from ag06.tasks import completed, end, start_task

_logger = logging.getLogger("ag06.ml")
BASELINE_WINDOWS = 3
"""So many windows' time is measured before anything is tried."""
HISTORY = 400
SAVE_SECONDS = 2.0
"""Between two notes of what was learned, where they are small; large ones are written less often:"""
_BYTES_A_SECOND = 30_000
HOLD = 10
"""Windows in which nothing is tried because what runs does worse than it used to; then that is how it is."""
_IDLE_SECONDS = 1.0
T = TypeVar("T")


class TuningLoop:
    """Tunes one running workflow until it is cancelled or told to stop.

    Attributes:
        state: where it stands, in a word or a few: `waiting for traffic`, `baseline`, or the phase of the campaign.
        campaign: what was learned; `None` before it has begun.
        baseline: the window that scores are told beside; `last` the last one.
        history: the last decisions and windows.
        suggestion: what could be better, in `observe` mode.
        verdict: how the experiment under way stands.
    """

    def __init__(
        self, live: Live, mode: Mode, wanted: Callable[[], Mode | None], notice: Callable[[], None] = lambda: None
    ) -> None:
        """Tune `live`, whose lead this process has.

        Args:
            live: what to tune, and how.
            mode: `on`; `observe` only suggests, `off` does what was asked for from outside and ends.
            wanted: what this process wants by now; `None` ends it.
            notice: called when there is something new to tell.
        """
        self.live = live
        self.mode: Mode = mode
        self._wanted = wanted
        self._notice = notice
        self._hurried = asyncio.Event()
        self._is_idle = False
        self.state = "starting"
        self.campaign: Campaign | None = None
        self.baseline: Window | None = None
        self.last: Window | None = None
        self.history: deque[Entry] = deque(maxlen=HISTORY)
        self.suggestion: dict[str, Any] | None = None
        tuning = live.tuning
        self.score = tuning.goal
        self.budget = Budget(tuning.share, tuning.worst_loss)
        rails = msgspec.structs.replace(tuning.guardrails, score=self.score)
        self._exploring = live.trials(rails)
        self._proving = live.trials(rails.for_experiment())
        self._references = References()
        self._rollbacks = 0
        self._kept: dict[str, Any] = {}  # what an earlier leader learned, where this one only looks
        self._held = 0
        self._trouble: str | None = None
        self._fresh: list[Window] = []
        """The windows since a promotion."""
        self._control = Control()
        self._resumed = False
        self._save_at = -math.inf
        self.verdict: Verdict | None = None
        self._experiment = instruments.EXPERIMENT_STATE.labels("optimizer")

    # The loop

    async def run(self) -> None:
        """Go on until cancelled, or until somebody asked for `off`."""
        try:
            await self._resume()
            while await self._heed():
                measured = await self._interruptible(self._measure())
                if measured is not None:
                    await completed(self._take(*measured))
                self._notice()
                if time.monotonic() >= self._save_at:
                    await self.save()
        finally:
            self._experiment.set(0)
            await completed(self._leave())

    def hurry(self) -> None:
        """End the window that is under way, or the next one, and look at what is wanted now."""
        self._hurried.set()

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what comes of some work, `None` if `hurry` ended it."""
        task = start_task(work, "ag06 optimizer's window")
        hurried = start_task(self._hurried.wait())
        try:
            await asyncio.wait([task, hurried], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(task, hurried)
        self._hurried.clear()
        return None if task.cancelled() else task.result()

    async def _measure(self) -> tuple[Campaign, Plan, Trial, Window] | None:
        """Run one window, or in `observe` mode look at one; return what is to be learned from it."""
        if self._is_idle:
            await asyncio.sleep(_IDLE_SECONDS)
        async with self.live.moving:
            if self.mode == "observe" or self.campaign is None:
                await self._look()
            elif self.baseline is None:
                await self._measure_baseline()
            else:
                return await self._window(self.campaign, self.baseline)
        return None

    async def _heed(self) -> bool:
        """Take in what was asked for from outside; return whether to go on."""
        try:
            async with asyncio.timeout(PATIENCE):
                control = self._control = await self.live.board.control()
        except (StoreError, TimeoutError):
            control = self._control  # nobody can ask for anything else now
        if control.rollbacks > self._rollbacks:
            await self._roll_back(control.rollbacks)
        mode = control.mode_beside(self._wanted())
        if mode is None or mode == "off":
            return False
        if mode != self.mode:
            self.mode = mode
            async with self.live.moving:
                await self.live.apply(self.live.incumbent)  # nothing is tried any more
            await self._begin()
            await self._decide([Decision(kind="started", config=self.live.incumbent, reason=f"mode {self.mode}")])
        return True

    async def _roll_back(self, asked: int) -> None:
        self._rollbacks = asked
        if self.campaign is None:
            return
        async with self.live.moving:  # an experiment of the user's would put back what it found
            decisions = self.campaign.roll_back("somebody asked for it")
            await self.live.apply(self.campaign.incumbent)
        await self._decide(decisions)

    async def _resume(self) -> None:
        """Go on where an earlier leader was, if the knobs are the same; else begin."""
        live = self.live
        saved, why = await self._saved()
        if saved is not None:
            try:
                if saved.campaign:
                    self.campaign = await asyncio.to_thread(Campaign.restore, self._as_configured(saved.campaign))
                self.budget.restore(saved.budget)
                self.baseline = saved.baseline
                self.history.extend(saved.history)
                why = "goes on where it was"
            except ConfigurationError as error:
                self.campaign, why = None, f"begins anew: {error}"
        async with asyncio.timeout(PATIENCE):
            control = self._control = await live.board.control()
        self._rollbacks = control.rollbacks if saved is None else saved.rollbacks
        if saved is not None and saved.reference is not None and self.campaign and self.campaign.phase == "watch":
            self._references.add(saved.reference)
        self._resumed = True
        await self._begin()
        names = ", ".join(live.controls.knobs) or "no knob"
        reason = f"mode {self.mode}, {why}; it may move {names}; score: {self.score}"
        await self._decide([Decision(kind="started", config=live.incumbent, reason=reason)])

    async def _begin(self) -> None:
        """In mode `on`, run what was proved before, or begin to learn; else nothing is moved."""
        live, tuning = self.live, self.live.tuning
        if self.mode != "on" or not live.controls.knobs:
            return
        if self.campaign is None:
            knobs = list(live.controls.knobs.values())
            # What runs may have been proved with other knobs beside it, or be set by hand: it is not undone.
            begin = partial(Campaign, incumbent=live.incumbent, seed=tuning.seed, pace=tuning.pace)
            # In a thread: importing scikit-learn takes a second or two.
            self.campaign = await asyncio.to_thread(partial(begin, knobs, surrogate=tuning.surrogate))
        self.verdict = await asyncio.to_thread(_verdict, self.campaign)
        async with live.moving:
            await live.apply(self.campaign.incumbent)

    def _as_configured(self, campaign: dict[str, Any]) -> dict[str, Any]:
        """Return what was saved of a campaign with the options of now."""
        tuning = self.live.tuning
        tuner = {**campaign.get("tuner", {}), "surrogate": tuning.surrogate}
        pace = msgspec.to_builtins(tuning.pace)
        return {**campaign, "pace": pace, "surrogate": tuning.surrogate, "tuner": tuner}

    async def _saved(self) -> tuple[Saved | None, str]:
        """Return what an earlier leader saved if it fits, and why not else."""
        try:
            async with asyncio.timeout(PATIENCE):
                saved = await self.live.board.saved()
        except ConfigurationError as error:
            return None, f"begins anew: {error}"
        if saved is None:
            return None, "begins"
        if self.mode != "on":
            self._kept = saved.campaign
        if self.mode == "off" and {knob["name"] for knob in saved.campaign.get("knobs", ())} <= {
            *self.live.controls.knobs
        }:
            return saved, ""  # to roll back what it proved, whatever would be tuned now
        knobs = msgspec.json.encode([described(knob) for knob in self.live.controls.knobs.values()])
        if saved.campaign and msgspec.json.encode(saved.campaign.get("knobs")) != knobs:
            return None, "begins anew, since other knobs are declared now"
        if saved.score != str(self.score):
            return None, "begins anew, since another score is declared now"
        return saved, ""

    # Windows

    async def _measure_baseline(self) -> None:
        """Measure what is, over some windows' time."""
        live, timing = self.live, self.live.timing
        if not self._is_idle:
            self.state = "baseline"
        await live.apply(live.incumbent)
        await asyncio.sleep(timing.settle + timing.window)  # what has just started is not what is usual
        opened = await live.collector.open_window()
        for _ in range(BASELINE_WINDOWS):
            await asyncio.sleep(timing.window)
            self.last = await opened.peek()
            if "idle" in self.last.flags:
                break
        window = self.last = await opened.close()
        self._note_idle("idle" in window.flags)
        self.budget.spend(window.seconds, exploring=False)
        if self.score.of(window, window).value is not None:
            self.baseline = window
            self._references.add(window)

    def _note_idle(self, is_idle: bool) -> None:
        """Without traffic nothing is tried: what is tried then would be met by the first events that come."""
        self._is_idle = is_idle
        if is_idle:
            self.state = "waiting for traffic"

    async def _window(self, campaign: Campaign, baseline: Window) -> tuple[Campaign, Plan, Trial, Window]:
        """Run the next window of the campaign."""
        timing = self.live.timing
        seconds = timing.window + timing.settle
        refusal = self.budget.refusal(seconds if campaign.experiment is None else 2 * seconds)
        if self._trouble is not None:
            refusal = f"what runs does worse than it used to: {self._trouble}"
        elif self._references.typical is None:
            refusal = "what runs is measured first"
        may_try = refusal is None and not self._is_idle
        # The tuner thinks for some milliseconds: not in the event loop.
        plan = await completed(asyncio.to_thread(campaign.next, may_try=may_try))
        if not self._is_idle:
            self.state = campaign.phase if plan.purpose != "control" or refusal is None else f"control: {refusal}"
        self._experiment.set(int(campaign.experiment is not None))
        trials = self._proving if plan.purpose in ("a", "b") else self._exploring
        trial = await trials.run(
            plan.config,
            fallback=campaign.incumbent if plan.purpose != "watch" else campaign.previous or campaign.incumbent,
            reference=self._references.typical or baseline,
            guarded=plan.risky,
            trial=plan.config != campaign.incumbent,
        )
        return campaign, plan, trial, baseline

    async def _take(self, campaign: Campaign, plan: Plan, trial: Trial, baseline: Window) -> None:
        """Learn from a window, and do what follows from it."""
        window = self.last = trial.window
        score = None if window is None else self.score.of(window, baseline).value
        breach = trial.breach if plan.risky else None
        incumbent = campaign.incumbent
        decisions, self.verdict = await completed(asyncio.to_thread(_learn, campaign, plan, score, breach))
        if campaign.incumbent != incumbent:
            async with self.live.moving:
                await self.live.apply(campaign.incumbent)
        self._account(plan, trial, score)
        self._compare(plan, trial, score, {decision.kind for decision in decisions})
        if plan.purpose == "explore":
            told = "measured nothing that counts" if score is None else f"scored {math.expm1(score):+.1%}"
            trial_told = Decision(kind="trial", config=plan.config, before=incumbent, reason=told, score=score)
            decisions = [trial_told, *decisions]
        await self._decide(decisions)

    def _account(self, plan: Plan, trial: Trial, score: float | None) -> None:
        """Note what a window cost, and what it showed."""
        window = trial.window
        self.budget.spend(trial.seconds, exploring=plan.risky and plan.purpose != "watch", score=score)
        if score is not None:
            instruments.OPTIMIZER_SCORE.labels().set(math.exp(min(score, 300.0)))
        self.history.append(
            Entry(
                time.time(),
                purpose=plan.purpose,
                config=plan.config if plan.purpose in ("explore", "b") else None,
                score=score,
                breach=trial.breach,
            )
        )
        self._note_idle(window is not None and score is None and "idle" in window.flags)

    def _compare(self, plan: Plan, trial: Trial, score: float | None, kinds: set[str]) -> None:
        """Keep what guardrails compare with, and see whether what runs is in trouble: then nothing is tried.

        It may be what a trial left behind, whose calls cannot be taken back. While events wait and hardly any is
        settled it holds still however long that takes; otherwise `HOLD` windows, after which that is how it is.
        """
        window = trial.window
        if plan.purpose == "watch" and window is not None and score is not None:
            self._fresh.append(window)
        if "kept" in kinds:
            self._references.replace(self._fresh)
        if kinds & {"promoted", "kept", "rolled_back"}:
            self._fresh = []
        if plan.risky or window is None:
            return
        stuck = bool({"stalled", "held_up"} & {*window.flags})
        self._trouble = (
            trial.trouble if trial.trouble is not None or not stuck else "events wait, hardly any is settled"
        )
        self._held = 0 if self._trouble is None else self._held + 1
        if self._trouble is not None and self._held > HOLD and not stuck:
            self._references.clear()
            self._trouble, self._held = None, 0
        if self._trouble is None and score is not None:
            self._references.add(window)

    async def _look(self) -> None:
        """Measure a window of what runs, and say what could be better."""
        if not self._is_idle:
            self.state = "observe" if self.mode == "observe" else "there is no knob to move"
        opened = await self.live.collector.open_window()
        await asyncio.sleep(self.live.timing.window)
        window = self.last = await opened.close()
        self._note_idle("idle" in window.flags)
        if "too_few_events" in window.flags:
            return
        if self.baseline is None:
            self.baseline = window
        found = suggest(self.live.running.workflow, self.live.controls, window, self.campaign)
        told = msgspec.to_builtins(found)
        if found.changes and (self.suggestion is None or self.suggestion["changes"] != told["changes"]):
            config = {**self.live.controls.now, **found.changes}
            await self._decide(
                [Decision(kind="suggested", config=config, before=self.live.controls.now, reason=found.reason)]
            )
        self.suggestion = told

    # What is told and kept

    async def _decide(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            self.history.append(Entry(time.time(), decision=decision))
        try:
            async with asyncio.timeout(PATIENCE):
                for decision in decisions:
                    await self.live.tell(decision)
        except TimeoutError:
            _logger.warning("the store does not answer: not every decision is an event in the log")
        if any(decision.kind != "trial" for decision in decisions):
            self._notice()
            await self.save()

    async def save(self) -> None:
        """Save all that is known beside the log, while this process leads; a store that is away is tried again."""
        if not self.live.lead.held or not self._resumed:
            return
        saved = Saved(
            at=time.time(),
            leader=self.live.running.worker,
            mode=self.mode,
            state=self.state,
            campaign=self._kept if self.campaign is None else self.campaign.state(),
            score=str(self.score),
            baseline=self.baseline,
            reference=self._references.typical or self.baseline,
            budget=self.budget.state(),
            rollbacks=self._rollbacks,
            history=list(self.history),
            suggestion=self.suggestion,
            last=self.last,
            told=told_by(self),
        )
        try:
            async with asyncio.timeout(PATIENCE):
                size = await self.live.board.save(saved)
        except (AG06Error, TimeoutError) as error:
            _logger.debug("what was learned is not saved now: %r", error)
            size = 0
        self._save_at = time.monotonic() + max(SAVE_SECONDS, size / _BYTES_A_SECOND)

    async def _leave(self) -> None:
        """Leave what is known to be good running."""
        lost = not self.live.lead.held
        self.state = "stopped"
        try:
            async with asyncio.timeout(PATIENCE):
                if self.mode == "on" and self.campaign is not None:
                    await self.live.apply(self.campaign.incumbent)
                if not self._resumed:
                    return
                why = "the lead was lost: another worker may have it" if lost else "what was proved stays"
                await self._decide([Decision(kind="stopped", config=self.live.incumbent, reason=why)])
        except (ConfigurationError, TimeoutError) as error:
            _logger.warning("the optimizer did not end cleanly: %r", error)


def _learn(
    campaign: Campaign, plan: Plan, score: float | None, breach: str | None
) -> tuple[list[Decision], Verdict | None]:
    """Learn from a window, and come to how the experiment stands, which takes some milliseconds too."""
    decisions = campaign.record(plan, score, breach)
    return decisions, _verdict(campaign)


def _verdict(campaign: Campaign) -> Verdict | None:
    return None if campaign.experiment is None else campaign.experiment.result
