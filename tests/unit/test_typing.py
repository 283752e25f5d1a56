"""Type checkers refuse a function that cannot be a step, and take one that can."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_type_checker_refuses_exactly_the_declarations_that_the_runtime_refuses() -> None:
    source = Path("tests", "typed", "steps.py")
    lines = (ROOT / source).read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# E")}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {
        int(number) for number in re.findall(rf"^{re.escape(str(source))}:(\d+): error", checked.stdout, re.MULTILINE)
    }
    assert found == expected, checked.stdout + checked.stderr
    assert len(expected) == 15
