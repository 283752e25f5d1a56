"""The event: one thing that happened."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any, Generic

import msgspec
from typing_extensions import TypeVar

from ag06.errors import StoreDamaged

T = TypeVar("T", default=Any)

_UTC = dt.UTC
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=_UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)


class Priority(enum.IntEnum):
    """Which subjects go first in a step. Waiting raises an event by one level every 10 seconds."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Event(msgspec.Struct, Generic[T], frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened, as it is stored and as a step receives it.

    Attributes:
        id: UUIDv7 (RFC 9562) as text, or the id the publisher gave.
        type: what happened; steps subscribe to a type.
        source: who says so.
        data: any JSON value, or what a step's annotation `Event[Block]` makes of it.
        time: when it happened, aware UTC (the publisher's clock or argument).
        priority: which subjects go first.
        subject: what it is about; events of one subject are committed in order by each step.
        correlation_id: shared by an event and everything that followed from it.
        causation_id: the id of the event whose step published this one.
        traceparent: W3C trace context, where there is one.
        recorded: when the log took it, aware UTC in milliseconds; `None` before it is stored.
    """

    id: str
    type: str
    source: str
    data: T
    time: dt.datetime
    priority: Priority = Priority.NORMAL
    subject: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None
    recorded: dt.datetime | None = None


_decode = msgspec.json.Decoder(Event[Any]).decode


class _Named(msgspec.Struct):
    id: str = ""
    subject: str | None = None


_decode_names = msgspec.json.Decoder(_Named).decode


def id_and_subject(body: bytes) -> tuple[str, str | None]:
    """Return the id and the subject of the event stored as `body`, without decoding the rest; no id if unreadable."""
    try:
        named = _decode_names(body)
    except msgspec.DecodeError:
        named = _Named()
    return named.id, named.subject


def from_millis(millis: int) -> dt.datetime:
    """Return `millis` since the epoch as an aware UTC datetime, without a float's rounding."""
    return _EPOCH + dt.timedelta(milliseconds=millis)


def to_millis(moment: dt.datetime) -> int:
    """Return an aware datetime as milliseconds since the epoch, rounded down."""
    return (moment - _EPOCH) // _MILLISECOND


def read_event(body: bytes, recorded_ms: int) -> Event[Any]:
    """Return a stored event as `decode_event` does; raise `StoreDamaged` if what is stored is none."""
    try:
        return decode_event(body, recorded_ms)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreDamaged(
            f"the event that was recorded at {from_millis(recorded_ms)} is damaged ({error}); see the extent with "
            "ag06 check, and restore a backup"
        ) from error


def decode_event(body: bytes, recorded_ms: int, decode: Any = _decode) -> Event[Any]:
    """Return the event stored as `body`, taken by the log at `recorded_ms` milliseconds since the epoch."""
    event: Event[Any] = decode(body)
    # The body is written before the store knows the time; nobody else holds the new struct yet.
    msgspec.structs.force_setattr(event, "recorded", from_millis(recorded_ms))
    return event
