"""One health check: what it may answer, how it is called, and how long its answer holds.

Whatever a check does (raise, hang, answer rubbish) ends here, as the `fail` of its own component.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, Literal, get_args

import msgspec

from ag06.callables import is_async
from ag06.error_text import kind_of, message_of
from ag06.monitoring.redaction import Redaction
from ag06.stopping import asks_to_stop
from ag06.tasks import start_task

Status = Literal["pass", "warn", "fail"]
_FAILURE_TTL = 5.0
"""Seconds that a failure holds at most, whatever the component's own time: it may be over soon."""
STATUSES: tuple[str, ...] = get_args(Status)

Check = Callable[[], Any]
"""A function or coroutine function without arguments; see `judge` for what it may return."""

LONGEST_TEXT = 500
"""Characters that are kept of what a check says."""

_redaction = Redaction()  # what a check says may be an exception's words, and those an address with its password


class HealthResult(msgspec.Struct, frozen=True):
    """What a check found.

    Attributes:
        status: `"pass"`, `"warn"` or `"fail"`.
        detail: what there is to say, in plain words.
        observed: the number behind it, if there is one, as `measurement` in `unit`.
    """

    status: Status = "pass"
    detail: str | None = None
    observed: float | None = None
    measurement: str | None = None
    unit: str | None = None


class Component(msgspec.Struct, frozen=True):
    """How one component stands.

    Attributes:
        status: `"pass"`, `"warn"` or `"fail"`.
        latency_ms: how long its check took, in milliseconds.
        error: what is wrong with it now; `None` while it passes.
        since: when it came to have this status.
        critical: whether its `fail` is that of the whole.
        detail: what its check had to say, whatever the status.
        last_error: what was wrong with it last, though it passes now.
        checked: when its check ended.
        observed, measurement, unit: as in `HealthResult`.
    """

    status: Status
    latency_ms: float
    error: str | None
    since: datetime
    critical: bool
    detail: str | None
    last_error: str | None
    checked: datetime
    observed: float | None = None
    measurement: str | None = None
    unit: str | None = None


class Probe:
    """A check with its settings and its last answer.

    There is never more than one run of it in a loop, and never more than one thread: a run that hangs is waited for,
    not joined by another.
    """

    def __init__(
        self,
        name: str,
        check: Check,
        *,
        critical: bool,
        live: bool,
        timeout: float,
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Call `check` with `timeout` seconds to answer, and no sooner again than `ttl` seconds after its answer."""
        self.name = name
        self.critical = critical
        self.live = live
        self._check = check
        self._timeout = timeout
        self._ttl = ttl
        self._clock = clock
        self._now = now
        self._last: Component | None = None
        self._fresh_until = 0.0
        self._flights: dict[asyncio.AbstractEventLoop, asyncio.Task[Component]] = {}
        self._runs: dict[asyncio.AbstractEventLoop, asyncio.Task[HealthResult]] = {}
        self._thread: Future[Any] | None = None
        self._begun = 0.0

    @property
    def hangs(self) -> bool:
        """Whether a thread is in the check now."""
        return self._thread is not None and not self._thread.done()

    def follow(self, former: Probe) -> None:
        """Take the place of a probe of the same name: a thread in which its check hangs counts as this one's."""
        self._thread, self._begun = former._thread, former._begun

    def forget(self) -> None:
        """Begin anew in a child process: what ran in the parent ends there."""
        self._last = self._thread = None
        self._fresh_until = 0.0
        self._flights, self._runs = {}, {}

    async def look(self) -> Component:
        """Return how the component stands, by an answer that is still fresh, by the run under way, or by a new run."""
        if self._last is not None and self._clock() < self._fresh_until:
            return self._last
        loop = asyncio.get_running_loop()
        flight = self._flights.get(loop)
        if flight is None:
            flight = self._flights[loop] = start_task(self._observe(), f"health check {self.name}")
            flight.add_done_callback(lambda _: self._flights.pop(loop, None))
        return await asyncio.shield(flight)  # who gives up waiting takes nobody else's answer away

    async def close(self) -> None:
        """End what runs in this loop."""
        loop = asyncio.get_running_loop()
        mine = [task for task in (self._flights.get(loop), self._runs.get(loop)) if task is not None]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine, timeout=self._timeout)

    async def _observe(self) -> Component:
        started = self._clock()
        result = await self._ask()
        ended, now, last = self._clock(), self._now(), self._last
        detail = None if result.detail is None else _redaction.text(result.detail)
        error = None if result.status == "pass" else detail or f"the check said {result.status!r}"
        self._last = Component(
            status=result.status,
            latency_ms=(ended - started) * 1000,
            error=error,
            since=last.since if last is not None and last.status == result.status else now,
            critical=self.critical,
            detail=detail,
            last_error=error or (None if last is None else last.last_error),
            checked=now,
            observed=result.observed,
            measurement=result.measurement,
            unit=result.unit,
        )
        self._fresh_until = ended + (self._ttl if result.status != "fail" else min(self._ttl, _FAILURE_TTL))
        return self._last

    async def _ask(self) -> HealthResult:
        loop = asyncio.get_running_loop()
        former = self._runs.get(loop)
        if self.hangs or (former is not None and not former.done()):
            hanging = self._clock() - self._begun
            return HealthResult("fail", f"hangs: its last run has not ended for {hanging:.1f} s")
        self._begun = self._clock()
        self._runs = {known: task for known, task in self._runs.items() if not known.is_closed()}
        run = self._runs[loop] = start_task(self._call(), f"run of health check {self.name}")
        run.add_done_callback(_retrieve)
        try:
            await asyncio.wait([run], timeout=self._timeout)
        except asyncio.CancelledError:
            run.cancel()
            raise
        if not run.done():
            run.cancel()
            return HealthResult("fail", f"hangs: no answer within {self._timeout:g} s")
        if run.cancelled():
            return HealthResult("fail", "the check was cancelled")
        error = run.exception()
        return run.result() if error is None else HealthResult("fail", _words(error))

    async def _call(self) -> HealthResult:
        try:
            if is_async(self._check):
                return judge(await self._check())
            self._thread = call_in_thread(self._check, f"ag06-health-{self.name}")
            answer = await asyncio.wrap_future(self._thread)
            return judge(await answer if isawaitable(answer) else answer)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever a check raises is its component's failure
            if asks_to_stop(error):
                raise
            return HealthResult("fail", _words(error))


