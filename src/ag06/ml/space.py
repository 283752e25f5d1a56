"""Knobs as a unit cube: one coordinate between 0 and 1 for each knob."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ag06.errors import ConfigurationError
from ag06.knob import Knob

Config = dict[str, Any]
Position = tuple[float, ...]

_APART = 0.5
"""How far one choice of a knob is from another: as far as half of a number's range."""


class Space:
    """The configurations of some knobs. A log knob's coordinate is its logarithm; a choice has the middle of a slice.

    Args:
        knobs: one or more, each name once.
        pinned: the values of knobs that must not move, by name.
    """

    def __init__(self, knobs: Sequence[Knob], pinned: Mapping[str, Any]) -> None:
        """Check names and values; raises `ConfigurationError`."""
        self.knobs = {knob.name: knob for knob in knobs}
        if not self.knobs or len(self.knobs) < len(knobs):
            raise ConfigurationError(f"knobs {[knob.name for knob in knobs]}: give one or more, each name once")
        self._refuse_unknown(pinned)
        self.pinned = {name: _checked(self.knobs[name], value) for name, value in pinned.items()}
        self.free = [index for index, knob in enumerate(knobs) if knob.name not in self.pinned]
        self.default = self.encode({knob.name: knob.default for knob in knobs} | self.pinned)

    def check(self, config: Mapping[str, Any]) -> Config:
        """Return the configuration, its knobs in order; raises `ConfigurationError` naming what does not fit."""
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

    def _refuse_unknown(self, config: Mapping[str, Any]) -> None:
        unknown = [name for name in config if name not in self.knobs]
        if unknown:
            raise ConfigurationError(f"unknown knob {unknown[0]!r}; the knobs are {', '.join(self.knobs)}")


def _checked(knob: Knob, value: Any) -> Any:
    if knob.choices is not None:
        if value not in knob.choices:
            raise ConfigurationError(f"knob {knob.name}: {value!r} is none of {', '.join(map(repr, knob.choices))}")
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not knob.low <= value <= knob.high:
        raise ConfigurationError(f"knob {knob.name}: {value!r} is not between {knob.low} and {knob.high}")
    if knob.integer and value != round(value):
        raise ConfigurationError(f"knob {knob.name}: {value!r} is not a whole number")
    return round(value) if knob.integer else value


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
    if knob.scale == "log":
        value = knob.low * (knob.high / knob.low) ** inside
    else:
        value = knob.low + (knob.high - knob.low) * inside
    value = min(max(value, knob.low), knob.high)
    return round(value) if knob.integer else value


def _slice(knob: Knob, at: float) -> int:
    count = len(knob.choices or ())
    return min(int(at * count), count - 1)
