"""What an experiment that splits events found, in words for whoever runs the service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from ag06.ml.split import SampleRatio
from ag06.ml.split_subjects import Measure
from ag06.ml.verdict import Finding, Scale, Variant, amount, range_of

SCALES: dict[Measure, Scale] = {"duration": "ratio", "errors": "difference"}
_LARGEST = 700.0  # of what has a finite exponential


class SplitOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment found whose unit is the subject.

    Attributes:
        winner: the better variant, or `None` where none was shown to be.
        reason: why, in plain language.
        effect: what b does beside a, lower is better: b/a - 1 of the seconds that the calls for a subject take (a ratio
            of geometric means), or b - a of the share of its calls that fail. `None` before it can be told.
        interval: the effects that are not refuted, at every look (a confidence sequence).
        subjects: how many were counted, by variant.
        sample_ratio: whether they were shared out as they should be.
        variant_a, variant_b: the whole configurations that ran.
        seconds: how long it took.
    """

    winner: Variant | None
    reason: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    subjects: dict[str, int] = {}
    sample_ratio: SampleRatio | None = None
    variant_a: dict[str, Any] = {}
    variant_b: dict[str, Any] = {}
    seconds: float = 0.0


class Stand(msgspec.Struct, frozen=True):
    """How an experiment stands; `confidence` is 1 - alpha."""

    measure: Measure
    effect: float | None
    interval: tuple[float, float] | None
    subjects: Mapping[str, int]
    confidence: float


def shown(difference: float, measure: Measure) -> float:
    """Return a difference of means as the effect that is told: of logarithms as a ratio less 1."""
    if measure == "errors":
        return difference
    return math.inf if difference > _LARGEST else math.expm1(difference)


def decided(winner: Variant, stand: Stand) -> str:
    """Say that b is better, or worse."""
    return f"b is {'better' if winner == 'b' else 'worse'}: {beside(stand)}"


def beside(stand: Stand) -> str:
    """Say what b does beside a, and of how many subjects that is known."""
    counted = f"{stand.subjects['a']} subjects of a and {stand.subjects['b']} of b"
    if stand.effect is None:
        return f"too little was counted to tell more, {counted}"
    scale = SCALES[stand.measure]
    more = stand.effect > 0
    size = amount(stand.effect, scale)
    if stand.measure == "duration":
        words = f"its calls take {size} {'more' if more else 'less'} time than a's"
    else:
        words = f"the share of its calls that fail is {size} {'above' if more else 'below'} a's"
    finding = Finding(stand.effect, stand.interval, 0, scale, stand.confidence)
    return f"{words} {range_of(finding)}, by {counted}"


def too_small(stand: Stand, minimum_effect: float) -> str:
    """Say that b does not reach the minimum effect."""
    least = amount(minimum_effect, SCALES[stand.measure])
    return f"b is not better by the {least} asked for: {beside(stand)}"


def but_fails(winner: Variant, stand: Stand, difference: float) -> str:
    """Say that the faster variant fails more often."""
    faster = "b is faster, but it fails" if winner == "b" else "a is faster, but it fails"
    return f"neither is better: {faster} in {amount(difference, 'difference')} more of its calls; {beside(stand)}"


def losing(lost: Mapping[str, int], seen: Mapping[str, int]) -> str:
    """Say that the subjects that are left cannot be compared."""
    return (
        f"no winner: nothing worked for {lost['a']} of a's {seen['a']} subjects and {lost['b']} of b's {seen['b']}; "
        "one variant loses subjects, do not compare the others"
    )


def failing_far_more(failing: Mapping[str, int], seen: Mapping[str, int]) -> str:
    """Say that b was ended because it failed."""
    return (
        f"b ended at once: calls failed for {failing['b']} of its {seen['b']} subjects, "
        f"and for {failing['a']} of a's {seen['a']}"
    )
