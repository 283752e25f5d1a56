"""A knob: one number, or one of a few choices, that may be moved while the program runs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from inspect import isawaitable, iscoroutine
from numbers import Real
from typing import Any, Literal

from ag06 import callables
from ag06.error_text import describe
from ag06.errors import ConfigurationError
from ag06.stopping import asks_to_stop

Choice = str | int | float | bool
Setter = Callable[[Any], object]
"""Told the value that a knob is about to become; raises if that cannot be."""
NOTHING: Mapping[Knob, Any] = {}
_here: ContextVar[Mapping[Knob, Any]] = ContextVar("ag06_knob_values", default=NOTHING)


def see(values: Mapping[Knob, Any]) -> None:
    """Let knobs that are split have these values in this context from here on; for the runtime."""
    _here.set(values)


def seen() -> Mapping[Knob, Any]:
    """Return what `see` said here."""
    return _here.get()


class Knob:
    """A named number with bounds; read `.value` where it is used, `set` it from elsewhere, in any thread.

    `scale="log"` says that the useful steps are factors, not differences; `integer=True` rounds what is set.
    `choices=("none", "zstd")` instead of bounds makes it one of a few values without an order.
    `setter` is called with what it is about to become, for a value that must be applied and not only read, such as the
    size of a pool: a plain function that takes effect before it returns, or raises.
    """

    __slots__ = (
        "_lock",
        "_setter",
        "_split",
        "_value",
        "_watchers",
        "choices",
        "default",
        "high",
        "integer",
        "low",
        "name",
        "scale",
    )

    def __init__(
        self,
        name: str,
        *,
        default: Any,
        low: float | None = None,
        high: float | None = None,
        scale: Literal["linear", "log"] = "linear",
        integer: bool = False,
        choices: Sequence[Choice] | None = None,
        setter: Setter | None = None,
    ) -> None:
        """Declare the knob; `low <= default <= high`, and `low > 0` on a log scale, or `default` one of `choices`."""
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"knob {name!r}: a name is text, and not empty")
        self.name = name
        self.choices = None if choices is None else tuple(choices)
        if self.choices is not None:
            _check_choices(name, self.choices, default, bare=low is None and high is None and scale == "linear")
            low, high, integer = 0, len(self.choices) - 1, False
        elif low is None or high is None:
            raise ConfigurationError(f"knob {name}: low={low}, high={high}; give both, or choices=")
        else:
            _check_bounds(name, low, high, default, scale, integer)
        if setter is not None:
            _check_setter(name, setter)
        self.low: float = low
        self.high: float = high
        self.default: Any = default
        self.scale = scale
        self.integer = integer
        self._value: Any = round(default) if integer else default
        self._split = False
        self._setter = setter
        self._lock = threading.RLock()
        self._watchers: tuple[Callable[[], object], ...] = ()

    def is_like(self, other: Knob) -> bool:
        """Return whether another knob has the same range and default; knobs with setters are never alike."""
        fields = ("name", "choices", "low", "high", "default", "scale", "integer")
        return self._setter is None is other._setter and all(getattr(self, f) == getattr(other, f) for f in fields)

    @property
    def value(self) -> Any:
        """Where it stands; in a step whose event belongs to a variant of an experiment, what that variant says."""
        return _here.get().get(self, self._value) if self._split else self._value

    def set(self, value: Any) -> Any:
        """Move the knob to `value`, clipped to its bounds and rounded if integer; return what it became.

        A value that is no finite number, or none of the choices, or that the setter fails on, raises
        `ConfigurationError` and moves nothing.
        """
        became = self._fit(value)
        with self._lock:  # so that what the setter was told last is the value
            if self._setter is not None:
                self._apply(self._setter, became)
            moved = became != self._value
            self._value = became
        if moved:
            for watcher in self._watchers:
                watcher()
        return became

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call `watcher()` after each `set` that moved the knob, in the thread of whoever set it.

        It is to be short, and it must not raise. It reads `.value`, which another `set` may have moved since.
        """
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[], object]) -> None:
        """Call `watcher` no more; one that does not watch is left alone."""
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other != watcher)

    def split(self) -> None:
        """Let `.value` be what `see` says where it says something, until `unite`; for the runtime.

        Raises `ConfigurationError` for a knob with a setter, which has one value for all, and one that is split now.
        """
        with self._lock:
            if self._setter is not None:
                raise ConfigurationError(
                    f"knob {self.name}: its setter applies one value for all events, so it cannot be split by "
                    "subject; compare the variants window by window"
                )
            if self._split:
                raise ConfigurationError(f"knob {self.name}: it is split already; wait for that experiment's end")
            self._split = True

    def unite(self) -> None:
        """End `split`: it has one value everywhere, where it stands."""
        self._split = False

    def _fit(self, value: Any) -> Any:
        if self.choices is not None:
            if value not in self.choices:
                raise ConfigurationError(f"knob {self.name}: {value!r} is none of {', '.join(map(repr, self.choices))}")
            return value
        try:
            finite = math.isfinite(value)
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            raise ConfigurationError(f"knob {self.name}: {value!r} is not a finite number")
        clipped = min(max(value, self.low), self.high)
        return round(clipped) if self.integer else clipped

    def _apply(self, setter: Setter, value: Any) -> None:
        try:
            result = setter(value)
        except BaseException as error:
            if asks_to_stop(error):
                raise
            raise ConfigurationError(
                f"knob {self.name}: it stays at {self._value!r}, its setter failed on {value!r}: {describe(error)}"
            ) from error
        if isawaitable(result):
            if iscoroutine(result):
                result.close()
            raise ConfigurationError(
                f"knob {self.name}: it stays at {self._value!r}, its setter returned a {type(result).__name__} for "
                f"{value!r}, which nobody awaits; make it a plain function"
            )

    def __repr__(self) -> str:
        if self.choices is not None:
            return f"Knob({self.name!r}, choices={self.choices}, value={self._value!r})"
        return f"Knob({self.name!r}, low={self.low}, high={self.high}, value={self._value})"


