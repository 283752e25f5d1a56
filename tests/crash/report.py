"""The table of a run: `python -m tests.crash.report docs/results/torture.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = ("fault", "store", "cycles", "events", "lost", "doubled", "subjects out of order", "minutes", "commit")


def table(content: dict[str, Any]) -> str:
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(_cells(row)) for row in content["rows"]]
    machine = content["machine"]
    said = ", ".join(f"{name} {machine[name]}" for name in ("cores", "kernel", "python", "valkey"))
    return "\n".join([*lines, "", f"Last run {machine['date']}: {said}."])


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any]) -> list[str]:
    lost = f"{row['lost']:,}" + (" (it must lose some)" if row["expected"] else "")
    if not row["finished"]:
        lost = "unknown: the run failed"
    numbers = [lost, f"{row['doubled']:,}", f"{row['disordered']:,}", f"{row['seconds'] / 60:.1f}"]
    return [row["fault"], row["store"], f"{row['cycles']:,}", f"{row['events']:,}", *numbers, row["commit"]]


if __name__ == "__main__":
    sys.stdout.write(table(json.loads(Path(sys.argv[1]).read_text())) + "\n")
