"""The benchmark of whole campaigns: a file of runs is gone on with, and never mixed with those of other options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def campaigns(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.tuning.campaigns", "--family", "flat", "--without-surrogate"]
    return subprocess.run(
        [*command, "--output", str(output), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_file_of_runs_is_gone_on_with_and_refused_where_other_options_made_it(tmp_path: Path) -> None:
    output = tmp_path / "runs.jsonl"
    assert campaigns(output, "--runs", "1").returncode == 0
    assert campaigns(output, "--runs", "2").returncode == 0
    written = lines_of(output)
    assert [line["seed"] for line in written] == [0, 1]
    assert written[0]["options"] == written[1]["options"]
    for other in (["--budget"], ["--pace", '{"explore": 30}']):
        refused = campaigns(output, "--runs", "2", *other)
        assert refused.returncode == 1
        assert f"{output}, line 1: a run with the options" in refused.stderr
        assert "give another --output" in refused.stderr
    assert lines_of(output) == written
