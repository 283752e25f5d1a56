"""How often the crash tests do harm, and what it cost: noted in one file, which `report.py` turns into a table."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

FULL = {
    "SIGKILL of a worker": 1000,
    "SIGKILL of the publisher": 500,
    "SIGKILL of the server": 200,
    "power loss": 200,
    "store down for 60 s": 20,
    "disk full, then room": 20,
    "failover to the replica": 50,
    "SIGSTOP past the lease": 200,
    "network cut or slow": 200,
    "clock jump": 100,
    "fork under load": 200,
    "soak (720,000 events in a whole run)": 1,
}
"""The cycles of a whole run, by fault."""


def cycles(fault: str, quick: int) -> int:
    """Return how often to do it: `quick` times, or as often as in the share of a whole run that was asked for."""
    return share_of(FULL[fault], quick)


def share_of(whole: int, quick: int) -> int:
    """Return `quick`, or `$AG06_TORTURE` (such as 100%) of a `whole` run."""
    share = os.environ.get("AG06_TORTURE")
    return quick if share is None else max(1, round(whole * float(share.rstrip("%")) / 100))


class Toll(msgspec.Struct):
    """What a fault cost, counted over its cycles."""

    fault: str
    store: str
    cycles: int = 0
    events: int = 0
    """Ids that were returned."""
    lost: int = 0
    """Ids that were returned and are not in the log, and numbers that did not come out at the end of the steps."""
    doubled: int = 0
    """Numbers that came out more than once."""
    disordered: int = 0
    """Subjects that came out in another order than they went in."""
    expected: bool = False
    """Whether it is a control, which must lose something."""
    finished: bool = False
    """Whether the account was drawn up: what is lost is not known before."""
    seconds: float = 0.0
    commit: str = ""

    def clean(self) -> bool:
        return (self.lost, self.doubled, self.disordered) == (0, 0, 0)


class Report(msgspec.Struct):
    """The content of the file."""

    machine: dict[str, str]
    rows: list[Toll]


@contextmanager
def toll(fault: str, store: str, *, expected: bool = False) -> Iterator[Toll]:
    """Count what a fault costs; note it in the file that `$AG06_TORTURE_RESULTS` names, even when the test fails."""
    began = time.monotonic()
    counted = Toll(fault, store, expected=expected)
    try:
        yield counted
        counted.finished = True
    finally:
        counted.seconds = round(time.monotonic() - began, 1)
        path = os.environ.get("AG06_TORTURE_RESULTS")
        if path and counted.cycles:
            _note(Path(path), counted)


def _note(path: Path, row: Toll) -> None:
    """Put a row into the file, in the place of an earlier one of the same fault and store."""
    row.commit = _said("git", "rev-parse", "--short", "HEAD")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        rows = msgspec.json.decode(text, type=Report).rows if text else []
        places = [index for index, old in enumerate(rows) if (old.fault, old.store) == (row.fault, row.store)]
        if places:
            rows[places[0]] = row
        else:
            rows.append(row)
        faults = list(FULL)
        rows.sort(key=lambda row: faults.index(row.fault))
        file.truncate(0)
        file.write(msgspec.json.format(msgspec.json.encode(Report(_machine(), rows)), indent=1) + b"\n")


def _machine() -> dict[str, str]:
    from servers import valkey_binary

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "valkey": _said(str(valkey_binary()), "--version"),
    }


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
