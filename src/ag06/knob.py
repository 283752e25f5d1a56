"""A knob: one number, or one of a few choices, that may be moved while the program runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ag06.errors import ConfigurationError

Choice = str | int | float | bool


class Knob:
    """A named number with bounds; read `.value` where it is used, `set` it from elsewhere.

    `scale="log"` says that the useful steps are factors, not differences; `integer=True` rounds what is set.
    `choices=("none", "zstd")` instead of bounds makes it one of a few values without an order.
    """

    __slots__ = ("choices", "default", "high", "integer", "low", "name", "scale", "value")

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
    ) -> None:
        """Declare the knob; `low <= default <= high`, and `low > 0` on a log scale, or `default` one of `choices`."""
        self.name = name
        self.choices = None if choices is None else tuple(choices)
        if self.choices is not None:
            _check_choices(name, self.choices, default, bare=low is None and high is None and scale == "linear")
            low, high, integer = 0, len(self.choices) - 1, False
        elif low is None or high is None:
            raise ConfigurationError(f"knob {name}: low={low}, high={high}; give both, or choices=")
        else:
            _check_bounds(name, low, high, default, scale, integer)
        self.low: float = low
        self.high: float = high
        self.default: Any = default
        self.scale = scale
        self.integer = integer
        self.value: Any = round(default) if integer else default

    def set(self, value: Any) -> Any:
        """Move the knob to `value`, clipped to its bounds and rounded if integer; return what it became.

        A value that is no finite number, or none of the choices, raises `ConfigurationError` and moves nothing.
        """
        if self.choices is not None:
            if value not in self.choices:
                raise ConfigurationError(f"knob {self.name}: {value!r} is none of {', '.join(map(repr, self.choices))}")
            self.value = value
            return value
        if not math.isfinite(value):
            raise ConfigurationError(f"knob {self.name}: {value} is not a finite number")
        clipped = min(max(value, self.low), self.high)
        self.value = round(clipped) if self.integer else clipped
        return self.value

    def __repr__(self) -> str:
        if self.choices is not None:
            return f"Knob({self.name!r}, choices={self.choices}, value={self.value!r})"
        return f"Knob({self.name!r}, low={self.low}, high={self.high}, value={self.value})"


def _check_bounds(name: str, low: float, high: float, default: float, scale: str, integer: bool) -> None:
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
