"""What of a window may be named in scores and limits: names, units, and how a value is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.windows import Metrics

_DURATION = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_SIZE = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}
_AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z%/]*)")


class Measure(msgspec.Struct, frozen=True):
    """One figure of a window.

    Attributes:
        name: what it is called for short.
        field: the attribute of `Metrics` or `Window`.
        unit: what its numbers are in, where none is written.
        units: what may be written behind a number, and what one of it is in `unit`.
        floor: values below count as this much: less makes no difference that matters. 0: a value of 0 has no ratio.
    """

    name: str
    field: str
    unit: str
    units: Mapping[str, float] = {}
    floor: float = 0.0

    def of(self, window: Metrics) -> float | None:
        """Return its value; `None` if there is none, or no finite number of 0 or more."""
        value = getattr(window, self.field, None)
        return float(value) if isinstance(value, (int, float)) and 0 <= value < math.inf else None

    def said(self, value: float) -> str:
        """Return a value in words, without the name."""
        if self.unit == "share":
            return f"{value * 100:.3g}%"
        if self.unit == "ms" and value >= 1000:
            return f"{value / 1000:,.0f}s" if value >= 1e6 else f"{value / 1000:.3g}s"
        return f"{value:,.0f}{self.unit}" if value >= 1000 else f"{value:.3g}{self.unit}"

    def parse(self, text: object) -> float:
        """Return the number that a text such as `"50ms"` stands for; raise `ConfigurationError` if it is none."""
        found = _AMOUNT.fullmatch(str(text).strip())
        number = float(found[1]) if found else math.nan
        factor = self.units.get(found[2]) if found and found[2] else 1.0
        if factor is None or not 0 <= number < math.inf:
            unit = f" (a plain one is in {self.unit})" if self.unit else ""
            accepted = f", or one with {', '.join(self.units)}" if self.units else ""
            raise ConfigurationError(f"{self.name}: {text!r} is no limit; use a number of 0 or more{unit}{accepted}")
        return number * factor


def _duration(name: str, field: str, unit: str, floor: float = 0.0) -> Measure:
    return Measure(name, field, unit, {each: size / _DURATION[unit] for each, size in _DURATION.items()}, floor)


_MEASURES = (
    Measure("throughput", "throughput", "/s", {"/s": 1.0, "/min": 1 / 60}),
    _duration("p50", "latency_p50_ms", "ms"),
    _duration("p95", "latency_p95_ms", "ms"),
    _duration("p99", "latency_p99_ms", "ms"),
    _duration("mean", "latency_mean_ms", "ms"),
    _duration("call_mean", "call_mean_ms", "ms"),
    _duration("call_p99", "call_p99_ms", "ms"),
    Measure("error_rate", "error_rate", "share", {"%": 0.01}, floor=0.001),
    Measure("queue_size", "queue_size", "", floor=1.0),
    _duration("queue_age", "queue_age_seconds", "s", floor=0.01),
    Measure("cpu", "cpu_percent", "%", {"%": 1.0}, floor=0.1),
    Measure("memory", "memory_mb", "MB", {each: size / 1e6 for each, size in _SIZE.items()}),
)
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES} | {
    measure.field: measure for measure in _MEASURES
}
"""By short name, and by the name of the figure in `Metrics`."""
NAMES = ", ".join(measure.name for measure in _MEASURES)


def measure_named(name: object) -> Measure:
    """Return a measure; raise `ConfigurationError` for a name that there is not."""
    found = MEASURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigurationError(f"{name!r} is nothing that a window tells; use one of {NAMES}")
    return found
