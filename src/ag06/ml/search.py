"""The port between the tuner and its two ways to search: with a surrogate, and without."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import msgspec

from ag06.ml.space import Position, Space


class Window(msgspec.Struct, frozen=True):
    """What one window of a configuration scored.

    Attributes:
        number: how many windows were told before it.
        position: the configuration's coordinates.
        score: higher is better; 0.1 is about 10%.
        asked: whether the search proposed it.
    """

    number: int
    position: Position
    score: float
    asked: bool


class Search(Protocol):
    """Learns from windows and says what to run."""

    best: Position
    """What it would run now; the default until something beat it."""

    def learn(self, windows: Sequence[Window]) -> int:
        """Take the windows of this regime, of which the last is new; scores are levelled.

        Returns how many of the last ones contradict all before them: so many belong to a new regime, usually 0.
        """

    def reset(self, windows: Sequence[Window]) -> None:
        """Begin again, with the windows of the new regime so far."""

    def ask(self, windows: Sequence[Window], random: Random) -> Position:
        """Return the position of the next window."""

    def skip(self) -> None:
        """Expect no score for the position that was asked for last."""

    def predict(self, position: Position, beside: Position) -> tuple[float, float] | None:
        """Return by how much a position is expected to score above another, and the deviation of that.

        `None` where nothing is known.
        """

    def move_to(self, space: Space) -> None:
        """Go on with other pins."""

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON."""

    def restore(self, state: dict[str, Any], windows: Sequence[Window]) -> None:
        """Be where the search was that gave `state`."""
