"""A running workflow as the optimizer sees it: its knobs, its figures, its log."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ag06.errors import AG06Error, StoreError
from ag06.event import Priority
from ag06.ml.board import Board, Posted
from ag06.ml.collector import MetricsCollector
from ag06.ml.controls import Controls
from ag06.ml.decisions import Decision
from ag06.ml.guardrails import Guardrails
from ag06.ml.leadership import Leadership
from ag06.ml.space import Config
from ag06.ml.trial import Timing, Trials
from ag06.ml.tuning import Tuning
from ag06.monitoring import instruments
from ag06.runtime.companions import Running
from ag06.runtime.supervisor import FLEET_VARIABLE

_logger = logging.getLogger("ag06.ml")
FOLLOW_SECONDS = 0.25
"""How often other workers look for new values while there is a leader."""
_FOLLOWERS_SETTLE = 4 * FOLLOW_SECONDS
PATIENCE = 5.0
"""Seconds that the store has for an answer; nothing here depends on one."""
SOURCE = "ag06.optimizer"
"""The source of the events that tell of decisions."""


class Live:
    """One running workflow. One at a time moves its knobs: whoever holds `moving`.

    Attributes:
        tuning: how it is to be tuned.
        controls: its knobs.
        collector: its figures, those of all its processes on this machine.
        board: what its processes tell each other.
        lead: being the one process that moves its knobs.
        over: set when the workflow ends in this process.
    """

    def __init__(self, running: Running) -> None:
        """Look at what runs here; it is tuned as anything is until `retune`."""
        workflow = running.workflow
        self.running = running
        self.tuning = Tuning()
        self.moving = asyncio.Lock()
        self.over = asyncio.Event()
        self.board = Board(running.log, workflow.name)
        self.lead = Leadership(running.log, self.board.role, running.worker, self.tuning.lease)
        self.controls = Controls.of(workflow)
        self.collector = self._collector()
        self._standing: Config | None = None
        # Notes of an earlier life of a worker of this name must not look like the next ones.
        self._number = time.time_ns() // 1_000_000
        self._warned = False

    def retune(self, tuning: Tuning) -> None:
        """Take other options, while nothing is tried; raises `ConfigurationError` for a knob that there is not."""
        if tuning == self.tuning:
            return
        controls = Controls.of(self.running.workflow, tuning.knobs, tuning.pinned)
        measures_otherwise = tuning.minimum_events != self.tuning.minimum_events
        self.tuning, self.controls, self.lead.seconds = tuning, controls, tuning.lease
        if measures_otherwise:
            self.collector = self._collector()

    def _collector(self) -> MetricsCollector:
        groups = [step.group for step in self.running.workflow.steps.values()]
        return MetricsCollector(steps=groups, groups=self.running.log.groups, minimum_events=self.tuning.minimum_events)

    @property
    def timing(self) -> Timing:
        """How a window goes here: where other workers follow, they have time to."""
        timing = self.tuning.timing
        fleet = os.environ.get(FLEET_VARIABLE, "")
        if fleet.isdecimal() and int(fleet) > 1:
            return msgspec.structs.replace(timing, settle=max(timing.settle, _FOLLOWERS_SETTLE))
        return timing

    @property
    def incumbent(self) -> Config:
        """What runs when nothing is tried."""
        return self.controls.now if self._standing is None else dict(self._standing)

    @property
    def departures(self) -> Config:
        """What of it is not as declared: this alone is posted, so that the defaults of a later release take effect."""
        knobs = self.controls.knobs
        return {name: value for name, value in self.incumbent.items() if value != knobs[name].default}

    def trials(self, guardrails: Guardrails) -> Trials:
        """Return what runs windows within `guardrails`."""
        return Trials(self.collector, self.apply, self.timing, guardrails)

    async def apply(self, config: Mapping[str, Any], trial: bool = False) -> None:
        """Move the knobs here and, by a note that they follow, in the other workers.

        What is tried is no incumbent. Raises `ConfigurationError` if a setter does, and then nothing has moved.
        """
        incumbent = self.incumbent
        self.controls.apply(config)
        tried = trial and config != incumbent
        self._standing = incumbent if tried else None
        await self._post(dict(config) if tried else None)

    def follow(self, posted: Posted, *, tries: bool) -> None:
        """Move the knobs to what another worker posted: what it tries, or what it knows to be good.

        Those that it does not name go to their defaults, which are those of this process's own release.
        """
        defaults = {name: knob.default for name, knob in self.controls.knobs.items()}
        self.controls.follow({**defaults, **posted.incumbent})
        self._standing = None
        if tries and posted.trial is not None:
            incumbent = self.incumbent
            self.controls.follow(posted.trial)
            self._standing = incumbent

    async def _post(self, trial: Config | None) -> None:
        """Tell the other workers, if this one leads still; a store that is away keeps the values here from nobody."""
        if not self.lead.held:
            return
        self._number += 1
        timing = self.timing
        hold = 2 * (timing.settle + timing.window * timing.longest) + 10
        note = Posted(self.running.worker, self._number, self.departures, trial, hold)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.board.post(note)
        except (StoreError, TimeoutError) as error:
            if not self._warned:
                _logger.warning("workflow %s: other workers do not hear of new values now: %r", self._name, error)
            self._warned = True
        else:
            self._warned = False

    async def tell(self, decision: Decision) -> None:
        """Make a decision an event in the log, a log line and a metric; it never raises for a store that is away."""
        _logger.info("optimizer of %s: %s: %s", self._name, decision.kind, decision.reason)
        instruments.OPTIMIZER_DECISIONS.labels(decision.kind).inc()
        data = {"workflow": self._name, "at": time.time(), **msgspec.to_builtins(decision)}
        try:
            async with asyncio.timeout(PATIENCE):
                await self.running.workflow.publish(
                    decision.event_type, SOURCE, data, Priority.LOW, subject=None, dedup=False
                )
        except (AG06Error, TimeoutError) as error:
            _logger.warning("optimizer of %s: %s is no event in the log: %r", self._name, decision.kind, error)

    @property
    def _name(self) -> str:
        return self.running.workflow.name
