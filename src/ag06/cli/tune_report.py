"""The page that `ag06 tune report` writes: one HTML file that needs nothing else, in light and in dark."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ag06.cli.tune_history import History, Row, moved, result
from ag06.cli.tune_learned import percent, said, shown_value
from ag06.cli.tune_plots import experiments, forest_chart, incumbents, knob_chart, score_chart, window_rows
from ag06.cli.tune_status import kept_is_worth
from ag06.cli.tune_style import STYLE

if TYPE_CHECKING:
    from ag06.cli.tune_status import Standing
    from ag06.ml.windows import Window

MOST_ROWS = 1_000
"""So many of the last windows and decisions are on the page."""
_FIGURES = (
    ("throughput", "throughput", "/s", True),
    ("p50", "latency_p50_ms", " ms", False),
    ("p95", "latency_p95_ms", " ms", False),
    ("p99", "latency_p99_ms", " ms", False),
    ("failed attempts", "error_rate", "%", False),
    ("processor", "cpu_percent", "%", None),
    ("memory", "memory_mb", " MB", None),
)
_NOTABLE = 0.05
"""A figure of one window that moved by less has not moved."""
_LEGEND = (
    ("incumbent", "dot", "what runs"),
    ("tried", "diamond", "tried"),
    ("candidate", "square", "candidate in an experiment"),
    ("breach", "cross", "broke a guardrail"),
)


def page(now: Standing, history: History, made: dt.datetime | None = None) -> str:
    """Return the page as HTML."""
    shown = History(history.decisions[-MOST_ROWS:], history.windows[-MOST_ROWS:])
    moment = made or dt.datetime.now(dt.UTC)
    sections = [
        _heading(now, moment),
        _section("What it is worth", _figures(now)),
        _section("Score over time", _scores(shown)),
        _section("Experiments", _experiments(shown)),
        _section("Where the knobs went", _knobs(now, shown)),
        _section("What trials took", _budget(now)),
        _section("Decisions", _decisions(shown)),
    ]
    title = escape(f"Tuning of {now.workflow}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def write(path: Path, text: str) -> None:
    """Write the page; the file appears, or replaces the old one, when it is whole. Raises `OSError`."""
    if path.exists() and not path.is_file():  # a pipe or a device
        path.write_text(text, encoding="utf-8")
        return
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _heading(now: Standing, made: dt.datetime) -> str:
    saved = now.saved
    facts = [
        ("State", now.state),
        ("Mode", now.mode or "as each worker's AG06_TUNE says"),
        ("Leader", now.leader or "none"),
        ("Score", "" if saved is None else saved.score),
        ("Windows tried", str(now.known.told.windows)),
        ("Made", f"{made:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<header><h1>Tuning of {escape(now.workflow)}</h1>{_headline(now)}<dl>{listed}</dl></header>"


def _headline(now: Standing) -> str:
    changes = said(now.known.incumbent, now.known.defaults)
    if not changes:
        return "<p class=lead>The defaults run.</p>"
    value = None if now.worth is None else now.worth.score.value
    gain = "" if value is None else f"<strong>{escape(percent(value))}</strong> beside the baseline: "
    return f"<p class=lead>{gain}{_arrows(changes)}.</p>"


def _arrows(words: str) -> str:
    return escape(words).replace("-&gt;", "→")


def _figures(now: Standing) -> str:
    saved, found = now.saved, now.worth
    if saved is None or saved.baseline is None or found is None:
        return _nothing("No baseline was measured yet.")
    if found.window is None:
        return _nothing(f"What is kept, {kept_is_worth(found)}; the figures of its windows were not saved.")
    rows = [_figure_row(saved.baseline, found.window, *figure) for figure in _FIGURES]
    table = _table(("", "baseline", "now", "change", ""), [row for row in rows if row], numbers=(1, 2, 3))
    terms = "".join(f"<li>{escape(term.explanation)}</li>" for term in found.score.terms.values())
    note = f"Baseline: before anything was tried. Now: what is kept, {escape(found.of)}."
    return f"{table}<ul class=terms>{terms}</ul><p class=note>{note}</p>"


def _figure_row(before: Window, after: Window, name: str, field: str, unit: str, more: bool | None) -> tuple[str, ...]:
    """Return a figure then and now; `more` says whether more of it is better, `None`: neither."""
    old, new = getattr(before, field), getattr(after, field)
    if old is None or new is None:
        return ()
    if field == "error_rate":
        old, new = old * 100, new * 100
    change = new / old - 1 if old else 0.0
    verdict = "" if more is None or abs(change) < _NOTABLE else "better" if (change > 0) == more else "worse"
    return name, _amount(old, unit), _amount(new, unit), f"{change:+.0%}" if old else "", verdict


def _amount(value: float, unit: str) -> str:
    if unit == " ms" and value >= 1000:
        value, unit = value / 1000, " s"
    return f"{_number(value)}{unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _scores(history: History) -> str:
    if not any(row.score is not None for row in history.windows):
        return _nothing("No window had a score yet.")
    legend = "".join(_entry(*entry) for entry in _LEGEND)
    legend += (
        "<li><span class=swatch-line></span>what runs, smoothed</li><li><span class=swatch-band></span>experiment</li>"
    )
    note = "Beside the baseline, in UTC; higher is better. Rest the pointer on a mark to see what it was."
    columns = ("when (UTC)", "window", "score", "configuration", "broke")
    return (
        f"<p class=note>{note}</p><ul class=legend>{legend}</ul><figure>{score_chart(history)}</figure>"
        f"{_alternative(_table(columns, window_rows(history.windows), numbers=(2,)))}"
    )


def _entry(kind: str, shape: str, words: str) -> str:
    swatch = f'<svg viewBox="0 0 14 14" aria-hidden="true"><g class="{kind}">{_swatch(shape)}</g></svg>'
    return f"<li>{swatch}{escape(words)}</li>"


def _swatch(shape: str) -> str:
    return {
        "diamond": '<path d="M7 3l4 4l-4 4l-4 -4z"/>',
        "square": '<rect x="4" y="4" width="6" height="6"/>',
        "cross": '<path fill="none" d="M3 3l8 8M3 11l8 -8"/>',
    }.get(shape, '<circle cx="7" cy="7" r="3"/>')


def _experiments(history: History) -> str:
    found = experiments(history)
    if not found:
        return _nothing("No experiment has come to an end yet.")
    note = (
        "What the candidate gives beside what ran, with the interval of effects that are not refuted. "
        "Only what is better beyond doubt is promoted; an arrow is an interval that goes on."
    )
    rows = [
        (f"{row.moment:%Y-%m-%d %H:%M:%S}", row.what, result(row), str(row.windows or ""), moved(row), row.reason)
        for row in found
    ]
    columns = ("when (UTC)", "ending", "effect (interval)", "windows", "configuration", "why")
    return f"<p class=note>{note}</p><figure>{forest_chart(found)}</figure>{_alternative(_table(columns, rows))}"


def _knobs(now: Standing, history: History) -> str:
    if not now.known.knobs:
        return _nothing("No knob may be moved.")
    charts = []
    for name, knob in now.known.knobs.items():
        stands = shown_value(now.known.incumbent.get(name))
        caption = f"<b>{escape(name)}</b> {escape(stands)} <span>default {escape(shown_value(knob.default))}</span>"
        charts.append(f"<figure><figcaption>{caption}</figcaption>{knob_chart(knob, history)}</figure>")
    rows, before = [], None
    for at, config in incumbents(history):
        if config != before:
            moment = dt.datetime.fromtimestamp(at, dt.UTC)
            rows.append(
                (f"{moment:%Y-%m-%d %H:%M:%S}", *(shown_value(config.get(name, "")) for name in now.known.knobs))
            )
        before = config
    note = "Line: what runs. Dashed: the default. Marks: what was tried."
    table = _alternative(_table(("from (UTC)", *now.known.knobs), rows))
    return f"<p class=note>{note}</p><div class=pair>{''.join(charts)}</div>{table}"


def _budget(now: Standing) -> str:
    rows = (
        ("of the time went to trials", now.known.told.budget.explored),
        ("of the score was lost by them", now.known.told.budget.loss),
    )
    meters = "".join(
        f'<div class=meter><b>{value:.1%}</b><span class=bar><i style="width:{min(value, 1.0) * 100:.1f}%"></i></span>'
        f"<span>{escape(words)}</span></div>"
        for words, value in rows
    )
    return f"{meters}<p class=note>Of about the last hour in which the optimizer ran.</p>"


def _decisions(history: History) -> str:
    if not history.decisions:
        return _nothing("Nothing was decided yet.")
    rows = [_decision_row(row) for row in history.decisions]
    return _table(("when (UTC)", "decision", "configuration", "result", "why"), rows)


def _decision_row(row: Row) -> tuple[str, ...]:
    what = row.what.replace("_", " ")
    return f"{row.moment:%Y-%m-%d %H:%M:%S}", what, moved(row), result(row), row.reason


def _nothing(words: str) -> str:
    return f"<p class=nothing>{escape(words)}</p>"


def _alternative(table: str) -> str:
    return f"<details><summary>The same as a table</summary>{table}</details>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    kinds = [" class=number" if index in numbers else "" for index in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_arrows(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
