"""The runtime's own knobs: what may be moved of a running workflow, between which bounds, and what its user fixed."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.errors import ConfigurationError
from ag06.knob import Knob

if TYPE_CHECKING:
    from ag06.runtime.step import Step

_OF_STEPS = ("concurrency", "max_size", "max_wait", "fetch_size", "prefetch")
_OF_WORKFLOWS = ("commit_wait", "archive_compression")


class Fixed(msgspec.Struct, frozen=True):
    """A number that the user gave, such as what a pool or a machine takes: nobody else moves it."""

    name: str
    value: Any


Setting = Knob | Fixed


class StepKnobs(msgspec.Struct, frozen=True, kw_only=True):
    """How a step is run, each read by its `.value` where it is used.

    Attributes:
        concurrency: calls that run at once in one worker.
        max_size, max_wait: for a batch step, events a call takes at most and seconds to wait for more; else `None`.
        fetch_size: deliveries that one request to the store may bring, at most.
        prefetch: seconds of work to hold beside what runs.
        given: those of them that are knobs of the user's.
    """

    concurrency: Setting
    max_size: Setting | None
    max_wait: Setting | None
    fetch_size: Knob
    prefetch: Knob
    given: tuple[Knob, ...]

    def __iter__(self) -> Iterator[Setting]:
        """Yield all that the step has."""
        every = (self.concurrency, self.max_size, self.max_wait, self.fetch_size, self.prefetch)
        return iter([setting for setting in every if setting is not None])

    @property
    def own(self) -> list[Knob]:
        """Those that are the runtime's own and may move."""
        return [setting for setting in self if isinstance(setting, Knob) and setting not in self.given]


def step_knobs(step: str, where: str, concurrency: int | Knob | None) -> StepKnobs:
    """Return the knobs of a step that takes one event at a time; `where` begins what is said of a mistake."""
    shipped = Knob(f"{step}.concurrency", low=1, high=256, default=10, scale="log", integer=True)
    return StepKnobs(
        concurrency=_count(where, "concurrency", concurrency, shipped),
        max_size=None,
        max_wait=None,
        fetch_size=_fetch_size(step),
        prefetch=_prefetch(step),
        given=_knobs(concurrency),
    )


def batch_knobs(
    step: str, where: str, concurrency: int | Knob | None, max_size: int | Knob | None, max_wait: float | Knob | None
) -> StepKnobs:
    """Return the knobs of a batch step; `where` begins what is said of a mistake."""
    calls = Knob(f"{step}.concurrency", low=1, high=64, default=1, scale="log", integer=True)
    size = Knob(f"{step}.max_size", low=1, high=2_000, default=100, scale="log", integer=True)
    wait = Knob(f"{step}.max_wait", low=0.001, high=1.0, default=0.05, scale="log")
    return StepKnobs(
        concurrency=_count(where, "concurrency", concurrency, calls),
        max_size=_count(where, "max_size", max_size, size, most=10_000),
        max_wait=_seconds(where, "max_wait", max_wait, wait),
        fetch_size=_fetch_size(step),
        prefetch=_prefetch(step),
        given=_knobs(concurrency, max_size, max_wait),
    )


def check_names(workflow: str, knobs: Mapping[str, Knob], steps: Iterable[Step]) -> None:
    """Refuse a knob of the user's that is named like one of the runtime's, and one that is not the workflow's."""
    taken = {*_OF_WORKFLOWS}
    for step in steps:
        taken.update(f"{step.name}.{what}" for what in _OF_STEPS)
        for knob in step.knobs.given:
            if knobs.get(knob.name) is not knob:
                raise ConfigurationError(
                    f"step {step.name!r}: knob {knob.name!r} is none of workflow {workflow!r}; declare it there, "
                    f"with app.knob({knob.name!r}, ...)"
                )
    for name in knobs:
        if name in taken:
            raise ConfigurationError(f"workflow {workflow!r}: knob {name!r} is one of the runtime's; name it otherwise")


def commit_wait() -> Knob:
    """Return the knob of a workflow that says how long a commit waits for more to settle, in seconds."""
    return Knob("commit_wait", low=0.0, high=0.02, default=0.0)


def _knobs(*given: object) -> tuple[Knob, ...]:
    return tuple(one for one in given if isinstance(one, Knob))


def _fetch_size(step: str) -> Knob:
    return Knob(f"{step}.fetch_size", low=1, high=1_000, default=1_000, scale="log", integer=True)


def _prefetch(step: str) -> Knob:
    return Knob(f"{step}.prefetch", low=0.01, high=2.0, default=0.1, scale="log")


def _count(where: str, what: str, given: int | Knob | None, shipped: Knob, most: float = float("inf")) -> Setting:
    """Return the shipped knob, the user's own, or the number that stays; all whole, from 1 to `most`."""
    if given is None:
        return shipped
    for value in _extremes(given):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            bounds = "at least 1" if most == float("inf") else f"1 to {most:g}"
            raise ConfigurationError(f"{where}: {what}={_said(given)}; {bounds}, whole numbers")
    if isinstance(given, Knob) and given.choices is None and not given.integer:
        raise ConfigurationError(f"{where}: {what}={_said(given)}; declare the knob with integer=True")
    return given if isinstance(given, Knob) else Fixed(shipped.name, given)


def _seconds(where: str, what: str, given: float | Knob | None, shipped: Knob) -> Setting:
    if given is None:
        return shipped
    for value in _extremes(given):
        if not isinstance(value, (int, float)) or not value >= 0:
            raise ConfigurationError(f"{where}: {what}={_said(given)}; 0 s or more")
    return given if isinstance(given, Knob) else Fixed(shipped.name, given)


def _extremes(given: Any) -> Iterable[Any]:
    """Return the values that show whether all of them will do."""
    if not isinstance(given, Knob):
        return (given,)
    return (given.low, given.high) if given.choices is None else given.choices


def _said(given: Any) -> str:
    return f"knob {given.name!r}" if isinstance(given, Knob) else repr(given)


class Following:
    """Calls `adapt` in the event loop soon after one of some knobs moved, in whatever thread that was."""

    def __init__(self, settings: Iterable[Setting], adapt: Callable[[], None]) -> None:
        """Follow until `close`; `adapt` runs in a context like that of now."""
        self._knobs = [setting for setting in settings if isinstance(setting, Knob)]
        self._adapt = adapt
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        for knob in self._knobs:
            knob.watch(self._moved)

    def close(self) -> None:
        """Follow no more."""
        for knob in self._knobs:
            knob.unwatch(self._moved)

    def _moved(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has just ended, and with it whatever would adapt
            self._loop.call_soon_threadsafe(self._adapt, context=self._context)
