"""Experiments by subject on simulated events, beside the usual test by event: `python -m benchmarks.tuning.splits`.

Subjects come at 20 a second and send some events each, about a second apart. The first calls of a step take
`level(t) * subject * event` seconds: the level swings by 30% and grows by half, a subject's own factor is
`exp(0.5 * t3)` (Student's t with 3 degrees of freedom: a few are a hundred times slower), an event's is log-normal. Of
calls that fail each subject has a share of its own. Who gets which variant is drawn by `assign`. Every judge looks once
a second. Each run has a seed of its own; seeds from 1,000,000 on are for reports.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import heapq
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ag06 import Event, Workflow
from ag06.ml.split import assign, sample_ratio_mismatch
from ag06.ml.split_evidence import SplitEvidence
from ag06.ml.split_experiment import EVEN, shares_are_lost
from ag06.ml.split_subjects import Measure, Subjects

ALPHA = 0.05
Z = statistics.NormalDist().inv_cdf(1 - ALPHA / 2)
RATE = 20.0
SLOWEST_TENTH = 1.638  # quantile 0.9 of Student's t with 3 degrees of freedom


@dataclass(frozen=True)
class Setting:
    """What the events are like.

    `gain` is what b gives beside a: of the seconds (a ratio less 1) or of the failures (a difference). Of b's subjects
    the slowest tenth never come to the step with `loses="unseen"`, and nothing works for them with `"seen"`.
    """

    gain: float = 0.0
    measure: Measure = "duration"
    events: float = 3.0
    tail: float = 0.5
    failures: float = 0.03
    subjects: int = 2000
    loses: str = ""


SETTINGS = {
    "identical": Setting(),
    "identical, 20 events of a subject": Setting(events=20.0),
    "identical, one event of a subject": Setting(events=1.0),
    "identical, subjects three times as far apart": Setting(tail=1.5),
    "identical, 3% of calls fail": Setting(measure="errors"),
    "identical, but nothing works for b's slowest 10%": Setting(loses="seen", subjects=20_000),
    "identical, but b's slowest 10% never come": Setting(loses="unseen", subjects=20_000),
    "b takes 30% less time": Setting(gain=-0.3, subjects=20_000),
    "b takes 10% less time": Setting(gain=-0.1, subjects=20_000),
    "b takes 10% more time": Setting(gain=0.1, subjects=20_000),
    "b takes 5% less time": Setting(gain=-0.05, subjects=40_000),
    "b takes 10% less time, one event of a subject": Setting(gain=-0.1, events=1.0, subjects=20_000),
    "6% of b's calls fail, of a's 3%": Setting(gain=0.03, measure="errors", subjects=20_000),
}


@dataclass(frozen=True)
class Call:
    """One call: when, for whom, how long it took, and whether it failed."""

    at: float
    subject: str
    variant: str
    seconds: float
    failed: bool


@dataclass(frozen=True)
class Run:
    """What one judge said of one run."""

    winner: str | None
    subjects: int
    effect: float | None = None
    interval: tuple[float, float] | None = None


def calls(setting: Setting, seed: int) -> Iterator[Call]:
    """All calls in the order of time."""
    draw = random.Random(seed)
    waiting: list[tuple[float, int, str, str, float, float]] = []
    period = draw.uniform(20, 200)
    length = setting.subjects / RATE
    now, number, ordinal = 0.0, 0, 0
    while number < setting.subjects or waiting:
        if number < setting.subjects and (not waiting or now < waiting[0][0]):
            subject = f"subject {number}"
            variant = assign(subject, f"{seed}")
            own = setting.tail * draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2) / 3)
            share = draw.betavariate(0.5, 0.5 / setting.failures - 0.5)
            if variant == "b" and setting.measure == "errors":
                share = min(share * (1 + setting.gain / setting.failures), 1.0)
            at = now
            if variant == "b" and own > SLOWEST_TENTH * setting.tail:
                share = 1.0 if setting.loses == "seen" else share
            while not (setting.loses == "unseen" and variant == "b" and own > SLOWEST_TENTH * setting.tail):
                heapq.heappush(waiting, (at, ordinal, subject, variant, own, share))
                ordinal += 1
                if draw.random() < 1 / setting.events:
                    break
                at += draw.expovariate(1.0)
            number += 1
            now += draw.expovariate(RATE)
            continue
        at, _, subject, variant, own, share = heapq.heappop(waiting)
        level = 0.3 * math.sin(2 * math.pi * at / period) + 0.5 * at / length
        seconds = 0.01 * math.exp(min(level + own + draw.gauss(0, 0.3), 50.0))
        if variant == "b" and setting.measure == "duration":
            seconds *= 1 + setting.gain
        yield Call(at, subject, variant, seconds, draw.random() < share)


def looks(setting: Setting, seed: int) -> Iterator[list[Call]]:
    """The calls of each second."""
    found: list[Call] = []
    until = 1.0
    for call in calls(setting, seed):
        while call.at >= until:
            yield found
            found, until = [], until + 1.0
        found.append(call)
    yield found


def _step() -> Any:
    app = Workflow("simulated", store="memory://")

    @app.step("t")
    async def work(event: Event) -> None: ...

    return app.steps["work"]


STEP = _step()
EVENT: Event[Any] = Event(
    id="1", type="t", source="s", data=None, time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), subject="one"
)
FAILURE = ConnectionError()


def by_subject(setting: Setting, seed: int) -> Run:
    """What `run_experiment(unit="subject")` does, with its clock."""
    now = 0.0
    subjects = Subjects("work", setting.measure, clock=lambda: now)
    evidence = SplitEvidence(ALPHA)
    winner = None
    for second in looks(setting, seed):
        for call in second:
            now = call.at
            taken = subjects.begun(STEP, EVENT, call.subject, call.variant)
            if taken is not None:
                subjects.ended(taken, call.seconds, FAILURE if call.failed else None)
        for subject in subjects.done():
            value = subject.value(setting.measure)
            if value is not None:
                evidence.add(subject.variant, value)
        if sample_ratio_mismatch(subjects.counted, EVEN).mismatch or shares_are_lost(subjects.lost):
            break
        shown = evidence.refuted(0.0)
        if shown:
            winner = "a" if shown > 0 else "b"
            break
    told = math.expm1 if setting.measure == "duration" else float
    interval, estimate = evidence.interval, evidence.estimate
    return Run(
        winner,
        sum(subjects.counted.values()),
        None if estimate is None else told(estimate),
        None if interval is None else (told(interval[0]), told(interval[1])),
    )


def z_by_event(setting: Setting, seed: int, *, each_time: bool = True) -> Run:
    """Two means of all events, as if each were by itself; logarithms of the seconds."""
    sums = {"a": [0, 0.0, 0.0], "b": [0, 0.0, 0.0]}
    seen: set[str] = set()
    score = 0.0
    for second in looks(setting, seed):
        for call in second:
            value = float(call.failed) if setting.measure == "errors" else math.log(call.seconds)
            total = sums[call.variant]
            total[0] += 1
            total[1] += value
            total[2] += value * value
            seen.add(call.subject)
        score = _z(*sums["a"], *sums["b"])
        if each_time and len(seen) >= 100 and abs(score) >= Z:
            break
    if abs(score) < Z:
        return Run(None, len(seen))
    return Run("a" if score > 0 else "b", len(seen))


def _z(n: float, total: float, square: float, m: float, other: float, other_square: float) -> float:
    if min(n, m) < 2:
        return 0.0
    variance = (square / n - (total / n) ** 2) / n + (other_square / m - (other / m) ** 2) / m
    return (other / m - total / n) / math.sqrt(variance) if variance > 0 else 0.0


Judge = Callable[[Setting, int], Run]
JUDGES: dict[str, Judge] = {
    "by subject": by_subject,
    "z by event, each time": z_by_event,
    "z by event, once": functools.partial(z_by_event, each_time=False),
}


def measure(judge: str, setting: str, seeds: range) -> dict[str, object]:
    """Run one judge on one setting, and count."""
    what = SETTINGS[setting]
    # More failures are a positive gain of b, as more seconds are: a is better then.
    better = None if not what.gain else "a" if what.gain > 0 else "b"
    began = time.process_time()
    runs = [JUDGES[judge](what, seed) for seed in seeds]
    seconds = time.process_time() - began
    named = sum(run.winner is not None for run in runs)
    right = sum(run.winner == better for run in runs) if better else 0
    counts = sorted(run.subjects for run in runs)
    row: dict[str, object] = {
        "judge": judge,
        "setting": setting,
        "runs": len(runs),
        "first_seed": seeds.start,
        "wrong_winner": (named - right) / len(runs),
        "found": right / len(runs) if better else None,
        "subjects": statistics.fmean(counts),
        "subjects_median": counts[len(counts) // 2],
        "subjects_90": counts[int(0.9 * len(counts))],
        "cpu_ms_a_run": 1000 * seconds / len(runs),
    }
    intervals = [run.interval for run in runs if run.interval is not None]
    if intervals:
        row["interval_holds_the_effect"] = statistics.fmean(low <= what.gain <= high for low, high in intervals)
    return row


def table(rows: list[dict[str, object]]) -> Table:
    shown = Table("setting", "judge", "runs", "found", "wrong winner", "subjects", "median", "90%", "interval holds")
    for row in rows:
        found, holds = row["found"], row.get("interval_holds_the_effect")
        shown.add_row(
            str(row["setting"]),
            str(row["judge"]),
            str(row["runs"]),
            "" if found is None else f"{found:.1%}",
            f"{row['wrong_winner']:.2%}",
            f"{row['subjects']:.0f}",
            str(row["subjects_median"]),
            str(row["subjects_90"]),
            "" if holds is None else f"{holds:.1%}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="runs of each setting")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; 1000000 and above for what is reported")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one; may be repeated")
    parser.add_argument("--judge", action="append", choices=JUDGES, help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    rows = []
    for setting in options.setting or SETTINGS:
        for judge in options.judge or JUDGES:
            rows.append(measure(judge, setting, range(options.seed, options.seed + options.runs)))
            if options.output:
                settings = {name: asdict(what) for name, what in SETTINGS.items()}
                options.output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
