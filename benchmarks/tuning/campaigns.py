"""The whole loop on simulated runtimes: `python -m benchmarks.tuning.campaigns --runs 10 --seed 0`.

A run is one system and 300 windows under the campaign that the live optimizer runs (`ag06.ml.campaign`): exploring,
experiments, watching, rest. What is judged is the noise-free value of what is kept after the last window, beside the
shipped default. No window breaks a guardrail here. Seeds from 1,000,000 on are for reports.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ag06.ml.budget import Budget
from ag06.ml.campaign import Campaign
from ag06.ml.pace import Pace
from ag06.ml.space import Config
from ag06.ml.tuning import Tuning
from benchmarks.tuning.systems import FAMILIES, WITH_GAIN, System, build

WINDOWS = 300
BASELINE = 3
"""Windows that the score is told beside, as in the live loop."""
WORSE, FINAL_WORSE = 0.9, 0.98


@dataclass(frozen=True)
class Run:
    """What the campaign did to one system."""

    family: str
    seed: int
    share: float | None
    ratio: float
    """What is kept at the end, beside the default."""
    lost: float
    mean: float
    """The mean over all windows, beside the default: what the campaign cost or gave while it went on."""
    decisions: dict[str, int]
    lower: int
    """Promotions of what is truly worse than what ran before."""


def run(family: str, seed: int, pace: Pace, *, budget: bool = False, surrogate: bool | None = None) -> Run:
    system = build(family, seed)
    campaign = Campaign(system.knobs, seed=seed, pace=pace, surrogate=surrogate)
    allowed = Budget(Tuning().share, Tuning().worst_loss) if budget else None
    baseline = statistics.fmean(system.measure(campaign.incumbent) for _ in range(BASELINE))
    told: Counter[str] = Counter()
    lower = 0
    while system.windows < WINDOWS:
        before = campaign.incumbent
        told.update(_window(campaign, system, baseline, allowed))
        lower += system.value(campaign.incumbent) < system.value(before)
    return _run(system, seed, campaign.incumbent, told, lower)


def _window(campaign: Campaign, system: System, baseline: float, allowed: Budget | None) -> list[str]:
    """Run one window; return the kinds of what was decided."""
    timing = Tuning().timing
    seconds = timing.window + timing.settle
    asked = seconds if campaign.experiment is None else 2 * seconds
    plan = campaign.next(may_try=allowed is None or allowed.refusal(asked) is None)
    score = math.log(system.measure(plan.config) / baseline)
    if allowed is not None:
        allowed.spend(seconds, exploring=plan.risky and plan.purpose != "watch", score=score)
    return [decision.kind for decision in campaign.record(plan, score)]


def _run(system: System, seed: int, kept: Config, told: Counter[str], lower: int) -> Run:
    return Run(
        system.family,
        seed,
        share=round(system.share(kept), 4) if system.family in WITH_GAIN else None,
        ratio=round(system.value(kept) / system.default, 4),
        lost=round(sum(value < WORSE * system.default for value in system.values) / WINDOWS, 4),
        mean=round(statistics.fmean(system.values) / system.default, 4),
        decisions=dict(told),
        lower=lower,
    )


def runs(families: Sequence[str], seeds: Sequence[int], pace: Pace, output: Path | None, **how: Any) -> Iterator[Run]:
    """Yield each run; those that `output` has are taken from there, the others are added to it at once."""
    options = {"windows": WINDOWS, "pace": msgspec.to_builtins(pace), **how}
    done = {(one.family, one.seed): one for one in _written(output, options)}
    for seed in seeds:
        for family in families:
            if (family, seed) not in done:
                found = done[family, seed] = run(family, seed, pace, **how)
                if output is not None:
                    with output.open("a") as lines:
                        lines.write(json.dumps({**asdict(found), "options": options}) + "\n")
            yield done[family, seed]


def _written(output: Path | None, options: dict[str, Any]) -> Iterator[Run]:
    """Yield the runs of a file; it ends here where one was made with other options, which a table must not mix."""
    if output is None or not output.exists():
        return
    for number, line in enumerate(output.read_text().splitlines(), 1):
        told = json.loads(line)
        made_with = told.pop("options", None)
        if made_with != options:
            raise SystemExit(
                f"{output}, line {number}: a run with the options {made_with}, and these are {options}; "
                "give another --output, or remove the file"
            )
        yield Run(**told)


def summary(found: Sequence[Run]) -> dict[str, Any]:
    """Return one line of the table; `upper` is the one-sided 95% limit of Wilson 1927."""
    shares = [one.share for one in found if one.share is not None]
    worse = sum(one.ratio < FINAL_WORSE for one in found)

    def each(kind: str) -> float:
        return round(statistics.fmean(one.decisions.get(kind, 0) for one in found), 2)

    return {
        "runs": len(found),
        "final_worse": round(worse / len(found), 5),
        "upper": round(_upper(worse, len(found)), 5),
        "median_share": round(statistics.median(shares), 3) if shares else None,
        "worst_decile": round(statistics.quantiles(shares, n=10)[0], 3) if len(shares) > 1 else None,
        "lost_windows": round(statistics.fmean(one.lost for one in found), 4),
        "mean_value": round(statistics.fmean(one.mean for one in found), 3),
        "experiments": each("experiment"),
        "promoted": each("promoted"),
        "lower": sum(one.lower for one in found),
        "regimes": each("regime"),
        "rests": each("rested"),
    }


def _upper(count: int, total: int, z: float = 1.645) -> float:
    share = count / total
    middle = share + z * z / (2 * total)
    return (middle + z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))) / (1 + z * z / total)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning.campaigns", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="seeds for each system")
    parser.add_argument("--seed", type=int, default=0, help="the first one; from 1000000 on: reported, never tuned to")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="one family; may be repeated")
    parser.add_argument("--pace", default="{}", help='JSON, what differs from the shipped pace: {"explore": 60}')
    parser.add_argument("--budget", action="store_true", help="trials may take what the live loop grants them")
    parser.add_argument("--without-surrogate", action="store_true", help="as without scikit-learn")
    parser.add_argument("--output", type=Path, help="a file of JSON lines, one a run; what it has is not run again")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    pace = msgspec.json.decode(chosen.pace, type=Pace)
    families = chosen.family or list(FAMILIES)
    how = {"budget": chosen.budget, "surrogate": False if chosen.without_surrogate else None}
    found = list(runs(families, range(chosen.seed, chosen.seed + chosen.runs), pace, chosen.output, **how))
    lines = {"all": summary(found)} | {
        family: summary([one for one in found if one.family == family]) for family in families
    }
    table = Table("", *lines["all"], title=f"the whole loop, {WINDOWS} windows", title_justify="left")
    for name, line in lines.items():
        table.add_row(name, *(str(value) for value in line.values()))
    Console(width=180).print(table)
    sys.stdout.write(f"{(time.perf_counter() - began) / len(found):.2f} s a run\n")


if __name__ == "__main__":
    main()