def judge(answer: object) -> HealthResult:
    """Return what an answer means: `None`, `True`: pass; `False`: fail; else a status, `(status, detail)` or result."""
    match answer:
        case None | True:
            return HealthResult()
        case False:
            return HealthResult("fail", "the check said False")
        case str() if answer in STATUSES:
            return msgspec.convert({"status": answer}, HealthResult)
        case (str() as status, (str() | None) as detail) if status in STATUSES:
            return msgspec.convert({"status": status, "detail": detail and detail[:LONGEST_TEXT]}, HealthResult)
        case HealthResult():
            try:
                msgspec.convert(msgspec.to_builtins(answer), HealthResult)
            except (msgspec.ValidationError, TypeError) as error:
                return HealthResult("fail", f"the check returned a HealthResult that is none: {error}")
            return answer
    said = repr(answer[:40]) if type(answer) is str else f"a {type(answer).__name__}"
    return HealthResult(
        "fail",
        f"the check returned {said}; return None, a bool, 'pass', 'warn', 'fail', (status, detail) or HealthResult",
    )


def call_in_thread(function: Callable[[], Any], name: str) -> Future[Any]:
    """Call `function` in a new thread that keeps no process from ending."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def call() -> None:
        try:
            answer = context.run(function)
        except StopIteration:  # a future of an event loop does not take it, and would never be done
            future.set_exception(RuntimeError("the check raised StopIteration"))
        except BaseException as error:  # noqa: BLE001 - whatever a check raises is its component's failure
            future.set_exception(error)
        else:
            future.set_result(answer)

    threading.Thread(target=call, name=name, daemon=True).start()
    return future


def _retrieve(run: asyncio.Task[HealthResult]) -> None:
    """Take note of how a run ended that nobody waits for any more."""
    if not run.cancelled():
        run.exception()


def _words(error: BaseException) -> str:
    kind, text = kind_of(error), message_of(error, LONGEST_TEXT)
    if issubclass(type(error), SystemExit):
        return f"the check called sys.exit({text})"
    return f"{kind}: {text}"[:LONGEST_TEXT] if text else kind
