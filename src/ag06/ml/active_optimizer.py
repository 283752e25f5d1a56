"""The facade `ml_optimizer`: a runtime that tunes itself, and proves each gain before it keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from typing import Any, cast

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.ab_testing import ABTesting
from ag06.ml.agent import Agent
from ag06.ml.board import Mode
from ag06.ml.collector import MetricsCollector
from ag06.ml.controls import Controls
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
        self._optimizers: weakref.WeakKeyDictionary[Controls, GradientOptimizer] = weakref.WeakKeyDictionary()
        self._without = GradientOptimizer()
        self.ab_testing = ABTesting(self._live)

    def forget(self) -> None:
        """Begin anew in a child process, where no workflow runs yet."""
        self._agents.clear()

    def configure(self, workflow: Workflow | None = None, **options: Any) -> None:
        """Say how a workflow is to be tuned (`None`: all that were not configured by themselves).

        `options` are those of `Tuning`: `score`, `knobs`, `pinned`, `window`, `settle`, `guardrails`, `share`, ...
        A workflow that is being tuned goes on with them after the window that is under way. Raises
        `ConfigurationError` for what makes no sense, and for a knob that `workflow` does not have, or one that runs
        here; then nothing has changed. Before `workflow` has any step or knob, names are looked at when it runs.
        """
        before = self._default if workflow is None else self._tunings.get(workflow, self._default)
        unknown = sorted(set(options) - set(Tuning.__struct_fields__))
        if unknown:
            raise ConfigurationError(
                f"configure: there is no {unknown[0]!r}; use {', '.join(Tuning.__struct_fields__)}"
            )
        tuning = msgspec.structs.replace(before, **options)
        tuning.goal  # noqa: B018 - raises if it cannot be read
        concerned = [
            agent
            for agent in list(self._agents)
            if (agent.running.workflow not in self._tunings if workflow is None else agent.running.workflow is workflow)
        ]
        declared = [workflow] if workflow is not None and (workflow.steps or workflow.knobs) else []
        for one in (*declared, *(agent.running.workflow for agent in concerned)):
            Controls.of(one, tuning.knobs, tuning.pinned)
        if workflow is None:
            self._default = tuning
        else:
            self._tunings[workflow] = tuning
        here = _loop_here()
        for agent in concerned:
            if agent.event_loop is here:
                agent.adopt()
            else:
                with contextlib.suppress(RuntimeError):  # that loop has ended, and the workflow with it
                    agent.event_loop.call_soon_threadsafe(agent.adopt)

    async def start(self, workflow: Workflow | None = None, *, mode: Mode = "on", **options: Any) -> None:
        """Tune a workflow as soon as it runs in this process (`None`: all); `mode="observe"` only suggests.

        Returns at once. One process of a workflow leads; the others follow it. `options` are those of `configure`.
        Raises `ConfigurationError` as `configure` does, also where what was configured before does not fit a workflow
        that runs here: a knob that it does not have.
        """
        if mode not in ("on", "observe"):
            raise ConfigurationError(f"start: mode={mode!r}; use 'on' or 'observe'")
        if options:
            self.configure(workflow, **options)
        for agent in self._agents_of(workflow):
            agent.as_configured()
        if await asyncio.to_thread(setting) == "off":
            _logger.warning("the optimizer does not start: AG06_TUNE is off")
        self._want(workflow, mode)
        for agent in self._agents_of(workflow):
            agent.wake()

    async def stop(self, workflow: Workflow | None = None) -> None:
        """End the optimizer of a workflow in this process (`None`: of all) until `start`; what was proved stays.

        Returns when the knobs stand there; workflows of other event loops follow by themselves. Where `AG06_TUNE` or
        `ag06 tune start` want it, another worker leads.
        """
        self._want(workflow, "off")
        await asyncio.gather(*(agent.halt(_PATIENCE) for agent in self._agents_of(workflow)))

    def _want(self, workflow: Workflow | None, mode: Mode) -> None:
        if workflow is None:
            self._wanted_of_all = mode
            self._wanted.clear()
        else:
            self._wanted[workflow] = mode

    async def rollback(self, workflow: Workflow | None = None) -> None:
        """Return to what ran before the last promotion, or to the defaults, in all processes of a workflow.

        Returns once that is asked for; the leader does it after the window that is under way. Raises `StoreError` where
        the store cannot be reached, and `ConfigurationError` where there is nothing to ask: no workflow runs in this
        event loop, or `AG06_TUNE` is off.
        """
        agents = self._agents_of(workflow)
        if not agents:
            raise ConfigurationError(f"rollback: {await self._why_none(workflow)}")
        for agent in agents:
            control = await agent.board.control()
            await agent.board.ask(msgspec.structs.replace(control, rollbacks=control.rollbacks + 1))
            agent.wake()

    async def _why_none(self, workflow: Workflow | None) -> str:
        """Say why no optimizer is there to be asked, and what to do."""
        if await asyncio.to_thread(setting) == "off":
            return "AG06_TUNE is off, so that the defaults run; set it to manual or on, and start the workflow again"
        which = "no workflow runs" if workflow is None else f"the workflow {workflow.name!r} does not run"
        return f"{which} in this event loop; call it within `async with app.running()`, or use `ag06 tune rollback`"

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
        controls = agent.live.controls
        if controls not in self._optimizers:
            self._optimizers[controls] = GradientOptimizer(agent.running.workflow, controls, agent.live.tuning.seed)
        return self._optimizers[controls]

    async def get_optimization_status(self) -> dict[str, Any]:
        """Return where it stands, JSON-able: that of the workflow that runs here, and of each in `workflows`."""
        agents = self._agents_of(None)
        if not agents:
            return waiting(self._wanted_of_all, await asyncio.to_thread(setting))
        found = await asyncio.gather(*(status_of(agent) for agent in agents))
        return {**found[0], "workflows": {status["workflow"]: status for status in found}}

    async def accompany(self, running: Running) -> None:
        """Run beside a workflow: the entry point of `ag06.companions`."""
        workflow = running.workflow
        try:
            said = await asyncio.to_thread(setting)
        except ConfigurationError as error:
            _logger.error("the workflow %s runs without the optimizer: %s", workflow.name, error)  # noqa: TRY400
            return
        if said == "off":
            running.told["optimizer"] = {**waiting(None, said), "workflow": workflow.name, "leads_here": False}
            _logger.info("workflow %s: the optimizer is off, AG06_TUNE says so: the defaults run", workflow.name)
            return
        by_setting = cast("Mode", said) if said in ("observe", "on") else None
        agent = Agent(
            running,
            lambda: self._tunings.get(workflow, self._default),
            lambda: self._wanted.get(workflow) or self._wanted_of_all or by_setting,
        )
        self._agents.append(agent)
        running.attached.set()
        try:
            await agent.run()
        finally:
            self._agents.remove(agent)

    async def _live(self) -> Live | str:
        agent = self._first()
        if agent is not None:
            return agent.as_configured()
        off = await asyncio.to_thread(setting) == "off"
        return "AG06_TUNE is off" if off else "no workflow runs in this process"

    def _first(self) -> Agent | None:
        return next(iter(self._agents_of(None)), None)

    def _agents_of(self, workflow: Workflow | None) -> list[Agent]:
        """Return those of the event loop that runs here; where none does, of all."""
        here = _loop_here()
        return [
            agent
            for agent in list(self._agents)
            if (here is None or agent.event_loop is here) and (workflow is None or agent.running.workflow is workflow)
        ]


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def setting() -> str:
    """Return the setting `tune`: off, manual, observe or on."""
    found = resolve("tune")
    check_setting(found)
    return found.value.lower()


ml_optimizer = ActiveOptimizer()
"""The optimizer of this process."""

os.register_at_fork(after_in_child=ml_optimizer.forget)


async def accompany(running: Running) -> None:
    """Run the optimizer of this process beside a workflow."""
    await ml_optimizer.accompany(running)
