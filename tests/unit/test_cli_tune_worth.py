"""What `ag06 tune status` and the report say that the incumbent is worth: only what its own windows have shown."""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import Any

import msgspec
import pytest

from ag06.cli.tune_history import History
from ag06.cli.tune_report import page
from ag06.cli.tune_status import as_json, kept_is_worth, print_standing, standing
from ag06.cli.tune_workflow import Notes
from ag06.cli.tune_worth import worth
from ag06.ml.board import Control, Posted, Saved
from ag06.ml.decisions import Decision
from tuning_past import Past, window


def shown(saved: Saved) -> str:
    return kept_is_worth(worth(saved))


def without_windows(past: Past, **changes: Any) -> Saved:
    """What is saved after a promotion: guardrails compare with the baseline until there are other windows."""
    return past.saved(reference=window(125.0), last=None, **changes)


@pytest.fixture
def promoted() -> tuple[Past, float]:
    """A past that ends with a promotion, and the score of what was promoted."""
    past = Past().until_promoted()
    return past, math.log(32 / past.campaign.incumbent["pause_ms"])


def test_after_a_promotion_it_is_what_the_experiment_has_measured_of_it(promoted: tuple[Past, float]) -> None:
    past, score = promoted
    found = worth(without_windows(past))
    assert found is not None
    assert found.score.value == pytest.approx(score)
    assert (found.of, found.window) == ("the middle of its last 5 windows", None)


def test_the_reference_counts_once_it_is_a_window_of_what_is_kept(promoted: tuple[Past, float]) -> None:
    past, score = promoted
    past.until_kept()
    found = worth(past.saved())
    assert found is not None
    assert found.score.value == pytest.approx(score)
    assert found.score.terms.keys() == {"throughput"}
    assert (found.of, found.window) == ("the middle one of its last windows", past.saved().reference)


def test_the_last_window_counts_where_the_reference_is_that_of_something_else(promoted: tuple[Past, float]) -> None:
    past, score = promoted
    last = window(4000 / past.campaign.incumbent["pause_ms"])
    found = worth(msgspec.structs.replace(without_windows(past), last=last))
    assert found is not None
    assert found.score.value == pytest.approx(score)
    assert (found.of, found.window) == ("its last window", last)


def test_after_a_rollback_it_is_not_what_ran_before(promoted: tuple[Past, float]) -> None:
    past = promoted[0].until_kept()
    reference = past.saved().reference
    for decision in past.campaign.roll_back("asked"):
        past.decided(decision)
    found = worth(past.saved(reference=reference, last=reference))
    assert found is not None
    assert found.score.value == pytest.approx(0.0)
    assert found.window is None


def test_what_no_window_has_shown_is_not_known(promoted: tuple[Past, float]) -> None:
    past, _ = promoted
    for history in ([], [entry for entry in past.history if entry.purpose is None]):
        saved = without_windows(past, history=history)
        assert shown(saved) == "not known: no window of it is in what was saved"
        text = page(standing("flow", Notes(Control(), None, saved)), History([], []), dt.datetime.now(dt.UTC))
        assert "+0.0%" not in text
        assert "not known: no window of it is in what was saved" in text
    past.decided(Decision(kind="regime", config={}, reason="scores contradict what was learned"))
    assert shown(without_windows(past)).startswith("not known")
    assert shown(without_windows(past, baseline=None)) == "not measured yet"


def test_a_window_that_broke_a_guardrail_does_not_count(promoted: tuple[Past, float]) -> None:
    past, _ = promoted
    history = [
        msgspec.structs.replace(entry, breach="p99") if entry.purpose in ("b", "explore") else entry
        for entry in past.history
    ]
    assert shown(without_windows(past, history=history)).startswith("not known")


def test_where_nothing_is_tried_it_is_what_the_last_window_has_shown() -> None:
    saved = Past().saved("observe", mode="observe", told={}, last=window(150.0))
    assert shown(saved) == "+20.0% beside the baseline, the last window"
    assert shown(msgspec.structs.replace(saved, last=None)) == "not measured yet"


def test_what_is_tried_is_told_beside_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    past = Past()
    past.at = time.time()
    posted = Posted(past.leader, 7, {"pause_ms": 32.0}, {"pause_ms": 21.5}, 60.0)
    tried = standing("flow", Notes(Control(), posted, past.saved("explore")))
    found = as_json(tried)
    assert (found["trial"], found["knobs"]["pause_ms"]["value"]) == ({"pause_ms": 21.5}, 32.0)
    print_standing(tried)
    table = capsys.readouterr().out.partition("Knobs that may move")[2]
    assert [word for word in ("kept", "on trial", "default", "21.5") if word not in table] == []
    for other in (
        Notes(Control(), msgspec.structs.replace(posted, trial=None), past.saved("explore")),
        Notes(Control(), msgspec.structs.replace(posted, leader="another"), past.saved("explore")),
        Notes(Control(), posted, past.saved("stopped")),
    ):
        assert standing("flow", other).on_trial is None
