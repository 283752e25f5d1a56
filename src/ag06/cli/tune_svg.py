"""Charts as SVG that stands in a page: axes, ticks and marks; colours are classes of the page, so that it can be dark.

No script and no font of its own. Each mark may carry a title, which browsers show under the pointer.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from html import escape

import msgspec

MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 64.0, 14.0, 14.0, 30.0
_SPANS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_DAY = 86_400.0


class Tick(msgspec.Struct, frozen=True):
    """A place on an axis and what is written there."""

    at: float
    label: str


class Axis(msgspec.Struct, frozen=True):
    """Numbers from `low` to `high` on `start` to `end` of a drawing."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where a number lies; one beyond the ends lies at the end."""
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


class Drawing:
    """One chart under construction: marks are drawn in the order they are added."""

    def __init__(self, width: float, height: float, title: str) -> None:
        """Begin an empty one; `title` is what a screen reader says."""
        self.width = width
        self.height = height
        self._title = title
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line."""
        self._parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw a line through points."""
        if points:
            through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            self._parts.append(f'<polyline class="{kind}" points="{through}"/>')

    def area(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        """Draw a filled rectangle."""
        box = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self._parts.append(f"{box}>{_titled(title)}</rect>" if title else f"{box}/>")

    def mark(self, x: float, y: float, kind: str, shape: str = "dot", title: str = "", size: float = 3.0) -> None:
        """Draw a mark: dot, diamond, square or cross; not by colour alone does one tell them apart."""
        self._parts.append(f'<g class="{kind}">{_titled(title)}{_shape(shape, x, y, size)}</g>')

    def text(self, x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> None:
        """Write words; `anchor` start, middle or end says which part of them stands at `x`."""
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def horizontal(self, axis: Axis, ticks: Iterable[Tick], top: float, bottom: float) -> None:
        """Draw the ticks of an axis from left to right, with lines from `top` to `bottom`."""
        for tick in ticks:
            x = axis.place(tick.at)
            self.line(x, top, x, bottom, "grid")
            self.text(x, bottom + 16, tick.label, "tick", "middle")

    def vertical(self, axis: Axis, ticks: Iterable[Tick], left: float, right: float) -> None:
        """Draw the ticks of an axis from bottom to top, with lines from `left` to `right`."""
        for tick in ticks:
            y = axis.place(tick.at)
            self.line(left, y, right, y, "grid")
            self.text(left - 8, y + 4, tick.label, "tick", "end")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{escape(self._title)}">'
            f"{''.join(self._parts)}</svg>"
        )


def _titled(title: str) -> str:
    return f"<title>{escape(title)}</title>" if title else ""


def _shape(shape: str, x: float, y: float, size: float) -> str:
    if shape == "diamond":
        size *= 1.35
        return (
            f'<path d="M{x:.1f} {y - size:.1f}l{size:.1f} {size:.1f}l{-size:.1f} {size:.1f}l{-size:.1f} {-size:.1f}z"/>'
        )
    if shape == "square":
        return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}"/>'
    if shape == "cross":
        arm = 2 * size
        return (
            f'<path fill="none" d="M{x - size:.1f} {y - size:.1f}l{arm:.1f} {arm:.1f}'
            f'M{x - size:.1f} {y + size:.1f}l{arm:.1f} {-arm:.1f}"/>'
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'


def time_ticks(low: float, high: float, most: int = 8) -> list[Tick]:
    """Return round moments (UTC) between two, in seconds since the epoch: at most so many."""
    span = max(high - low, 1e-3)
    step = next((float(each) for each in _SPANS if span / each <= most), _DAY * math.ceil(span / _DAY / most))
    first = math.ceil(low / step) * step
    form = "%H:%M:%S" if step < 60 else "%H:%M" if span < _DAY else "%b %d" if step >= _DAY else "%b %d %H:%M"
    ticks = []
    while first <= high:
        ticks.append(Tick(first, dt.datetime.fromtimestamp(first, dt.UTC).strftime(form)))
        first += step
    return ticks


def ratio_ticks(low: float, high: float, most: int = 7) -> list[Tick]:
    """Return round ratios between two logarithms: in percent of change, or as factors where they are far apart."""
    if high - low > math.log(4):
        powers = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            factors = [step * 10.0**power for power in powers for step in steps]
            ticks = [Tick(math.log(each), f"{each:g}x") for each in factors if low <= math.log(each) <= high]
            if len(ticks) <= most:
                return ticks
        return ticks[:: math.ceil(len(ticks) / most)]
    lowest, highest = math.expm1(low) * 100, math.expm1(high) * 100
    return [
        Tick(math.log1p(tick.at / 100), "0" if tick.at == 0 else f"{tick.at:+g}%")
        for tick in number_ticks(lowest, highest, most)
    ]


def number_ticks(low: float, high: float, most: int = 6) -> list[Tick]:
    """Return round numbers between two."""
    step = _round_step((high - low) / most)
    first = math.ceil(low / step - 1e-9)
    numbers = [round((first + index) * step, 12) for index in range(most + 2)]
    return [Tick(number, f"{number:g}") for number in numbers if number <= high + 1e-9 * step]


def log_ticks(low: float, high: float, most: int = 5) -> list[Tick]:
    """Return round numbers between two above 0, at their logarithms."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[Tick] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        numbers = [step * 10.0**power for power in powers for step in steps]
        ticks = [Tick(math.log(number), f"{number:g}") for number in numbers if low <= number <= high]
        if len(ticks) <= most:
            break
    return ticks


def _round_step(least: float) -> float:
    if not 0 < least < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in (1, 2, 5) if step * power >= least * (1 - 1e-9)), 10 * power)
