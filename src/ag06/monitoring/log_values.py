"""Any value as something JSON can hold: bounded in length, depth and number, without secrets, and never a raise."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import numbers
import os
import uuid
from collections.abc import Mapping
from typing import Any

from ag06.monitoring.redaction import HIDDEN, Redaction

LONGEST_TEXT = 8_192
"""Characters of one text; the rest is cut off, and the text says so."""
ROOM = 16_384
"""Characters of one value with all that is in it; every item counts as eight beside its text."""
DEEPEST = 8
MORE = "..."

_BEYOND_THE_CUT = 2_048
"""How far behind a cut secrets are looked for: the end of a URL's password may stand there."""
_LEAST_INTEGER, _LARGEST_INTEGER = -(2**63), 2**64 - 1
"""What every JSON reader of a log holds; a number beyond is shown as text."""
_AS_TEXT = (dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, os.PathLike)


class Values:
    """Makes values fit for a line of a log."""

    def __init__(self, redaction: Redaction) -> None:
        """Hide what `redaction` calls a secret."""
        self.redaction = redaction
        self._redacted = redaction.text

    def text(self, text: str, longest: int = LONGEST_TEXT) -> str:
        """Return `text` without secrets, at most `longest` characters of it."""
        length = len(text)
        if length <= longest:
            return self._redacted(text)
        shown = self._redacted(text[: longest + _BEYOND_THE_CUT])[:longest]
        return f"{shown}{MORE} ({length - longest} more characters)"

    def of(self, value: Any) -> Any:
        """Return `value` as JSON can hold it: what it cannot hold by its `repr`."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind is bool or value is None:
            return value
        if kind is int and _LEAST_INTEGER <= value <= _LARGEST_INTEGER:
            return value
        try:
            return self._walk(value, _Room())
        except Exception as error:  # noqa: BLE001 - a log line must not fail for what it is told, whatever that raises
            return _unshowable(value, error)

    def _walk(self, value: Any, room: _Room, depth: int = 0) -> Any:
        if isinstance(value, str):
            text = self.text(str.__str__(value) if not isinstance(value, enum.Enum) else value.name, LONGEST_TEXT)
            return room.take(text)
        if isinstance(value, Mapping):
            return self._mapping(value, room, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._items(value, room, depth)
        return self._scalar(value, room)

    def _scalar(self, value: Any, room: _Room) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, numbers.Integral):  # numpy's as well
            whole = int(value)
            return whole if _LEAST_INTEGER <= whole <= _LARGEST_INTEGER else _digits(whole)
        if isinstance(value, numbers.Real):
            number = float(value)
            return number if math.isfinite(number) else repr(number)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return room.take(self.text(repr(bytes(value[:LONGEST_TEXT]))))
        return room.take(self.text(str(value) if isinstance(value, _AS_TEXT) else repr(value)))

    def _mapping(self, value: Mapping[Any, Any], room: _Room, depth: int) -> Any:
        if depth >= DEEPEST:
            return room.take(f"{{{MORE}}} ({len(value)} items)")
        shown: dict[str, Any] = {}
        for key, item in value.items():
            if room.left <= 0:
                shown[MORE] = f"{len(value) - len(shown)} more items"
                break
            name = key if type(key) is str else str(key)
            hidden = self.redaction.hides_value(name, item)
            shown[room.take(self.text(name, 256))] = HIDDEN if hidden else self._nested(item, room, depth + 1)
        return shown

    def _items(self, value: Any, room: _Room, depth: int) -> Any:
        if depth >= DEEPEST:
            return room.take(f"[{MORE}] ({len(value)} items)")
        shown: list[Any] = []
        for item in value:
            if room.left <= 0:
                shown.append(f"{MORE} {len(value) - len(shown)} more items")
                break
            shown.append(self._nested(item, room, depth + 1))
        return shown

    def _nested(self, value: Any, room: _Room, depth: int) -> Any:
        room.left -= 8
        try:
            return self._walk(value, room, depth)
        except Exception as error:  # noqa: BLE001 - the neighbours of what cannot be shown can
            return _unshowable(value, error)


class _Room:
    """How many characters a value may still take."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = ROOM

    def take(self, text: str) -> str:
        """Return as much of `text` as there is room for."""
        self.left -= len(text)
        return text if self.left >= 0 else f"{text[: max(0, len(text) + self.left)]}{MORE}"


def _digits(whole: int) -> str:
    # Python refuses to write out what has thousands of digits: that takes quadratic time.
    return str(whole) if whole.bit_length() <= 4_096 else f"an integer of {whole.bit_length()} bits"


def _unshowable(value: object, error: Exception) -> str:
    return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
