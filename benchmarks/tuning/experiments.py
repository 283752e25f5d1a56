"""Experiments on simulated windows, beside what people do by hand: `python -m benchmarks.tuning.experiments`.

A window measures `100 * load(t) * drift(t) * (1 + 0.15 noise(t))`, noise AR(1) 0.5; the load swings by 30% with a
period of 20 to 200 windows, the drift moves the level by up to half over 100 windows. Every judge looks after every
pair of windows, at most 100; each run has a series and a seed of its own. Seeds from 1,000,000 on are for reports.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from ag06.ml.experiment import Experiment

ALPHA = 0.05
WINDOWS = 100
NOISE = 0.15
CORRELATION = 0.5
SWING = 0.3


@dataclass(frozen=True)
class Setting:
    """How the series and the variants behave.

    `gain` is what b gives beside a; `carry` how much of it comes a window late; a window that follows a change of the
    variant by at most `carry_over` windows loses `change` of its value.
    """

    gain: float = 0.0
    correlation: float = CORRELATION
    moving: bool = True
    stalls: float = 0.0
    carry: float = 0.0
    change: float = 0.0
    carry_over: int = 0
    runs: float = 1.0


SETTINGS = {
    "identical": Setting(),
    "identical, white noise, no drift": Setting(correlation=0.0, moving=False),
    "identical, AR(1) 0.9": Setting(correlation=0.9),
    "identical, 1 window in 20 stalls": Setting(stalls=0.05),
    "identical, a change costs 30% of a window, discarded": Setting(change=0.3, carry_over=1),
    "identical, a change costs 30% of two windows, discarded": Setting(change=0.3, carry_over=2),
    "b 10% better": Setting(gain=0.1),
    "b 10% worse": Setting(gain=-0.1),
    "b 5% better": Setting(gain=0.05),
    "b 20% better": Setting(gain=0.2),
    "b 10% better, white noise, no drift": Setting(gain=0.1, correlation=0.0, moving=False),
    "b 10% better, AR(1) 0.9": Setting(gain=0.1, correlation=0.9),
    "b 10% better, 1 window in 20 stalls": Setting(gain=0.1, stalls=0.05),
    "b 10% better, half of it carried over, discarded": Setting(gain=0.1, carry=0.5, carry_over=1),
}


@dataclass(frozen=True)
class Run:
    """What one judge said of one series."""

    winner: str | None
    windows: int
    effect: float | None = None
    interval: tuple[float, float] | None = None


class Windows:
    """One live system: what each window measures under the variant that runs in it."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._random = random.Random(f"{seed} series")
        draw = self._random
        self._period, self._phase, self._drift = draw.uniform(20, 200), draw.random(), draw.uniform(-0.5, 0.5)
        self._noise = draw.gauss()
        self._time = 0
        self._before = "a"
        self._since_change = math.inf

    def measure(self, variant: str) -> float:
        setting, draw = self._setting, self._random
        level = 100.0
        if setting.moving:
            level *= 1 + SWING * math.sin(2 * math.pi * (self._time / self._period + self._phase))
            level *= math.exp(self._drift * self._time / 100)
        value = level * max(0.05, 1 + NOISE * self._noise)
        self._noise = setting.correlation * self._noise + math.sqrt(1 - setting.correlation**2) * draw.gauss()
        self._time += 1
        if draw.random() < setting.stalls:
            value *= 0.2
        now, before = ((1 + setting.gain if which == "b" else 1.0) for which in (variant, self._before))
        self._since_change = self._since_change + 1 if variant == self._before else 0
        self._before = variant
        if self._since_change < setting.carry_over:
            value *= 1 - setting.change
        return value * (now * (1 - setting.carry) + before * setting.carry)


Judge = Callable[[Setting, int], Run]


def experiment(setting: Setting, seed: int, *, max_windows: int = WINDOWS, result: bool = False) -> Run:
    """Ours; after 100 windows it has found nothing, whatever its own limit."""
    trial = Experiment(ALPHA, max_windows, setting.carry_over, seed)
    windows, recorded = Windows(setting, seed), 0
    while trial.running and recorded < WINDOWS * (1 + setting.carry_over):
        variant = trial.next_variant()
        trial.record(variant, windows.measure(variant))
        recorded += 1
    verdict = trial.result
    return Run(verdict.winner, verdict.windows, verdict.effect, verdict.interval)


def _pairs(setting: Setting, seed: int, second_is_b: Callable[[int], bool]) -> Iterator[tuple[int, float]]:
    """Yield, after each pair of windows, how many windows there were and the log ratio of b to a."""
    windows = Windows(setting, seed)
    for number in range(WINDOWS // 2):
        order = "ab" if second_is_b(number) else "ba"
        value = {variant: math.log(windows.measure(variant)) for variant in order}
        yield 2 * number + 2, value["b"] - value["a"]


def _paired_t(differences: list[float]) -> float:
    """Return p of the paired t-test."""
    spread = statistics.stdev(differences)
    statistic = statistics.fmean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * student.sf(abs(statistic), len(differences) - 1))


