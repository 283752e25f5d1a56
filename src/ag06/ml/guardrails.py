"""What a trial must never do: limits beside a baseline, watched while a window is under way."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.measures import measure_named
from ag06.ml.score import Score
from ag06.ml.windows import Window

Rail = Literal["p99", "error_rate", "queue_age", "memory", "score"]

CHANCE = 1e-4
"""How likely one look takes chance for a breach, where events are late or fail independently of each other."""
BAD_SLICES = 3
"""So many slices between looks must be bad by themselves: one pause of the machine is no fault of a configuration."""
EXPERIMENT_LOSS = 0.6
"""The share of the score that is too much to lose in an experiment as well."""
_P99 = measure_named("p99")
_LATE = 0.01
"""The share of events that are above the 99th percentile."""
_SLOWER = 1.2
"""How much later events are, where fewer came in because those before them were slow."""
_ALLOWANCE = 1.1
"""Where the baseline breaks a limit itself, a trial may have so many times what the baseline had."""


class Breach(msgspec.Struct, frozen=True):
    """A guardrail that a window broke: which, the value, the limit, and the same in words."""

    rail: Rail
    value: float
    limit: float
    explanation: str


class Guardrails(msgspec.Struct, frozen=True):
    """Limits of a trial; `None` switches one off.

    Attributes:
        p99_factor: how many times the baseline's p99 the window's may be, above 1. A breach is when more than 1% of the
            events are later than that by more than chance (binomial test, level `CHANCE`).
        error_rate: the share of attempts that may fail, 0 or more and below 1; a breach is more by more than chance.
        queue_age_seconds: the age that the oldest waiting event may have.
        memory_mb: resident memory of all processes, in millions of bytes.
        worst_loss: the share of the score that may be lost, above 0 and below 1: 0.3 is a score of log(1 - 0.3) below
            that of the baseline. Only for a whole window, under a load that did not change; one in which nothing was
            settled though events wait has lost all.
        score: what that is about.

    Raises `ConfigurationError` for what makes no sense.
    """

    p99_factor: float | None = 2.0
    error_rate: float | None = 0.05
    queue_age_seconds: float | None = 30.0
    memory_mb: float | None = None
    worst_loss: float | None = 0.3
    score: Score = Score(maximize={"throughput": 1.0})

    def __post_init__(self) -> None:
        _check("p99_factor", self.p99_factor, "above 1", low=1)
        _check("error_rate", self.error_rate, "0 or more, below 1", high=1, or_equal=True)
        _check("queue_age_seconds", self.queue_age_seconds, "above 0")
        _check("memory_mb", self.memory_mb, "above 0")
        _check("worst_loss", self.worst_loss, "above 0, below 1", high=1)

    def check(self, window: Window, baseline: Window) -> list[Breach]:
        """Return what a window that is over broke, beside the baseline."""
        return self.noisy(window, baseline) + self.at_once(window, baseline) + self._loss(window, baseline)

    def for_experiment(self) -> Guardrails:
        """Return milder ones for an experiment, whose test finds losses: only a large one ends it at once."""
        if self.worst_loss is None:
            return self
        return msgspec.structs.replace(self, worst_loss=max(self.worst_loss, EXPERIMENT_LOSS))

    def watch(self, baseline: Window) -> Watch:
        """Begin to watch a window that is under way."""
        return Watch(self, baseline)

    def at_once(self, window: Window, baseline: Window) -> list[Breach]:
        """Return the breaches that one look is enough for: what waits, and memory."""
        found = []
        if self.queue_age_seconds is not None:
            limit = max(self.queue_age_seconds, baseline.queue_age_seconds * _ALLOWANCE)
            if window.queue_age_seconds > limit:
                words = f"the oldest event waits for {window.queue_age_seconds:.3g} s; the limit is {limit:.3g} s"
                found.append(Breach("queue_age", window.queue_age_seconds, limit, words))
        if self.memory_mb is not None:
            limit = max(self.memory_mb, baseline.memory_mb * _ALLOWANCE)
            if window.memory_mb > limit:
                words = f"{window.memory_mb:,.0f} MB of memory; the limit is {limit:,.0f} MB"
                found.append(Breach("memory", window.memory_mb, limit, words))
        return found

    def noisy(self, window: Window, baseline: Window) -> list[Breach]:
        """Return the breaches that chance could look like: late events, and errors."""
        found = []
        limit = self.late_limit_ms(baseline)
        if limit is not None and above_chance(late := window.later_than(limit), window.events, _LATE):
            p99 = window.latency_p99_ms or 0.0
            words = (
                f"{late} of {window.events} events were later than {_P99.said(limit)}, {self.p99_factor:g} times the"
                f" p99 of the baseline; p99 is {_P99.said(p99)}"
            )
            found.append(Breach("p99", p99, limit, words))
        share = self.error_limit(baseline)
        attempts = window.processed + window.failed
        if share is not None and above_chance(window.failed, attempts, share):
            words = f"{window.failed} of {attempts} attempts failed; the limit is {share:.2%}"
            found.append(Breach("error_rate", window.failed / attempts, share, words))
        return found

    def late_limit_ms(self, baseline: Window) -> float | None:
        """Return the age, in milliseconds, that more than 1% of the events must not exceed; `None`: there is none."""
        if self.p99_factor is None or baseline.latency_p99_ms is None:
            return None
        return self.p99_factor * baseline.latency_p99_ms

    def error_limit(self, baseline: Window) -> float | None:
        """Return the share of attempts that may fail beside this baseline; `None`: there is no limit."""
        if self.error_rate is None:
            return None
        return max(self.error_rate, (baseline.error_rate or 0.0) * _ALLOWANCE)

    def _loss(self, window: Window, baseline: Window) -> list[Breach]:
        if self.worst_loss is None:
            return []
        if "stalled" in window.flags and "too_few_events" not in baseline.flags:
            words = f"nothing was settled in {window.seconds:.3g} s, though {window.queue_size} events wait"
            return [Breach("score", 1.0, self.worst_loss, words)]
        now, before = self.score.of(window, baseline).value, self.score.of(baseline, baseline).value
        if now is None or before is None or ("load_changed" in window.flags and not _held_back(window, baseline)):
            return []
        loss = -math.expm1(min(now - before, 0.0))
        if loss <= self.worst_loss:
            return []
        words = f"the score ({self.score}) is {loss:.0%} worse than the baseline's; the limit is {self.worst_loss:.0%}"
        return [Breach("score", loss, self.worst_loss, words)]


class Watch:
    """Looks at a window a few times a second, so that a breach ends its trial at once."""

    def __init__(self, rails: Guardrails, baseline: Window) -> None:
        """Made by `Guardrails.watch`, one for each window."""
        self._rails = rails
        self._baseline = baseline
        self._seen: dict[Rail, tuple[int, int]] = {}
        self._bad: dict[Rail, int] = {}

    def look(self, so_far: Window) -> list[Breach]:
        """Return what a window broke so far (`OpenWindow.peek`).

        Of what is noisy, late events and errors, a breach counts once `BAD_SLICES` slices between looks were bad too.
        """
        late_limit = self._rails.late_limit_ms(self._baseline)
        error_limit = self._rails.error_limit(self._baseline)
        if late_limit is not None:
            self._note("p99", so_far.later_than(late_limit), so_far.events, _LATE)
        if error_limit is not None:
            self._note("error_rate", so_far.failed, so_far.processed + so_far.failed, error_limit)
        noisy = self._rails.noisy(so_far, self._baseline)
        lasting = [breach for breach in noisy if self._bad.get(breach.rail, 0) >= BAD_SLICES]
        return lasting + self._rails.at_once(so_far, self._baseline)

    def _note(self, rail: Rail, bad: int, count: int, share: float) -> None:
        bad_before, count_before = self._seen.get(rail, (0, 0))
        self._seen[rail] = (bad, count)
        if bad - bad_before > share * (count - count_before):
            self._bad[rail] = self._bad.get(rail, 0) + 1


def _held_back(window: Window, baseline: Window) -> bool:
    """Whether less came in because the window was slow: publishers that wait for their answers send less then."""
    now, before = window.latency_p50_ms, baseline.latency_p50_ms
    if now is None or before is None or window.arrival_rate >= baseline.arrival_rate:
        return False
    return now > _SLOWER * before


def above_chance(hits: int, count: int, share: float, chance: float = CHANCE) -> bool:
    """Whether `hits` or more out of `count` are less likely than `chance` if each is one with probability `share`.

    The exact tail of the binomial distribution (Clopper, Pearson 1934).
    """
    hits = min(hits, count)
    if count <= 0 or share >= 1 or hits <= share * count:
        return False
    if share <= 0:
        return True
    # Above the mean each term is smaller than the one before, by a factor that shrinks: the sum soon stands.
    logarithm = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    term = math.exp(logarithm + hits * math.log(share) + (count - hits) * math.log1p(-share))
    tail, number = 0.0, hits
    while tail < chance and term > 1e-9 * chance:
        tail += term
        term *= (count - number) / (number + 1) * share / (1 - share)
        number += 1
    return tail < chance


def _check(
    name: str,
    value: object,
    accepted: str,
    *,
    low: float = 0,
    high: float = math.inf,
    or_equal: bool = False,
) -> None:
    """Raise `ConfigurationError` unless a value is `None` or between two others; it may be `low` if `or_equal`."""
    if value is None:
        return
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not (low < number < high or (or_equal and number == low)):
        raise ConfigurationError(f"guardrails: {name}={value!r}; use a number {accepted}, or None for no limit")
