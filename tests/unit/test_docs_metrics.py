"""The reference of metrics says what the registry says: each metric, its kind, labels and buckets, how it is merged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

DECLARED = """
import sys, msgspec
from ag06.monitoring.instruments import REGISTRY
sys.stdout.buffer.write(msgspec.json.encode([family.declaration for family in REGISTRY.families()]))
"""


class Row(msgspec.Struct, frozen=True, order=True):
    """One metric, as the project declares it or as the reference shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    aggregate: str
    buckets: tuple[float, ...] = ()


def declared() -> list[Row]:
    """What the project declares, in a process where no test has declared anything."""
    done = subprocess.run([sys.executable, "-c", DECLARED], capture_output=True, check=True, timeout=60)
    return sorted(msgspec.json.decode(done.stdout, type=list[Row]))


def rows(page: str) -> list[list[str]]:
    """The cells of each row whose first cell is a metric."""
    lines = [line for line in page.splitlines() if line.startswith("| `ag06_workflow_")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def buckets(page: str) -> dict[str, tuple[float, ...]]:
    """The upper bounds of each histogram, from the items of a list: names, a colon, numbers on the next line."""
    items = re.findall(r"^- ((?:`ag06_workflow_\w+`(?:, )?)+):\n  (.+)$", page, re.MULTILINE)
    return {
        name: tuple(float(bound) for bound in bounds.split(", "))
        for names, bounds in items
        for name in re.findall(r"`(\w+)`", names)
    }


def shown(page: str) -> list[Row]:
    bounds = buckets(page)
    return sorted(
        Row(name, kind, tuple(re.findall(r"`(\w+)`", labels)), processes, bounds.get(name, ()))
        for (name, kind, labels, _, processes, *_) in [[cells[0].strip("`"), *cells[1:]] for cells in rows(page)]
    )


def test_the_reference_shows_every_metric_with_its_kind_labels_and_buckets_and_none_beside() -> None:
    assert shown(REFERENCE.read_text()) == declared()


def test_each_metric_of_the_reference_has_a_unit_a_meaning_and_a_question() -> None:
    for cells in rows(REFERENCE.read_text()):
        *_, unit, _, meaning, question = cells
        assert unit, cells
        assert meaning.endswith("."), cells
        assert "?" in question, cells
        assert cells[0].strip("`") in question, cells  # as a query that answers it


def test_a_row_that_is_missing_wrong_or_too_many_is_noticed() -> None:
    page = REFERENCE.read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `ag06_workflow_retries_total`"))
    for wrong in ("", line.replace("counter", "gauge"), line.replace("`step`", "`type`"), f"{line}\n{line}"):
        assert shown(page.replace(line, wrong)) != declared()
