"""A step as the user declared it: a function, what it listens to, and how it is to be run."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal

import msgspec

from ag06.breaker import CircuitBreaker
from ag06.callables import name_of
from ag06.content import check_name
from ag06.errors import ConfigurationError, InvalidEvent
from ag06.event import Event, to_millis
from ag06.knob import Knob
from ag06.persistence.log import StepSpec
from ag06.retry import Retry
from ag06.runtime.knobs import StepKnobs, batch_knobs, step_knobs
from ag06.runtime.step_signature import signature_of

Start = Literal["beginning", "end"] | dt.datetime
"""Where a step begins that the store does not know: a word, or an aware datetime."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One declared step.

    Attributes:
        name: unique in its workflow.
        group: `workflow.step`, the name of its consumer group in the store.
        type: the event type it listens to.
        function: what the user wrote; `is_async` says how to call it.
        decode: turns a stored body into the `Event` the function's annotation asks for.
        timeout: seconds a call may take; `None`: no limit.
        knobs: what may be moved while it runs; `concurrency`, `max_size` and `max_wait` say where they stand.
    """

    name: str
    group: str
    type: str
    function: Callable[..., Any]
    is_async: bool
    takes_context: bool
    decode: Callable[[bytes], Event[Any]]
    retry: Retry
    breaker: CircuitBreaker | None
    timeout: float | None
    start: Literal["beginning", "end"] | int | None
    knobs: StepKnobs

    @property
    def is_batch(self) -> bool:
        """Whether a call takes a list of events."""
        return self.knobs.max_size is not None

    @property
    def concurrency(self) -> int:
        """How many calls run at once in one worker."""
        return int(self.knobs.concurrency.value)

    @property
    def max_size(self) -> int:
        """How many events a call takes at most; 0 where it takes one, and no list."""
        return 0 if self.knobs.max_size is None else int(self.knobs.max_size.value)

    @property
    def max_wait(self) -> float:
        """How many seconds a call waits for more events."""
        return 0.0 if self.knobs.max_wait is None else float(self.knobs.max_wait.value)

    @property
    def spec(self) -> StepSpec:
        """What the store must know of it."""
        return StepSpec(self.group, self.type, self.start)


class Batch(msgspec.Struct, frozen=True):
    """What its user said of a batch: events a call takes at most, seconds to wait for more; `None`: nothing."""

    max_size: int | Knob | None = None
    max_wait: float | Knob | None = None


def declare_step(
    workflow: str,
    event_type: str,
    function: Callable[..., Any],
    *,
    name: str | None,
    retry: Retry | None,
    breaker: CircuitBreaker | None,
    timeout: float | None,
    concurrency: int | Knob | None,
    start: Start | None,
    batch: Batch | None = None,
    frame: FrameType | None = None,
) -> Step:
    """Check a declaration and return its `Step`; raise `ConfigurationError` naming what is wrong.

    `frame` is where the decorator stands: its local names help to resolve annotations.
    """
    step_name = name or name_of(function)
    where = f"step {step_name!r} of workflow {workflow!r}"
    if not step_name and name is None and callable(function):
        raise ConfigurationError(f"workflow {workflow!r}: {type(function).__name__} has no name; give the step a name=")
    try:
        check_name("type", event_type)
        check_name("name", step_name)
    except InvalidEvent as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if "." in step_name or "<" in step_name:
        raise ConfigurationError(f"{where}: give it a name= without dots")
    if batch is None:
        knobs = step_knobs(step_name, where, concurrency)
    else:
        knobs = batch_knobs(step_name, where, concurrency, batch.max_size, batch.max_wait)
    if timeout is not None and not timeout > 0:
        raise ConfigurationError(f"{where}: timeout={timeout}; seconds above 0, or None")
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"{where}: retry={retry!r}; use a Retry, such as Retry(attempts=3)")
    if breaker is not None and not isinstance(breaker, CircuitBreaker):
        raise ConfigurationError(f"{where}: breaker={breaker!r}; use a CircuitBreaker, such as CircuitBreaker('crm')")
    signature = signature_of(where, function, frame, batch=batch is not None)
    if breaker is not None:
        breaker.take_name(f"{workflow}.{step_name}")
    return Step(
        name=step_name,
        group=f"{workflow}.{step_name}",
        type=event_type,
        function=function,
        is_async=signature.is_async,
        takes_context=signature.takes_context,
        decode=signature.decode,
        retry=retry or Retry(),
        breaker=breaker,
        timeout=timeout,
        start=_start(where, start),
        knobs=knobs,
    )


def _start(where: str, start: Start | None) -> Literal["beginning", "end"] | int | None:
    match start:
        case None:
            return None
        case "beginning":
            return "beginning"
        case "end":
            return "end"
        case dt.datetime(tzinfo=dt.tzinfo()):
            return to_millis(start)
    raise ConfigurationError(f"{where}: start={start!r}; use 'beginning', 'end' or an aware datetime")


def check_brackets(decorator: str, event_type: object) -> None:
    """Refuse `@app.step` without an event type in brackets: the function would be no step, without a word."""
    if callable(event_type):
        raise ConfigurationError(f'write @app.{decorator}("TYPE") above the function, with the type it listens to')


def caller_frame() -> FrameType:
    """Return the frame that called the function which calls this one."""
    return sys._getframe(2)
