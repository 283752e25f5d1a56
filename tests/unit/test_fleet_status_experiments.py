"""Of several workers, the one that leads says how the optimizer stands."""

from __future__ import annotations

from typing import Any

from ag06.runtime.fleet_status import merged_status
from ag06.runtime.worker_reports import WorkerReport


def report(time: float, **optimizer: Any) -> WorkerReport:
    return WorkerReport(f"w{time}", 1, time, {"experiments": {"optimizer": optimizer} if optimizer else {}})


def told(*reports: WorkerReport) -> Any:
    return merged_status(reports)["experiments"].get("optimizer")


def test_the_leader_goes_before_a_later_report() -> None:
    leads, follows = report(1.0, leads_here=True, windows=7), report(2.0, leads_here=False, windows=0)
    assert told(leads, follows)["windows"] == told(follows, leads)["windows"] == 7


def test_where_nobody_leads_the_latest_report_counts() -> None:
    assert (
        told(report(2.0, leads_here=False, state="new"), report(1.0, leads_here=False, state="old"))["state"] == "new"
    )


def test_of_two_who_say_that_they_lead_the_later_counts_and_who_says_nothing_does_not() -> None:
    found = told(report(1.0, leads_here=True, state="old"), report(2.0, leads_here=True, state="new"), report(3.0))
    assert found["state"] == "new"
    assert told(report(1.0)) is None
    assert merged_status([WorkerReport("w", 1, 1.0, {"experiments": "words"})])["experiments"] == {}
