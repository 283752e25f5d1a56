"""Experiments that a user asks for: two variants of a running workflow, in turn."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.experiment import Experiment
from ag06.ml.leadership import Leadership
from ag06.ml.live import Live
from ag06.ml.score import Score
from ag06.ml.space import Config
from ag06.ml.trial import Trials
from ag06.ml.verdict import Variant, Verdict
from ag06.ml.windows import Window
from ag06.monitoring import instruments

IDLE_WINDOWS = 3
"""So many windows in a row without traffic end an experiment."""
_LOSS = 0.6

FindLive = Callable[[], Awaitable[Live | None]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment found: the verdict, and between what.

    Attributes:
        winner, effect, interval, windows, reason: as `Experiment.result` has them.
        variant_a, variant_b: the whole configurations that ran.
        seconds: how long it took.
    """

    winner: Variant | None
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    windows: int = 0
    variant_a: dict[str, Any] = {}
    variant_b: dict[str, Any] = {}
    seconds: float = 0.0


class ABTesting:
    """Runs experiments on the workflow that runs in this process, one at a time."""

    def __init__(self, live: FindLive) -> None:
        """`live` finds it; `None` where none runs."""
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
    ) -> Outcome:
        """Run two configurations in turn, window by window, and say which is better.

        The order is drawn; what a variant did may last for `settle` seconds of the next window, which do not count. The
        optimizer's own trials wait meanwhile, and at the end the knobs stand where they stood: keeping the better one
        is the caller's business.

        Args:
            variant_a: values by knob, of what is; knobs that are not named stay as they are.
            variant_b: the same of what may be. It ends at once where it breaks a guardrail.
            timeout: seconds after which it ends without a winner; `None`: when `max_windows` were counted.
            score: what is better; `None`: the score that the optimizer was configured with.
            alpha: the probability of a wrong winner.
            max_windows: how many are counted at most.
            minimum_effect: b wins only where it is better by more: 0.02 is 2%.
            seed: draws the order; `None`: a fresh one.

        Without traffic, and without a workflow that runs here, there is no winner, and the reason says so. Raises
        `ConfigurationError` for an unknown knob, a value it does not take, and while another process tunes.
        """
        if timeout is not None and not timeout > 0:
            raise ConfigurationError(f"run_experiment: timeout={timeout!r}; seconds above 0, or None")
        for name, variant in (("variant_a", variant_a), ("variant_b", variant_b)):
            if not isinstance(variant, Mapping):
                raise ConfigurationError(f"run_experiment: {name}={variant!r}; give values by knob")
        experiment = Experiment(
            alpha=alpha,
            max_windows=max_windows,
            seed=secrets.token_hex(8) if seed is None else seed,
            minimum_effect=minimum_effect,
        )
        live = await self._live()
        if live is None:
            return Outcome(winner=None, reason="inconclusive: no workflow runs in this process, nothing was measured")
        variants: dict[Variant, Config] = {"a": live.controls.check(variant_a), "b": live.controls.check(variant_b)}
        goal = live.tuning.goal if score is None else Score.parse(score) if isinstance(score, str) else score
        lead = Leadership(live.running.log, live.board.role, live.running.worker)
        if not await lead.take():
            raise ConfigurationError(
                f"run_experiment: another process moves the knobs of {live.running.workflow.name!r} now; "
                "run it there, or `ag06 tune stop` first"
            )
        return await _Run(live, experiment, variants, goal, lead).until(timeout)


class _Run:
    """One experiment under way."""

    def __init__(
        self, live: Live, experiment: Experiment, variants: dict[Variant, Config], goal: Score, lead: Leadership
    ) -> None:
        self._live = live
        self._experiment = experiment
        self._variants = variants
        self._goal = goal
        self._lead = lead
        self._idle = 0
        self._ended: str | None = None

    async def until(self, timeout: float | None) -> Outcome:
        """Run it, at most for so many seconds; whatever happens, the knobs go back."""
        began = time.monotonic()
        async with self._live.moving:
            before = self._live.incumbent
            state = instruments.EXPERIMENT_STATE.labels("manual")
            state.set(1)
            keeping = asyncio.create_task(self._lead.keep(), name="ag06 lead of an experiment")
            try:
                async with asyncio.timeout(timeout):
                    await self._windows(keeping)
            except TimeoutError:
                self._ended = f"inconclusive: the timeout of {timeout:g} s is over"
            finally:
                state.set(0)
                keeping.cancel()
                await asyncio.wait([keeping])
                await self._live.apply(before)
        return self._outcome(time.monotonic() - began)

    async def _windows(self, keeping: asyncio.Task[None]) -> None:
        rails = self._live.tuning.guardrails
        worst = None if rails.worst_loss is None else max(rails.worst_loss, _LOSS)
        trials = self._live.trials(msgspec.structs.replace(rails, score=self._goal, worst_loss=worst))
        baseline: Window | None = None
        while self._experiment.running and self._ended is None:
            if keeping.done():
                self._ended = "inconclusive: another process took the lead"
            elif baseline is None:
                baseline = await self._baseline(trials)
            else:
                await self._window(trials, baseline)

    async def _baseline(self, trials: Trials) -> Window | None:
        a = self._variants["a"]
        window = (await trials.run(a, fallback=a, reference=None, guarded=False)).window
        if window is not None and self._goal.of(window, window).value is not None:
            return window
        self._note_idle("there was no traffic" if window is None else (self._goal.of(window, window).reason or ""))
        return None

    async def _window(self, trials: Trials, baseline: Window) -> None:
        variant = self._experiment.next_variant()
        trial = await trials.run(
            self._variants[variant], fallback=self._variants["a"], reference=baseline, guarded=variant == "b"
        )
        if variant == "b" and trial.breach is not None:
            self._ended = f"b ended at once: {trial.breach}"
            return
        found = None if trial.window is None else self._goal.of(trial.window, baseline)
        value = None if found is None else found.value
        self._experiment.record(variant, None if value is None else math.exp(min(max(value, -300.0), 300.0)))
        if value is None:
            self._note_idle((found and found.reason) or "the configuration could not be set")
        else:
            self._idle = 0

    def _note_idle(self, reason: str) -> None:
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
            variant_a=self._variants["a"],
            variant_b=self._variants["b"],
            seconds=seconds,
        )
