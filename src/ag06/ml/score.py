"""The score of a window, as the user declares it: how much better than the baseline, in one number without a unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.measures import Measure, measure_named
from ag06.ml.windows import Metrics

STEEPNESS = 10.0
"""Each percent beyond a limit costs as much as losing so many percent of what is maximized."""
MARGIN = 0.05
"""The penalty begins so much before the limit (a logarithm: about 5%), so that there is no cliff in noisy figures."""
_SMALLEST = 1e-12

_GOAL = re.compile(r"(maximize|minimize)\s+(?:([0-9.eE+-]+)\s*\*\s*)?([A-Za-z_]\w*)(?:\s*\*\s*([0-9.eE+-]+))?")
_LIMIT = re.compile(r"([A-Za-z_]\w*)\s*([<>≤≥].*)")
_BOUND = re.compile(r"(<=|>=|≤|≥)\s*(.+)")


class Term(msgspec.Struct, frozen=True):
    """What one measure, or the penalty of one limit, adds to a score, and why in plain words."""

    contribution: float
    explanation: str


class ScoreValue(msgspec.Struct, frozen=True):
    """What a window is worth.

    Attributes:
        value: the sum of all terms, 0 for the baseline where it keeps clear of all limits; 0.1 is about 10% better.
            `None` if the window is inconclusive: then `reason` says why.
        terms: what each measure adds, by name; a limit's penalty by its text.
        broken: each limit that does not hold, in words.
        reason: why there is no value.
    """

    value: float | None
    terms: dict[str, Term] = {}
    broken: tuple[str, ...] = ()
    reason: str | None = None


class Limit(msgspec.Struct, frozen=True):
    """A measure must stay at or below `bound`, or at or above."""

    measure: Measure
    at_most: bool
    bound: float
    text: str

    def holds(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return value <= self.bound if self.at_most else value >= self.bound

    def penalty(self, value: float) -> float:
        """Return what a value costs, 0 or more: a soft barrier.

        With x the logarithm of value to bound (of bound to value, where it must be above) and u = x + `MARGIN`:
        nothing up to u = 0, then `STEEPNESS` * u^2 / (2 * `MARGIN`) up to the bound, from there on the tangent
        `STEEPNESS` * (u - `MARGIN` / 2) (Huber 1964). Both count as the floor of the measure at least; what keeps to
        an upper bound and is below that floor costs nothing.
        """
        if self.at_most and value <= min(self.bound, self.measure.floor):
            return 0.0
        floor = max(self.measure.floor, _SMALLEST)
        over = math.log(max(value, floor)) - math.log(max(self.bound, floor))
        beyond = (over if self.at_most else -over) + MARGIN
        if beyond <= 0:
            return 0.0
        if beyond <= MARGIN:
            return STEEPNESS * beyond**2 / (2 * MARGIN)
        return STEEPNESS * (beyond - MARGIN / 2)


class _Goal(msgspec.Struct, frozen=True):
    measure: Measure
    weight: float
    maximize: bool


class Score:
    """What the optimizer makes as large as it can.

    The value of a window is the sum, over what is maximized, of weight * log(value / baseline), less the same sum over
    what is minimized, less the penalties of limits (`Limit.penalty`). So units cancel out, and a weight of 2 means
    that 1% of one is worth 2% of another.
    """

    def __init__(
        self,
        *,
        maximize: Mapping[str, float] | None = None,
        minimize: Mapping[str, float] | None = None,
        constraints: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        """Declare it.

        Args:
            maximize: weights (above 0) by measure: throughput, p50, p95, p99, mean, call_mean, call_p99, error_rate,
                queue_size, queue_age, cpu, memory.
            minimize: the same.
            constraints: limits by measure, such as `{"p99": "<= 50ms", "error_rate": "<= 1%"}`; several in a list.

        Raises `ConfigurationError` for a name that there is not, a weight that is no number above 0, and a limit that
        cannot be read.
        """
        self._goals = (*_goals("maximize", maximize or {}), *_goals("minimize", minimize or {}))
        if not self._goals:
            raise ConfigurationError("score: nothing to maximize or minimize; say for example 'maximize throughput'")
        names = [goal.measure.name for goal in self._goals]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"score: {name} is there twice; name it once, in one direction")
        self._limits = tuple(limit for name, texts in (constraints or {}).items() for limit in _limits(name, texts))

    @classmethod
    def parse(cls, text: str) -> Score:
        """Read a score such as `"maximize throughput, minimize 2 * p99, error_rate <= 1%"`.

        Parts stand between commas or semicolons. Raises `ConfigurationError` for what cannot be read.
        """
        weights: dict[str, dict[str, float]] = {"maximize": {}, "minimize": {}}
        constraints: dict[str, list[str]] = {}
        for part in filter(None, map(str.strip, re.split(r"[,;]", text))):
            if goal := _GOAL.fullmatch(part):
                direction, before, name, after = goal.groups()
                if name in weights[direction] or (before and after):
                    raise ConfigurationError(f"score {text!r}: {part!r} says {name} or its weight twice")
                weights[direction][name] = _weight(before or after or "1", name)
            elif limit := _LIMIT.fullmatch(part):
                constraints.setdefault(limit[1], []).append(limit[2])
            else:
                raise ConfigurationError(
                    f"score {text!r}: cannot read {part!r}; use 'maximize NAME', 'minimize NAME', 'minimize 2 * NAME', "
                    "'NAME <= 50ms' or 'NAME >= 10', with commas in between"
                )
        return cls(maximize=weights["maximize"], minimize=weights["minimize"], constraints=constraints)

    def of(self, window: Metrics, baseline: Metrics) -> ScoreValue:
        """Return what a window is worth beside the baseline; it raises nothing, whatever is in them."""
        terms: dict[str, Term] = {}
        broken: list[str] = []
        reasons = [*_unfit("the window", window), *_unfit("the baseline", baseline)]
        for limit in self._limits:
            name, value = limit.measure.name, limit.measure.of(window)
            if value is None:
                reasons.append(f"{name} is missing in the window: whether {limit.text} holds is not known")
                continue
            state = "keeps to" if limit.holds(value) else "breaks"
            words = f"{name} {limit.measure.said(value)} {state} {limit.text}"
            if state == "breaks":
                broken.append(words)
            if penalty := limit.penalty(value):
                terms[limit.text] = Term(-penalty, f"{words}: -{penalty:.3f}")
        for goal in self._goals:
            found = _term(goal, window, baseline)
            if isinstance(found, str):
                reasons.append(found)
            else:
                terms[goal.measure.name] = found
        value = math.fsum(term.contribution for term in terms.values())
        if not math.isfinite(value):
            reasons.append("the weights make a number out of it that is too large")
        if reasons:
            return ScoreValue(None, terms, tuple(broken), "; ".join(dict.fromkeys(reasons)))
        return ScoreValue(value, terms, tuple(broken))

    def __repr__(self) -> str:
        return f"Score.parse({str(self)!r})"

    def __str__(self) -> str:
        goals = [
            f"{'maximize' if goal.maximize else 'minimize'} {'' if goal.weight == 1 else f'{goal.weight!r} * '}"
            f"{goal.measure.name}"
            for goal in self._goals
        ]
        return ", ".join([*goals, *(limit.text for limit in self._limits)])


def _unfit(which: str, window: Metrics) -> list[str]:
    if "idle" in window.flags:
        return [f"{which} had no traffic"]
    if "too_few_events" in window.flags:
        return [f"{which} had {window.events} events: too few to tell"]
    return []


def _term(goal: _Goal, window: Metrics, baseline: Metrics) -> Term | str:
    """Return what a measure adds, or why that cannot be told."""
    measure = goal.measure
    values = []
    for which, source in (("the window", window), ("the baseline", baseline)):
        found = measure.of(source)
        if found is None:
            return f"{measure.name} is missing in {which}, or no finite number"
        if max(found, measure.floor) <= 0:
            return f"{measure.name} is 0 in {which}: that has no ratio"
        values.append(max(found, measure.floor))
    value, before = values
    ratio = math.log(value) - math.log(before)
    contribution = goal.weight * (ratio if goal.maximize else -ratio)
    told = f"{math.expm1(ratio):+.1%}" if ratio < math.log(1000) else "over a thousand times as much"
    words = (
        f"{measure.name} {measure.said(value)}, baseline {measure.said(before)}: {told}, "
        f"{'more' if goal.maximize else 'less'} is better: {contribution:+.3f}"
    )
    return Term(contribution, words if goal.weight == 1 else f"{words} with weight {goal.weight:g}")


def _goals(direction: str, weights: Mapping[str, float]) -> list[_Goal]:
    if not isinstance(weights, Mapping):
        raise ConfigurationError(f"score: {direction}={weights!r}; give weights by name, as in {{'throughput': 1.0}}")
    return [
        _Goal(measure_named(name), _weight(weight, name), direction == "maximize") for name, weight in weights.items()
    ]


def _weight(weight: object, name: str) -> float:
    measure_named(name)
    try:
        number = float(weight) if isinstance(weight, (str, Real)) and not isinstance(weight, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigurationError(f"score: the weight {weight!r} of {name} is no finite number above 0")
    return number


def _limits(name: str, texts: str | Sequence[str]) -> list[Limit]:
    measure = measure_named(name)
    found = []
    for text in texts if isinstance(texts, (list, tuple)) else (texts,):
        bound = _BOUND.fullmatch(text.strip()) if isinstance(text, str) else None
        if bound is None:
            raise ConfigurationError(f"score: the limit {text!r} of {name} cannot be read; use '<= 50' or '>= 50'")
        sign = {"≤": "<=", "≥": ">="}.get(bound[1], bound[1])
        said = f"{measure.name} {sign} {bound[2].strip()}"
        found.append(Limit(measure, sign == "<=", measure.parse(bound[2]), said))
    return found
