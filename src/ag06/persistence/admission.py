"""The way into the log: what a publisher says becomes a checked, encoded `Record`, or an `InvalidEvent`."""

from __future__ import annotations

import datetime as dt
import math
import time as clocks
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec

from ag06.content import MAX_DATA_BYTES, check_name, check_time, content_hash, encode_data, key_hash
from ag06.errors import InvalidEvent
from ag06.event import Event, Priority, to_millis
from ag06.ids import new_id
from ag06.persistence.log import Record
from ag06.settings import check_count, check_seconds

_encode = msgspec.json.Encoder().encode
_NORMAL = Priority.NORMAL
_REPEAT_WINDOW_MS = 300_000
NEVER_COMPARED = b"-"
"""What the body of an event says whose publisher wanted it compared with no other, where others are."""

_HEX = frozenset("0123456789abcdef")
_LONGEST_DELAY = 10 * 366 * 86_400.0


class Admission:
    """Checks and encodes events under one set of limits.

    `dedup_window` in seconds (0 switches deduplication off), `max_event_bytes` in bytes of JSON data.
    """

    def __init__(
        self,
        dedup_window: float = 300.0,
        max_event_bytes: int = MAX_DATA_BYTES,
        clock: Callable[[], float] = clocks.time,
    ) -> None:
        """Take the limits, and the clock in seconds since the epoch that `delay=` and an event's time count from."""
        check_seconds("dedup_window", dedup_window, "0 switches deduplication off")
        check_count("max_event_bytes", max_event_bytes, 1, "bytes of JSON")
        self.dedup_window_ms = int(dedup_window * 1000)
        self.max_event_bytes = max_event_bytes
        self._clock = clock

    def admit(
        self,
        event_type: str,
        source: str,
        data: Any,
        priority: Priority | int | str = _NORMAL,
        *,
        id: str | None = None,  # noqa: A002 - a name of the contract
        subject: str | None = None,
        idempotency_key: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        time: dt.datetime | None = None,
        dedup: bool = True,
        delay: float | None = None,
        at: dt.datetime | None = None,
        trace: str | None = None,
    ) -> Record:
        """Return the record of an event that a publisher wants stored; raise `InvalidEvent` if it breaks a limit.

        It carries `trace`, which is made here and not looked at, unless its publisher gives a `traceparent`.
        """
        event_type, source = check_name("type", event_type), check_name("source", source)
        subject = _optional("subject", subject)
        key = _optional("idempotency_key", idempotency_key)
        moment = None if time is None else check_time("time", time)
        encoded = encode_data(data, self.max_event_bytes)
        content, window, mark = None, self.dedup_window_ms, b""
        if id is None:
            chosen = new_id()
        else:
            chosen = check_name("id", id)
            content = content_hash(event_type, source, subject, encoded, moment)
        if not dedup or window == 0:
            identity, window_ms = own_identity(chosen), _REPEAT_WINDOW_MS
            mark = NEVER_COMPARED if window else b""
        elif key is not None:
            identity, window_ms = key_hash(event_type, source, key), window
            mark = identity.hex().encode()
        else:
            identity = content or content_hash(event_type, source, subject, encoded, moment)
            window_ms = window
        level = priority if type(priority) is Priority else check_priority(priority)
        correlation = _optional("correlation_id", correlation_id) or chosen
        causation = _optional("causation_id", causation_id)
        trace = trace if traceparent is None else check_name("traceparent", traceparent)
        happened = moment or self._now()
        body = _body(chosen, event_type, source, encoded, happened, level, subject, correlation, causation, trace)
        if mark:
            body = b'%b,"identity":"%b"}' % (body[:-1], mark)
        return Record(
            id=chosen,
            type=event_type,
            source=source,
            level=int(level),
            subject=subject,
            body=body,
            identity=identity,
            window_ms=window_ms,
            content=content,
            due_ms=0 if delay is None and at is None else self._due(delay, at),
            delay_ms=0 if delay is None else math.ceil(delay * 1000),
        )

    def output(
        self,
        id: str,  # noqa: A002 - a name of the contract
        parent: Event[Any],
        event_type: str,
        source: str,
        data: Any,
        *,
        priority: Priority | int | str | None = None,
        subject: str | None = None,
        traceparent: str | None = None,
        time: dt.datetime | None = None,
        delay: float | None = None,
        at: dt.datetime | None = None,
    ) -> Record:
        """Return the record of an event that a step publishes because of `parent`; its `id` is its whole identity."""
        event_type, source = check_name("type", event_type), check_name("source", source)
        subject = _optional("subject", subject)
        level = parent.priority if priority is None else check_priority(priority)
        moment = self._now() if time is None else check_time("time", time)
        encoded = encode_data(data, self.max_event_bytes)
        correlation = parent.correlation_id or parent.id
        return Record(
            id=id,
            type=event_type,
            source=source,
            level=int(level),
            subject=subject,
            body=_body(id, event_type, source, encoded, moment, level, subject, correlation, parent.id, traceparent),
            due_ms=0 if delay is None and at is None else self._due(delay, at),
            delay_ms=0 if delay is None else math.ceil(delay * 1000),
        )

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)

    def _due(self, delay: float | None, at: dt.datetime | None) -> int:
        """Return when to append, in milliseconds since the epoch; 0 for what is not in the future."""
        if delay is not None and at is not None:
            raise InvalidEvent("at", "must not come together with delay; give one of them")
        now_ms = int(self._clock() * 1000)
        if at is not None:
            due = to_millis(check_time("at", at))
        else:
            if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay <= _LONGEST_DELAY:
                raise InvalidEvent("delay", f"is {delay!r}; seconds from 0 to {_LONGEST_DELAY:.0f} (ten years)")
            due = now_ms + math.ceil(delay * 1000)
        return due if due > now_ms else 0


