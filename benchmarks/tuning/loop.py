"""The whole loop on simulated runtimes, tuner and experiment: `python -m benchmarks.tuning.loop --runs 10 --seed 0`.

A run is one system and 300 windows. The tuner explores; what it would run then meets what runs now in an experiment,
which alone may promote it; then the tuner explores again, and so on. What is judged is the noise-free value of what
runs after the last window, beside the shipped default. Seeds from 1,000,000 on are for reports.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ag06.ml import Experiment, Tuner
from benchmarks.tuning.systems import FAMILIES, WITH_GAIN, System, build

WINDOWS = 300
FIRST, BETWEEN = 60, 30
"""Windows of the tuner before the first experiment, and before each later one."""
TRIAL = 100
"""Windows of an experiment at most."""
LEAST_GAIN = 0.02
"""An experiment promotes what is better by more than this, with its error shared by both sides."""
WORSE, FINAL_WORSE = 0.9, 0.98


@dataclass(frozen=True)
class Run:
    """What the loop did to one system."""

    family: str
    seed: int
    share: float | None
    ratio: float
    lost: float
    experiments: int
    promotions: int
    lower: int
    """Promotions of what is truly worse than what ran before."""


class Loop:
    """One system under the loop."""

    def __init__(self, system: System, seed: int, *, surrogate: bool) -> None:
        self._system = system
        self._seed = seed
        self._tuner = Tuner(system.knobs, seed=seed, surrogate=surrogate)
        self.running: dict[str, Any] = {knob.name: knob.default for knob in system.knobs}
        self.experiments = self.promotions = self.lower = 0

    def run(self) -> None:
        self._explore(FIRST)
        while self._system.windows < WINDOWS:
            if self._tuner.best != self.running:
                self._prove(self._tuner.best)
            self._explore(BETWEEN)

    def _explore(self, windows: int) -> None:
        for _ in range(min(windows, WINDOWS - self._system.windows)):
            config = self._tuner.ask()
            self._tuner.tell(config, self._system.measure(config))

    def _prove(self, candidate: dict[str, Any]) -> None:
        """Let the candidate meet what runs now; the tuner learns from these windows too."""
        trial = Experiment(max_windows=TRIAL, seed=f"{self._seed} {self.experiments}", minimum_effect=LEAST_GAIN)
        self.experiments += 1
        while trial.running and self._system.windows < WINDOWS:
            variant = trial.next_variant()
            config = candidate if variant == "b" else self.running
            score = self._system.measure(config)
            trial.record(variant, score)
            self._tuner.tell(config, score)
        if trial.result.winner == "b":
            self.promotions += 1
            self.lower += self._system.value(candidate) < self._system.value(self.running)
            self.running = candidate


def run(family: str, seed: int, *, surrogate: bool = True) -> Run:
    system = build(family, seed)
    loop = Loop(system, seed, surrogate=surrogate)
    loop.run()
    share = round(system.share(loop.running), 4) if family in WITH_GAIN else None
    ratio = round(system.value(loop.running) / system.default, 4)
    lost = round(sum(value < WORSE * system.default for value in system.values) / WINDOWS, 4)
    return Run(family, seed, share, ratio, lost, loop.experiments, loop.promotions, loop.lower)


def runs(families: Sequence[str], seeds: Sequence[int], *, surrogate: bool) -> Iterator[Run]:
    for seed in seeds:
        for family in families:
            yield run(family, seed, surrogate=surrogate)


def summary(found: Sequence[Run]) -> dict[str, Any]:
    """Return one line of the table; the upper bound is the one-sided 95% limit of Wilson 1927."""
    shares = sorted(one.share for one in found if one.share is not None)
    worse = sum(one.ratio < FINAL_WORSE for one in found)
    return {
        "runs": len(found),
        "final_worse": round(worse / len(found), 5),
        "upper": round(_upper(worse, len(found)), 5),
        "median_share": round(statistics.median(shares), 3) if shares else None,
        "worst_decile_share": round(statistics.quantiles(shares, n=10)[0], 3) if len(shares) > 1 else None,
        "lost_windows": round(statistics.mean(one.lost for one in found), 4),
        "experiments": round(statistics.mean(one.experiments for one in found), 2),
        "promotions": round(statistics.mean(one.promotions for one in found), 2),
        "promoted_lower": sum(one.lower for one in found),
    }


def _upper(count: int, total: int, z: float = 1.645) -> float:
    share = count / total
    middle = share + z * z / (2 * total)
    return (middle + z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))) / (1 + z * z / total)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning.loop", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="seeds for each system")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first seed; 1000000 and above: reported, never tuned to"
    )
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="one family; may be repeated")
    parser.add_argument("--without-surrogate", action="store_true", help="as without scikit-learn")
    parser.add_argument("--output", type=Path, help="a file that gets a line of JSON for each run, at once")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    seeds = range(chosen.seed, chosen.seed + chosen.runs)
    found = []
    for one in runs(chosen.family or list(FAMILIES), seeds, surrogate=not chosen.without_surrogate):
        found.append(one)
        if chosen.output is not None:
            with chosen.output.open("a") as lines_of_runs:
                lines_of_runs.write(json.dumps(asdict(one)) + "\n")
    lines = {"all": summary(found)} | {
        family: summary([one for one in found if one.family == family]) for family in chosen.family or FAMILIES
    }
    table = Table("", *lines["all"], title=f"the whole loop, {WINDOWS} windows", title_justify="left")
    for name, line in lines.items():
        table.add_row(name, *(str(value) for value in line.values()))
    Console(width=170).print(table)
    sys.stdout.write(f"{(time.perf_counter() - began) / len(found):.2f} s a run\n")


if __name__ == "__main__":
    main()