def t_each_time(setting: Setting, seed: int) -> Run:
    """Pairs in order ab, the paired t-test looked at after each pair from the fifth on."""
    differences: list[float] = []
    for windows, difference in _pairs(setting, seed, lambda _: True):
        differences.append(difference)
        if windows >= 10 and _paired_t(differences) < ALPHA:
            return Run("b" if statistics.fmean(differences) > 0 else "a", windows)
    return Run(None, WINDOWS)


def t_once(setting: Setting, seed: int) -> Run:
    """The same, looked at once, at the end."""
    differences = [difference for _, difference in _pairs(setting, seed, lambda _: True)]
    winner = "b" if statistics.fmean(differences) > 0 else "a"
    return Run(winner if _paired_t(differences) < ALPHA else None, WINDOWS)


def halves(setting: Setting, seed: int) -> Run:
    """a for the first half, b for the second, the t-test of two samples looked at once."""
    windows = Windows(setting, seed)
    first, second = ([math.log(windows.measure(v)) for _ in range(WINDOWS // 2)] for v in "ab")
    count = WINDOWS // 2
    spread = math.sqrt((statistics.variance(first) + statistics.variance(second)) / count)
    statistic = (statistics.fmean(second) - statistics.fmean(first)) / spread
    found = 2 * student.sf(abs(statistic), 2 * count - 2) < ALPHA
    return Run(("b" if statistic > 0 else "a") if found else None, WINDOWS)


def betting(setting: Setting, seed: int) -> Run:
    """Pairs in random order, an e-process that bets on the sign of each difference (a mixture of bets, Ville 1939)."""
    coin = random.Random(f"{seed} coin")
    logs = {side * size: 0.0 for side in (-1, 1) for size in (1.0, 2.0, 4.0, 6.0, 9.0)}
    for windows, difference in _pairs(setting, seed, lambda _: coin.random() < 0.5):
        for bet in logs:
            stake = bet * difference
            logs[bet] += stake - (abs(stake) + math.log1p(math.exp(-2 * abs(stake))) - math.log(2))
        if statistics.fmean(math.exp(value) for value in logs.values()) >= 1 / ALPHA:
            return Run("b" if sum(bet * math.exp(value) for bet, value in logs.items()) > 0 else "a", windows)
    return Run(None, WINDOWS)


JUDGES: dict[str, Judge] = {
    "experiment": experiment,
    "experiment, max_windows=200": functools.partial(experiment, max_windows=200),
    "e-process of pairs": betting,
    "paired t, each time": t_each_time,
    "paired t, once": t_once,
    "first half against second": halves,
}


def measure(judge: str, setting: str, seeds: range) -> dict[str, object]:
    """Run one judge on one setting, and count."""
    gain = SETTINGS[setting].gain
    better = "b" if gain > 0 else "a"
    began = time.process_time()
    runs = [JUDGES[judge](SETTINGS[setting], seed) for seed in seeds]
    seconds = time.process_time() - began
    named = sum(run.winner is not None for run in runs)
    right = sum(run.winner == better for run in runs) if gain else 0
    row: dict[str, object] = {
        "judge": judge,
        "setting": setting,
        "runs": len(runs),
        "first_seed": seeds.start,
        "wrong_winner": (named - right) / len(runs),
        "found": right / len(runs) if gain else None,
        "windows": statistics.fmean(run.windows for run in runs),
        "cpu_ms_a_run": 1000 * seconds / len(runs),
    }
    intervals = [run.interval for run in runs if run.interval is not None]
    if intervals:
        row["interval_holds_the_effect"] = statistics.fmean(low <= gain <= high for low, high in intervals)
    return row


def table(rows: list[dict[str, object]]) -> Table:
    shown = Table("setting", "judge", "runs", "found", "wrong winner", "windows", "interval holds")
    for row in rows:
        found, holds = row["found"], row.get("interval_holds_the_effect")
        shown.add_row(
            str(row["setting"]),
            str(row["judge"]),
            str(row["runs"]),
            "" if found is None else f"{found:.1%}",
            f"{row['wrong_winner']:.2%}",
            f"{row['windows']:.1f}",
            "" if holds is None else f"{holds:.1%}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="series of each setting")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; 1000000 and above for what is reported")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one; may be repeated")
    parser.add_argument("--judge", action="append", choices=JUDGES, help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, help="add the rows to this JSON file, in place of those it has")
    options = parser.parse_args()
    rows = []
    for setting in options.setting or SETTINGS:
        for judge in options.judge or JUDGES:
            rows.append(measure(judge, setting, range(options.seed, options.seed + options.runs)))
            if options.output:
                _write(options.output, rows)
    Console(width=150).print(table(rows))


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    new = {(row["setting"], row["judge"]): row for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = {(row["setting"], row["judge"]): row for row in old} | new
    ordered = sorted(
        kept.values(), key=lambda row: (list(SETTINGS).index(row["setting"]), list(JUDGES).index(row["judge"]))
    )
    settings = {name: asdict(setting) for name, setting in SETTINGS.items()}
    path.write_text(json.dumps({"settings": settings, "rows": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
