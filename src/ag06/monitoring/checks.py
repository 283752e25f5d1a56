"""The built-in health checks: event loop, disk space, store, journal, leases, steps.

They know no store: what they ask is given to them, and is read by the names of its attributes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from ag06.monitoring.health import HealthRegistry
from ag06.monitoring.loop_watch import LoopWatch
from ag06.monitoring.probe import Check, HealthResult, Status

ALARMING = ("lose", "lost", "nothing when", "unknown", "throws", "refuse")
"""Words of a sentence about durability that make it a warning."""

_MIB = 1024 * 1024
_MOST_NAMED = 5
_SETTINGS_TTL = 60.0
_STATS_TTL = 5.0


class Group(Protocol):
    """How a step stands: what `GroupInfo` of a log says."""

    @property
    def group(self) -> str: ...  # noqa: D102
    @property
    def backlog(self) -> int: ...  # noqa: D102
    @property
    def in_flight(self) -> int: ...  # noqa: D102
    @property
    def oldest_ms(self) -> int | None: ...  # noqa: D102


class Stats(Protocol):
    """How a log stands: what its `LogStats` says."""

    @property
    def events(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> Sequence[Group]: ...  # noqa: D102


class Journal(Protocol):
    """How a journal stands: what its `JournalState` says."""

    @property
    def active(self) -> bool: ...  # noqa: D102
    @property
    def events(self) -> int: ...  # noqa: D102
    @property
    def oldest_ms(self) -> int | None: ...  # noqa: D102
    @property
    def in_memory(self) -> int: ...  # noqa: D102
    @property
    def dead_letters(self) -> int: ...  # noqa: D102
    @property
    def problem(self) -> str | None: ...  # noqa: D102


AskStats = Callable[[], Awaitable[Stats]]
AskJournal = Callable[[], Awaitable[Journal | None]]
AskReport = Callable[[], Awaitable[Iterable[str]]]


def register_built_in(
    health: HealthRegistry,
    *,
    watch: LoopWatch | None = None,
    paths: Sequence[str | Path] = (),
    stats: AskStats | None = None,
    report: AskReport | None = None,
    journal: AskJournal | None = None,
    leases: Check | None = None,
    suffix: str = "",
) -> tuple[str, ...]:
    """Register the checks whose subject is given; return their names.

    Args:
        health: where to.
        watch: of the workflow's loop; a loop that does not answer fails liveness.
        paths: where the workflow writes: the store's file, the journal's directory.
        stats: asks the store. It is critical unless there is a `journal` that takes events while the store is away.
        report: the store's `durability_report`.
        journal: its state, or `None` while there is none.
        leases: whether those of the worker are renewed.
        suffix: of the names, where another workflow has the plain ones.
    """
    names: list[str] = []

    def register(name: str, check: Check, **settings: Any) -> None:
        health.register(name + suffix, check, **settings)
        names.append(name + suffix)

    if watch is not None:
        register("event_loop", event_loop(watch), live=True, ttl=0)
    if paths:
        register("disk", disk_space(paths))
    if stats is not None:
        register("store", store(stats), critical=journal is None)
        register("consumer_lag", consumer_lag(stats), critical=False, ttl=_STATS_TTL)
        register("stuck_steps", StuckSteps(stats), critical=False, ttl=_STATS_TTL)
    if report is not None:
        register("store_configuration", store_configuration(report), critical=False, ttl=_SETTINGS_TTL)
    if journal is not None:
        register("journal", journal_backlog(journal), critical=False)
    if leases is not None:
        register("leases", leases, critical=False, ttl=0)
    return tuple(names)


def event_loop(watch: LoopWatch, *, fail_seconds: float = 10.0, remembered: float = 60.0) -> Check:
    """Fail while the loop has not answered for `fail_seconds`; warn before that, and for `remembered` seconds after."""

    async def check() -> HealthResult:
        stall = watch.last_stall
        if stall is None:
            return HealthResult("pass", None, round(watch.lag * 1000, 3), "lag", "ms")
        words = f"{stall.seconds:.1f} s at {stall.began:%H:%M:%S} UTC, in {stall.where}"
        if not stall.over:
            status: Status = "fail" if stall.seconds >= fail_seconds else "warn"
            return HealthResult(status, f"the event loop does not answer: {words}", stall.seconds, "stalled", "s")
        ended = stall.began + timedelta(seconds=stall.seconds)
        if datetime.now(UTC) - ended < timedelta(seconds=remembered):
            return HealthResult("warn", f"the event loop was held up: {words}", stall.seconds, "stalled", "s")
        return HealthResult("pass", None, round(watch.lag * 1000, 3), "lag", "ms")

    return check


def disk_space(paths: Sequence[str | Path], *, warn_mib: float = 1024, fail_mib: float = 128) -> Check:
    """Warn and fail where less than so many MiB, or a hundredth or thousandth of the files, are free below a path."""

    def check() -> HealthResult:
        free = {path: _free(Path(path)) for path in paths}
        least = min(space for space, _ in free.values())
        short = [
            f"{path}: {space / _MIB:.0f} MiB free" + (f", room for {files:.2%} of its files" if files < 0.01 else "")
            for path, (space, files) in free.items()
            if space < warn_mib * _MIB or files < 0.01
        ]
        full = any(space < fail_mib * _MIB or files < 0.001 for space, files in free.values())
        return _result(short, full=full, observed=least / _MIB, measurement="free", unit="MiB")

    return check


def store(stats: AskStats) -> Check:
    """Pass if the store answers a question."""

    async def check() -> HealthResult:
        return HealthResult("pass", f"{(await stats()).events} events")

    return check


def store_configuration(report: AskReport) -> Check:
    """Warn of what a crash of the store can lose, given its own settings, and of what it refuses."""

    async def check() -> HealthResult:
        lines = list(await report())
        alarming = [line for line in lines if is_alarming(line)]
        return _result(alarming, otherwise="; ".join(lines) or None)

    return check


def is_alarming(line: str) -> bool:
    """Whether a sentence of a durability report says that something can be lost or is refused."""
    return any(word in line for word in ALARMING)


def journal_backlog(
    journal: AskJournal,
    *,
    most_events: int = 1000,
    oldest_seconds: float = 60.0,
    now: Callable[[], float] = time.time,
) -> Check:
    """Warn while events go to the journal, while it holds many or old ones, and of what it could not deliver."""

    async def check() -> HealthResult:
        state = await journal()
        if state is None:
            return HealthResult("pass", "there is none")
        age = 0.0 if state.oldest_ms is None else max(0.0, now() - state.oldest_ms / 1000)
        wrong = []
        if state.active:
            wrong.append(f"the store is away, events go to the journal ({state.problem or 'no reason known'})")
        if state.in_memory:
            wrong.append(f"{state.in_memory} events are on no disk yet, their publishers wait")
        if state.events and (state.active or state.events >= most_events or age >= oldest_seconds):
            wrong.append(f"{state.events} events wait, the oldest for {age:.0f} s")
        if state.dead_letters:
            wrong.append(f"the store refused {state.dead_letters} events for good; see: ag06 journal list")
        return _result(wrong, observed=state.events, measurement="depth", unit="events")

    return check


def consumer_lag(
    stats: AskStats,
    *,
    most_backlog: int = 10_000,
    oldest_seconds: float = 300.0,
    now: Callable[[], float] = time.time,
) -> Check:
    """Warn of each step that is `most_backlog` events or `oldest_seconds` behind."""

    async def check() -> HealthResult:
        groups = (await stats()).groups
        behind = []
        for group in groups:
            age = 0.0 if group.oldest_ms is None else now() - group.oldest_ms / 1000
            if group.backlog >= most_backlog or (group.backlog and age >= oldest_seconds):
                behind.append(f"{group.group}: {group.backlog} events behind, the oldest for {age:.0f} s")
        most = max((group.backlog for group in groups), default=0)
        return _result(behind, observed=most, measurement="backlog", unit="events")

    return check


class StuckSteps:
    """Warns of each step whose oldest event has not been settled for `seconds` while this process looked on."""

    def __init__(self, stats: AskStats, *, seconds: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask `stats` at each call; the step may run in any process."""
        self._stats = stats
        self._seconds = seconds
        self._clock = clock
        self._seen: Mapping[str, tuple[int, float]] = {}

    async def __call__(self) -> HealthResult:
        """Return which steps make no progress."""
        now, stuck = self._clock(), []
        seen: dict[str, tuple[int, float]] = {}
        for group in (await self._stats()).groups:
            if not group.backlog or group.oldest_ms is None:
                continue
            oldest, since = self._seen.get(group.group, (None, now))
            seen[group.group] = (group.oldest_ms, since if oldest == group.oldest_ms else now)
            waited = now - seen[group.group][1]
            if waited >= self._seconds:
                advice = (
                    "does it hang, or wait for a retry?" if group.in_flight else "nobody takes it: run the step, or "
                )
                advice += "" if group.in_flight else f"ag06 steps remove {group.group}"
                stuck.append(f"{group.group}: its oldest event has not moved for {waited:.0f} s; {advice}")
        self._seen = seen
        return _result(stuck, observed=len(stuck), measurement="stuck", unit="steps")


def _result(wrong: Sequence[str], *, full: bool = False, otherwise: str | None = None, **observed: Any) -> HealthResult:
    if not wrong:
        return HealthResult("pass", otherwise, **observed)
    more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    return HealthResult("fail" if full else "warn", "; ".join(wrong[:_MOST_NAMED]) + more, **observed)


def _free(path: Path) -> tuple[int, float]:
    """Return the bytes free for this user where `path` is or will be, and which share of the files."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_favail / found.f_files if found.f_files else 1.0
