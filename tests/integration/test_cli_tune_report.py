"""`ag06 tune report`: one file that shows all of it, needs nothing else, and can be read without its pictures."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.cli.tune_history import History, Row
from ag06.cli.tune_plots import experiments, forest_chart, knob_chart, score_chart
from ag06.cli.tune_report import MOST_ROWS, page, write
from ag06.cli.tune_status import standing
from ag06.cli.tune_svg import Tick, log_ticks, number_ticks, ratio_ticks, time_ticks
from ag06.cli.tune_workflow import Notes
from ag06.knob import Knob
from ag06.ml.board import Control, Saved
from ag06.ml.decisions import Decision
from ag06.ml.measures import MEASURES
from commands import ag06
from tuning_past import Past, put

VOID = {"meta", "link", "br", "img", "hr", "line", "rect", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Reads a page and notices what is not closed, and what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def row(what: str, at: float = 0.0, **more: Any) -> Row:
    fields: dict[str, Any] = {"is_window": what in ("explore", "a", "b", "control", "watch", "rest"), "config": {}}
    return Row(at=at, what=what, source="notes", **fields | more)


def told(saved: Saved, history: History, workflow: str = "flow") -> Page:
    notes = Notes(Control(), None, saved)
    return Page(page(standing(workflow, notes), history, dt.datetime(2026, 1, 31, tzinfo=dt.UTC)))


@pytest.fixture
async def written(tmp_path: Path) -> tuple[Past, Path]:
    """A past, in a store, and the report of it under the name that it has by itself."""
    past = Past().until_kept()
    url = f"sqlite:///{tmp_path}/e.db"
    await put(url, past)
    ended = await asyncio.to_thread(ag06, "tune", "report", "--store", url, cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.out.startswith("ag06-tune-flow.html: ")
    return past, tmp_path / "ag06-tune-flow.html"


async def test_the_report_needs_no_network_and_no_script(written: tuple[Past, Path]) -> None:
    text = written[1].read_text()
    found = Page(text)
    assert found.count("script") == 0
    assert not {"src", "href", "onclick", "onload"} & {name for _, attributes in found.tags for name in attributes}
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme:dark" in text


async def test_the_report_shows_every_window_every_decision_and_what_it_is_worth(written: tuple[Past, Path]) -> None:
    past, path = written
    found = Page(path.read_text())
    fast = past.campaign.incumbent["pause_ms"]
    assert f"pause_ms 32 → {fast:.6g}" in found.text
    assert f"{32 / fast - 1:+.1%}" in found.text
    titles = [attributes.get("class") for tag, attributes in found.tags if tag == "g"]
    purposes = [entry.purpose for entry in past.history if entry.purpose]
    runs = sum(purpose in ("a", "control", "watch", "rest") for purpose in purposes)
    assert titles.count("incumbent") == runs + 1  # and the legend
    assert titles.count("candidate") == purposes.count("b") * 2 + 1  # among the scores, and the values of the knob
    assert titles.count("tried") == purposes.count("explore") * 2 + 1
    for entry in past.history:
        if entry.decision is not None and entry.decision.kind != "trial":
            assert entry.decision.reason in found.text
    assert found.count("details") == 3  # each chart as a table too
    assert {attributes["role"] for tag, attributes in found.tags if tag == "svg" and "role" in attributes} == {"img"}


async def test_the_output_is_named_and_replaced_when_it_is_whole(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    await put(url, Past())
    (tmp_path / "mine.html").write_text("old")
    ended = await asyncio.to_thread(ag06, "tune", "report", "--store", url, "-o", "mine.html", cwd=tmp_path)
    assert ended.code == 0, ended
    Page((tmp_path / "mine.html").read_text())
    nowhere = await asyncio.to_thread(ag06, "tune", "report", "--store", url, "-o", "no/where.html", cwd=tmp_path)
    assert (nowhere.code, nowhere.err.count("\n")) == (1, 1)
    assert "No such file or directory" in nowhere.err
    assert sorted(path.name for path in tmp_path.glob("*html*")) == ["mine.html"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_and_reasons_cannot_command_the_page() -> None:
    hostile = '<script>alert("x")</script>&<b>'
    past = Past()
    past.decided(Decision(kind="rested", config={"pause_ms": 32.0}, reason=hostile))
    saved = past.saved(leader=hostile, state="explore", at=9e12, score="maximize throughput")
    knobs = [{**knob, "name": hostile} for knob in saved.campaign["knobs"]]
    saved = msgspec.structs.replace(saved, campaign={**saved.campaign, "knobs": knobs})
    found = told(
        saved,
        History(
            [row("rested", reason=hostile)],
            [row("explore", 1.0, config={hostile: 2.0}, before={hostile: 1.0}, score=0.1, reason=hostile)],
        ),
    )
    assert found.count("script") == found.count("b") - 2 - 1 == 0  # two meters and one caption are bold
    assert hostile in found.text


def test_what_is_not_known_yet_is_said() -> None:
    past = Past()
    saved = past.saved(baseline=None, reference=None, campaign={}, told={})
    found = told(saved, History([], []))
    for words in ("No baseline was measured yet", "No window had a score yet", "No experiment has come to an end yet"):
        assert words in found.text
    assert "No knob may be moved" in found.text
    assert "Nothing was decided yet" in found.text
    assert "The defaults run." in found.text


def test_times_of_a_second_and_more_are_in_seconds() -> None:
    past = Past().until_kept()
    slow = msgspec.structs.replace(past.saved().reference, latency_p99_ms=15_400.0)
    assert "15.4 s" in told(past.saved(reference=slow), History([], [])).text
    assert MEASURES["p99"].said(15_400.0) == "15.4s"
    assert MEASURES["p99"].said(2_345_678.0) == "2,346s"
    assert MEASURES["p99"].said(999.4) == "999ms"


async def test_charts_are_legible_on_a_narrow_screen(written: tuple[Past, Path]) -> None:
    text = written[1].read_text()
    assert "figure{margin:0;overflow-x:auto" in text
    narrowest = {"figure svg": (50, 960), ".pair figure svg": (25, 468)}
    for where, (rem, drawn) in narrowest.items():
        assert f"\n{where}{{min-width:{rem}rem" in text
        assert rem * 16 / drawn * 12 >= 10  # the size of letters, in pixels


def test_a_long_past_is_cut_to_what_can_be_read() -> None:
    windows = [row("rest", float(at), score=0.1) for at in range(3 * MOST_ROWS)]
    found = told(Past().saved(), History([], windows))
    marks = [attributes for tag, attributes in found.tags if tag == "g" and attributes.get("class") == "incumbent"]
    assert len(marks) == MOST_ROWS + 1


@pytest.mark.parametrize("interval", [None, (None, None), (0.02, None), (None, 0.1), (-0.5, 1e6), (0.01, 0.02)])
@pytest.mark.parametrize("effect", [-0.999, -0.2, 0.0, 0.015, 5.0, 1e9])
def test_every_experiment_can_be_drawn(effect: float, interval: tuple[float | None, float | None] | None) -> None:
    found = [
        row("promoted", effect=effect, interval=interval, windows=20, before={}),
        row("rejected", 9.0, effect=0.01, interval=(-0.02, 0.04), windows=100, before={}),
    ]
    assert _inside(str(forest_chart(found)))


def test_experiments_without_a_figure_are_not_drawn() -> None:
    rows = [row("rejected", effect=None), row("promoted", effect=0.1), row("experiment"), row("rested")]
    assert [found.what for found in experiments(History(rows, []))] == ["promoted"]


finite = st.floats(-20, 20)
purposes = st.sampled_from(["explore", "a", "b", "control", "watch", "rest"])
kinds = st.sampled_from(["started", "experiment", "promoted", "rejected", "rolled_back", "regime", "rested", "stopped"])


@given(
    st.lists(st.tuples(st.floats(0, 1e9), purposes, st.none() | finite, st.floats(1, 64)), max_size=20),
    st.lists(st.tuples(st.floats(0, 1e9), kinds, st.floats(1, 64)), max_size=10),
)
def test_whatever_happened_the_charts_stay_in_their_frames(
    windows: list[tuple[float, str, float | None, float]], decisions: list[tuple[float, str, float]]
) -> None:
    history = History(
        sorted((row(what, at, config={"k": value}) for at, what, value in decisions), key=lambda one: one.at),
        sorted(
            (row(what, at, score=score, config={"k": value}) for at, what, score, value in windows),
            key=lambda one: one.at,
        ),
    )
    assert _inside(str(score_chart(history)))
    for knob in (
        Knob("k", low=1, high=64, default=2, scale="log"),
        Knob("k", low=0, high=100, default=2),
        Knob("k", choices=("x", 2.0), default="x"),
    ):
        assert _inside(str(knob_chart(knob, history)))


def _inside(svg: str) -> bool:
    """Whether all that is drawn lies within the picture, give or take the size of a mark."""
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    across = [float(x) for x in re.findall(r' c?x[12]?="(-?[\d.]+)"', svg)]
    down = [float(y) for y in re.findall(r' c?y[12]?="(-?[\d.]+)"', svg)]
    corners = [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for pair in line.split()
    ]
    across += [x for x, _ in corners]
    down += [y for _, y in corners]
    return all(-10 <= x <= width + 10 for x in across) and all(-10 <= y <= height + 10 for y in down)


def _rising(ticks: list[Tick]) -> bool:
    return all(one.at < other.at for one, other in itertools.pairwise(ticks))


@given(st.floats(0, 2e9), st.floats(0.001, 1e9))
def test_times_on_an_axis_are_round_few_and_between_its_ends(start: float, span: float) -> None:
    ticks = time_ticks(start, start + span)
    assert len(ticks) <= 9
    assert all(start - 1e-3 <= tick.at <= start + span + 1e-3 for tick in ticks)
    assert _rising(ticks)


@given(st.floats(-5, -0.01), st.floats(0.01, 30))
def test_ratios_on_an_axis_are_few_and_between_its_ends(low: float, high: float) -> None:
    ticks = ratio_ticks(low, high)
    assert 0 < len(ticks) <= 9
    assert all(low - 1e-6 <= tick.at <= high + 1e-6 for tick in ticks)
    assert _rising(ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_numbers_on_an_axis_are_few_and_between_its_ends(low: float, span: float) -> None:
    ticks = number_ticks(low, low + span)
    assert 0 < len(ticks) <= 8
    assert all(low - span / 1e6 <= tick.at <= low + span * (1 + 1e-6) for tick in ticks)
    assert _rising(ticks)


@given(st.floats(1e-6, 1e6), st.floats(1.5, 1e9))
def test_powers_on_an_axis_are_between_its_ends(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert all(math.log(low) - 1e-9 <= tick.at <= math.log(low * factor) + 1e-9 for tick in ticks)
    assert _rising(ticks)
    assert len(ticks) <= 17


def test_ratios_are_told_in_percent_where_they_are_near_and_as_factors_where_they_are_not() -> None:
    assert [tick.label for tick in ratio_ticks(math.log(0.9), math.log(1.2))] == [
        "-10%",
        "-5%",
        "0",
        "+5%",
        "+10%",
        "+15%",
        "+20%",
    ]
    assert [tick.label for tick in ratio_ticks(math.log(0.9), math.log(25))] == ["1x", "2x", "5x", "10x", "20x"]
