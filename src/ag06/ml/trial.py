"""One window of a running workflow under one configuration, ended at once where a guardrail breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.collector import MetricsCollector, OpenWindow
from ag06.ml.guardrails import Breach, Guardrails, Watch
from ag06.ml.space import Config
from ag06.ml.windows import Window

LOOKS = 5
"""How often a window is looked at while it is under way, where that costs little."""
_LEAST_LOOK = 0.05
_COST = 0.004
"""The share of the time that looking may take, while something is tried."""

T = TypeVar("T")
Apply = Callable[[Config, bool], Awaitable[None]]
"""Makes a configuration run everywhere; the flag says that it is a trial."""


class Timing(msgspec.Struct, frozen=True):
    """How a window goes: `settle` seconds after its configuration was set, which do not count, then `window` seconds.

    One with too few events goes on for up to `longest` times as long. Switched or not, the same is done: what a window
    measures must not depend on what the one before it ran.
    """

    window: float = 5.0
    settle: float = 0.5
    longest: int = 3


class Trial(msgspec.Struct, frozen=True):
    """What became of a window: its figures (`None`: it could not be run), what it broke, and the seconds it took."""

    window: Window | None
    breaches: tuple[Breach, ...] = ()
    failure: str | None = None
    seconds: float = 0.0

    @property
    def trouble(self) -> str | None:
        """Why nothing may be tried after it, in words: what ran did much worse than it used to."""
        found = [breach.explanation for breach in self.breaches if breach.rail in ("score", "error_rate", "p99")]
        return "; ".join(found) or None

    @property
    def breach(self) -> str | None:
        """What went wrong, in words; `None` if nothing did."""
        return self.failure or "; ".join(breach.explanation for breach in self.breaches) or None


class Trials:
    """Runs windows, one at a time."""

    def __init__(self, collector: MetricsCollector, apply: Apply, timing: Timing, guardrails: Guardrails) -> None:
        """Measure with `collector` what `apply` makes run."""
        self._collector = collector
        self._apply = apply
        self._timing = timing
        self._guardrails = guardrails
        self._look_cost = 0.0

    async def run(
        self, config: Config, *, fallback: Config, reference: Window | None, guarded: bool, trial: bool = True
    ) -> Trial:
        """Run a window of `config`.

        Where it is `guarded` and breaks a guardrail beside `reference`, or where a setter raises, `fallback` runs again
        before this returns. A window that nobody guards is still told what it broke.
        """
        began = time.monotonic()
        try:
            await self._apply(config, trial)
        except ConfigurationError as error:
            await self._apply(fallback, False)
            return Trial(None, failure=f"the configuration could not be set: {error}", seconds=time.monotonic() - began)
        await asyncio.sleep(self._timing.settle)
        opened = await self._collector.open_window()
        watch = None if reference is None else self._guardrails.watch(reference)
        # Looked at alike whether it is guarded or not: what looking costs must not tell variants apart.
        breaches = await self._look_after(opened, watch, guarded=guarded)
        if breaches and guarded:
            await self._apply(fallback, False)
        window = await opened.close()
        if reference is not None and not breaches:
            breaches = self._guardrails.check(window, reference)
            if breaches and guarded:
                await self._apply(fallback, False)
        return Trial(window, tuple(breaches), seconds=time.monotonic() - began)

    async def _look_after(self, opened: OpenWindow, watch: Watch | None, *, guarded: bool) -> list[Breach]:
        """Wait until the window is over, or something breaks in one that is guarded."""
        began = time.monotonic()
        ends = began + self._timing.window
        last = began + self._timing.window * self._timing.longest
        while (now := time.monotonic()) < last:
            if now >= ends:
                flags = (await self._peek(opened)).flags
                if "idle" in flags or not {"too_few_events", "held_up"} & {*flags}:
                    break
                ends = now + self._timing.window
            pause = max(self._timing.window / LOOKS, _LEAST_LOOK, self._look_cost / _COST)
            await asyncio.sleep(min(pause, max(ends - now, 0.001)))
            if watch is not None and time.monotonic() < ends:
                breaches = watch.look(await self._peek(opened))
                if breaches and guarded:
                    return breaches
        return []

    async def _peek(self, opened: OpenWindow) -> Window:
        work = _Timed(opened.peek())
        window = await work
        self._look_cost = work.seconds
        return window


class _Timed(Generic[T]):
    """Some work, awaited once; `seconds` is the processor time that it took itself, without what ran in between."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self.seconds = 0.0

    def __await__(self) -> Generator[Any, Any, T]:
        go_on: Callable[[Any], Any] = self._work.send
        what: Any = None
        while True:
            began = time.thread_time()
            try:
                awaited = go_on(what)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            finally:
                self.seconds += time.thread_time() - began
            try:
                what = yield awaited
                go_on = self._work.send
            except BaseException as error:  # noqa: BLE001 - passed on to the work, a cancellation too
                what, go_on = error, self._work.throw
