from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections import Counter as Tally
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ag06.monitoring import merging
from ag06.monitoring.exposition import finished, snapshot
from ag06.monitoring.merging import ProcessGroup, join_group
from ag06.monitoring.metrics import MOST_CHILDREN, Reading, Registry
from ag06.monitoring.processes import ProcessFile

PREFIX = "ag06_workflow_"


class Process:
    """What a process does to the directory, in this one: its files, and a lock that goes when it is killed."""

    def __init__(self, directory: Path) -> None:
        self.home = ProcessFile(directory)
        self.registry = Registry(self.home)
        self.counter = self.registry.counter("c", labels=("a",))
        self.histogram = self.registry.histogram("h", buckets=(1, 2)).labels()
        self.summary = self.registry.summary("s").labels()
        self.sum = self.registry.gauge("g").labels()
        self.max = self.registry.gauge("top", aggregate="max").labels()
        self.min = self.registry.gauge("low", aggregate="min").labels()
        self.gauges: dict[str, float] = {}

    def kill(self) -> None:
        os.close(self.home._index)  # what the kernel does for a process that is gone


class Killed(BaseException):
    """The process that folds dies here."""


class Mortal(ProcessGroup):
    """A group whose reader dies before its n-th change to the directory."""

    def __init__(self, directory: Path, lives: int) -> None:
        super().__init__(directory)
        self._lives = lives

    def _names(self) -> list[str]:
        self._live()
        return super()._names()

    def _replace_past(self, past: merging.Past) -> None:
        self._live()
        super()._replace_past(past)
        self._live()

    def _remove(self, path: Path) -> None:
        self._live()
        super()._remove(path)

    def _live(self) -> None:
        self._lives -= 1
        if self._lives < 0:
            raise Killed


class Directory(RuleBasedStateMachine):
    """Processes that count, die and are folded in any order, against plain sums."""

    @initialize()
    def begin(self) -> None:
        self._place = tempfile.TemporaryDirectory()
        self.path = Path(self._place.name)
        self.stopped: int | None = None
        self.group = ProcessGroup(self.path)
        self.processes: list[Process] = []
        self.tally: Tally[str] = Tally()

    def teardown(self) -> None:
        for process in self.processes:
            process.kill()
        if self.stopped is not None:
            os.close(self.stopped)
        self._place.cleanup()

    @precondition(lambda self: len(self.processes) < 5)
    @rule()
    def start(self) -> None:
        self.processes.append(Process(self.path))

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 9), label=st.sampled_from("xyz"), value=st.integers(0, 1_000))
    def count(self, which: int, label: str, value: int) -> None:
        process = self.processes[which % len(self.processes)]
        process.counter.labels(label).inc(value)
        process.histogram.observe(value % 4)
        process.summary.observe(value)
        self.tally[f'c_total{{a="{label}"}}'] += value
        self.tally.update({"h": 1, "h_sum": value % 4, f"h_{value % 4}": 1, "s": 1, "s_sum": value})

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 9), name=st.sampled_from(["sum", "max", "min"]), value=st.integers(-9, 9))
    def set(self, which: int, name: str, value: int) -> None:
        process = self.processes[which % len(self.processes)]
        getattr(process, name).set(value)
        process.gauges[name] = value

    @precondition(lambda self: self.processes)
    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        self.processes.pop(which % len(self.processes)).kill()

    @precondition(lambda self: self.processes)
    @rule(deaths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), min_size=1, max_size=3), stop=st.booleans())
    def be_killed_while_folding_again_and_again(self, deaths: list[tuple[int, int]], stop: bool) -> None:
        for which, lives in deaths:
            if self.processes:
                self.kill(which)
            with contextlib.suppress(Killed):
                finished(Mortal(self.path, lives).fold())
        if stop:
            self.stop_whoever_folds()

    @rule()
    def stop_whoever_folds(self) -> None:
        if self.stopped is None:
            self.stopped = os.open(self.path / "folding.lock", os.O_CREAT | os.O_RDWR)
            fcntl.flock(self.stopped, fcntl.LOCK_EX)

    @precondition(lambda self: self.stopped is not None)
    @rule()
    def let_whoever_folds_go_on(self) -> None:
        os.close(self.stopped)
        self.stopped = None
        finished(ProcessGroup(self.path).fold())

    @rule(steps=st.integers(0, 20))
    def give_up_while_folding(self, steps: int) -> None:
        work = self.group.fold()
        for _ in range(steps):
            next(work, None)
        work.close()

    @invariant()
    def each_count_is_in_the_sums_once(self) -> None:
        shown = {name.removeprefix(PREFIX): value for name, value in snapshot(finished(self.group.merge())).items()}
        if self.stopped is None:
            for suffix in ("index", "slots"):
                assert len(list(self.path.glob(f"*.{suffix}"))) == len(self.processes)
        for name, value in self.tally.items():
            if name.startswith("c_total"):
                assert shown[name] == value
        self._same(shown.get("s"), {"count": self.tally["s"], "sum": self.tally["s_sum"]})
        up_to = [sum(self.tally[f"h_{value}"] for value in range(bound + 1)) for bound in (1, 2, 3)]
        self._same(shown.get("h"), {"count": self.tally["h"], "sum": self.tally["h_sum"]})
        if "h" in shown:
            assert list(shown["h"]["buckets"].values()) == up_to
        if self.processes:
            values = [[p.gauges[name] for p in self.processes if name in p.gauges] for name in ("sum", "max", "min")]
            expected = [sum(values[0]), max(values[1], default=0), min(values[2], default=0)]
            assert [shown[name] for name in ("g", "top", "low")] == expected
        else:
            assert not {"g", "top", "low"} & set(shown)

    def _same(self, shown: dict[str, Any] | None, expected: dict[str, int]) -> None:
        found = shown or {"count": 0, "sum": 0}
        assert {name: found[name] for name in expected} == expected