def own_identity(event_id: str) -> bytes:
    """Return the identity of an event that is compared with no other: its id.

    A publisher who lost the reply may still repeat the very same event by its id. The bytes of a UUIDv7 grow with time,
    so the store's index of identities grows at its end; hashes would touch a page each.
    """
    digits = event_id.replace("-", "")
    canonical = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
    if event_id == canonical and _HEX.issuperset(digits):
        return bytes.fromhex(digits)
    return blake2b(event_id.encode(), digest_size=16, person=b"ag06.id").digest()


class Said(msgspec.Struct):
    """What an event says, as its body has it; `identity` where something else than that says which events are equal."""

    id: str
    type: str
    source: str
    data: msgspec.Raw
    time: dt.datetime
    subject: str | None = None
    causation_id: str | None = None
    identity: str | None = None

    def hashes(self) -> tuple[bytes, bytes]:
        """Return its content hash as its publisher's `time` counts: not, or with it."""
        data = bytes(self.data)
        return (
            content_hash(self.type, self.source, self.subject, data, None),
            content_hash(self.type, self.source, self.subject, data, self.time),
        )


decode_said = msgspec.json.Decoder(Said).decode


def says(body: bytes, content: bytes | None) -> bool:
    """Whether an event stored as `body`, under an id that the log made, has this content.

    No hash is kept beside such an event. Its time counts where the publisher gives one when repeating it.
    """
    return content in decode_said(body).hashes()


def check_priority(value: object) -> Priority:
    """Return `value` as a `Priority`: a member, its number (0 to 3) or its name in any case."""
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return Priority[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3:
        return Priority(value)
    raise InvalidEvent("priority", f"is {value!r}; use Priority.LOW, NORMAL, HIGH or CRITICAL (0 to 3)")


def _optional(field: str, value: str | None) -> str | None:
    return None if value is None else check_name(field, value)


def _body(
    id: str,  # noqa: A002
    event_type: str,
    source: str,
    data: bytes,
    time: dt.datetime,
    priority: Priority,
    subject: str | None,
    correlation_id: str,
    causation_id: str | None,
    traceparent: str | None,
) -> bytes:
    return _encode(
        Event(
            id=id,
            type=event_type,
            source=source,
            data=msgspec.Raw(data),
            time=time,
            priority=priority,
            subject=subject,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
        )
    )
