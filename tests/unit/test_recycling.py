from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ag06.errors import ConfigurationError
from ag06.runtime.recycling import Limits, Recycling, limits_of, mark_recycled, read_size, take_mark


def test_a_limit_is_reached_as_it_says() -> None:
    limits = Limits(100, 1 << 30)
    assert limits.reached(99, (1 << 30) - 1) is None
    assert limits.reached(100, 0) == "100 events settled, --max-events"
    assert limits.reached(0, 1 << 30) == "1074 MB of memory in use, --max-memory"
    assert Limits().reached(10**9, 1 << 40) is None


def test_workers_that_started_together_reach_their_number_of_events_one_after_the_other() -> None:
    assert [Limits(100, 7).spread(share) for share in (0.0, 0.5, 1.0)] == [Limits(100, 7), Limits(90, 7), Limits(80, 7)]
    assert Limits(1).spread(1.0) == Limits(1)


def test_a_worker_gets_the_limits_of_its_supervisor() -> None:
    for limits in (Limits(), Limits(5), Limits(5, 1 << 20)):
        assert limits_of(limits.environment) == limits


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("1.5g", 3 << 29), ("1048576", 1 << 20), ("2 GiB", 2 << 30)]
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-5M", "12", "1X"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--max-memory"):
        read_size(text)


def test_the_mark_of_a_recycled_worker_is_found_once_and_for_that_worker_alone(tmp_path: Path) -> None:
    mark_recycled(tmp_path, "host/1")
    assert not take_mark(tmp_path, "host/2")
    assert take_mark(tmp_path, "host/1")
    assert not take_mark(tmp_path, "host/1")
    assert not take_mark(tmp_path / "none", "host/1")


@pytest.mark.parametrize(("lived", "warned"), [(1.0, True), (600.0, False)])
def test_a_limit_of_memory_below_the_size_at_the_start_is_warned_of_with_both_sizes(
    lived: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter([0.0, lived])
    recycling = Recycling(
        Limits(memory=50_000_000),
        lambda: 0,
        lambda: None,
        memory=lambda: 80_000_000,
        clock=lambda: next(times),
    )
    with caplog.at_level(logging.WARNING, "ag06.runtime"):
        assert recycling.look() == "80 MB of memory in use, --max-memory"
    assert ("--max-memory of 50 MB" in caplog.text and "has 80 MB" in caplog.text) == warned
