"""What a step gets beside its event: where it stands, and an outbox."""

from __future__ import annotations

import datetime as dt
from collections.abc import Generator
from typing import Any

from ag06.errors import StepFailed
from ag06.event import Event, Priority, to_millis
from ag06.ids import derived_id
from ag06.monitoring.tracing import TRACING
from ag06.persistence.admission import Admission
from ag06.persistence.log import Record


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

    __slots__ = ("_admission", "_closed", "_counts", "_events", "_outputs", "attempt", "step", "taken_over", "workflow")

    def __init__(
        self,
        workflow: str,
        step: str,
        events: list[Event[Any]],
        admission: Admission,
        attempt: int = 1,
        taken_over: bool = False,
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
        twice is heard once. `source` is `workflow.step` unless given. Raises `InvalidEvent` as `persist_event` does.
        Returns the id; awaiting it is allowed and does nothing.
        """
        if self._closed:
            raise StepFailed(
                f"step {self.step!r} published {event_type!r} after its call had ended; nothing was stored"
            )
        parent = cause or self._events[0]
        if self._outputs is None:
            self._outputs = []
        ordinal = self._counts.get(parent.id, 0)
        source = source or f"{self.workflow}.{self.step}"
        millis = to_millis(parent.recorded or parent.time)
        identity = derived_id(parent.id, f"{self.workflow}.{self.step}", ordinal, millis)
        self._outputs.append(
            self._admission.output(
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
        )
        self._counts[parent.id] = ordinal + 1
        return OutputId(identity)

    @property
    def event_ids(self) -> list[str]:
        """The ids of the events of the call."""
        return [event.id for event in self._events]

    def close(self) -> tuple[Record, ...]:
        """End the call: return what was published; publishing later is an error. For the runtime."""
        self._closed = True
        return tuple(self._outputs) if self._outputs else ()
