"""Every optimizer on every simulated system, 60 windows each: `python -m benchmarks.tuning.tuners --runs 20 --seed 0`.

A run is one system and one seed. All see the same system and the same noise. A share is judged by the noise-free value
of `best` after the last window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ag06.knob import Knob
from ag06.ml import Tuner
from benchmarks.tuning.baselines import BASELINES, Optimizer
from benchmarks.tuning.systems import FAMILIES, WITH_GAIN, build

WINDOWS = 60
WORSE = 0.9
"""A window counts as lost below this part of the default's value."""
FINAL_WORSE = 0.98


def _tuner(knobs: Sequence[Knob], seed: int) -> Optimizer:
    return Tuner(list(knobs), seed=seed)


def _without_surrogate(knobs: Sequence[Knob], seed: int) -> Optimizer:
    return Tuner(list(knobs), seed=seed, surrogate=False)


OPTIMIZERS: dict[str, Callable[[Sequence[Knob], int], Optimizer]] = {
    "tuner": _tuner,
    "tuner-without-surrogate": _without_surrogate,
    **BASELINES,
}


@dataclass(frozen=True)
class Run:
    """What one optimizer did to one system."""

    optimizer: str
    family: str
    seed: int
    share: float | None
    ratio: float
    lost: float
    milliseconds: float
    slowest: float


def run(name: str, family: str, seed: int, windows: int = WINDOWS) -> Run:
    system = build(family, seed)
    optimizer = OPTIMIZERS[name](system.knobs, seed)
    spent = []
    for _ in range(windows):
        began = time.perf_counter()
        config = optimizer.ask()
        thought = time.perf_counter() - began
        score = system.measure(config)
        began = time.perf_counter()
        optimizer.tell(config, score)
        spent.append(1000 * (thought + time.perf_counter() - began))
    best = optimizer.best
    share = system.share(best) if family in WITH_GAIN else None
    lost = sum(value < WORSE * system.default for value in system.values) / windows
    return Run(name, family, seed, share, system.value(best) / system.default, lost, statistics.mean(spent), max(spent))


def runs(names: Sequence[str], families: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    for seed in seeds:
        for family in families:
            for name in names:
                yield run(name, family, seed)


def summary(found: Sequence[Run]) -> dict[str, Any]:
    """Return one line of the table: shares over the systems that have a gain, the rest over all of them."""
    shares = sorted(one.share for one in found if one.share is not None)
    worse = [one.ratio < FINAL_WORSE for one in found]
    return {
        "runs": len(found),
        "median_share": round(_quantile(shares, 0.5), 3),
        "worst_decile_share": round(_quantile(shares, 0.1), 3),
        "lost_windows": round(statistics.mean(one.lost for one in found), 4),
        "final_worse": round(sum(worse) / len(worse), 4),
        "final_worse_without_gain": round(
            statistics.mean([one.ratio < FINAL_WORSE for one in found if one.share is None] or [0]), 4
        ),
        "ms_per_window": round(statistics.mean(one.milliseconds for one in found), 2),
        "slowest_ms": round(max(one.slowest for one in found), 1),
    }


def _quantile(ordered: Sequence[float], part: float) -> float:
    if not ordered:
        return float("nan")
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def show(lines: dict[str, dict[str, Any]], title: str) -> None:
    columns = list(next(iter(lines.values())))
    table = Table("", *columns, title=title, title_justify="left")
    for name, line in lines.items():
        table.add_row(name, *(str(line[column]) for column in columns))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning.tuners", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="seeds for each system")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first seed; 1000000 and above: reported, never tuned to"
    )
    parser.add_argument("--only", action="append", choices=list(OPTIMIZERS), help="one optimizer; may be repeated")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="one family; may be repeated")
    parser.add_argument("--output", type=Path, help="a JSON file; runs are added to what it holds")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = range(chosen.seed, chosen.seed + chosen.runs)
    found = list(runs(chosen.only or list(OPTIMIZERS), chosen.family or list(FAMILIES), seeds))
    if chosen.output is not None:
        found = _merged(chosen.output, found)
    lines = {name: summary([one for one in found if one.optimizer == name]) for name in _names(found)}
    show(lines, f"{WINDOWS} windows, noise CV 15%, AR(1) 0.5, load +-30%")
    by_family = {
        f"{family} / {name}": summary([one for one in found if (one.family, one.optimizer) == (family, name)])
        for family in FAMILIES
        for name in _names(found)
        if name.startswith("tuner") and any(one.family == family for one in found)
    }
    if by_family:
        show(by_family, "the tuner by family")
    if chosen.output is not None:
        report = {"windows": WINDOWS, "summary": lines, "by_family": by_family, "runs": [asdict(one) for one in found]}
        chosen.output.write_text(json.dumps(report) + "\n")
        sys.stdout.write(f"written to {chosen.output}\n")


def _names(found: Sequence[Run]) -> list[str]:
    present = {one.optimizer for one in found}
    return [name for name in OPTIMIZERS if name in present]


def _merged(path: Path, found: Sequence[Run]) -> list[Run]:
    """Put new runs in the place of old ones of the same optimizer, family and seed."""
    old = [Run(**line) for line in json.loads(path.read_text())["runs"]] if path.exists() else []
    kept = {(one.optimizer, one.family, one.seed): one for one in [*old, *found]}
    return list(kept.values())


if __name__ == "__main__":
    main()
