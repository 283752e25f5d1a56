"""Real processes that count in one directory, and are killed, stopped, forked and out of disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from ag06.monitoring.metrics import Registry
from ag06.monitoring.realtime_observer import MetricsFacade

PROCESSED = 'ag06_workflow_events_total{type="load",outcome="processed"}'
DURATION = "ag06_workflow_processing_duration_seconds"

MEMBER = """
    import mmap, os, sys
    from ag06.monitoring import observability
    from ag06.monitoring.instruments import EVENTS, PROCESSING_DURATION

    with open(sys.argv[1], "r+b") as file:
        tally = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    processed, metrics = EVENTS.labels("load", "processed"), observability.metrics
    metrics.set_gauge("active_connections", 1)
    print("ready", flush=True)
    while True:
        processed.inc()
        PROCESSING_DURATION.observe(0.25)
        tally[0] += 1
        if tally[0] % 500 == 0:  # reading folds the dead as well: a reader is killed in the middle of that, too
            metrics.snapshot()
"""


class Member:
    """A process that counts as fast as it can, and keeps a tally of its own."""

    def __init__(self, directory: Path, number: int) -> None:
        self._tally = directory / f"tally-{number}"
        self._tally.write_bytes(bytes(8))
        self._process = start(MEMBER, directory / "metrics", str(self._tally))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def tally(self) -> int:
        return int.from_bytes(self._tally.read_bytes(), sys.byteorder)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def start(program: str, directory: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    environ = os.environ | {"AG06_METRICS_DIR": str(directory)} | variables
    command = [sys.executable, "-W", "error", "-c", dedent(program), *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(program: str, directory: Path, *arguments: str) -> str:
    """Run a program to its end; return what it said on stderr."""
    process = start(program, directory, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    return errors.decode()


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Callable[[], Member]]:
    started: list[Member] = []

    def start_one() -> Member:
        started.append(Member(tmp_path, len(started)))
        return started[-1]

    yield start_one
    for member in started:
        member.kill()


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFacade:
    """What a supervisor shows: it counts elsewhere."""
    return MetricsFacade(Registry(), tmp_path / "metrics")


def shown(metrics: MetricsFacade) -> dict[str, Any]:
    return metrics.snapshot()


def test_processes_killed_at_any_moment_are_in_the_sums_exactly_and_once(
    metrics: MetricsFacade, members: Callable[[], Member], tmp_path: Path
) -> None:
    chance = random.Random(6)
    living = [members() for _ in range(3)]
    everyone = list(living)
    before = 0.0
    for _ in range(6):
        victim = living.pop(chance.randrange(len(living)))
        enough = victim.tally() + chance.randrange(1, 2_000)
        while victim.tally() < enough:
            now = shown(metrics)
            assert now[PROCESSED] >= before
            before = now[PROCESSED]
        victim.kill()
        assert shown(metrics)["ag06_workflow_active_connections"] == len(living)
        living.append(members())
        everyone.append(living[-1])
    for member in living:
        member.kill()
    done = sum(member.tally() for member in everyone)
    last = shown(metrics)
    assert done > 3_000
    # Between its count and its tally, each killed process may have been one event ahead.
    assert done <= last[PROCESSED] <= done + len(everyone)
    assert done <= last[DURATION]["count"] <= last[PROCESSED]
    assert last[DURATION]["count"] - len(everyone) <= last[DURATION]["sum"] / 0.25 <= last[DURATION]["count"]
    assert "ag06_workflow_active_connections" not in last
    assert shown(metrics) == last
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == ["folding.lock", "past.json"]


def test_a_process_that_is_stopped_anywhere_holds_up_no_scrape(
    metrics: MetricsFacade, members: Callable[[], Member]
) -> None:
    chance = random.Random(7)
    stopped, other = members(), members()
    for _ in range(20):
        enough = stopped.tally() + chance.randrange(1, 1_500)
        while stopped.tally() < enough:
            pass
        stopped.signal(signal.SIGSTOP)
        counted, at_least = stopped.tally(), other.tally()
        found = shown(metrics)
        assert found[PROCESSED] >= counted + at_least
        assert found["ag06_workflow_active_connections"] == 2.0
        stopped.signal(signal.SIGCONT)


def test_a_forked_process_counts_for_itself_from_zero(metrics: MetricsFacade, tmp_path: Path) -> None:
    program = """
        import os
        from ag06.monitoring import observability
        from ag06.monitoring.instruments import EVENTS, PROCESSING_DURATION

        inc = EVENTS.labels("load", "processed").inc
        inc(3)
        PROCESSING_DURATION.observe(0.25)
        observability.metrics.set_gauge("active_connections", 5)
        observability.metrics.set_gauge("queue_size", 9)
        for _ in range(2):
            child = os.fork()
            if not child:
                inc(4)
                EVENTS.labels("fork", "processed").inc()
                PROCESSING_DURATION.observe(0.25)
                observability.metrics.set_gauge("queue_size", 7)
                found = observability.metrics.snapshot()
                assert found["ag06_workflow_active_connections"] == 5, found
                assert found["ag06_workflow_queue_size"] == 9, found
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        inc(5)
        assert observability.metrics.snapshot()["ag06_workflow_queue_size"] == 9
    """
    run(program, tmp_path / "metrics")
    found = shown(metrics)
    assert found[PROCESSED] == 16.0
    assert found['ag06_workflow_events_total{type="fork",outcome="processed"}'] == 2.0
    assert (found[DURATION]["count"], found[DURATION]["sum"]) == (3, 0.75)


def test_a_forked_process_without_a_directory_starts_from_zero_and_its_parent_keeps_what_is_its_own() -> None:
    program = """
        import os
        del os.environ["AG06_METRICS_DIR"]
        from ag06.monitoring import observability
        metrics = observability.metrics
        metrics.increment_counter("events_processed", 3)
        child = os.fork()
        metrics.increment_counter("events_processed", 4)
        found = metrics.snapshot()["ag06_workflow_events_processed_total"]
        if not child:
            os._exit(int(found))
        assert found == 7
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    """
    run(program, Path("unused"))


def test_a_process_whose_disk_is_full_goes_on_and_says_what_is_missing(metrics: MetricsFacade, tmp_path: Path) -> None:
    program = """
        import resource
        from ag06.monitoring import observability
        from ag06.monitoring.instruments import REGISTRY
        metrics = observability.metrics
        metrics.increment_counter("events_processed", 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
        family = REGISTRY.histogram("wait", "Wait.", ("a",))
        for number in range(900):
            family.labels(number).observe(number)
        metrics.increment_counter("events_processed", 4)
        metrics.increment_counter("later", 4)
        assert sum(child.numbers[0] for child in family.samples()) == sum(range(900))
    """
    errors = run(program, tmp_path / "metrics")
    assert errors.count("is missing from the sums of all") == 1
    found = shown(metrics)
    assert found["ag06_workflow_events_processed_total"] == 7.0
    kept = [name for name in found if name.startswith("ag06_workflow_wait{")]
    assert 0 < len(kept) < 900
    assert all(found[name]["sum"] == float(name.split('"')[1]) for name in kept)


def test_a_directory_that_cannot_be_used_costs_the_sums_not_the_counting(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("a file")
    program = """
        from ag06.monitoring import observability
        observability.metrics.increment_counter("events_processed", 3)
        assert observability.metrics.snapshot()["ag06_workflow_events_processed_total"] == 3
        assert b"ag06_workflow_events_processed_total 3.0" in observability.metrics.exposition()
    """
    errors = run(program, tmp_path / "metrics")
    assert "what this process counts is missing from the sums of all" in errors
    assert "only those of this one are shown" in errors


def test_what_was_counted_before_processes_share_a_directory_comes_along(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from ag06.monitoring import observability
        metrics = observability.metrics
        metrics.increment_counter("events_processed", 3)
        metrics.observe_summary("size", 2)
        metrics.set_gauge("queue_size", 5)
        metrics.share(Path(sys.argv[1]))
        metrics.increment_counter("events_processed", 4)
        metrics.observe_summary("size", 3)
        found = metrics.snapshot()
        assert found["ag06_workflow_queue_size"] == 5, found
    """
    run(program, tmp_path / "elsewhere", str(tmp_path / "metrics"))
    found = shown(MetricsFacade(Registry(), tmp_path / "metrics"))
    assert found["ag06_workflow_events_processed_total"] == 7.0
    assert found["ag06_workflow_size"] == {"count": 2, "sum": 5.0, "mean": 2.5}
