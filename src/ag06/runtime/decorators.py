"""Types of the decorators `app.step(...)` and `app.batch_step(...)`: what cannot be a step is a type error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, overload

from ag06.event import Event
from ag06.runtime.context import Context

Done = Awaitable[None] | None
"""Result of a step: nothing reads another one."""

OfEvent = TypeVar("OfEvent", bound=Callable[[Event[Any]], Done])
OfEventAndContext = TypeVar("OfEventAndContext", bound=Callable[[Event[Any], Context], Done])
OfEvents = TypeVar("OfEvents", bound=Callable[[list[Event[Any]]], Done])
OfEventsAndContext = TypeVar("OfEventsAndContext", bound=Callable[[list[Event[Any]], Context], Done])


class StepDecorator(Protocol):
    """Takes a function `(event)` or `(event, ctx: Context)`, plain or async, and returns it as it is."""

    @overload
    def __call__(self, function: OfEvent, /) -> OfEvent: ...
    @overload
    def __call__(self, function: OfEventAndContext, /) -> OfEventAndContext: ...


class BatchDecorator(Protocol):
    """Takes a function `(events)` or `(events, ctx: Context)`, plain or async, and returns it as it is."""

    @overload
    def __call__(self, function: OfEvents, /) -> OfEvents: ...
    @overload
    def __call__(self, function: OfEventsAndContext, /) -> OfEventsAndContext: ...
