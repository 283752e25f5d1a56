"""A knob: one number that may be moved while the program runs."""

from __future__ import annotations

import math
from typing import Literal

from ag06.errors import ConfigurationError


class Knob:
    """A named number with bounds; read `.value` where it is used, `set` it from elsewhere.

    `scale="log"` says that the useful steps are factors, not differences; `integer=True` rounds what is set.
    """

    __slots__ = ("default", "high", "integer", "low", "name", "scale", "value")

    def __init__(
        self,
        name: str,
        *,
        low: float,
        high: float,
        default: float,
        scale: Literal["linear", "log"] = "linear",
        integer: bool = False,
    ) -> None:
        """Declare the knob; `low <= default <= high`, and `low > 0` on a log scale."""
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
        self.name = name
        self.low = low
        self.high = high
        self.default = default
        self.scale = scale
        self.integer = integer
        self.value: float = round(default) if integer else default

    def set(self, value: float) -> float:
        """Move the knob to `value`, clipped to its bounds and rounded if integer; return what it became."""
        if not math.isfinite(value):
            raise ConfigurationError(f"knob {self.name}: {value} is not a finite number")
        clipped = min(max(value, self.low), self.high)
        self.value = round(clipped) if self.integer else clipped
        return self.value

    def __repr__(self) -> str:
        return f"Knob({self.name!r}, low={self.low}, high={self.high}, value={self.value})"
