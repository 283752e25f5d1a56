"""Knobs as a unit cube: one coordinate between 0 and 1 for each knob."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from ag06.errors import ConfigurationError
from ag06.knob import Knob

Config = dict[str, Any]
Position = tuple[float, ...]

_APART = 0.5
"""How far one choice of a knob is from another: as far as half of a number's range."""
_DIGITS = 6
"""What a number that is proposed is rounded to: so that it is told as it was asked, and people can read it."""


class Space:
    """The configurations of some knobs. A log knob's coordinate is its logarithm; a choice has the middle of a slice.

    Args:
        knobs: one or more, each name once.
        pinned: the values of knobs that must not move, by name; or the names of those that stay at their default.
    """

    def __init__(self, knobs: Sequence[Knob], pinned: Mapping[str, Any] | Collection[str] = ()) -> None:
        """Check names and values; raises `ConfigurationError`."""
        self.knobs = _by_name(knobs)
        if isinstance(pinned, str):
            raise ConfigurationError(f"pinned={pinned!r}: give values by name, or a collection of names")
        self._refuse_unknown(pinned)
        values = pinned if isinstance(pinned, Mapping) else {name: self.knobs[name].default for name in pinned}
        self.pinned = {name: _checked(self.knobs[name], value) for name, value in values.items()}
        self.free = [index for index, name in enumerate(self.knobs) if name not in self.pinned]
        self.default = self.encode({knob.name: knob.default for knob in self.knobs.values()} | self.pinned)

    def check(self, config: Mapping[str, Any]) -> Config:
        """Return the configuration, its knobs in order; raises `ConfigurationError` naming what does not fit."""
        if not isinstance(config, Mapping):
            raise ConfigurationError(f"configuration {config!r}: give the values of the knobs by name")
        self._refuse_unknown(config)
        missing = [name for name in self.knobs if name not in config]
        if missing:
            raise ConfigurationError(f"configuration without knob {missing[0]!r}; give a value for each knob")
        return {name: _checked(knob, config[name]) for name, knob in self.knobs.items()}

    def encode(self, config: Mapping[str, Any]) -> Position:
        """Return the coordinates of a configuration."""
        return tuple(_coordinate(knob, config[name]) for name, knob in self.knobs.items())

    def decode(self, position: Sequence[float]) -> Config:
        """Return the nearest configuration that the pins allow; coordinates outside 0 to 1 are clipped."""
        moved = {knob.name: _value(knob, at) for knob, at in zip(self.knobs.values(), position, strict=True)}
        return moved | self.pinned

    def snap(self, position: Sequence[float]) -> Position:
        """Return the coordinates of the nearest configuration there is (integers, choices and pins are a grid)."""
        return self.encode(self.decode(position))

    def allows(self, position: Sequence[float]) -> bool:
        """Return whether the pins allow a position."""
        held = set(range(len(self.default))).difference(self.free)
        return all(position[index] == self.default[index] for index in held)

    def features(self, position: Sequence[float]) -> Position:
        """Return what a distance may be taken of: numbers as they are, each choice a direction of its own."""
        found: list[float] = []
        for knob, at in zip(self.knobs.values(), position, strict=True):
            if knob.choices is None:
                found.append(at)
            else:
                chosen = _slice(knob, at)
                found.extend(_APART / math.sqrt(2) * (index == chosen) for index in range(len(knob.choices)))
        return tuple(found)

    def _refuse_unknown(self, config: Collection[str]) -> None:
        unknown = [name for name in config if name not in self.knobs]
        if unknown:
            raise ConfigurationError(f"unknown knob {unknown[0]!r}; the knobs are {', '.join(self.knobs)}")


def described(knob: Knob) -> dict[str, Any]:
    """Return what declares a knob, as plain JSON: `Knob(**described(knob))` is one like it, without its setter."""
    if knob.choices is not None:
        return {"name": knob.name, "choices": list(knob.choices), "default": knob.default}
    return {
        "name": knob.name,
        "low": knob.low,
        "high": knob.high,
        "default": knob.default,
        "scale": knob.scale,
        "integer": knob.integer,
    }


def _by_name(knobs: Sequence[Knob]) -> dict[str, Knob]:
    if isinstance(knobs, (Knob, str)) or not isinstance(knobs, Collection):
        raise ConfigurationError(f"knobs={knobs!r}: give a list of them, such as [Knob(name, low=, high=, default=)]")
    wrong = [knob for knob in knobs if not isinstance(knob, Knob)]
    if wrong:
        raise ConfigurationError(f"knobs: {wrong[0]!r} is no Knob; use ag06.ml.Knob(name, low=, high=, default=)")
    found = {knob.name: knob for knob in knobs}
    if not found or len(found) < len(knobs):
        raise ConfigurationError(f"knobs {[knob.name for knob in knobs]}: give one or more, each name once")
    return found


def _checked(knob: Knob, value: Any) -> Any:
    if knob.choices is not None:
        if value not in knob.choices:
            raise ConfigurationError(f"knob {knob.name}: {value!r} is none of {', '.join(map(repr, knob.choices))}")
        return knob.choices[knob.choices.index(value)]
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not knob.low <= value <= knob.high:
        raise ConfigurationError(f"knob {knob.name}: {value!r} is not between {knob.low} and {knob.high}")
    if knob.integer and value != round(value):
        raise ConfigurationError(f"knob {knob.name}: {value!r} is not a whole number")
    return int(value) if knob.integer else float(value)


def _coordinate(knob: Knob, value: Any) -> float:
    if knob.choices is not None:
        return (knob.choices.index(value) + 0.5) / len(knob.choices)
    if knob.scale == "log":
        return math.log(value / knob.low) / math.log(knob.high / knob.low)
    return float((value - knob.low) / (knob.high - knob.low))


def _value(knob: Knob, at: float) -> Any:
    inside = min(max(at, 0.0), 1.0)
    if knob.choices is not None:
        return knob.choices[_slice(knob, inside)]
    if inside == _coordinate(knob, knob.default):
        return int(knob.default) if knob.integer else float(knob.default)
    if knob.scale == "log":
        value = knob.low * (knob.high / knob.low) ** inside
        digits = _DIGITS - math.floor(math.log10(value))
    else:
        value = knob.low + (knob.high - knob.low) * inside
        digits = _DIGITS - math.floor(math.log10(knob.high - knob.low))
    bounded = min(max(round(value, digits), knob.low), knob.high)
    return round(bounded) if knob.integer else float(bounded)


def _slice(knob: Knob, at: float) -> int:
    count = len(knob.choices or ())
    return min(int(at * count), count - 1)
