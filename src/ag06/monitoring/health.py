"""Health: which components there are, how each stands, and what follows for the whole.

Four questions, as orchestrators ask them: the full report, liveness (restart it?), readiness (send it work?) and
startup (has it come up?).
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from ag06.callables import takes
from ag06.errors import ConfigurationError
from ag06.monitoring.probe import Check, Component, HealthResult, Probe, Status
from ag06.settings import check_seconds

__all__ = ["Component", "HealthRegistry", "HealthReport", "HealthResult", "Phase", "Status"]

Phase = Literal["opening", "running", "stopping"]

DEFAULT_TTL = 1.0
MOST_COMPONENTS = 200
LONGEST_TIMEOUT = 60.0


class HealthReport(msgspec.Struct, frozen=True):
    """How the whole stands, and each component by name; `note` says what else decided, such as a shutdown."""

    status: Status
    components: dict[str, Component]
    time: datetime
    note: str | None = None


class HealthRegistry:
    """The checks of one process. May be used from several event loops, and from threads to register.

    Each component is checked at most once at a time and once in its `ttl` however many ask, so that probes cannot
    overload what they ask about. All are checked at once. A plain `def` check runs in a thread of its own, at most one
    a component.
    """

    def __init__(
        self,
        *,
        ttl: float = DEFAULT_TTL,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Let an answer hold for `ttl` seconds, unless a check is registered with one of its own."""
        self._ttl = ttl
        self._clock = clock
        self._now = now
        self._probes: dict[str, Probe] = {}
        self._gone: dict[str, Probe] = {}
        self._phases: dict[str, Phase] = {}
        _all.add(self)

    def register(
        self,
        name: str,
        check: Check,
        critical: bool = True,
        timeout: float = 2.0,
        *,
        ttl: float | None = None,
        live: bool = False,
    ) -> None:
        """Add a component, or replace the one of that name.

        Args:
            name: for the report; without a colon.
            check: sync or async, without arguments. `None` or `True`: pass; `False` or a raise: fail; or a status, a
                `(status, detail)`, or a `HealthResult`.
            critical: whether its `fail` makes the whole `fail`, and not `warn`.
            timeout: seconds it may take; longer is a `fail`.
            ttl: seconds its answer holds; `None`: those of the registry.
            live: whether its `fail` means that the process should be started again.

        Raises:
            ConfigurationError: for a name, check or time that cannot be used.
        """
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 100 or ":" in name:
            raise ConfigurationError(f"health component {name!r}: use 1 to 100 printable characters without a colon")
        if not callable(check):
            raise ConfigurationError(f"health component {name!r}: {check!r} cannot be called; give a function")
        if not takes(check, 0):
            raise ConfigurationError(f"health component {name!r}: {check!r} needs arguments; a check gets none")
        check_seconds(f"timeout of health component {name!r}", timeout, "how long a check may take", least=0.001)
        check_seconds(f"ttl of health component {name!r}", 0 if ttl is None else ttl, "how long an answer holds")
        self._gone = {gone: probe for gone, probe in self._gone.items() if probe.hangs}
        if name not in self._probes and len(self._probes) + len(self._gone) >= MOST_COMPONENTS:
            raise ConfigurationError(f"health component {name!r}: there are {MOST_COMPONENTS} already; remove some")
        probe = Probe(
            name,
            check,
            critical=critical,
            live=live,
            timeout=min(timeout, LONGEST_TIMEOUT),
            ttl=self._ttl if ttl is None else ttl,
            clock=self._clock,
            now=self._now,
        )
        former = self._probes.get(name) or self._gone.pop(name, None)
        if former is not None:
            probe.follow(former)
        self._probes[name] = probe

    def unregister(self, name: str) -> bool:
        """Remove a component; return whether it was there."""
        probe = self._probes.pop(name, None)
        if probe is not None and probe.hangs:
            self._gone[name] = probe
        return probe is not None

    def set_phase(self, name: str, phase: Phase | None) -> None:
        """Say where a workflow of this process is in its life; `None`: it is over."""
        if phase is None:
            self._phases.pop(name, None)
        else:
            self._phases[name] = phase

    def forget(self) -> None:
        """Begin anew in a child process, with the components that are registered: no workflow runs there yet."""
        self._phases.clear()
        self._gone.clear()
        for probe in self._probes.values():
            probe.forget()

    async def check_health(self) -> HealthReport:
        """Return how every component stands."""
        return await self._report(list(self._probes.values()))

    async def liveness(self) -> HealthReport:
        """Return `fail` if the process should be started again: a component registered with `live=True` failed."""
        return await self._report([probe for probe in list(self._probes.values()) if probe.live])

    async def readiness(self) -> HealthReport:
        """Return `fail` unless every workflow runs, none is shutting down, and every critical component works."""
        away = self._not_in("running")
        if away is not None:
            return HealthReport("fail", {}, self._now(), away)
        return await self._report([probe for probe in list(self._probes.values()) if probe.critical])

    def startup(self) -> HealthReport:
        """Return `fail` until every workflow has finished opening."""
        away = self._not_in("running", "stopping")
        return HealthReport("pass" if away is None else "fail", {}, self._now(), away)

    async def close(self) -> None:
        """End the checks that run in this loop. The registry can be used again."""
        await asyncio.gather(*(probe.close() for probe in list(self._probes.values())))

    def _not_in(self, *phases: Phase) -> str | None:
        away = [f"{name} is {phase}" for name, phase in self._phases.items() if phase not in phases]
        return ", ".join(away) or (None if self._phases else "no workflow runs")

    async def _report(self, probes: list[Probe]) -> HealthReport:
        found = await asyncio.gather(*(probe.look() for probe in probes))
        components = {probe.name: component for probe, component in zip(probes, found, strict=True)}
        return HealthReport(_overall(found), components, self._now())


def _overall(components: Iterable[Component]) -> Status:
    statuses = {
        "warn" if component.status == "fail" and not component.critical else component.status
        for component in components
    }
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"


_all: weakref.WeakSet[HealthRegistry] = weakref.WeakSet()


def _forget_parent() -> None:
    for registry in list(_all):
        registry.forget()


os.register_at_fork(after_in_child=_forget_parent)
