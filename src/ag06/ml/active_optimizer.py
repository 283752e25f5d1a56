"""The facade `ml_optimizer`: a runtime that tunes itself, and proves each gain before it keeps it."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any, cast

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.ab_testing import ABTesting
from ag06.ml.agent import Agent
from ag06.ml.board import Mode
from ag06.ml.collector import MetricsCollector
from ag06.ml.gradient_optimizer import GradientOptimizer
from ag06.ml.live import Live
from ag06.ml.optimizer_status import status_of, waiting
from ag06.ml.tuning import Tuning
from ag06.runtime.companions import Running
from ag06.runtime.workflow import Workflow
from ag06.settings import check_setting, resolve

_logger = logging.getLogger("ag06.ml")
_PATIENCE = 20.0
"""Seconds that `stop` waits for the knobs to be back."""


class ActiveOptimizer:
    """Tunes the workflows that run in this process, and those of its workers that let it.

    `AG06_TUNE` (or `tune` in `ag06.toml`) decides what happens by itself: `off` (nothing ever moves), `manual` (what
    was proved before is used; the optimizer starts when it is told to), `observe` (it only suggests) or `on`.
    """

    def __init__(self) -> None:
        """Nothing is tuned yet."""
        self._default = Tuning()
        self._tunings: weakref.WeakKeyDictionary[Workflow, Tuning] = weakref.WeakKeyDictionary()
        self._wanted: weakref.WeakKeyDictionary[Workflow, Mode] = weakref.WeakKeyDictionary()
        self._wanted_of_all: Mode | None = None
        self._agents: list[Agent] = []
        self._collector: MetricsCollector | None = None
        self._optimizers: weakref.WeakKeyDictionary[Workflow, GradientOptimizer] = weakref.WeakKeyDictionary()
        self._without = GradientOptimizer()
        self.ab_testing = ABTesting(self._live)

    def configure(self, workflow: Workflow | None = None, **options: Any) -> None:
        """Say how a workflow is to be tuned (`None`: all that were not configured by themselves).

        `options` are those of `Tuning`: `score`, `knobs`, `pinned`, `window`, `settle`, `guardrails`, `share`, ...
        A workflow that is being tuned takes them with its next start. Raises `ConfigurationError` for what makes no
        sense.
        """
        before = self._default if workflow is None else self._tunings.get(workflow, self._default)
        unknown = sorted(set(options) - set(Tuning.__struct_fields__))
        if unknown:
            raise ConfigurationError(
                f"configure: there is no {unknown[0]!r}; use {', '.join(Tuning.__struct_fields__)}"
            )
        tuning = msgspec.structs.replace(before, **options)
        tuning.goal  # noqa: B018 - raises if it cannot be read
        if workflow is None:
            self._default = tuning
        else:
            self._tunings[workflow] = tuning

    async def start(self, workflow: Workflow | None = None, *, mode: Mode = "on", **options: Any) -> None:
        """Tune a workflow as soon as it runs in this process (`None`: all); `mode="observe"` only suggests.

        Returns at once. One process of a workflow leads; the others follow it. `options` are those of `configure`.
        """
        if mode not in ("on", "observe"):
            raise ConfigurationError(f"start: mode={mode!r}; use 'on' or 'observe'")
        if options:
            self.configure(workflow, **options)
        if setting() == "off":
            _logger.warning("the optimizer does not start: AG06_TUNE is off")
        if workflow is None:
            self._wanted_of_all = mode
        else:
            self._wanted[workflow] = mode
        for agent in self._agents_of(workflow):
            agent.wake()
        await asyncio.sleep(0)

    async def stop(self, workflow: Workflow | None = None) -> None:
        """End the optimizer of a workflow in this process (`None`: of all); what was proved stays.

        Returns when the knobs stand there. Where `AG06_TUNE` or `ag06 tune start` want it, it goes on elsewhere.
        """
        if workflow is None:
            self._wanted_of_all = None
            self._wanted.clear()
        else:
            self._wanted.pop(workflow, None)
        await asyncio.gather(*(agent.halt(_PATIENCE) for agent in self._agents_of(workflow)))

    async def rollback(self, workflow: Workflow | None = None) -> None:
        """Return to what ran before the last promotion, or to the defaults, in all processes of a workflow."""
        for agent in self._agents_of(workflow):
            control = await agent.board.control()
            await agent.board.ask(msgspec.structs.replace(control, rollbacks=control.rollbacks + 1))
            agent.wake()

    @property
    def metrics_collector(self) -> MetricsCollector:
        """The figures of the workflow that runs here, else of the process."""
        agent = self._first()
        if agent is not None:
            return agent.live.collector
        if self._collector is None:
            self._collector = MetricsCollector()
        return self._collector

    @property
    def gradient_optimizer(self) -> GradientOptimizer:
        """What suggests changes to the knobs of the workflow that runs here."""
        agent = self._first()
        if agent is None:
            return self._without
        workflow = agent.running.workflow
        if workflow not in self._optimizers:
            self._optimizers[workflow] = GradientOptimizer(workflow, agent.live.controls, agent.live.tuning.seed)
        return self._optimizers[workflow]

    async def get_optimization_status(self) -> dict[str, Any]:
        """Return where it stands, JSON-able: that of the workflow that runs here, and of each in `workflows`."""
        if not self._agents:
            return waiting(self._wanted_of_all, setting())
        each = {agent.running.workflow.name: await status_of(agent) for agent in self._agents}
        return {**next(iter(each.values())), "workflows": each}

    async def accompany(self, running: Running) -> None:
        """Run beside a workflow: the entry point of `ag06.companions`."""
        if setting() == "off":
            return
        workflow = running.workflow
        agent = Agent(running, self._tunings.get(workflow, self._default), lambda: self._mode(workflow))
        self._agents.append(agent)
        try:
            await agent.run()
        finally:
            self._agents.remove(agent)

    def _mode(self, workflow: Workflow) -> Mode | None:
        said = setting()
        by_setting = cast("Mode", said) if said in ("observe", "on") else None
        return self._wanted.get(workflow) or self._wanted_of_all or by_setting

    async def _live(self) -> Live | None:
        agent = self._first()
        return None if agent is None else agent.live

    def _first(self) -> Agent | None:
        return self._agents[0] if self._agents else None

    def _agents_of(self, workflow: Workflow | None) -> list[Agent]:
        return [agent for agent in self._agents if workflow is None or agent.running.workflow is workflow]


def setting() -> str:
    """Return the setting `tune`: off, manual, observe or on."""
    found = resolve("tune")
    check_setting(found)
    return found.value.lower()


ml_optimizer = ActiveOptimizer()
"""The optimizer of this process."""


async def accompany(running: Running) -> None:
    """Run the optimizer of this process beside a workflow."""
    await ml_optimizer.accompany(running)
