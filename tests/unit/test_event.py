from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import Event, Priority
from ag06.event import decode_event, from_millis, to_millis
from ag06.persistence import EventPriority

NOON = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)


@given(st.integers(-(10**12), 10**14))
def test_milliseconds_survive_the_way_to_a_datetime_and_back(millis: int) -> None:
    assert to_millis(from_millis(millis)) == millis


@given(st.datetimes(timezones=st.just(dt.UTC)))
def test_a_moment_is_rounded_down_to_the_millisecond(moment: dt.datetime) -> None:
    floored = from_millis(to_millis(moment))
    assert floored <= moment < floored + dt.timedelta(milliseconds=1)


def test_a_stored_event_tells_when_the_log_took_it() -> None:
    event: Event = Event(id="1", type="t", source="s", data={"a": [1]}, time=NOON, subject="x")
    again = decode_event(msgspec.json.encode(event), 1_700_000_000_123)
    assert again.recorded == dt.datetime(2023, 11, 14, 22, 13, 20, 123000, dt.UTC)
    assert msgspec.structs.replace(again, recorded=None) == event


def test_an_event_cannot_be_changed() -> None:
    event: Event = Event(id="1", type="t", source="s", data=1, time=NOON)
    with pytest.raises(AttributeError):
        event.data = 2  # type: ignore[misc]


def test_priorities_are_four_numbers_in_order() -> None:
    assert EventPriority is Priority
    assert [int(level) for level in sorted(Priority)] == [0, 1, 2, 3]
    assert Priority.LOW < Priority.NORMAL < Priority.HIGH < Priority.CRITICAL