TestDirectory = Directory.TestCase
TestDirectory.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("first", range(6))
def test_folding_that_is_killed_twice_at_any_point_counts_everything_once(tmp_path: Path, first: int) -> None:
    for second in range(9):
        directory = tmp_path / str(second)
        for value, lives in ((5, first), (7, second)):
            process = Process(directory)
            process.counter.labels("x").inc(value)
            process.kill()
            with contextlib.suppress(Killed):
                finished(Mortal(directory, lives).fold())
        assert snapshot(finished(ProcessGroup(directory).merge()))[PREFIX + 'c_total{a="x"}'] == 12.0


def test_a_process_that_dies_while_it_is_read_is_counted_once(tmp_path: Path) -> None:
    first, second = Process(tmp_path), Process(tmp_path)
    first.counter.labels("x").inc(5)
    second.counter.labels("x").inc(7)
    group = ProcessGroup(tmp_path)
    for steps in range(60):
        work = group.merge()
        reading = advance(work, steps)
        first.kill()
        finished(ProcessGroup(tmp_path).fold())
        if reading is None:
            reading = finished(work)
        assert snapshot(reading)[PREFIX + 'c_total{a="x"}'] == 12 + steps
        first = Process(tmp_path)
        first.counter.labels("x").inc(1)
    first.kill()
    second.kill()


def advance(work: Generator[None, None, Reading], steps: int) -> Reading | None:
    """Take so many steps; return what the work came to if that was the end of it."""
    for _ in range(steps):
        try:
            next(work)
        except StopIteration as end:
            return end.value
    return None


