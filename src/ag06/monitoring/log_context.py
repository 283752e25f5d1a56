"""What every line of a log says without being told: which event, step and trace it belongs to, and the user's context.

Context variables carry it: over `await`, into tasks, into `asyncio.to_thread`. A thread that the user's own executor
starts sees it if it is called by `contextvars.copy_context().run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context, ContextVar, Token
from types import TracebackType
from typing import Any, TypeAlias

from ag06.event import Event

Bound: TypeAlias = tuple[Event[Any] | None, str, str, int]
TraceSource: TypeAlias = Callable[[], tuple[str, str] | None]
"""Returns the ids of the trace and of the span that this code runs in, in hexadecimal."""

_NOTHING: Mapping[str, Any] = {}
_scope: ContextVar[Mapping[str, Any]] = ContextVar("ag06_log_scope", default=_NOTHING)
_bound: ContextVar[Bound | None] = ContextVar("ag06_log_event", default=None)
_trace_source: TraceSource | None = None

scope = _scope.get
"""Return what `context` holds here."""


class context:  # noqa: N801 - reads as the function it is called as
    """Add fields to every line that is logged inside: `with context(order="A1"): ...`; also in async code."""

    __slots__ = ("_fields", "_token")

    def __init__(self, /, **fields: Any) -> None:
        """Hold the fields; they count from `with` on."""
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _scope.set({**_scope.get(), **self._fields})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An abandoned async generator is finished by the loop, in a context of its own: there is nothing to put back.
        with suppress(ValueError):
            _scope.reset(self._token)


def bind_event(event: Event[Any] | None, workflow: str, step: str, attempt: int = 1) -> Token[Bound | None]:
    """Say which call of a step runs from here on, until `unbind_event`; a batch has no `event`. For the runtime."""
    return _bound.set((event, workflow, step, attempt))


def unbind_event(token: Token[Bound | None]) -> None:
    """End what `bind_event` began, in the same task."""
    _bound.reset(token)


def carry_event(into: Context) -> None:
    """Let what `bind_event` said here hold in a context that is no copy of this one, too. For the runtime."""
    into.run(_bound.set, _bound.get())


def use_trace_source(source: TraceSource | None) -> None:
    """Ask `source` for the ids of the trace, for each line; without one they are those that the event carries."""
    global _trace_source
    _trace_source = source


def identity() -> dict[str, Any]:
    """Return the fields that say which event, step and trace this code runs for; none outside of a step and a trace."""
    found: dict[str, Any] = {}
    bound = _bound.get()
    event = None if bound is None else bound[0]
    if event is not None:
        found["correlation_id"] = event.correlation_id or event.id
    trace = _trace_source() if _trace_source is not None else None
    if trace is not None:
        found["trace_id"], found["span_id"] = trace
    elif event is not None and event.traceparent is not None:
        parts = event.traceparent.split("-")
        if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16:  # W3C Trace Context, section 3.2
            found["trace_id"], found["span_id"] = parts[1], parts[2]
    if bound is not None:
        found["workflow"] = bound[1]
        found["step"] = bound[2]
        if event is not None:
            found["event_id"] = event.id
        found["attempt"] = bound[3]
    return found
