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

from ag06.errors import ConfigurationError, StoreError
from ag06.ml.board import Entry, Mode, Saved
from ag06.ml.budget import Budget
from ag06.ml.campaign import Campaign, Plan, described
from ag06.ml.decisions import Decision
from ag06.ml.live import Live
from ag06.ml.suggestions import suggest
from ag06.ml.trial import Trial
from ag06.ml.windows import Window
from ag06.monitoring import instruments

_logger = logging.getLogger("ag06.ml")
BASELINE_WINDOWS = 3
"""So many windows' time is measured before anything is tried."""
REFERENCES = 5
"""Of so many last windows of what is known to be good, the middle one is what guardrails compare with."""
HISTORY = 400
SAVE_SECONDS = 5.0
_IDLE_SECONDS = 1.0
T = TypeVar("T")
_EXPERIMENT_LOSS = 0.6
"""In an experiment a loss is found by its test; only one of this size ends it at once."""


class TuningLoop:
    """Tunes one running workflow until it is cancelled or told to stop.

    Attributes:
        state: where it stands, in a word or a few: `waiting for traffic`, `baseline`, or the phase of the campaign.
        campaign: what was learned; `None` before it has begun.
        baseline: the window that scores are told beside.
        history: the last decisions and windows.
    """

    def __init__(self, live: Live, mode: Mode, wanted: Callable[[], Mode | None]) -> None:
        """Tune `live`; `mode` "observe" only suggests. `wanted` says what this process wants by now."""
        self.live = live
        self.mode: Mode = mode
        self._wanted = wanted
        self._measuring: asyncio.Task[Any] | None = None
        self.ended = asyncio.Event()
        self.state = "starting"
        self.campaign: Campaign | None = None
        self.baseline: Window | None = None
        self.last: Window | None = None
        self.history: deque[Entry] = deque(maxlen=HISTORY)
        self.suggestion: dict[str, Any] | None = None
        tuning = live.tuning
        self.score = tuning.goal
        self.budget = Budget(tuning.share, tuning.worst_loss)
        rails = tuning.guardrails
        milder = msgspec.structs.replace(
            rails, worst_loss=None if rails.worst_loss is None else max(rails.worst_loss, _EXPERIMENT_LOSS)
        )
        self._exploring = live.trials(msgspec.structs.replace(rails, score=self.score))
        self._proving = live.trials(msgspec.structs.replace(milder, score=self.score))
        self._references: deque[Window] = deque(maxlen=REFERENCES)
        self._rollbacks = 0
        self._saved_at = -math.inf
        self._experiment = instruments.EXPERIMENT_STATE.labels("optimizer")

    # The loop

    async def run(self) -> None:
        """Go on until cancelled, or until somebody asked for `off`."""
        try:
            await self._resume()
            while await self._heed():
                measured = await self._interruptible(self._measure())
                if measured is not None:
                    await self._take(*measured)
                if time.monotonic() - self._saved_at >= SAVE_SECONDS:
                    await self.save()
        finally:
            self._experiment.set(0)
            await asyncio.shield(asyncio.create_task(self._leave()))
            self.ended.set()

    def hurry(self) -> None:
        """End the window that is under way, and look at what is wanted now."""
        if self._measuring is not None:
            self._measuring.cancel()

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what comes of some work, `None` if `hurry` ended it."""
        task = self._measuring = asyncio.create_task(work, name="ag06 optimizer's window")
        try:
            await asyncio.wait([task])
        finally:
            self._measuring = None
            task.cancel()
            await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    async def _measure(self) -> tuple[Campaign, Plan, Trial, Window] | None:
        """Run one window, or in `observe` mode look at one; return what is to be learned from it."""
        if self.state == "waiting for traffic":
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
            async with asyncio.timeout(5.0):
                control = await self.live.board.control()
        except (StoreError, TimeoutError):
            return True  # nobody can ask for anything now
        mode = control.mode or self._wanted()
        if mode is None or mode == "off":
            return False
        if mode != self.mode:
            self.mode = mode
            await self._decide([Decision(kind="started", config=self.live.incumbent, reason=f"mode {self.mode}")])
        if control.rollbacks > self._rollbacks and self.campaign is not None:
            self._rollbacks = control.rollbacks
            await self._decide(self.campaign.roll_back("somebody asked for it"))
            await self.live.apply(self.campaign.incumbent)
        return True

    async def _resume(self) -> None:
        """Go on where an earlier leader was, if the knobs are the same; else begin."""
        live, tuning = self.live, self.live.tuning
        saved, why = await self._saved()
        if saved is not None:
            try:
                self.campaign = await asyncio.to_thread(Campaign.restore, saved.campaign)
                self.baseline = saved.baseline
                self.budget.restore(saved.budget)
                self.history.extend(saved.history)
                why = "goes on where it was"
            except ConfigurationError as error:
                self.campaign, self.baseline, why = None, None, f"begins anew: {error}"
        control = await live.board.control()
        self._rollbacks = control.rollbacks if saved is None else saved.rollbacks
        if self.campaign is None and live.controls.knobs:
            knobs = list(live.controls.knobs.values())
            # In a thread: importing scikit-learn takes a second or two.
            begin = partial(Campaign, knobs, seed=tuning.seed, pace=tuning.pace, surrogate=tuning.surrogate)
            self.campaign = await asyncio.to_thread(begin)
        if self.campaign is not None and self.mode == "on":
            await live.apply(self.campaign.incumbent)
        names = ", ".join(live.controls.knobs) or "no knob"
        reason = f"mode {self.mode}, {why}; it may move {names}; score: {self.score}"
        await self._decide([Decision(kind="started", config=live.incumbent, reason=reason)])

    async def _saved(self) -> tuple[Saved | None, str]:
        """Return what an earlier leader saved if it fits, and why not else."""
        try:
            saved = await self.live.board.saved()
        except ConfigurationError as error:
            return None, f"begins anew: {error}"
        if saved is None:
            return None, "begins"
        knobs = msgspec.json.encode([described(knob) for knob in self.live.controls.knobs.values()])
        if msgspec.json.encode(saved.campaign.get("knobs")) != knobs:
            return None, "begins anew, since other knobs are declared now"
        if saved.score != str(self.score):
            return None, "begins anew, since another score is declared now"
        return saved, ""

    # Windows

    async def _measure_baseline(self) -> None:
        """Measure what is, over some windows' time."""
        incumbent = self.live.incumbent
        opened, windows = None, 0
        self.state = "baseline" if self.state != "waiting for traffic" else self.state
        await self.live.apply(incumbent)
        await asyncio.sleep(self.live.timing.settle)
        opened = await self.live.collector.open_window()
        while windows < BASELINE_WINDOWS:
            await asyncio.sleep(self.live.timing.window)
            windows += 1
            self.last = await opened.peek()
            if "idle" in self.last.flags:
                break
        window = self.last = await opened.close()
        if self.score.of(window, window).value is None:
            self.state = "waiting for traffic"
            return
        self.baseline = window
        self._references.append(window)

    async def _window(self, campaign: Campaign, baseline: Window) -> tuple[Campaign, Plan, Trial, Window]:
        """Run the next window of the campaign."""
        timing = self.live.timing
        seconds = timing.window + timing.settle
        refusal = self.budget.refusal(seconds if campaign.experiment is None else 2 * seconds)
        plan = campaign.next(may_try=refusal is None)
        self.state = campaign.phase if plan.purpose != "control" or refusal is None else f"control: {refusal}"
        self._experiment.set(int(campaign.experiment is not None))
        trials = self._proving if plan.purpose in ("a", "b") else self._exploring
        trial = await trials.run(
            plan.config,
            fallback=campaign.incumbent if plan.purpose != "watch" else campaign.previous or campaign.incumbent,
            reference=self._reference(),
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
        # Learning takes milliseconds: not in the event loop.
        decisions = await asyncio.to_thread(campaign.record, plan, score, breach)
        self.budget.spend(trial.seconds, exploring=plan.risky and plan.purpose != "watch", score=score)
        if window is not None and not plan.risky and score is not None:
            self._references.append(window)
        if score is not None:
            instruments.OPTIMIZER_SCORE.set(math.exp(min(score, 300.0)))
        if plan.purpose == "explore":
            told = "measured nothing that counts" if score is None else f"scored {math.expm1(score):+.1%}"
            trial_told = Decision(kind="trial", config=plan.config, before=incumbent, reason=told, score=score)
            decisions = [trial_told, *decisions]
        self.history.append(
            Entry(time.time(), purpose=plan.purpose, config=plan.config, score=score, breach=trial.breach)
        )
        if campaign.incumbent != incumbent:
            async with self.live.moving:
                await self.live.apply(campaign.incumbent)
        if window is None or (score is None and "idle" in window.flags):
            self.state = "waiting for traffic"
        if any(decision.kind == "regime" for decision in decisions) and not campaign.tuner.windows:
            self.baseline = None  # it begins anew: scores are told beside what is now
        await self._decide(decisions)

    async def _look(self) -> None:
        """Measure a window of what runs, and say what could be better."""
        self.state = "observe"
        opened = await self.live.collector.open_window()
        await asyncio.sleep(self.live.timing.window)
        window = self.last = await opened.close()
        if "too_few_events" in window.flags:
            self.state = "waiting for traffic"
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

    def _reference(self) -> Window | None:
        """Return the middle one, by its p99, of the last windows of what is known to be good."""
        if not self._references:
            return self.baseline
        by_p99 = sorted(self._references, key=lambda window: window.latency_p99_ms or 0.0)
        return by_p99[len(by_p99) // 2]

    # What is told and kept

    async def _decide(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            self.history.append(Entry(time.time(), decision=decision))
            await self.live.tell(decision)
        if any(decision.kind != "trial" for decision in decisions):
            await self.save()

    async def save(self) -> None:
        """Save all that is known beside the log; a store that is away is tried again later."""
        self._saved_at = time.monotonic()
        saved = Saved(
            at=time.time(),
            leader=self.live.running.worker,
            mode=self.mode,
            state=self.state,
            campaign={} if self.campaign is None else self.campaign.state(),
            score=str(self.score),
            baseline=self.baseline,
            reference=self._reference(),
            budget=self.budget.state(),
            rollbacks=self._rollbacks,
            history=list(self.history),
            suggestion=self.suggestion,
        )
        try:
            async with asyncio.timeout(5.0):
                await self.live.board.save(saved)
        except (StoreError, TimeoutError) as error:
            _logger.debug("what was learned is not saved now: %r", error)

    async def _leave(self) -> None:
        """Leave what is known to be good running."""
        self.state = "stopped"
        try:
            async with asyncio.timeout(5.0):
                await self.live.apply(self.live.incumbent if self.campaign is None else self.campaign.incumbent)
                stopped = Decision(kind="stopped", config=self.live.incumbent, reason="what was proved stays")
                await self._decide([stopped])
        except (ConfigurationError, TimeoutError) as error:
            _logger.warning("the optimizer did not end cleanly: %r", error)
