"""An experiment between two variants on one live system: a randomised switchback with an anytime-valid test."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ag06.errors import ConfigurationError
from ag06.ml import verdict
from ag06.ml.interval import confidence_interval, estimate
from ag06.ml.sequential_test import Pair, SequentialTest, coins
from ag06.ml.verdict import Finding, Scale, Variant, Verdict

LARGEST = 1e150
"""Values beyond it are not usable: their sums would not be finite."""

MOST_WINDOWS = 100_000
"""More would be a mistake: a day of windows of a second."""

Ending = Literal["b is better", "a is better", "too small", "used up", "unusable"]
WINNERS: dict[Ending, Variant] = {"b is better": "b", "a is better": "a"}


class Experiment:
    """Runs variants "a" (what is) and "b" (what may be) in turn, window by window, and says which is better.

    The windows come in pairs, one of each variant, in an order drawn for each pair (a switchback; Bojinov, Simchi-Levi,
    Zhao 2023). The result may be looked at after every window: if the variants are the same, the probability that one
    is ever named the winner is at most `alpha`, however the load drifts and however windows depend on each other,
    because the order alone was left to chance (`ag06.ml.sequential_test`). It takes what a variant does to last at most
    `carry_over` windows beyond it.

    Args:
        alpha: the probability of a wrong winner, 0.001 to 0.5; b and a have half of it each.
        max_windows: how many windows are counted at most (2 to 100,000; an odd one is not used).
        carry_over: windows that are discarded where the variant may switch, so before each counted window: also where
            the coin brought no switch, since the schedule must not depend on it. They are not counted.
        seed: draws the order; the same seed gives the same order. Take a new one for each experiment.
        scale: `"ratio"`: the effect is b/a - 1 and values are above 0; `"difference"`: b - a, any values.
        minimum_effect: b wins only when it is better by more than this; it ends without a winner once that is refuted.
            0.02 is 2% on the ratio scale, 0.02 units of the value on the difference scale. "a" wins when b is worse.

    Raises `ConfigurationError` for what makes no sense. Not for several threads at once.
    """

    def __init__(
        self,
        alpha: float = 0.05,
        max_windows: int = 200,
        carry_over: int = 0,
        seed: int | str = 0,
        *,
        scale: Scale = "ratio",
        minimum_effect: float = 0.0,
    ) -> None:
        """Start with no window."""
        _check(alpha, max_windows, carry_over, seed, scale, minimum_effect)
        self._settings = {
            "alpha": float(alpha),
            "max_windows": int(max_windows),
            "carry_over": int(carry_over),
            "seed": seed if isinstance(seed, str) else int(seed),
            "scale": scale,
            "minimum_effect": float(minimum_effect),
        }
        self._alpha = float(alpha)
        self._max_pairs = max_windows // 2
        self._carry_over = carry_over
        self._scale: Scale = scale
        self._minimum_effect = float(minimum_effect)
        self._records: list[tuple[Variant, float | None]] = []
        self._pairs: list[Pair] = []
        self._order = random.Random(f"{seed} order")  # noqa: S311 - a design, no secret
        self._half: float | None = None
        self._unusable = {"a": 0, "b": 0}
        self._ending: Ending | None = None
        self._cached: Verdict | None = None
        self._same = self._test("same")
        self._enough = self._test("enough") if minimum_effect else self._same
        self._begin_pair()

    @property
    def running(self) -> bool:
        """Whether more windows are wanted."""
        return self._ending is None

    def next_variant(self) -> Variant:
        """Return what to run in the next window, until it is recorded; raise `ConfigurationError` once it is over."""
        if self._ending is not None:
            raise ConfigurationError(f"the experiment is over, there is no next window: {self.result.reason}")
        in_second = self._step > self._carry_over
        return "b" if in_second == self._b_second else "a"

    def record(self, variant: Variant, value: float | None) -> None:
        """Take the value of the window that `next_variant` asked for; higher is better.

        `None`, NaN, an infinite value, and 0 on the ratio scale say that the window has no usable value: its pair is
        not counted and is run once more, and after too many of them the experiment is inconclusive. Raises
        `ConfigurationError`, and takes nothing, for a variant that was not asked for, for what is no number and for a
        value below 0 on the ratio scale.
        """
        expected = self.next_variant()
        if variant != expected:
            raise ConfigurationError(
                f"a window of variant {variant!r} was recorded, but {expected!r} was to run: ask next_variant() first"
            )
        number = self._number(value)
        self._cached = None
        self._records.append((variant, number))
        counted = self._step % (self._carry_over + 1) == self._carry_over
        self._step += 1
        if not counted:
            return
        if number is None:
            self._lose(variant)
        elif self._half is None:
            self._half = number
        else:
            self._count(self._half, number)

    @property
    def result(self) -> Verdict:
        """What was found, or how it stands. Cheap enough for every window: some milliseconds."""
        if self._cached is None:
            self._cached = self._judge()
        return self._cached

    def state(self) -> dict[str, Any]:
        """Return everything as plain JSON, for `restore`."""
        return {"version": 1, **self._settings, "records": [list(record) for record in self._records]}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Experiment:
        """Return the experiment that gave `state`, where it stood; raise `ConfigurationError` if it is none.

        It takes its windows once more, so as long as recording them did: some 0.1 s for 200 windows.
        """
        settings = dict(state) if isinstance(state, Mapping) else {}
        version = settings.pop("version", None)
        records = settings.pop("records", None)
        if version != 1 or not isinstance(records, list):
            raise ConfigurationError(
                f"state of version {version!r}: it is not what Experiment.state() of this release gives"
            )
        try:
            experiment = cls(**settings)
            for variant, value in records:
                experiment.record(variant, value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the state of an experiment is damaged: {error}") from error
        return experiment

    def _test(self, name: str) -> SequentialTest:
        seed = self._settings["seed"]
        return SequentialTest(
            alpha=self._alpha,
            most_pairs=self._max_pairs,
            orders=min(20_000, math.ceil(200 / self._alpha)) - 1,
            toss=coins(f"{seed} {name}"),
        )

    def _begin_pair(self) -> None:
        self._b_second = self._order.random() < 0.5
        self._step = 0
        self._half = None

    def _number(self, value: float | None) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigurationError(f"a window's value is {value!r}: record a number, or None where there is none")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond the greatest float
            return None
        if math.isnan(number) or abs(number) > LARGEST:
            return None
        if self._scale == "difference":
            return number
        if number < 0:
            raise ConfigurationError(
                f"a window's value is {number!r}, and a ratio needs values above 0: use Experiment(scale='difference')"
            )
        return number if number > 1 / LARGEST else None

    def _lose(self, variant: Variant) -> None:
        self._unusable[variant] += 1
        self._begin_pair()
        if sum(self._unusable.values()) > max(4, self._max_pairs // 5):
            self._ending = "unusable"

    def _count(self, first: float, second: float) -> None:
        if self._scale == "ratio":
            first, second = math.log(first), math.log(second)
        pair = Pair(first, second, self._b_second)
        self._pairs.append(pair)
        self._begin_pair()
        same = self._same.add(first, second, b_second=pair.b_second)
        enough = (
            same if self._enough is self._same else self._enough.add(*pair.without(self._least), b_second=pair.b_second)
        )
        if enough == "up":
            self._ending = "b is better"
        elif same == "down":
            self._ending = "a is better"
        elif enough == "down":
            self._ending = "too small"
        elif len(self._pairs) >= self._max_pairs:
            self._ending = "used up"

    @property
    def _least(self) -> float:
        return math.log1p(self._minimum_effect) if self._scale == "ratio" else self._minimum_effect

    def _judge(self) -> Verdict:
        windows = 2 * len(self._pairs) + (self._half is not None)
        effect: float | None = None
        interval: tuple[float, float] | None = None
        if self._pairs:
            centre = estimate(self._pairs)
            ends = self._interval(centre)
            if ends is not None:
                interval = self._told(ends[0]), self._told(ends[1])
                centre = min(max(centre, ends[0]), ends[1])
            effect = self._told(centre)
        finding = Finding(effect, interval, windows, self._scale, 1 - self._alpha, self._minimum_effect)
        winner = None if self._ending is None else WINNERS.get(self._ending)
        return Verdict(winner, effect, interval, windows, self._reason(finding))

    def _told(self, effect: float) -> float:
        if self._scale == "difference":
            return effect
        return math.expm1(effect) if effect < 700 else math.inf

    def _interval(self, centre: float) -> tuple[float, float] | None:
        # Of the effects that are tested one by one, the tests have the last word, so that the interval holds 0 exactly
        # as long as no variant has won, and no effect has two chances to be refuted.
        tested = ((0.0, self._same.decision), (self._least, self._enough.decision))
        kept = [effect for effect, decision in tested if decision is None]
        ends = confidence_interval(self._pairs, self._alpha, (centre, *kept))
        if ends is None:
            return None
        low, high = min(ends[0], *kept, math.inf), max(ends[1], *kept, -math.inf)
        for effect, decision in tested:
            low = max(low, effect) if decision == "up" else low
            high = min(high, effect) if decision == "down" else high
        return (low, high) if low <= high else None

    def _reason(self, finding: Finding) -> str:
        if self._ending is None:
            return verdict.under_way(finding)
        if self._ending == "unusable":
            lost = ", ".join(f"{count} of {variant}" for variant, count in self._unusable.items())
            return (
                f"inconclusive: too many windows have no usable value ({lost}); {finding.windows} windows were counted"
            )
        if self._ending == "used up":
            if len({value for pair in self._pairs for value in (pair.first, pair.second)}) == 1:
                return f"inconclusive: all {finding.windows} windows have the same value: no difference can be seen"
            return verdict.undecided(finding)
        if self._ending == "too small":
            return verdict.too_small(finding)
        return verdict.decided("b" if self._ending == "b is better" else "a", finding)


def _check(alpha: float, max_windows: int, carry_over: int, seed: int | str, scale: str, minimum_effect: float) -> None:
    if not _is_number(alpha) or not 0.001 <= alpha <= 0.5:
        raise ConfigurationError(f"alpha={alpha!r}: use 0.001 to 0.5, such as 0.05")
    if not _is_whole(max_windows) or not 2 <= max_windows <= MOST_WINDOWS:
        raise ConfigurationError(f"max_windows={max_windows!r}: use a whole number, 2 to {MOST_WINDOWS}")
    if not _is_whole(carry_over) or not 0 <= carry_over <= MOST_WINDOWS:
        raise ConfigurationError(f"carry_over={carry_over!r}: use a whole number of windows, 0 to {MOST_WINDOWS}")
    if not isinstance(seed, str) and not _is_whole(seed):
        raise ConfigurationError(f"seed={seed!r}: use a whole number or a text")
    if scale not in get_args(Scale):
        raise ConfigurationError(f"scale={scale!r}: use 'ratio' or 'difference'")
    if not _is_number(minimum_effect) or not 0 <= minimum_effect < LARGEST:
        raise ConfigurationError(f"minimum_effect={minimum_effect!r}: use 0 or more, 0.02 for 2% on the ratio scale")


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _is_number(number: object) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool)
