"""One event of a log as one line: JSON for machines, text for people; nothing in a value can forge another line."""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from ag06.monitoring.log_context import identity, scope
from ag06.monitoring.log_values import MORE, Values
from ag06.monitoring.redaction import HIDDEN
from ag06.stopping import asks_to_stop

Fields: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[[Fields], bytes]
ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]

LONGEST_LINE = 65_536
"""Bytes of one line; a longer one has its fields cut until it is about this long."""
LONGEST_FRAMES = 16_384
"""Characters of a traceback; what is cut is its beginning, which says less than its end."""

_OWN = frozenset({"time", "level", "logger", "event", "exception", "stack"})
_IDENTITY = ("correlation_id", "trace_id", "span_id", "workflow", "step", "event_id", "attempt")
_encode = msgspec.json.Encoder().encode
_UTC = dt.UTC

# What a terminal or a reader of lines may take for more than a character: C1 controls, line separators, bidi controls.
_UNSAFE_IN_JSON = re.compile("[\x80-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


class Lines:
    """Puts together what a line says."""

    def __init__(self, values: Values, clock: Callable[[], float] = time.time) -> None:
        """Make every value fit by `values`; `clock` gives seconds since the epoch."""
        self._values = values
        self._clock = clock
        self._names: dict[str, tuple[str, bool]] = {}
        self._second = (-1, "")

    def fields(self, level: str, logger: str, event: object, given: Mapping[str, Any]) -> Fields:
        """Return the fields of a line in their order.

        `exc_info` and `stack_info` in `given` mean what they mean in `logging`. A name that the line uses itself gets
        an underscore behind it: `event` is found as `event_`.
        """
        values = self._values
        shown = values.text(event) if type(event) is str else str(values.of(event))
        line: Fields = {"time": self._moment(), "level": level, "logger": logger, "event": shown}
        line.update(self._identity())
        around = scope()
        if around:
            self._add(line, around if not given else {**around, **given})
        elif given:
            self._add(line, given)
        return line

    def _moment(self) -> str:
        now = self._clock()
        second, text = self._second
        if int(now) != second:
            second = int(now)
            text = dt.datetime.fromtimestamp(second, _UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text  # writing out the date is a third of what a line costs
        return f"{text}.{int((now - second) * 1e6):06}+00:00"

    def _identity(self) -> Fields:
        try:
            found = identity()
        except Exception as error:  # noqa: BLE001 - the source of a trace is foreign code; the line is worth more
            return {"trace_id": f"<unknown: {type(error).__name__}>"}
        for name, value in found.items():
            if type(value) is not str or len(value) > 512 or "://" in value:
                found[name] = self._values.of(value)
        return found

    def _add(self, line: Fields, given: Mapping[str, Any]) -> None:
        values, names = self._values, self._names
        for key, value in given.items():
            known = names.get(key)
            if known is None:
                if key in {"exc_info", "stack_info"}:
                    continue
                known = self._learn(key)
            name, hidden = known
            if name in line:
                if type(value) is str and value == line[name] and name in _IDENTITY:
                    continue
                while name in line:
                    name += "_"
            if hidden and values.redaction.hides_value(key, value):
                line[name] = HIDDEN
            else:
                line[name] = values.of(value)
        if "exc_info" in given:
            exception = exception_info(given["exc_info"])
            if exception is not None:
                line["exception"] = self._exception(exception)
        stack = given.get("stack_info")
        if isinstance(stack, str) or stack is True:
            line["stack"] = self._tail(stack if isinstance(stack, str) else "".join(traceback.format_stack()))

    def _learn(self, key: Any) -> tuple[str, bool]:
        key = str(key)  # a processor of the user's may name a field as it likes
        name = self._values.text(key, 256)
        known = (f"{name}_" if name in _OWN else name, self._values.redaction.hides(key))
        if len(key) <= 200:
            if len(self._names) >= 10_000:
                self._names.clear()
            self._names[key] = known
        return known

    def _exception(self, info: ExceptionInfo) -> Fields:
        kind, error, trace = info
        try:
            message = str(error)
        except BaseException as failure:  # an exception that cannot give its message is reported as that
            if asks_to_stop(failure):
                raise
            message = f"<no message: {type(failure).__name__}>"
        try:
            frames = "".join(traceback.format_exception(kind, error, trace))
        except BaseException as failure:  # the same
            if asks_to_stop(failure):
                raise
            frames = "".join(traceback.format_tb(trace)) + f"<cannot be formatted: {type(failure).__name__}>"
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return {"type": name, "message": self._values.text(message), "frames": self._tail(frames)}

    def _tail(self, text: str) -> str:
        # The secrets go first: a cut could take the beginning by which one is known.
        text = self._values.redaction.text(text[-4 * LONGEST_FRAMES :])
        return text if len(text) <= LONGEST_FRAMES else MORE + text[-LONGEST_FRAMES:]


def exception_info(given: object) -> ExceptionInfo | None:
    """Return what `exc_info=` means: `True`, an exception, or a triple of `sys.exc_info()`."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    if isinstance(given, tuple) and len(given) == 3:
        _, error, trace = given
    elif isinstance(given, int) and given:
        _, error, trace = sys.exc_info()
    else:
        return None
    if not isinstance(error, BaseException):
        return None
    return type(error), error, trace if isinstance(trace, TracebackType) else None


def as_json(fields: Fields) -> bytes:
    """Return the line as JSON in UTF-8, with its newline."""
    try:
        line = _encode(fields)
    except UnicodeEncodeError:  # half of a surrogate pair: shown as what it is
        line = _encode(_encodable(fields))
    if len(line) > LONGEST_LINE:
        line = _encode(_encodable(_cut(fields)))
    if not line.isascii():
        line = _UNSAFE_IN_JSON.sub(_escaped, line.decode()).encode()
    return line + b"\n"


def as_text(fields: Fields, colours: bool = False) -> bytes:
    """Return the line for people; a traceback follows it, indented, so that it cannot be taken for a line."""
    rest = dict(fields)
    moment, level, logger, event = (str(rest.pop(name)) for name in ("time", "level", "logger", "event"))
    exception, stack = rest.pop("exception", None), rest.pop("stack", None)
    pairs = " ".join(f"{_printable(name)}={_worded(value)}" for name, value in rest.items())
    label, message = f"{_printable(level).upper():<8}", _printable(event)
    if colours:
        label = f"\x1b[{_COLOURS.get(level, '1')}m{label}\x1b[0m"
        pairs = f"\x1b[2m{pairs}\x1b[0m" if pairs else ""
    parts = [f"{moment} {label} {_printable(logger)}: {message}{' ' if pairs else ''}{pairs}"]
    for block in (stack, None if exception is None else exception["frames"]):
        if block:
            # Not splitlines(): it would break at characters that are no end of a line in a traceback.
            parts.extend(f"    {_printable(row)}" for row in block.rstrip("\n").split("\n"))
    return ("\n".join(parts) + "\n").encode("utf-8", "backslashreplace")


def as_coloured_text(fields: Fields) -> bytes:
    """Return the line for a terminal."""
    return as_text(fields, colours=True)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _printable(text: str) -> str:
    """Return `text` with whatever does not print as itself written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _worded(value: Any) -> str:
    if type(value) is str:
        plain = value and value.isprintable() and not any(c in value for c in " \"'=")
        return value if plain else f'"{_printable(value.replace(chr(34), chr(92) + chr(34)))}"'
    if isinstance(value, (dict, list)):
        return _printable(_encode(_encodable(value)).decode())
    return "null" if value is None else str(value)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def _cut(fields: Fields) -> Fields:
    """Return the fields of a line that is too long, each cut down; what the line says of itself stays longest."""
    kept: Fields = {}
    for name, value in fields.items():
        if len(kept) >= 100:
            kept[MORE] = f"{len(fields) - len(kept)} more fields"
            break
        text = value if isinstance(value, str) else _encode(_encodable(value)).decode()
        longest = 2_048 if name in _OWN else 256
        if name == "exception":
            kept[name] = {key: part[-4 * longest :] for key, part in value.items()}
        elif len(text) > longest:
            kept[name] = f"{text[:longest]}{MORE}"
        else:
            kept[name] = value
    return kept