def _check_bounds(name: str, low: float, high: float, default: float, scale: str, integer: bool) -> None:
    for what, number in (("low", low), ("high", high), ("default", default)):
        if isinstance(number, bool) or not isinstance(number, Real):
            raise ConfigurationError(f"knob {name}: {what}={number!r}; a number, or give choices= instead of bounds")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigurationError(f"knob {name}: low={low} must be below high={high}, both finite")
    if not low <= default <= high:
        raise ConfigurationError(f"knob {name}: default={default} is outside [{low}, {high}]")
    if scale not in ("linear", "log"):
        raise ConfigurationError(f"knob {name}: scale={scale!r}; use 'linear' or 'log'")
    if scale == "log" and low <= 0:
        raise ConfigurationError(f"knob {name}: low={low} must be above 0 on a log scale")
    if integer and not all(float(number).is_integer() for number in (low, high, default)):
        raise ConfigurationError(
            f"knob {name}: low={low}, high={high}, default={default} must be whole numbers with integer=True"
        )


def _check_choices(name: str, choices: tuple[Choice, ...], default: object, *, bare: bool) -> None:
    if not bare:
        raise ConfigurationError(f"knob {name}: choices have no low, high or scale; leave them out")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ConfigurationError(f"knob {name}: choices={choices!r}; give two or more, each once")
    if not all(isinstance(choice, (str, int, float)) for choice in choices):
        raise ConfigurationError(f"knob {name}: choices={choices!r} must be text, numbers or booleans")
    if default not in choices:
        raise ConfigurationError(f"knob {name}: default={default!r} is none of {', '.join(map(repr, choices))}")


def _check_setter(name: str, setter: object) -> None:
    if not callable(setter):
        raise ConfigurationError(f"knob {name}: setter={setter!r}; a function of the value")
    if callables.is_async(setter) or callables.is_generator(setter):
        kind = "coroutine function" if callables.is_async(setter) else "generator"
        raise ConfigurationError(f"knob {name}: its setter is a {kind}; make it a plain one, it is called")
    if not callables.takes(setter, 1):
        raise ConfigurationError(f"knob {name}: setter={setter!r} cannot be called with one value; write (value)")
