"""The charts of `ag06 tune report`: scores over time, experiments with their intervals, where each knob went."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from ag06.cli.tune_history import History, Row, moved, result
from ag06.cli.tune_learned import percent, shown_value
from ag06.cli.tune_svg import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    Axis,
    Drawing,
    Tick,
    log_ticks,
    number_ticks,
    ratio_ticks,
    time_ticks,
)
from ag06.knob import Knob

WIDTH = 960.0
_WORST = math.log(0.1)
"""Scores below are drawn at the lower end."""
_SMOOTH = 7
"""The line of what runs is the middle one of so many windows."""
_MARKS = {"explore": ("tried", "diamond"), "b": ("candidate", "square")}
_ENDINGS = ("promoted", "rejected", "rolled_back", "stopped", "regime")


class Span(msgspec.Struct, frozen=True):
    """From when to when a report is, in seconds since the epoch."""

    start: float
    end: float

    @classmethod
    def of(cls, history: History) -> Span:
        """Return that of all rows."""
        moments = [row.at for row in (*history.decisions, *history.windows)] or [0.0]
        start, end = min(moments), max(moments)
        return cls(start, end if end > start else start + 1)

    def axis(self, width: float) -> Axis:
        """Return it as the horizontal axis of a chart."""
        pad = (self.end - self.start) * 0.01
        return Axis(self.start - pad, self.end + pad, MARGIN_LEFT, width - MARGIN_RIGHT)


def experiments(history: History) -> list[Row]:
    """Return the experiments that came to an end with a figure, oldest first."""
    return [row for row in history.decisions if row.what in ("promoted", "rejected") and row.effect is not None]


def score_chart(history: History) -> Drawing:
    """Draw the score of each window, with trials, experiments, promotions and rollbacks marked."""
    height = 340.0
    drawing = Drawing(WIDTH, height, "Score of each window over time")
    span = Span.of(history)
    across = span.axis(WIDTH)
    scores = [max(row.score, _WORST) for row in history.windows if row.score is not None]
    low, high = min([*scores, -0.05]), max([*scores, 0.05])
    pad = (high - low) * 0.06
    bottom, top = height - MARGIN_BOTTOM, MARGIN_TOP + 14
    up = Axis(low - pad, high + pad, bottom, top)
    _bands(drawing, history, across, top, bottom, span)
    drawing.vertical(up, ratio_ticks(low - pad, high + pad), MARGIN_LEFT, WIDTH - MARGIN_RIGHT)
    drawing.horizontal(across, time_ticks(span.start, span.end), bottom, bottom)
    drawing.line(MARGIN_LEFT, up.place(0), WIDTH - MARGIN_RIGHT, up.place(0), "zero")
    drawing.path(_smoothed(history.windows, across, up), "runs")
    for row in history.windows:
        _mark_window(drawing, row, across, up, bottom)
    for row in history.decisions:
        if row.what in ("promoted", "rolled_back"):
            x = across.place(row.at)
            kind = "good" if row.what == "promoted" else "bad"
            drawing.line(x, top, x, bottom, f"event {kind}")
            anchor = "end" if x > WIDTH - 110 else "start"
            drawing.text(x + (-4 if anchor == "end" else 4), top - 4, _spoken(row.what), f"label {kind}", anchor)
    return drawing


def _bands(drawing: Drawing, history: History, across: Axis, top: float, bottom: float, span: Span) -> None:
    """Shade the time of each experiment."""
    began: Row | None = None
    for row in history.decisions:
        if row.what == "experiment":
            began = row
        elif began is not None and row.what in _ENDINGS:
            _band(drawing, began, row.at, across, top, bottom)
            began = None
    if began is not None:
        _band(drawing, began, span.end, across, top, bottom)


def _band(drawing: Drawing, began: Row, end: float, across: Axis, top: float, bottom: float) -> None:
    left, right = across.place(began.at), across.place(end)
    drawing.area(left, top, max(right - left, 1.0), bottom - top, "band", f"experiment: {moved(began)}")


def _smoothed(windows: Sequence[Row], across: Axis, up: Axis) -> list[tuple[float, float]]:
    last: deque[float] = deque(maxlen=_SMOOTH)
    points = []
    for row in windows:
        if row.what not in _MARKS and row.score is not None:
            last.append(row.score)
            points.append((across.place(row.at), up.place(median(last))))
    return points


def _mark_window(drawing: Drawing, row: Row, across: Axis, up: Axis, bottom: float) -> None:
    kind, shape = _MARKS.get(row.what, ("incumbent", "dot"))
    x, y = across.place(row.at), bottom if row.score is None else up.place(row.score)
    changes = moved(row) if row.what in _MARKS else "what runs"
    told = f"{row.moment:%H:%M:%S} {row.what}: {'no score' if row.score is None else percent(row.score)}; {changes}"
    if row.what in _MARKS and row.reason:
        drawing.mark(x, y, "breach", "cross", f"{told}; {row.reason}", 4.0)
    elif row.score is not None:
        drawing.mark(x, y, kind, shape, told, 2.4 if kind == "incumbent" else 3.0)


def forest_chart(found: Sequence[Row]) -> Drawing:
    """Draw the effect of each experiment with its interval."""
    row_height, left, right = 34.0, 150.0, WIDTH - 290.0
    height = MARGIN_TOP + row_height * len(found) + MARGIN_BOTTOM
    drawing = Drawing(WIDTH, height, "Effect of each experiment with its interval")
    across = _effects(found, left, right)
    bottom = height - MARGIN_BOTTOM
    drawing.horizontal(across, ratio_ticks(across.low, across.high), MARGIN_TOP, bottom)
    drawing.line(across.place(0), MARGIN_TOP, across.place(0), bottom, "zero")
    for number, row in enumerate(found):
        y = MARGIN_TOP + row_height * (number + 0.5)
        kind = "good" if row.what == "promoted" else "neutral"
        drawing.text(0, y + 4, f"{row.moment:%b %d %H:%M:%S}", "label")
        _interval(drawing, row, across, y, kind)
        drawing.mark(across.place(_logarithm(row.effect or 0.0)), y, kind, "square", f"{row.what}: {moved(row)}", 5.0)
        drawing.text(right + 18, y - 2, result(row), f"label strong {kind}")
        drawing.text(right + 18, y + 12, f"{_spoken(row.what)} after {row.windows} windows", "label")
    return drawing


def _effects(found: Sequence[Row], left: float, right: float) -> Axis:
    """Return an axis for all effects, and for the ends of intervals that are not too far away."""
    effects = [_logarithm(row.effect or 0.0) for row in found]
    ends = [_logarithm(end) for row in found for end in row.interval or () if end is not None]
    reach = max(0.05, 1.6 * max(map(abs, effects), default=0.0))
    low = max(min([*effects, *ends, -0.02]), -reach)
    high = min(max([*effects, *ends, 0.02]), reach)
    pad = (high - low) * 0.05
    return Axis(low - pad, high + pad, left, right)


def _interval(drawing: Drawing, row: Row, across: Axis, y: float, kind: str) -> None:
    """Draw an interval; an end beyond the chart, or an open one, is an arrow."""
    if row.interval is None:
        return
    places = []
    for end, side in zip(row.interval, (-1, 1), strict=True):
        at = side * math.inf if end is None else _logarithm(end)
        x = across.place(at)
        places.append(x)
        if across.low <= at <= across.high:
            drawing.line(x, y - 6, x, y + 6, f"whisker {kind}")
        else:
            drawing.line(x, y, x - side * 7, y - 5, f"whisker {kind}")
            drawing.line(x, y, x - side * 7, y + 5, f"whisker {kind}")
    drawing.line(places[0], y, places[1], y, f"whisker {kind}")


def knob_chart(knob: Knob, history: History, width: float = WIDTH / 2 - 12) -> Drawing:
    """Draw where a knob went: what runs as a line, trials as marks, its default as a dashed line."""
    height = 190.0
    drawing = Drawing(width, height, f"Values of {knob.name} over time")
    span = Span.of(history)
    across, bottom = span.axis(width), height - MARGIN_BOTTOM
    scale, ticks = _scale(knob, bottom)
    drawing.vertical(scale, ticks, MARGIN_LEFT, width - MARGIN_RIGHT)
    drawing.horizontal(across, time_ticks(span.start, span.end, 5), bottom, bottom)
    at_default = scale.place(_height(knob, knob.default))
    drawing.line(MARGIN_LEFT, at_default, width - MARGIN_RIGHT, at_default, "default")
    drawing.path(_steps(knob, history, across, scale), "runs")
    for row in history.windows:
        if row.what in _MARKS and row.config.get(knob.name) is not None:
            kind, shape = _MARKS[row.what]
            value = row.config[knob.name]
            y = scale.place(_height(knob, value))
            drawing.mark(across.place(row.at), y, kind, shape, f"{row.moment:%H:%M:%S} {shown_value(value)}", 2.6)
    return drawing


def _steps(knob: Knob, history: History, across: Axis, scale: Axis) -> list[tuple[float, float]]:
    """Return the corners of the line of what runs."""
    points: list[tuple[float, float]] = []
    for at, config in incumbents(history):
        if config.get(knob.name) is None:
            continue
        x, y = across.place(at), scale.place(_height(knob, config[knob.name]))
        if points and points[-1][1] != y:
            points.append((x, points[-1][1]))
        if not points or points[-1] != (x, y):
            points.append((x, y))
    if points:
        points.append((across.place(Span.of(history).end), points[-1][1]))
    return points


def incumbents(history: History) -> list[tuple[float, Mapping[str, Any]]]:
    """Return what ran when nothing was tried, each time that it is told of, oldest first."""
    kinds = ("started", "promoted", "rolled_back", "kept", "rested", "stopped")
    found: list[tuple[float, Mapping[str, Any]]] = [
        (row.at, row.config) for row in history.decisions if row.what in kinds
    ]
    found += [(row.at, row.config) for row in history.windows if row.what not in _MARKS]
    return sorted(found, key=lambda pair: pair[0])


def _scale(knob: Knob, bottom: float) -> tuple[Axis, list[Tick]]:
    top = MARGIN_TOP
    if knob.choices is not None:
        ticks = [Tick(float(index), str(choice)) for index, choice in enumerate(knob.choices)]
        return Axis(-0.5, len(knob.choices) - 0.5, bottom, top), ticks
    low, high = _height(knob, knob.low), _height(knob, knob.high)
    pad = (high - low) * 0.06
    ticks = log_ticks(knob.low, knob.high) if knob.scale == "log" else number_ticks(knob.low, knob.high, 4)
    return Axis(low - pad, high + pad, bottom, top), ticks


def _height(knob: Knob, value: Any) -> float:
    if knob.choices is not None:
        return float(knob.choices.index(value)) if value in knob.choices else -0.5
    return math.log(max(value, knob.low)) if knob.scale == "log" else float(value)


def _logarithm(effect: float) -> float:
    return math.log1p(max(effect, -0.99))


def _spoken(what: str) -> str:
    return what.replace("_", " ")


def window_rows(windows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Return windows as the cells of a table."""
    return [
        (
            f"{row.moment:%Y-%m-%d %H:%M:%S}",
            row.what,
            "" if row.score is None else percent(row.score),
            moved(row) if row.what in _MARKS else "what runs",
            row.reason,
        )
        for row in windows
    ]
