"""What `ag06 tune status` tells: where the optimizer of one workflow stands, as tables and as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from ag06.cli.output import age, print_table
from ag06.cli.tune_learned import Learned, learned, percent, said, shown_value
from ag06.cli.tune_worth import Worth, worth

if TYPE_CHECKING:
    from ag06.cli.tune_workflow import Notes
    from ag06.ml.board import Saved
    from ag06.ml.score import ScoreValue
    from ag06.ml.windows import Window

_NOT_SHOWN = ("ages", "steps")


class Standing(msgspec.Struct, frozen=True):
    """Where the optimizer of a workflow stands.

    Attributes:
        mode: what was asked for with `ag06 tune`; `None`: each worker's `AG06_TUNE` decides.
        leader: the worker that moves the knobs; `None`: none does.
        state: in a word or a few, `stopped` where no worker leads, `untouched` where none ever did.
        trial: what is tried in the window that is under way; `None`: nothing is.
    """

    workflow: str
    mode: str | None
    leader: str | None
    state: str
    known: Learned
    worth: Worth | None
    saved: Saved | None
    trial: dict[str, Any] | None = None

    @property
    def on_trial(self) -> dict[str, Any] | None:
        """What may take the place of what is kept: what is put to the proof, else what is tried for now."""
        return self.known.candidate or self.trial


def standing(workflow: str, notes: Notes) -> Standing:
    """Put together what the notes of a workflow say."""
    saved, leader = notes.saved, notes.leader()
    if saved is None:
        return Standing(workflow, notes.control.mode, None, "untouched", Learned(), None, None)
    state, posted = saved.state if leader else "stopped", notes.posted
    trial = posted.trial if posted is not None and leader is not None and posted.leader == leader else None
    return Standing(workflow, notes.control.mode, leader, state, learned(saved), worth(saved), saved, trial)


def as_json(now: Standing) -> dict[str, Any]:
    """Return it as one JSON-able object."""
    known, saved = now.known, now.saved
    return {
        "workflow": now.workflow,
        "mode": now.mode,
        "state": now.state,
        "leader": now.leader,
        "saved_at": None if saved is None else saved.at,
        "runs_in_mode": saved.mode if saved is not None and now.leader else None,
        "score": None if saved is None else saved.score,
        "phase": known.told.phase,
        "windows": known.told.windows,
        "knobs": {name: _knob_json(now, name) for name in known.knobs},
        "pinned": known.told.pinned,
        "incumbent": known.told.incumbent,
        "previous": known.told.previous,
        "trial": now.trial,
        "experiment": msgspec.to_builtins(known.told.experiment),
        "budget": msgspec.to_builtins(known.told.budget),
        "baseline": None if saved is None else figures(saved.baseline),
        "reference": None if saved is None else figures(saved.reference),
        "worth": None if now.worth is None else {**msgspec.to_builtins(now.worth.score), "of": now.worth.of},
        "last_score": msgspec.to_builtins(known.told.last_score),
        "suggestion": None if saved is None else saved.suggestion,
    }


def figures(window: Window | None) -> dict[str, Any] | None:
    """Return what a window measured, without its details."""
    if window is None:
        return None
    return {name: value for name, value in msgspec.to_builtins(window).items() if name not in _NOT_SHOWN}


def _knob_json(now: Standing, name: str) -> dict[str, Any]:
    knob = now.known.knobs[name]
    candidate = now.known.candidate or {}
    found = {"value": now.known.incumbent.get(name), "default": knob.default, "candidate": candidate.get(name)}
    if knob.choices is not None:
        return {**found, "choices": list(knob.choices)}
    return {**found, "low": knob.low, "high": knob.high, "scale": knob.scale}


def print_standing(now: Standing) -> None:
    """Print it for people."""
    rows = [("state", _state(now)), ("mode", _mode(now))]
    saved = now.saved
    if saved is not None:
        rows += [
            ("leader", _leader(now, saved)),
            ("score", saved.score),
            ("what is kept is worth", kept_is_worth(now.worth)),
        ]
        if now.worth is not None:
            rows += [(f"  {name}", term.explanation) for name, term in now.worth.score.terms.items()]
            rows += [("  broken", words) for words in now.worth.score.broken]
        told = now.known.told
        if told.last_score is not None:
            rows.append(("last window", _worth(told.last_score)))
        spent = f"{told.budget.explored:.1%} of the time for trials, which cost {told.budget.loss:.2%} of the score"
        rows += [("windows tried", str(told.windows)), ("budget", spent)]
        if told.experiment is not None:
            rows += [("experiment: b is", said(now.known.candidate, now.known.incumbent) or "a")]
            rows += [("it says", told.experiment.reason)]
        if told.pinned:
            rows.append(("do not move", ", ".join(told.pinned)))
    if saved is not None and saved.suggestion is not None:
        rows.append(("suggestion", _suggestion(now, saved.suggestion)))
    print_table(f"Tuning of {now.workflow}", ("what", "now"), rows)
    if now.known.knobs:
        _print_knobs(now.known, now.on_trial)


def _state(now: Standing) -> str:
    if now.saved is None:
        return "nothing was tuned yet; begin with: ag06 tune start"
    return now.state


def _mode(now: Standing) -> str:
    if now.mode is None:
        return "as each worker's AG06_TUNE says"
    return f"{now.mode}, asked for with ag06 tune"


def _leader(now: Standing, saved: Saved) -> str:
    ago = age(round(saved.at * 1000))
    if now.leader is None:
        return f"none; the last was {saved.leader}, {ago} ago"
    return f"{now.leader}, mode {saved.mode}; it saved {ago} ago"


def kept_is_worth(found: Worth | None) -> str:
    """Say what the incumbent is worth, and by which windows."""
    if found is None:
        return "not measured yet"
    return f"{_worth(found.score)}, {found.of}" if found.of else _worth(found.score)


def _worth(found: ScoreValue) -> str:
    return f"not known: {found.reason}" if found.value is None else f"{percent(found.value)} beside the baseline"


def _suggestion(now: Standing, suggestion: dict[str, Any]) -> str:
    changes, reason = suggestion.get("changes") or {}, str(suggestion.get("reason", ""))
    if not changes:
        return reason
    return f"{said(changes, {name: now.known.incumbent.get(name) for name in changes})}: {reason}"


def _print_knobs(known: Learned, on_trial: dict[str, Any] | None) -> None:
    columns = ["knob", "kept", "default", "between"]
    if on_trial is not None:
        columns.insert(2, "on trial")
    rows = []
    for name, knob in known.knobs.items():
        between = (
            f"{shown_value(knob.low)} and {shown_value(knob.high)}, {knob.scale}"
            if knob.choices is None
            else ", ".join(map(str, knob.choices))
        )
        row = [name, shown_value(known.incumbent.get(name)), shown_value(knob.default), between]
        if on_trial is not None:
            row.insert(2, shown_value(on_trial.get(name)))
        rows.append(row)
    print_table("Knobs that may move", columns, rows, whole=("knob",))


def seen(notes: Notes) -> tuple[object, ...]:
    """Return what changes when there is something new to show."""
    return (notes.control, notes.leader(), notes.posted, None if notes.saved is None else notes.saved.at)


def clock() -> str:
    """Return the time of day, for a display that goes on."""
    return time.strftime("%H:%M:%S")