def test_a_process_is_not_taken_for_dead_by_those_who_look_on(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.sum.set(3)
    readers = [ProcessGroup(tmp_path) for _ in range(3)]
    for reader in readers * 3:
        assert snapshot(finished(reader.merge()))[PREFIX + "g"] == 3.0
    assert [path.name for path in tmp_path.glob("*.index")] == [process.home.name + ".index"]
    process.kill()


def test_a_dead_process_does_not_look_alive_while_another_reader_folds_it(tmp_path: Path) -> None:
    living, dead = Process(tmp_path), Process(tmp_path)
    for process in (living, dead):
        process.sum.set(3)
        process.counter.labels("x").inc(2)
    dead.kill()
    folding = ProcessGroup(tmp_path).fold()
    steps = 0
    while next(folding, ...) is not ...:
        steps += 1
        shown = snapshot(finished(ProcessGroup(tmp_path).merge()))
        assert (shown[PREFIX + "g"], shown[PREFIX + 'c_total{a="x"}']) == (3.0, 4.0)
    assert steps > 1
    living.kill()


def test_a_name_that_comes_again_is_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    for _ in range(3):
        process = Process(tmp_path)
        process.counter.labels("x").inc(2)
        process.kill()
    assert snapshot(finished(ProcessGroup(tmp_path).merge()))[PREFIX + 'c_total{a="x"}'] == 6.0


def test_label_sets_of_many_short_lives_stay_bounded(tmp_path: Path) -> None:
    lives, each = 5, 400
    for life in range(lives):
        process = Process(tmp_path)
        for number in range(each):
            process.counter.labels(f"{life}-{number}").inc()
        process.kill()
        finished(ProcessGroup(tmp_path).fold())
    shown = snapshot(finished(ProcessGroup(tmp_path).merge()))
    counts = {name: value for name, value in shown.items() if name.startswith(PREFIX + "c_total")}
    assert len(counts) == MOST_CHILDREN + 1
    assert sum(counts.values()) == lives * each
    assert counts[PREFIX + 'c_total{a="other"}'] == lives * each - MOST_CHILDREN


def test_the_files_of_the_dead_go_when_a_process_joins(tmp_path: Path) -> None:
    for _ in range(3):
        home = join_group(tmp_path)
        Registry(home).counter("c").labels().inc()
        assert isinstance(home, ProcessFile)
        assert [path.name for path in tmp_path.glob("*.index")] == [home.name + ".index"]
        os.close(home._index)
    assert snapshot(finished(ProcessGroup(tmp_path).merge()))[PREFIX + "c_total"] == 3.0


def test_processes_that_declare_a_metric_differently_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    homes = [ProcessFile(tmp_path), ProcessFile(tmp_path)]
    Registry(homes[0]).histogram("h", buckets=(1,)).labels().observe(1)
    Registry(homes[1]).histogram("h", buckets=(2,)).labels().observe(1)
    group = ProcessGroup(tmp_path)
    for _ in range(3):
        assert snapshot(finished(group.merge()))[PREFIX + "h"]["count"] == 1
    assert [record.message[:24] for record in caplog.records] == ["metric ag06_workflow_h: "]
    for home in homes:
        os.close(home._index)


def test_a_past_that_cannot_be_read_is_said_and_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(tmp_path)
    process.counter.labels("x").inc(2)
    (tmp_path / "past.json").write_bytes(b'{"names": [')
    assert snapshot(finished(ProcessGroup(tmp_path).merge()))[PREFIX + 'c_total{a="x"}'] == 2.0
    assert "what ended processes had counted is lost" in caplog.text
    process.kill()


def test_exemplars_of_other_processes_are_seen_the_latest_of_each_bucket(tmp_path: Path) -> None:
    homes = [ProcessFile(tmp_path), ProcessFile(tmp_path)]
    for time, home in enumerate(homes, 1):
        child = Registry(home).histogram("h", buckets=(1, 2), exemplars=True).labels()
        child.observe_traced(0.5, f"{time:032x}", "cd" * 8, clock=lambda time=time: float(time))  # type: ignore[misc]
    [sample] = [
        sample
        for declaration, samples in finished(ProcessGroup(tmp_path).merge())
        if declaration.kind == "histogram"
        for sample in samples
    ]
    assert [exemplar and exemplar.trace_id for exemplar in sample.exemplars] == [f"{2:032x}", None, None]
    for home in homes:
        os.close(home._index)


def test_a_line_in_the_making_waits_until_it_is_whole(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.counter.labels("x").inc(2)
    group = ProcessGroup(tmp_path)
    index = tmp_path / (process.home.name + ".index")
    whole = index.read_bytes()
    cut = whole.rindex(b"\n", 0, -1) + 1
    for length in range(cut, len(whole)):
        index.write_bytes(whole[:length])
        assert PREFIX + 'c_total{a="x"}' not in snapshot(finished(group.merge()))
    index.write_bytes(whole)
    assert snapshot(finished(group.merge()))[PREFIX + 'c_total{a="x"}'] == 2.0
    process.kill()


def test_what_is_kept_of_the_past_is_plain_json(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.counter.labels("x").inc(2)
    process.kill()
    finished(ProcessGroup(tmp_path).fold())
    past = msgspec.json.decode((tmp_path / "past.json").read_bytes())
    assert [process.home.name] == past["names"]
    assert [["x"], [2.0]] in [child for family in past["families"] for child in family["children"]]
