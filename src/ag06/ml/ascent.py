"""Gradient ascent with momentum and an adaptive step, within the unit cube; no dependency.

Momentum: Polyak 1964. The step of each coordinate grows while its slope keeps its sign and shrinks when it turns:
Riedmiller and Braun 1993 (RPROP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Position = tuple[float, ...]
Slope = Callable[[Position], Sequence[float]]

_GROW, _SHRINK = 1.2, 0.5
_SMALLEST, _LARGEST = 1e-3, 0.2


class Ascent:
    """Where the ascent is, and how it moves; plain numbers, so that it can be saved.

    Args:
        position: where it begins.
        step: the first step of each coordinate, as a part of the cube's side.
        momentum: the part of the last move that is made again.
    """

    def __init__(self, position: Sequence[float], step: float = 0.05, momentum: float = 0.5) -> None:
        """Stand at `position`."""
        self.position: Position = tuple(position)
        self.steps = [step] * len(self.position)
        self.signs = [0] * len(self.position)
        self.moves = [0.0] * len(self.position)
        self.momentum = momentum

    def move(self, slope: Sequence[float]) -> Position:
        """Go uphill by one step along `slope`, the derivative by each coordinate; return where that is."""
        found = []
        for index, (at, derivative) in enumerate(zip(self.position, slope, strict=True)):
            sign = (derivative > 0) - (derivative < 0)
            turned = sign * self.signs[index]
            if turned > 0:
                self.steps[index] = min(self.steps[index] * _GROW, _LARGEST)
            elif turned < 0:
                self.steps[index] = max(self.steps[index] * _SHRINK, _SMALLEST)
                self.moves[index] = 0.0
            self.signs[index] = sign
            wanted = at + sign * self.steps[index] + self.momentum * self.moves[index]
            inside = min(max(wanted, 0.0), 1.0)
            self.moves[index] = inside - at
            found.append(inside)
        self.position = tuple(found)
        return self.position


def climb(start: Sequence[float], slope: Slope, steps: int, step: float = 0.05) -> list[Position]:
    """Return the places that `steps` moves from `start` lead to, the start first."""
    ascent = Ascent(start, step)
    return [ascent.position, *(ascent.move(slope(ascent.position)) for _ in range(steps))]
