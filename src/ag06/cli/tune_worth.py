"""What the incumbent is worth by its own windows, of which the notes keep a few whole, and the scores of many."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.cli.tune_history import windows_of
from ag06.ml.score import Score, ScoreValue

if TYPE_CHECKING:
    from ag06.ml.board import Saved
    from ag06.ml.windows import Window

_RECENT = 5
"""Of so many last windows the middle one counts."""
_SAME = 1e-9
_UNKNOWN = "no window of it is in what was saved"


class Worth(msgspec.Struct, frozen=True):
    """What runs when nothing is tried, beside the baseline.

    Attributes:
        score: what it is worth, and what each term adds where a whole window is known.
        of: of which windows that is, in words.
        window: the window, where more is known of it than its score.
    """

    score: ScoreValue
    of: str = ""
    window: Window | None = None


def worth(saved: Saved) -> Worth | None:
    """Return what the incumbent is worth by the windows that it ran itself; `None` before there is a baseline.

    What was saved as the reference of the guardrails may be a window of what ran before a promotion, or the baseline:
    it counts only where its score is that of a window of the incumbent.
    """
    baseline = saved.baseline
    if baseline is None:
        return None
    goal = Score.parse(saved.score)
    if saved.mode == "observe":  # nothing else runs
        return None if saved.last is None else Worth(goal.of(saved.last, baseline), "the last window", saved.last)
    scores = _scores(saved)
    for window, of in ((saved.reference, "the middle one of its last windows"), (saved.last, "its last window")):
        if window is None:
            continue
        found = goal.of(window, baseline)
        if found.value is not None and any(math.isclose(found.value, one, abs_tol=_SAME) for one in scores):
            return Worth(found, of, window)
    if not scores:
        return Worth(ScoreValue(None, reason=_UNKNOWN))
    recent = scores[-_RECENT:]
    of = "its last window" if len(recent) == 1 else f"the middle of its last {len(recent)} windows"
    return Worth(ScoreValue(median(recent)), of)


def _scores(saved: Saved) -> list[float]:
    """Return the scores of the incumbent's windows, oldest first, since what was known of scores was found wrong."""
    incumbent: dict[str, Any] = saved.told.get("incumbent") or {}
    anew = max((entry.at for entry in saved.history if entry.decision and entry.decision.kind == "regime"), default=0.0)
    return [
        row.score
        for row in windows_of(saved.history)
        if row.score is not None and not row.reason and row.config == incumbent and row.at > anew
    ]
