"""What an event may contain, and the hash that says whether two events are the same.

The hash is part of the stored data: a golden test keeps it the same over releases.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from ag06.errors import InvalidEvent

MAX_NAME_BYTES = 255
"""Longest name (type, source, subject, id, key), in bytes of UTF-8."""

MAX_DATA_BYTES = 1024 * 1024
"""Largest data of an event unless configured, in bytes of JSON."""

MAX_DEPTH = 100
"""Deepest nesting of lists and objects in the data of an event."""

_PLAIN = frozenset({str, int, float, bool, type(None)})
_TEXTUAL = (str, int, float, bool, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID, decimal.Decimal, enum.Enum)
_STRINGS = frozenset({str})
_KEPT = (dt.datetime,)  # looked at as they are: whether they have a time zone is not to be seen in their text

# Sorted keys: the same data gives the same bytes whatever the order it was built in.
_encode = msgspec.json.Encoder(order="sorted").encode


def check_name(field: str, value: object) -> str:
    """Return `value` if it may be a name; raise `InvalidEvent` naming the `field` and the limit otherwise."""
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be text, got {type(value).__name__}")
    if type(value) is not str:
        value = str.__str__(value)  # a member of an enum of texts is stored as its value
    if not value:
        raise InvalidEvent(field, f"must not be empty; 1 to {MAX_NAME_BYTES} bytes of UTF-8")
    # 63 characters are at most 252 bytes, and printable ones hold neither surrogates nor control characters.
    if len(value) <= 63 and value.isprintable():
        return value
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidEvent(field, f"holds a lone surrogate at character {error.start}; not valid Unicode") from None
    if size > MAX_NAME_BYTES:
        raise InvalidEvent(field, f"is {size} bytes of UTF-8; the limit is {MAX_NAME_BYTES}")
    bad = next((c for c in value if ord(c) < 32 or ord(c) == 127), None)
    if bad is not None:
        raise InvalidEvent(field, f"holds the control character {bad!r}; names are printable text")
    return value


def check_time(field: str, value: object) -> dt.datetime:
    """Return `value` as an aware UTC datetime; raise `InvalidEvent` for anything else, naive ones too."""
    if not isinstance(value, dt.datetime):
        raise InvalidEvent(field, f"must be an aware datetime, got {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidEvent(field, f"{value.isoformat()} has no time zone; use datetime.now(timezone.utc)")
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        raise InvalidEvent(field, f"{value.isoformat()} is outside the years 1 to 9999 in UTC") from None


def encode_data(data: Any, limit: int = MAX_DATA_BYTES) -> bytes:
    """Return `data` as JSON with sorted keys; raise `InvalidEvent` if it cannot be stored as it is.

    Takes what JSON has (objects with text keys, lists, tuples, text, numbers, booleans, null), datetimes, UUIDs,
    decimals and enums as text, and dataclasses and msgspec structs. Refuses what would come back changed: sets, bytes,
    NaN and infinities, keys that are not text.
    """
    try:
        encoded = _encode(data)
    except RecursionError:
        raise InvalidEvent("data", f"is nested deeper than {MAX_DEPTH} levels, or contains itself") from None
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        _explain(data, error)
    if len(encoded) > limit:
        raise InvalidEvent("data", f"is {len(encoded)} bytes of JSON; the limit is {limit} (max_event_bytes)")
    # NaN and infinity are written as null, so without a null there is no need to look at every float.
    _walk(data, "data", 1, b"null" in encoded)
    return encoded


def _explain(data: Any, error: Exception) -> None:
    """Find the value that could not be encoded, to name it; fall back on the encoder's words."""
    try:
        _walk(data, "data", 1, True)
    except RecursionError:
        raise InvalidEvent("data", f"is nested deeper than {MAX_DEPTH} levels, or contains itself") from None
    if isinstance(error, UnicodeError):
        raise InvalidEvent("data", "holds text with a lone surrogate; not valid Unicode") from None
    raise InvalidEvent("data", f"cannot be written as JSON: {error}") from None


def _walk(value: Any, path: str, depth: int, suspicious: bool) -> None:
    """Raise for the first value under `value` that JSON cannot hold; `suspicious`: also look at every scalar."""
    kind = type(value)
    members: Iterable[tuple[object, Any]]
    if kind is dict:
        if value and set(map(type, value)) != _STRINGS:
            for key in value:
                if not isinstance(key, str):
                    raise InvalidEvent(path, f"has the key {key!r} of type {type(key).__name__}; keys must be text")
        if not suspicious and _PLAIN.issuperset(map(type, value.values())):
            children = False
        else:
            children, members = True, value.items()
    elif kind is list or kind is tuple:
        children = suspicious or not _PLAIN.issuperset(map(type, value))
        members = enumerate(value)
    else:
        _check_leaf(value, path, depth, suspicious)
        return
    if depth > MAX_DEPTH:
        raise InvalidEvent(path[:80], f"is nested deeper than {MAX_DEPTH} levels")
    if not children:
        return
    for key, item in members:
        if type(item) not in _PLAIN or (suspicious and not isinstance(item, int)):
            _walk(item, f"{path}.{key}" if kind is dict else f"{path}[{key}]", depth + 1, suspicious)


def _check_leaf(value: Any, path: str, depth: int, suspicious: bool) -> None:
    if value is None:
        return
    if isinstance(value, (float, decimal.Decimal)):
        if not math.isfinite(value):
            raise InvalidEvent(path, f"is {value}; JSON has no NaN and no infinity")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(path, f"holds a lone surrogate at character {error.start}; not valid Unicode") from None
    elif isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise InvalidEvent(path, f"{value.isoformat()} has no time zone; use datetime.now(timezone.utc)")
    elif isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
        _walk_fields(value, path, depth, suspicious)
    elif isinstance(value, (dict, list, tuple)):
        # Subclasses (OrderedDict, named tuples) are looked at as what they are written as.
        _walk(dict(value) if isinstance(value, dict) else list(value), path, depth, suspicious)
    elif not isinstance(value, _TEXTUAL):
        raise InvalidEvent(path, f"is of type {type(value).__name__}, which JSON cannot hold; convert it first")


def _walk_fields(value: Any, path: str, depth: int, suspicious: bool) -> None:
    try:
        plain = msgspec.to_builtins(value, builtin_types=_KEPT)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(path, f"cannot be written as JSON: {error}") from None
    _walk(plain, path, depth, suspicious)


def content_hash(type: str, source: str, subject: str | None, data: bytes, time: dt.datetime | None) -> bytes:  # noqa: A002
    """Return the 16 bytes of BLAKE2b (RFC 7693) that say whether two events without a key are the same.

    Hashes the JSON array `[type, source, subject, data]`, with `time` (UTC) as a fifth member where the publisher gave
    one. `data` is JSON with sorted keys, as `encode_data` returns it.
    """
    parts: list[Any] = [type, source, subject, msgspec.Raw(data)]
    if time is not None:
        parts.append(time)
    return blake2b(_encode(parts), digest_size=16, person=b"ag06.content").digest()


def key_hash(type: str, source: str, key: str) -> bytes:  # noqa: A002
    """Return the 16 bytes that say whether two events with an idempotency key are the same."""
    return blake2b(_encode([type, source, key]), digest_size=16, person=b"ag06.key").digest()
