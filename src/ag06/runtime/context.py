"""What a step gets beside its event: where it stands, and an outbox."""

from __future__ import annotations

import datetime as dt
from collections.abc import Generator
from typing import Any

from ag06.errors import InvalidEvent, StepFailed
from ag06.event import Event, Priority, to_millis
from ag06.ids import derived_id
from ag06.monitoring.tracing import TRACING
from ag06.persistence.admission import Admission
from ag06.persistence.log import Record

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
"""Most bytes that the outputs of one call have together as JSON, unless the workflow sets another limit."""


class OutputId(str):
    """The id of an output. May be awaited, which changes nothing: plain `def` steps cannot await."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, str]:
        return str(self)
        yield  # makes this a generator, as the protocol wants


class Context:
    """One call of a step.

    Attributes:
        workflow: the workflow's name.
        step: the step's name.
        attempt: which attempt this is, 1 for the first.
        taken_over: whether a worker died, or lost its lease, while it held the event.
    """

    __slots__ = (
        "_admission",
        "_by_id",
        "_closed",
        "_counts",
        "_events",
        "_limit",
        "_outputs",
        "_size",
        "attempt",
        "step",
        "taken_over",
        "workflow",
    )

    def __init__(
        self,
        workflow: str,
        step: str,
        events: list[Event[Any]],
        admission: Admission,
        attempt: int = 1,
        taken_over: bool = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        """Made by the runtime for each call."""
        self.workflow = workflow
        self.step = step
        self.attempt = attempt
        self.taken_over = taken_over
        self._events = events
        self._admission = admission
        self._outputs: list[Record] | None = None
        self._counts: dict[str, int] = {}
        self._by_id: dict[str, Event[Any]] | None = None
        self._limit = max_output_bytes
        self._size = 0
        self._closed = False

    def publish(
        self,
        event_type: str,
        data: Any = None,
        *,
        source: str | None = None,
        subject: str | None = None,
        priority: Priority | int | str | None = None,
        time: dt.datetime | None = None,
        delay: float | None = None,
        at: dt.datetime | None = None,
        cause: Event[Any] | None = None,
    ) -> OutputId:
        """Put an event into the outbox: it enters the log together with the acknowledgement, or not at all.

        It keeps the correlation and the priority of its cause (`cause`, else the event being processed, else the
        first of the batch), and its id follows from (cause, step, how many of this cause came before): a step that runs
        twice is heard once. `cause` is an event of this call; another one, of a join for instance, belongs into `data`
        (two calls with the same foreign cause would give two outputs one id). `source` is `workflow.step` unless given.
        Raises `InvalidEvent` as `persist_event` does, and when the outputs of this call exceed `max_output_bytes` of
        the workflow; that output is not in the outbox. Returns the id; awaiting it is allowed and does nothing.
        """
        if self._closed:
            raise StepFailed(
                f"step {self.step!r} published {event_type!r} after its call had ended; nothing was stored"
            )
        parent = self._events[0] if cause is None else self._own(cause)
        if self._outputs is None:
            self._outputs = []
        ordinal = self._counts.get(parent.id, 0)
        source = source or f"{self.workflow}.{self.step}"
        millis = to_millis(parent.recorded or parent.time)
        identity = derived_id(parent.id, f"{self.workflow}.{self.step}", ordinal, millis)
        record = self._admission.output(
            identity,
            parent,
            event_type,
            source,
            data,
            priority=priority,
            subject=subject,
            traceparent=TRACING.output(event_type, parent, identity),
            time=time,
            delay=delay,
            at=at,
        )
        size = self._size + len(record.body)
        if size > self._limit:
            raise self._too_large(size)
        self._size = size
        self._outputs.append(record)
        self._counts[parent.id] = ordinal + 1
        return OutputId(identity)

    def _own(self, cause: Event[Any]) -> Event[Any]:
        """Return the event of this call that has the id of `cause`: a copy may carry other times, which ids follow."""
        if self._by_id is None:
            self._by_id = {event.id: event for event in self._events}
        event_id = cause.id if isinstance(cause, Event) else None
        own = None if event_id is None else self._by_id.get(event_id)
        if own is None:
            named = f"is a {type(cause).__name__}" if event_id is None else f"is the event {event_id}"
            raise InvalidEvent(
                "cause",
                f"{named}, not an event of this call of {self.step!r}; leave it out, or name another event in data",
            )
        return own

    def _too_large(self, size: int) -> InvalidEvent:
        advice = (
            "handle fewer events in a call (max_size)" if len(self._events) > 1 else "publish references to the data"
        )
        return InvalidEvent(
            "data",
            f"brings the outputs of this call of step {self.step!r} to {size} bytes in {len(self._outputs or ()) + 1} "
            f"events; the limit is {self._limit} (max_output_bytes): {advice}, or raise the limit of the workflow",
        )

    @property
    def event_ids(self) -> list[str]:
        """The ids of the events of the call."""
        return [event.id for event in self._events]

    def close(self) -> tuple[Record, ...]:
        """End the call: return what was published; publishing later is an error. For the runtime."""
        self._closed = True
        return tuple(self._outputs) if self._outputs else ()
