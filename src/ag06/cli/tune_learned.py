"""What a leader learned, read from what it saved: without a tuner, whose surrogate takes seconds to import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml.score import ScoreValue

if TYPE_CHECKING:
    from ag06.ml.board import Saved


class Proving(msgspec.Struct, frozen=True):
    """An experiment under way: b may take the place of a, which runs. Effects are shares: 0.1 is 10%."""

    variant_a: dict[str, Any]
    variant_b: dict[str, Any]
    windows: int
    reason: str
    effect: float | None = None
    interval: tuple[float | None, float | None] | None = None


class Budgeted(msgspec.Struct, frozen=True):
    """The share of the time that trials had, and the share of the score that they cost, over all of the time."""

    explored: float = 0.0
    loss: float = 0.0


class Told(msgspec.Struct, frozen=True):
    """What the last leader said of itself.

    Attributes:
        incumbent, previous: what runs, and what ran before the last promotion.
        phase: explore, experiment, watch or rest; `None` where no knob may be moved.
        windows: how many windows the tuner was told.
        pinned: the knobs that stay where they are.
        last_score: what the last window was worth.
    """

    incumbent: dict[str, Any] | None = None
    previous: dict[str, Any] | None = None
    phase: str | None = None
    windows: int = 0
    experiment: Proving | None = None
    budget: Budgeted = Budgeted()
    pinned: list[str] = []
    last_score: ScoreValue | None = None


class Learned(msgspec.Struct, frozen=True):
    """What is known of the knobs of a workflow: those that may be moved, by name, and what was told of them."""

    knobs: dict[str, Knob] = {}
    told: Told = Told()

    @property
    def incumbent(self) -> dict[str, Any]:
        """What runs when nothing is tried."""
        return self.told.incumbent or {}

    @property
    def candidate(self) -> dict[str, Any] | None:
        """What is put to the proof."""
        return None if self.told.experiment is None else self.told.experiment.variant_b

    @property
    def defaults(self) -> dict[str, Any]:
        """What the code says."""
        return {name: knob.default for name, knob in self.knobs.items()}

    @property
    def rolled_back(self) -> dict[str, Any]:
        """What a rollback would run."""
        return self.defaults if self.told.previous is None else self.told.previous


def learned(saved: Saved) -> Learned:
    """Return what a leader saved; raise `ConfigurationError` if it cannot be read."""
    try:
        knobs = [Knob(**knob) for knob in saved.campaign.get("knobs", ())]
        return Learned({knob.name: knob for knob in knobs}, msgspec.convert(saved.told, Told))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"what the optimizer saved cannot be read ({error}): another release wrote it; "
            "`ag06 tune reset` forgets what was learned"
        ) from error


def changed(config: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what of a configuration is another value than before; all of it where nothing is known of before."""
    if config is None:
        return {}
    return {name: value for name, value in config.items() if before is None or before.get(name) != value}


def said(config: Mapping[str, Any] | None, before: Mapping[str, Any] | None = None) -> str:
    """Return a configuration in words, beside what was before: `block_size 256 -> 2048`."""
    words = []
    for name, value in changed(config, before).items():
        shown = shown_value(value)
        words.append(f"{name} {shown}" if before is None else f"{name} {shown_value(before.get(name))} -> {shown}")
    return ", ".join(words)


def shown_value(value: object) -> str:
    """Return the value of a knob as people write it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(score: float) -> str:
    """Return a score, a logarithm, as people read it: `+12.3%`, `+900.0%`; beyond a thousand times `x 1.2e+03`."""
    return f"{math.expm1(score):+.1%}" if score < math.log(1000) else f"x {math.exp(min(score, 300.0)):.3g}"
