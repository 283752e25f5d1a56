"""Events to and from CloudEvents 1.0 (https://cloudevents.io, JSON format and HTTP protocol binding).

What CloudEvents does not name travels as extension attributes: `correlationid`, `causationid`, `traceparent`,
`priority` (0 to 3) and `recordedtime`.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from ag06.content import check_name, check_time
from ag06.errors import InvalidEvent
from ag06.event import Event, Priority

STRUCTURED = "application/cloudevents+json"
"""Content type of one event in the structured mode."""

BATCH = "application/cloudevents-batch+json"
"""Content type of several events in the batched mode."""

_ATTRIBUTES = {
    "subject": "subject",
    "correlationid": "correlation_id",
    "causationid": "causation_id",
    "traceparent": "traceparent",
}
_QUOTED_PAIR = re.compile(r"\\(.)")
_CHARSET = re.compile(r""";\s*charset\s*=\s*"?([^\s;"]+)""", re.IGNORECASE)
_encode = msgspec.json.Encoder().encode


def _time_text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _attributes(event: Event[Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": _time_text(event.time),
        "datacontenttype": "application/json",
    }
    for theirs, ours in _ATTRIBUTES.items():
        value = getattr(event, ours)
        if value is not None:
            attributes[theirs] = value
    if event.priority != Priority.NORMAL:
        attributes["priority"] = int(event.priority)
    if event.recorded is not None:
        attributes["recordedtime"] = _time_text(event.recorded)
    return attributes


def to_structured(event: Event[Any]) -> bytes:
    """Return the event as one JSON object, to be sent with the content type `STRUCTURED`."""
    return _encode({**_attributes(event), "data": event.data})


def to_batch(events: Iterable[Event[Any]]) -> bytes:
    """Return the events as one JSON array, to be sent with the content type `BATCH`."""
    return _encode([{**_attributes(event), "data": event.data} for event in events])


def to_binary(event: Event[Any]) -> tuple[dict[str, str], bytes]:
    """Return `(headers, body)` for the HTTP binary mode: attributes as `ce-` headers, data as the body."""
    attributes = _attributes(event)
    headers = {"content-type": attributes.pop("datacontenttype")}
    for name, value in attributes.items():
        # Binding section 3.1.3.2: anything but printable ASCII, and the characters space, " and %, is percent-encoded.
        headers[f"ce-{name}"] = quote(str(value), safe="!#$&'()*+,/:;<=>?@[\\]^_`{|}~-.")
    return headers, _encode(event.data)


def from_structured(body: bytes | str) -> Event[Any]:
    """Return the event in a structured message; raise `InvalidEvent` naming the attribute at fault."""
    return _from_attributes(_object(_parse(body)))


def from_batch(body: bytes | str) -> list[Event[Any]]:
    """Return the events in a batched message; raise `InvalidEvent` if any of them is wrong."""
    members = _parse(body)
    if not isinstance(members, list):
        raise InvalidEvent("body", f"a batch is a JSON array, got {type(members).__name__}")
    return [_from_attributes(_object(member)) for member in members]


def from_binary(headers: Mapping[str, str], body: bytes) -> Event[Any]:
    """Return the event in a binary message; header names are taken in any case."""
    lower = {name.lower(): value for name, value in headers.items()}
    attributes: dict[str, Any] = {
        name[3:]: _unquote(name, value) for name, value in lower.items() if name.startswith("ce-")
    }
    content_type = lower.get("content-type", "application/json")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        attributes["data"] = _parse(body) if body else None
    elif media_type.startswith("text/"):
        attributes["data"] = _text(content_type, body)
    else:
        attributes["data"] = base64.b64encode(body).decode()
    return _from_attributes(attributes)


def _unquote(name: str, value: str) -> str:
    """Return a header's value as the binding wants it: first without quotes (RFC 7230, section 3.2.6), then decoded."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise InvalidEvent(name, "is not percent-encoded UTF-8") from None


def _text(content_type: str, body: bytes) -> str:
    named = _CHARSET.search(content_type)
    charset = named[1] if named else "utf-8"
    try:
        return body.decode(charset)
    except LookupError:
        raise InvalidEvent("content-type", f"names the charset {charset!r}, which is not known") from None
    except UnicodeDecodeError as error:
        raise InvalidEvent("body", f"is not valid {charset}: {error}") from None


def _parse(body: bytes | str) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidEvent("body", f"is not valid JSON: {error}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidEvent("body", f"an event is a JSON object, got {type(value).__name__}")
    return dict(value)


def _from_attributes(attributes: dict[str, Any]) -> Event[Any]:
    if attributes.get("specversion") != "1.0":
        raise InvalidEvent("specversion", f"must be '1.0', got {attributes.get('specversion')!r}")
    fields: dict[str, Any] = {name: check_name(name, attributes.get(name)) for name in ("id", "source", "type")}
    for theirs, ours in _ATTRIBUTES.items():
        if attributes.get(theirs) is not None:
            fields[ours] = check_name(theirs, attributes[theirs])
    fields["time"] = _time("time", attributes["time"]) if attributes.get("time") else dt.datetime.now(dt.UTC)
    if attributes.get("recordedtime"):
        fields["recorded"] = _time("recordedtime", attributes["recordedtime"])
    if attributes.get("priority") is not None:
        fields["priority"] = _priority(attributes["priority"])
    return Event(data=_data(attributes), **fields)


def _time(name: str, text: Any) -> dt.datetime:
    try:
        moment = msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        raise InvalidEvent(name, f"{text!r} is not a time of RFC 3339") from None
    return check_time(name, moment)


def _priority(value: Any) -> Priority:
    try:
        return Priority(int(value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise InvalidEvent("priority", f"{value!r} is not one of 0 (low) to 3 (critical)") from None


def _data(attributes: dict[str, Any]) -> Any:
    if "data_base64" not in attributes:
        return attributes.get("data")
    if "data" in attributes:
        raise InvalidEvent("data_base64", "must not come together with data")
    try:
        raw = base64.b64decode(attributes["data_base64"], validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidEvent("data_base64", "is not valid base64") from None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return attributes["data_base64"]  # binary data stays base64 text: the log holds JSON
