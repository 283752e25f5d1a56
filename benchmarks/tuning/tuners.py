"""Every optimizer on every simulated system, 60 windows each: `python -m benchmarks.tuning.tuners --runs 20 --seed 0`.

A run is one system and one seed. All see the same system and the same noise. A share is judged by the noise-free value
of `best` after the last window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
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
    share = round(system.share(best), 4) if family in WITH_GAIN else None
    ratio = round(system.value(best) / system.default, 4)
    lost = round(sum(value < WORSE * system.default for value in system.values) / windows, 4)
    return Run(name, family, seed, share, ratio, lost, round(statistics.mean(spent), 2), round(max(spent), 1))


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
        "median_share": _quantile(shares, 0.5),
        "worst_decile_share": _quantile(shares, 0.1),
        "lost_windows": round(statistics.mean(one.lost for one in found), 4),
        "final_worse": round(sum(worse) / len(worse), 4),
        "final_worse_without_gain": round(
            statistics.mean([one.ratio < FINAL_WORSE for one in found if one.share is None] or [0]), 4
        ),
        "ms_per_window": round(statistics.mean(one.milliseconds for one in found), 2),
        "slowest_ms": round(max(one.slowest for one in found), 1),
    }


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    if not ordered:
        return None
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (place - low) * (ordered[high] - ordered[low]), 3)


def musts(lines: dict[str, dict[str, Any]], memory: dict[str, float]) -> list[dict[str, Any]]:
    """Return each bound with what was measured and whether it holds."""
    tuner, others = lines["tuner"], [lines[name] for name in BASELINES if name in lines]
    half = lines["tpe"]["lost_windows"] / 2
    top = max(one["median_share"] for one in others)
    low = max(one["worst_decile_share"] for one in others)
    rows = (
        ("median share of the gain", tuner["median_share"], ">= 0.82", tuner["median_share"] >= 0.82),
        ("share, worst decile", tuner["worst_decile_share"], ">= 0.55", tuner["worst_decile_share"] >= 0.55),
        ("median, best baseline", top, "<= tuner + 0.02", top <= tuner["median_share"] + 0.02),
        (
            "worst decile, best baseline",
            low,
            "<= tuner + 0.02",
            low <= tuner["worst_decile_share"] + 0.02,
        ),
        ("windows more than 10% below the default", tuner["lost_windows"], "<= 0.15", tuner["lost_windows"] <= 0.15),
        ("the same, beside TPE", tuner["lost_windows"], f"< {half:.4f}", tuner["lost_windows"] < half),
        ("final configuration more than 2% worse", tuner["final_worse"], "<= 0.05", tuner["final_worse"] <= 0.05),
        ("ask and tell, mean ms", tuner["ms_per_window"], "< 50", tuner["ms_per_window"] < 50),
        ("memory with the surrogate, MB", memory["with"], "<= 150", memory["with"] <= 150),
        ("memory without, MB", memory["without"], "<= 50", memory["without"] <= 50),
    )
    return [{"what": what, "measured": measured, "must": must, "met": met} for what, measured, must, met in rows]


_FOOTPRINT = """
import random, re, sys
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
from ag06.knob import Knob
before = resident()
from ag06.ml import Tuner
tuner = Tuner([Knob(name, low=1, high=256, default=8, scale="log") for name in "abcd"], surrogate=sys.argv[1] == "with")
for _ in range(160):
    tuner.tell(tuner.ask(), random.uniform(80, 120))
print(resident() - before)
"""


def footprint() -> dict[str, float]:
    """Return what the tuner adds to a process that has `ag06` already, in MB, after 160 windows."""
    found = {}
    for kind in ("with", "without"):
        told = subprocess.run([sys.executable, "-c", _FOOTPRINT, kind], capture_output=True, text=True, check=True)
        found[kind] = round(float(told.stdout), 1)
    return found


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
        report: dict[str, Any] = {"windows": WINDOWS, "seeds": sorted({one.seed for one in found})}
        if {"tuner", "tpe"} <= lines.keys():
            report["musts"] = musts(lines, footprint())
            show({row.pop("what"): row for row in map(dict, report["musts"])}, "what must hold")
        report |= {"summary": lines, "by_family": by_family, "columns": [field.name for field in fields(Run)]}
        text = json.dumps(report, indent=1)[:-2]
        rows = ",\n".join("  " + json.dumps(list(astuple(one))) for one in found)
        chosen.output.write_text(f'{text},\n "runs": [\n{rows}\n ]\n}}\n')
        sys.stdout.write(f"written to {chosen.output}\n")


def _names(found: Sequence[Run]) -> list[str]:
    present = {one.optimizer for one in found}
    return [name for name in OPTIMIZERS if name in present]


def _merged(path: Path, found: Sequence[Run]) -> list[Run]:
    """Put new runs in the place of old ones of the same optimizer, family and seed."""
    old = [Run(*line) for line in json.loads(path.read_text())["runs"]] if path.exists() else []
    kept = {(one.optimizer, one.family, one.seed): one for one in [*old, *found]}
    return list(kept.values())


if __name__ == "__main__":
    main()
