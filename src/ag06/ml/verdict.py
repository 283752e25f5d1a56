"""What an experiment found, in words for whoever runs the service."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Variant = Literal["a", "b"]
Scale = Literal["ratio", "difference"]


class Verdict(msgspec.Struct, frozen=True):
    """What an experiment found, or how it stands.

    Attributes:
        winner: the better variant, or `None` where none was shown to be better (yet).
        effect: what b gives beside a: b/a - 1 on the ratio scale, b - a on the difference scale. `None` before the
            first pair of windows. After an early stop it is a little too big on average; the interval allows for that.
        interval: the effects that are not refuted at the experiment's alpha, at every look (a confidence sequence), for
            an effect that stays the same; an end is infinite (-1 below, on the ratio scale) where nothing is refuted
            yet. `None` before the first pair, and where no constant effect fits.
        windows: how many windows were counted.
        reason: why, in plain language.
    """

    winner: Variant | None
    effect: float | None
    interval: tuple[float, float] | None
    windows: int
    reason: str


class Finding(msgspec.Struct, frozen=True):
    """What a reason is made of, beside how it ended; `confidence` is 1 - alpha."""

    effect: float | None
    interval: tuple[float, float] | None
    windows: int
    scale: Scale
    confidence: float
    minimum_effect: float = 0.0


def amount(effect: float, scale: Scale) -> str:
    """Say how big an effect is, without its sign: in percent on the ratio scale."""
    size = abs(effect)
    if math.isinf(size):
        return "any amount"
    if scale == "difference":
        return f"{size:.4g}"
    percent = 100 * size
    return f"{percent:.0f}%" if percent >= 99.5 else f"{percent:.2g}%"


def signed(effect: float, scale: Scale) -> str:
    """Say an effect with its sign."""
    if math.isinf(effect):
        return "no lower bound" if effect < 0 else "no upper bound"
    return ("-" if effect < 0 else "+") + amount(effect, scale)


def range_of(finding: Finding) -> str:
    """Say the interval, such as `(95% interval +4.1% to +16%)`."""
    if finding.interval is None:
        return "(no constant effect fits: it changed while the experiment ran)"
    low, high = (signed(end, finding.scale) for end in finding.interval)
    return f"({100 * finding.confidence:g}% interval {low} to {high})"


def decided(winner: Variant, finding: Finding) -> str:
    """Say that b is better, or worse."""
    effect = finding.effect or 0.0
    size = amount(effect, finding.scale)
    right_side = (effect > 0) == (winner == "b")
    by = f" by {size}" if right_side else ""
    if winner == "b" and finding.minimum_effect:
        by += f", and by more than {amount(finding.minimum_effect, finding.scale)}"
    return f"b is {'better' if winner == 'b' else 'worse'}{by} {range_of(finding)} after {finding.windows} windows"


def too_small(finding: Finding) -> str:
    """Say that b does not reach the minimum effect."""
    least = amount(finding.minimum_effect, finding.scale)
    return f"b is not better by the {least} asked for: {beside(finding)} after {finding.windows} windows"


def undecided(finding: Finding) -> str:
    """Say that the windows were used up."""
    return f"inconclusive: no difference was shown in {finding.windows} windows; {beside(finding)}"


def under_way(finding: Finding) -> str:
    """Say how it stands."""
    if finding.effect is None:
        return "still running: there is no window of each variant yet"
    return f"still running: {beside(finding)} after {finding.windows} windows"


def beside(finding: Finding) -> str:
    """Say what b gives beside a."""
    return f"b gives {signed(finding.effect or 0.0, finding.scale)} beside a {range_of(finding)}"
